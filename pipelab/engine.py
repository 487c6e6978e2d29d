"""When can each step start? When its rank is free and what it needs has arrived: one loop plays every schedule.

`validate` plays it to see whether it ends, `simulate` to see when. Read next: `validate`.
"""

import math
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

from pipelab.action import Action, Element, Pair
from pipelab.collector import collector_at_rest
from pipelab.dependencies import GIVES, Value
from pipelab.trace import Number, Span

Inputs = Mapping[Value, Sequence[tuple[Value, Number]]]
"""For each (stage, kind) the values that it needs and the latency of each."""

CarriedOver = Mapping[Value, tuple[Value, int]]
"""The values that are another value of so many micro-batches before; of the first ones nobody need wait for."""


class Stuck(Exception):
    """No rank can go on: `.waiting` maps each unfinished rank to (its position, the action it needs)."""

    def __init__(self, waiting: dict[int, tuple[int, Action]]) -> None:
        self.waiting = waiting
        super().__init__("; ".join(f"rank {rank} waits for {need}" for rank, (_, need) in waiting.items()))


class _Node(NamedTuple):
    """What the loop knows of one (stage, kind), for all micro-batches.

    `ends[m]` is when micro-batch m was done (None before), `givers[m]` the action that did it (before: the rank, if
    any, that waits for it). `inputs` are the same two lists of each value that is needed, its latency and its name.
    """

    duration: Number
    ends: list[Any]
    givers: list[Any]
    inputs: tuple[tuple[list[Any], list[Any], Number, Value], ...]


class _Nodes(dict[int, _Node]):
    """The nodes of one kind by stage, made when the first action asks: costs may not know what no row holds."""

    def __init__(self, make: Callable[[int], _Node]) -> None:
        self._make = make

    def __missing__(self, stage: int) -> _Node:
        node = self[stage] = self._make(stage)
        return node


def play(
    rows: Sequence[Sequence[Element]], inputs: Inputs, durations: Mapping[Value, Number], microbatches: int,
    carried: CarriedOver = {},  # noqa: B006 (read only)
) -> list[list[Span]]:  # fmt: skip
    """Start every element of every row as early as its rank and its inputs allow; gives the spans of each rank.

    Ranks go on one by one until they must wait, so the time it takes grows with the number of actions alone. Raises
    Stuck when every rank that has work left waits.

    >>> rows = [[Action(0, "F", 0), Action(0, "B", 0)], [Action(1, "F", 0), Action(1, "B", 0)]]
    >>> inputs = {(0, "F"): [], (1, "F"): [((0, "F"), 5)], (1, "B"): [((1, "F"), 0)], (0, "B"): [((1, "I"), 5)]}
    >>> played = play(rows, inputs, {(s, k): 1 for s in (0, 1) for k in "FB"}, microbatches=1)
    >>> [(str(span.action), span.start, span.end) for span in played[0]]
    [('0F0', 0, 1), ('0B0', 13, 14)]
    """
    nodes = _nodes(inputs, durations, microbatches, carried)
    played: list[list[Span]] = [[] for _ in rows]
    waiting: dict[int, tuple[Value, int]] = {}
    ready = deque(range(len(rows)))
    ranks = [_run(rank, row, nodes, played[rank], ready) for rank, row in enumerate(rows)]
    with collector_at_rest():
        while ready:
            rank = ready.popleft()
            need = next(ranks[rank], None)
            waiting.pop(rank, None)
            if need is not None:
                waiting[rank] = need
    if waiting:
        raise Stuck({rank: (len(played[rank]), Action(*value, m)) for rank, (value, m) in sorted(waiting.items())})
    return played


class _Shifted:
    """A list of results seen `by` micro-batches later: what comes before its start was there from the beginning."""

    def __init__(self, results: list[Any], by: int, start: Any) -> None:
        self._results, self._by, self._start = results, by, start

    def __getitem__(self, microbatch: int) -> Any:
        return self._results[microbatch - self._by] if microbatch >= self._by else self._start

    def __setitem__(self, microbatch: int, result: Any) -> None:
        self._results[microbatch - self._by] = result


def _nodes(
    inputs: Inputs, durations: Mapping[Value, Number], microbatches: int, carried: CarriedOver
) -> dict[str, _Nodes]:
    """The nodes by kind and stage; a full backward shares its results with I, whose part it plays."""
    results: dict[Value, tuple[Any, Any]] = {
        (stage, GIVES.get(kind, kind)): ([None] * microbatches, [None] * microbatches) for stage, kind in inputs
    }
    for value, (source, by) in carried.items():
        ends, givers = results[source]
        results[value] = _Shifted(ends, by, -math.inf), _Shifted(givers, by, None)

    def make(kind: str, stage: int) -> _Node:
        needed = tuple((*results[source], latency, source) for source, latency in inputs[stage, kind])
        return _Node(durations[stage, kind], *results[stage, GIVES.get(kind, kind)], needed)

    return {kind: _Nodes(partial(make, kind)) for kind in {kind for _, kind in inputs}}


def _run(
    rank: int, row: Sequence[Any], nodes: dict[str, _Nodes], played: list[Span], ready: deque[int]
) -> Iterator[tuple[Value, int]]:
    """Play a rank's row to its end; stop at what is not there yet and give it, and wake the rank that waited for this.

    This loop sets the pace of everything, so it is spelled out, and once more for the two actions of a pair: their one
    slot starts when both can and ends both.
    """
    make, append = tuple.__new__, played.append
    clock: Number = 0
    for element in row:
        start, waited = clock, None
        if element.__class__ is not Pair:
            stage, kind, m = element
            duration, own_ends, own_givers, inputs = nodes[kind][stage]
            for ends, givers, latency, value in inputs:
                while (arrival := ends[m]) is None:
                    givers[m] = rank
                    yield value, m
                arrival += latency
                if arrival > start:
                    start, waited = arrival, givers[m]
            waiter = own_givers[m]
            own_ends[m] = clock = start + duration
            own_givers[m] = element
            if waiter.__class__ is int:
                ready.append(waiter)
        else:
            duration = 0
            for stage, kind, m in element:
                work, _, _, inputs = nodes[kind][stage]
                duration += work
                for ends, givers, latency, value in inputs:
                    while (arrival := ends[m]) is None:
                        givers[m] = rank
                        yield value, m
                    arrival += latency
                    if arrival > start:
                        start, waited = arrival, givers[m]
            clock = start + duration
            for action in element:
                stage, kind, m = action
                _, own_ends, own_givers, _ = nodes[kind][stage]
                waiter = own_givers[m]
                own_ends[m] = clock
                own_givers[m] = action
                if waiter.__class__ is int:
                    ready.append(waiter)
        append(make(Span, (rank, "compute", element, start, clock, waited)))
