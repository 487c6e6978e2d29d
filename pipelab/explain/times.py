"""Which times does a trace show? Its medians, its stages made equal, its messages. Read next: `path`."""

from collections import defaultdict

from pipelab.action import Action, parts
from pipelab.costs import middle, share
from pipelab.dependencies import Value
from pipelab.explain.replay import Steps, result
from pipelab.lower import CARRIES
from pipelab.trace import Number, Span


def own_times(steps: Steps) -> list[Number]:
    """For each span the median time of its stage and kind in this trace.

    >>> from pipelab import Costs, build, simulate
    >>> own_times(Steps.of(simulate(build("gpipe", ranks=1, microbatches=2), Costs.uniform(F=3))))
    [3, 3, 2, 2]
    """
    times = defaultdict(list)
    for span in steps.spans:
        times[_work(span)].append(span.end - span.start)
    medians = {work: middle(values) for work, values in times.items()}
    return [medians[_work(span)] for span in steps.spans]


def even_times(steps: Steps) -> list[Number]:
    """For each span the time that it would take if all ranks were alike, and the stages of each rank too.

    A rank does, of each kind, the mean of what the ranks do of it for one micro-batch; its stages share that evenly.

    >>> from pipelab import Costs, build, simulate
    >>> unequal = Costs.per_stage(F=[1, 2], I=[1, 1], W=[1, 1])
    >>> even_times(Steps.of(simulate(build("gpipe", ranks=2, microbatches=1), unequal)))
    [Fraction(3, 2), 2, Fraction(3, 2), 2]
    """
    medians: dict[str, dict[int, dict[tuple[Value, ...], Number]]] = defaultdict(lambda: defaultdict(dict))
    for span, time in zip(steps.spans, own_times(steps), strict=True):
        medians[_kinds(span)][span.rank][_work(span)] = time
    chunks = steps.trace.chunks
    rank_work = {
        kinds: [share(sum(of.values()) * max(chunks[rank], 1), len(of)) for rank, of in ranks.items()]
        for kinds, ranks in medians.items()
    }
    even = {kinds: share(sum(works), len(works)) for kinds, works in rank_work.items()}
    return [share(even[_kinds(span)], max(chunks[span.rank], 1)) for span in steps.spans]


def hop_times(steps: Steps) -> dict[Value, Number]:
    """How long each message flew: as the send lane says; without one, as long as a receiver waited for finished work.

    A message that nobody waited for is taken to be like the others, but no slower than it can have been.

    >>> from pipelab import Costs, build, simulate
    >>> hop_times(Steps.of(simulate(build("gpipe", ranks=2, microbatches=1), Costs.uniform(hop=5))))
    {(1, 'I'): 5, (0, 'F'): 5}
    """
    flights = defaultdict(list)
    for span in steps.trace.spans:
        if span.lane == "send" and isinstance(span.action, Action):
            flights[span.action.stage, CARRIES[span.action.kind]].append(span.end - span.start)
    if flights:
        return {message: middle(times) for message, times in flights.items()}
    least: dict[Value, Number] = {}
    for span, needed in zip(steps.spans, steps.needs, strict=True):
        waited = span.waiting_for and result(span.waiting_for)
        for giver, message in needed:
            if message is None:
                continue
            late = max(span.start - steps.spans[giver].end, 0)
            least[message] = min(late, least.get(message, late))
            if waited in [result(action) for action in parts(steps.spans[giver].action)]:
                flights[message].append(late)
    seen = [time for times in flights.values() for time in times]
    usual = middle(seen) if seen else 0
    return {
        message: middle(flights[message]) if message in flights else min(usual, slack)
        for message, slack in least.items()
    }


def _work(span: Span) -> tuple[Value, ...]:
    return tuple((action.stage, action.kind) for action in parts(span.action))


def _kinds(span: Span) -> str:
    return "+".join(action.kind for action in parts(span.action))
