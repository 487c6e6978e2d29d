"""Why was this rank idle? Every pause, split into causes that sum to it. Read next: `advice`."""

from collections.abc import Sequence
from typing import NamedTuple

from pipelab.action import Action, Element
from pipelab.explain.path import Leg, chain_before, critical_path
from pipelab.explain.replay import Steps
from pipelab.explain.times import even_times, hop_times, own_times
from pipelab.trace import Number, Trace, plain
from pipelab.units import origin

WARM_UP, COOL_DOWN, DEPENDENCY = "warm-up", "cool-down", "dependency"
COMMUNICATION, IMBALANCE, JITTER = "communication", "imbalance", "jitter"
CAUSES = {
    WARM_UP: "before the rank's first action: its place in the pipeline forces it",
    COOL_DOWN: "after the rank's last action, until the last rank has ended",
    DEPENDENCY: "between two actions, until a result of another rank is there",
    COMMUNICATION: "what is not there if messages take no time",
    IMBALANCE: "what is not there if all stages have the mean work",
    JITTER: "what is not there if an action always takes its median time",
}
"""Why a rank is idle: each cause and its definition. The first three are what the others leave."""

WORK, ORDER = "work", "order"
TERMS = {
    WORK: "what an average rank does",
    ORDER: "how much longer the same rows take with equal stages and messages that take no time",
    COMMUNICATION: "how much longer still when messages take their time",
    IMBALANCE: "how much longer still when each stage has its own work",
    JITTER: "how much longer still the trace is",
}
"""What a makespan is the sum of: each term and its definition."""


class Pause(NamedTuple):
    """A time in which a rank does nothing, `before` an action (None: after its last one).

    `where` is warm-up before the rank's first action, cool-down after its last one, and dependency in between.
    `waiting_for` is the action whose result the rank waited for, `meanwhile` what went on in the chain that ended the
    pause, and `causes` are (cause, time), `where` first, which sum to its length.
    """

    rank: int
    start: Number
    end: Number
    where: str
    before: Element | None
    waiting_for: Action | None
    meanwhile: tuple[Leg, ...]
    causes: tuple[tuple[str, Number], ...]

    @property
    def length(self) -> Number:
        """How long it took."""
        return self.end - self.start


class Replays(NamedTuple):
    """One step, four times: as it was, then without jitter, with equal stages too, and with no hops either."""

    seen: Trace
    steady: Trace
    even: Trace
    alone: Trace

    @classmethod
    def of(cls, steps: Steps) -> "Replays":
        """Replay the rows of a trace three times.

        >>> from pipelab import Costs, build, simulate
        >>> trace = simulate(build("1f1b", 2, 4), Costs.per_stage(F=[1, 2], I=[1, 2], W=[1, 2], hop=1))
        >>> [str(replay.makespan) for replay in Replays.of(Steps.of(trace))]
        ['29', '29', '53/2', '45/2']
        """
        hops, even = hop_times(steps), even_times(steps)
        return cls(steps.trace, steps.replay(own_times(steps), hops), steps.replay(even, hops), steps.replay(even, {}))


def makespan_terms(replays: Replays) -> dict[str, Number]:
    """The makespan as a sum: what is added from one replay to the next (a term may be negative).

    >>> from pipelab import Costs, build, simulate
    >>> trace = simulate(build("1f1b", ranks=4, microbatches=8), Costs.uniform(hop=1))
    >>> makespan_terms(Replays.of(Steps.of(trace)))
    {'work': 24, 'order': 9, 'communication': 16, 'imbalance': 0, 'jitter': 0}
    """
    work = max(replays.alone.busy)
    lengths = [0, work, *(trace.makespan for trace in reversed(replays))]
    return {term: plain(longer - shorter) for term, shorter, longer in zip(TERMS, lengths, lengths[1:], strict=False)}


def pauses(steps: Steps, replays: Replays) -> tuple[Pause, ...]:
    """Every pause of every rank, in the order of ranks and of time; those of no length are left out."""
    found = []
    path = critical_path(steps)
    edges = [_edges(trace) for trace in replays]
    here = 0
    for rank, row in enumerate(steps.trace.compute):
        for position, (start, end) in enumerate(edges[0][rank]):
            if end <= start:
                continue
            lengths = [ends[rank][position][1] - ends[rank][position][0] for ends in edges]
            if position == len(row):
                causes = _causes(lengths, COOL_DOWN, bool(row))
                found.append(Pause(rank, start, end, COOL_DOWN, None, None, _since(path, start), causes))
            else:
                where, span = DEPENDENCY if position else WARM_UP, row[position]
                chain, causes = chain_before(steps, here + position, start), _causes(lengths, where, True)
                found.append(Pause(rank, start, end, where, span.action, span.waiting_for, chain, causes))
        here += len(row)
    return tuple(found)


def idle_by_cause(pauses: Sequence[Pause], ranks: int) -> tuple[dict[str, Number], ...]:
    """For each rank the idle time of each cause."""
    idle: list[dict[str, Number]] = [dict.fromkeys(CAUSES, 0) for _ in range(ranks)]
    for pause in pauses:
        for cause, time in pause.causes:
            idle[pause.rank][cause] = plain(idle[pause.rank][cause] + time)
    return tuple(idle)


def _edges(trace: Trace) -> list[list[tuple[Number, Number]]]:
    """For each rank where its pauses begin and end: before each of its actions, and after the last one."""
    begin = origin(trace)
    end = max(row[-1].end for row in trace.compute if row)
    return [
        list(zip([begin, *(span.end for span in row)], [*(span.start for span in row), end], strict=True))
        for row in trace.compute
    ]


def _causes(lengths: Sequence[Number], where: str, works: bool) -> tuple[tuple[str, Number], ...]:
    """Of a pause as long as `lengths` in the four replays: what each replay takes off, and what stays to the end."""
    if not works:
        return ((IMBALANCE, plain(lengths[0])),)  # a rank without any work
    left, taken = lengths[0], []
    for cause, length in zip((JITTER, IMBALANCE, COMMUNICATION), lengths[1:], strict=True):
        stays = min(left, max(length, 0))
        taken.append((cause, left - stays))
        left = stays
    taken.append((where, left))
    return tuple((cause, plain(time)) for cause, time in reversed(taken) if time)


def _since(path: Sequence[Leg], start: Number) -> tuple[Leg, ...]:
    """The end of a chain, from `start` on."""
    return tuple(leg._replace(start=max(leg.start, start)) for leg in path if leg.end > start)
