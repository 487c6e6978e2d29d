"""Which messages does a schedule imply? `lower` adds them, and the one program is simulated, executed and drawn.

Every value that a stage on another rank needs (by `dependencies.NEEDS`) is sent right after the action that gives it
and received right before the action that needs it.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from pipelab.action import RECV_B, RECV_F, SEND_B, SEND_F, Action, Element, F, I, parts
from pipelab.dependencies import GIVES, Value, dataflow
from pipelab.placement import Placement
from pipelab.schedule import Schedule

SEND = {F: SEND_F, I: SEND_B}
RECV = {F: RECV_F, I: RECV_B}
"""The message that carries a value: activations after F, the gradient of the input after I (or B)."""

CARRIES = {message: value for value, message in SEND.items()}

RECEIVED_FROM = {RECV_F: (-1, SEND_F), RECV_B: (+1, SEND_B)}
"""For a receive, the (distance in stages, kind) of the send that feeds it."""


@dataclass(frozen=True)
class Program:
    """A schedule with its messages written out: for each rank, what a worker executes in order.

    >>> from pipelab import build
    >>> print(lower(build("gpipe", ranks=2, microbatches=1)))
    0F0 0SEND_F0 0RECV_B0 0B0
    1RECV_F0 1F0 1B0 1SEND_B0
    """

    schedule: Schedule
    rows: tuple[tuple[Element, ...], ...]

    @property
    def placement(self) -> Placement:
        """Which rank holds which stage."""
        return self.schedule.placement

    def peer(self, message: Action) -> Action:
        """The send that feeds a receive, and the other way round: `peer`."""
        return peer(message)

    def __str__(self) -> str:
        return "\n".join(" ".join(map(str, row)) for row in self.rows)


def peer(message: Action) -> Action:
    """The send that feeds a receive, and the other way round. Raises ValueError for what is not a message.

    >>> str(peer(Action.parse("1RECV_F0"))), str(peer(Action.parse("0SEND_F0")))
    ('0SEND_F0', '1RECV_F0')
    """
    for receive, (step, send) in RECEIVED_FROM.items():
        if message.kind == receive:
            return Action(message.stage + step, send, message.microbatch)
        if message.kind == send:
            return Action(message.stage - step, receive, message.microbatch)
    raise ValueError(f"{message} is not a message")


def lower(schedule: Schedule) -> Program:
    """Add to each row the sends and receives that its dependencies imply; values that stay on a rank need none."""
    remote = _remote(schedule)
    wanted = {source for sources in remote.values() for source in sources}
    rows = tuple(
        tuple(step for element in row for step in _with_messages(element, remote, wanted)) for row in schedule.rows
    )
    return Program(schedule, rows)


def message_flow(schedule: Schedule) -> dict[Value, tuple[Value, ...]]:
    """What each step of a lowered program waits for from another rank: a receive waits for its send."""
    table: dict[Value, tuple[Value, ...]] = dict.fromkeys(dataflow(schedule.stages), ())
    for stage in range(schedule.stages):
        for receive, (step, send) in RECEIVED_FROM.items():
            table[stage, send] = ()
            if 0 <= stage + step < schedule.stages:
                table[stage, receive] = ((stage + step, send),)
    return table


def _remote(schedule: Schedule) -> dict[Value, list[Value]]:
    """For each (stage, kind), the values that it needs from another rank."""
    rank_of = schedule.placement.rank_of
    return {
        (stage, kind): [source for source in sources if rank_of[source[0]] != rank_of[stage]]
        for (stage, kind), sources in dataflow(schedule.stages).items()
    }


def _with_messages(element: Element, remote: dict[Value, list[Value]], wanted: set[Value]) -> Iterator[Element]:
    for stage, kind, microbatch in parts(element):
        for _, carried in remote[stage, kind]:
            yield Action(stage, RECV[carried], microbatch)
    yield element
    for stage, kind, microbatch in parts(element):
        given = GIVES.get(kind, kind)
        if (stage, given) in wanted:
            yield Action(stage, SEND[given], microbatch)
