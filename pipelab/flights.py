"""When did a message land that was sent to another process? On the wall clock, as far as its receiver can tell.

Gloo does not say when a message has arrived. A receiver that was already waiting when it left goes on when it lands:
that end is known. Of a message that came while its receiver was busy only the latest end is known: it was taken up.
"""

from collections import defaultdict
from collections.abc import Iterable

from pipelab.action import Action
from pipelab.costs import middle
from pipelab.lower import peer
from pipelab.trace import Number, Span


def landings(spans: Iterable[Span]) -> dict[Span, Number]:
    """The end of every send in the spans of all ranks of one step, on one clock.

    A message that nobody waited for is taken to fly as long as the others of its stage (the median), or of all stages,
    and to land no later than it was taken up.

    >>> sends = [Span(0, "send", Action(0, "SEND_F", m), m, m) for m in (1, 2)]
    >>> waited = Span(1, "recv", Action(1, "RECV_F", 1), 0, 1.5, Action(0, "F", 1))
    >>> found = Span(1, "recv", Action(1, "RECV_F", 2), 9, 9)
    >>> list(landings([*sends, waited, found]).values())
    [1.5, 2.5]
    """
    messages = [(span, span.action) for span in spans if span.lane != "compute" and isinstance(span.action, Action)]
    taken = {peer(action): span for span, action in messages if span.lane == "recv"}
    sends = [(span, action, taken[action]) for span, action in messages if span.lane == "send"]
    flights: dict[int | None, list[Number]] = defaultdict(list)
    for send, action, receive in sends:
        if receive.waiting_for is not None:
            for key in (action.stage, None):
                flights[key].append(receive.end - send.start)
    usual = {key: middle(times) for key, times in flights.items()}
    ends: dict[Span, Number] = {}
    for send, action, receive in sends:
        landed = receive.end
        if receive.waiting_for is None and usual:
            landed = min(landed, send.start + usual.get(action.stage, usual[None]))
        ends[send] = max(send.end, landed)
    return ends
