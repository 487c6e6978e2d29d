"""Can two neighbours trade places? Local search along the longest chain of a schedule.

What makes a schedule long is one chain of actions that wait for each other. Only a swap of two neighbours on that
chain can shorten it (the argument of job-shop search: Nowicki and Smutnicki 1996), so only these are tried; the best is
taken even when it is no better, and may not be undone for a while, which leads out of a dead end.
"""

from collections.abc import Iterator, Sequence
from itertools import accumulate
from typing import NamedTuple

from pipelab.action import F, I, W
from pipelab.search.problem import Problem, Rows
from pipelab.trace import Number

REST = 8
"""For how many steps a swap may not be undone."""


class Replay(NamedTuple):
    """When every action starts and ends, by rank and position, and where micro-batch m's F and I stand in the rows."""

    starts: list[list[Number]]
    ends: list[list[Number]]
    places: dict[str, list[list[int]]]

    def finish(self) -> list[Number]:
        """The end of each rank."""
        return [ends[-1] for ends in self.ends]


def replay(problem: Problem, rows: Rows) -> Replay | None:
    """Start every action as early as it can, like `simulate`, but letters only: many times faster on small shapes.

    None where the rows lock each other.
    """
    P = problem.ranks
    starts: list[list[Number]] = [[] for _ in range(P)]
    ends: list[list[Number]] = [[] for _ in range(P)]
    places: dict[str, list[list[int]]] = {kind: [[] for _ in range(P)] for kind in (F, I, W)}
    waiting = list(range(P))
    while waiting:
        r = waiting.pop()
        row, own_starts, own_ends = rows[r], starts[r], ends[r]
        own = {kind: places[kind][r] for kind in (F, I, W)}
        took = {F: problem.F[r], I: problem.I[r], W: problem.W[r]}
        before = {F: r - 1, I: r + 1 if r < P - 1 else -1, W: -1}
        hop = {F: problem.hop_down[r - 1] if r else 0, I: problem.hop_up[r] if r < P - 1 else 0}
        clock: Number = own_ends[-1] if own_ends else 0
        first = len(own_ends)
        for position in range(first, len(row)):
            kind = row[position]
            source = before[kind]
            if source >= 0:
                given = places[kind][source]
                m = len(own[kind])
                if m >= len(given):
                    break
                clock = max(clock, ends[source][given[m]] + hop[kind])
            own_starts.append(clock)
            clock += took[kind]
            own_ends.append(clock)
            own[kind].append(position)
        if len(own_ends) > first:
            waiting += [q for q in (r - 1, r + 1) if 0 <= q < P and len(ends[q]) < len(rows[q]) and q not in waiting]
    if any(len(done) < len(row) for done, row in zip(ends, rows, strict=True)):
        return None
    return Replay(starts, ends, places)


def improve(problem: Problem, limits: Sequence[int], rows: Rows, enough: Number, plays: int) -> Rows:
    """The shortest rows met in at most `plays` replays; stops at `enough`. Never longer than what it was given.

    >>> problem = Problem.of(2, 3, None, memory_limit=3, weight_memory=1, objective="span")
    >>> better = improve(problem, problem.limits, [list("FFFIWIWIW"), list("FIWFIWFIW")], enough=9, plays=50)
    >>> problem.length(replay(problem, better).finish())
    10
    """
    rows = [list(row) for row in rows]
    current = replay(problem, rows)
    assert current is not None
    best, kept = problem.length(current.finish()), [list(row) for row in rows]
    resting: dict[tuple[int, int], int] = {}
    step = 0
    while plays > 0 and best > enough:
        step += 1
        options = []
        for rank, position in _swaps(problem, limits, rows, current):
            _swap(rows[rank], position)
            after = replay(problem, rows)
            _swap(rows[rank], position)
            plays -= 1
            if after is None:
                continue
            length = problem.length(after.finish())
            if length < best or resting.get((rank, position), 0) <= step:
                options.append((length, sum(after.finish()), rank, position, after))
            if length < best or plays <= 0:
                break
        if not options:
            break
        length, _, rank, position, current = min(options, key=lambda option: option[:4])
        _swap(rows[rank], position)
        resting[rank, position] = step + REST
        if length < best:
            best, kept = length, [list(row) for row in rows]
    return kept


def _swap(row: list[str], position: int) -> None:
    row[position - 1], row[position] = row[position], row[position - 1]


def _swaps(problem: Problem, limits: Sequence[int], rows: Rows, played: Replay) -> Iterator[tuple[int, int]]:
    """Rank and position of every pair (position - 1, position) on the longest chain that may trade places."""
    for rank, position in _chain(problem, rows, played):
        first, second = rows[rank][position - 1], rows[rank][position]
        if first == second:
            continue
        f, i, w = (sum(place < position - 1 for place in played.places[kind][rank]) for kind in (F, I, W))
        held = (f - i) * problem.one + (i - w) * problem.weight
        if (second == F and held + problem.one <= limits[rank]) or (second == I and i < f) or (second == W and w < i):
            yield rank, position


def _chain(problem: Problem, rows: Rows, played: Replay) -> Iterator[tuple[int, int]]:
    """From the end of the longest rank back to the start: each action that its neighbour before made wait."""
    ends = played.finish()
    late = [end - offset for end, offset in zip(ends, problem.offset, strict=True)]
    rank = late.index(max(late))
    position = len(rows[rank]) - 1
    count = [{kind: list(accumulate((k == kind for k in row), initial=0)) for kind in (F, I)} for row in rows]
    while position >= 0:
        start, kind = played.starts[rank][position], rows[rank][position]
        if position and played.ends[rank][position - 1] == start:
            yield rank, position
        source = rank - 1 if kind == F else rank + 1 if kind == I else -1
        if 0 <= source < problem.ranks:
            m = count[rank][kind][position]
            place = played.places[kind][source][m]
            hop = problem.hop_down[source] if kind == F else problem.hop_up[rank]
            if played.ends[source][place] + hop == start:
                rank, position = source, place
                continue
        position -= 1
