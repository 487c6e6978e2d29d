"""What would the same rows take with other times? A trace holds its own schedule: actions, and who needs whom.

A replay starts every action of a trace as early as its rank and its inputs allow, with times of one's choice (`times`).
Read next: `times`, then `path`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from itertools import chain, pairwise
from typing import NamedTuple

from pipelab.action import Action, parts
from pipelab.dependencies import GIVES, NEEDS, Value, needs
from pipelab.trace import Number, Span, Trace, plain

ROUNDING = 1e-9


class Need(NamedTuple):
    """A result that a span needs: the place of the span that gives it, and the message that brings it, if any."""

    giver: int
    message: Value | None


@dataclass(frozen=True)
class Steps:
    """The compute spans of a trace, rank after rank, and what each waits for.

    `before[i]` is the span before span i on its rank, `needs[i]` are the results that it needs, and `order` is one in
    which all of that comes first.
    """

    trace: Trace
    spans: tuple[Span, ...]
    before: tuple[int | None, ...]
    needs: tuple[tuple[Need, ...], ...]
    order: tuple[int, ...]

    @classmethod
    def of(cls, trace: Trace) -> "Steps":
        """Read them from the trace of one step. Raises ValueError, with the reason, for anything else.

        A span needs what the dataflow rule says, as far as the trace contains it, and what it says that it waited for.

        >>> from pipelab import Costs, build, simulate
        >>> steps = Steps.of(simulate(build("gpipe", ranks=2, microbatches=1), Costs.uniform()))
        >>> [(str(span.action), [need.giver for need in needed]) for span, needed in zip(steps.spans, steps.needs)]
        [('0F0', []), ('0B0', [0, 3]), ('1F0', [0]), ('1B0', [2])]
        """
        spans = tuple(chain(*trace.compute))
        if not spans:
            raise ValueError("this trace has no compute spans, so there is nothing to explain")
        _refuse_overlap(trace)
        places = _places(spans)
        stages = 1 + max(result.stage for result in places)
        needed = tuple(_needs(place, spans, places, stages) for place in range(len(spans)))
        before = tuple(
            place - 1 if place and spans[place - 1].rank == span.rank else None for place, span in enumerate(spans)
        )
        return cls(trace, spans, before, needed, _order(spans, before, needed))

    def replay(self, times: Sequence[Number], hops: Mapping[Value, Number]) -> Trace:
        """The trace of the same rows when span i lasts `times[i]` and each message takes `hops[value]` (else 0).

        >>> from pipelab import Costs, build, simulate
        >>> steps = Steps.of(simulate(build("gpipe", ranks=2, microbatches=1), Costs.uniform()))
        >>> steps.replay([1, 1, 1, 1], hops={(0, "F"): 5}).makespan
        9
        """
        starts: list[Number] = [0] * len(self.spans)
        ends: list[Number] = [0] * len(self.spans)
        waited: list[Action | None] = [None] * len(self.spans)
        for place in self.order:
            before = self.before[place]
            start = 0 if before is None else ends[before]
            for giver, message in self.needs[place]:
                arrival = ends[giver] + (hops.get(message, 0) if message else 0)
                if arrival > start:
                    start, waited[place] = arrival, parts(self.spans[giver].action)[-1]
            starts[place], ends[place] = start, start + times[place]
        spans = tuple(
            span._replace(start=plain(start), end=plain(end), waiting_for=wait)
            for span, start, end, wait in zip(self.spans, starts, ends, waited, strict=True)
        )
        return Trace(self.trace.schedule, "simulated", self.trace.chunks, spans)


def result(action: Action) -> Action:
    """The name under which an action's result is needed: a full backward gives what an I gives.

    >>> str(result(Action.parse("1B4"))), str(result(Action.parse("1F4")))
    ('1I4', '1F4')
    """
    return action._replace(kind=GIVES.get(action.kind, action.kind))


def _refuse_overlap(trace: Trace) -> None:
    for rank, row in enumerate(trace.compute):
        for one, other in pairwise(row):
            if other.start < one.end and float(one.end - other.start) > ROUNDING * abs(float(one.end)):
                raise ValueError(
                    f"rank {rank} starts {other.action} before it ends {one.action}; a trace to explain has one action"
                    " at a time on a rank, in the order of execution"
                )


def _places(spans: Sequence[Span]) -> dict[Action, int]:
    """Where each result is made: once, in the trace of one step."""
    places: dict[Action, int] = {}
    for place, span in enumerate(spans):
        for action in parts(span.action):
            if result(action) in places:
                raise ValueError(f"{action} comes twice in this trace; explain takes the trace of a single step")
            places[result(action)] = place
    return places


def _needs(place: int, spans: Sequence[Span], places: Mapping[Action, int], stages: int) -> tuple[Need, ...]:
    span = spans[place]
    wanted = [need for action in parts(span.action) if action.kind in NEEDS for need in needs(action, stages)]
    if span.waiting_for is not None:
        wanted.append(result(span.waiting_for))
    return tuple(
        Need(giver, (need.stage, need.kind) if spans[giver].rank != span.rank else None)
        for need in dict.fromkeys(wanted)
        if (giver := places.get(need)) not in (None, place)
    )


def _order(spans: Sequence[Span], before: Sequence[int | None], needed: Sequence[Sequence[Need]]) -> tuple[int, ...]:
    """An order in which every span comes after what it waits for."""
    first = {place: {need.giver for need in needs} for place, needs in enumerate(needed)}
    for place, one in enumerate(before):
        first[place] |= set() if one is None else {one}
    try:
        return tuple(TopologicalSorter(first).static_order())
    except CycleError as error:
        stuck = spans[min(error.args[1])].action
        raise ValueError(f"these rows cannot have run in this order: {stuck} waits for itself in a circle") from None
