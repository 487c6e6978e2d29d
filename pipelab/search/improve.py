"""Can two neighbours trade places? Local search along the longest chain of a schedule.

What makes a schedule long is one chain of actions that wait for each other. Only a swap of two neighbours on that
chain can shorten it (the argument of job-shop search: Nowicki and Smutnicki 1996), so only these are tried; the best is
taken even when it is no better, and may not be undone for a while, which leads out of a dead end.
"""

from collections.abc import Iterator

from pipelab.action import Action, F, I, W
from pipelab.dependencies import needs
from pipelab.engine import Stuck
from pipelab.search.problem import Problem, Rows
from pipelab.trace import Number, Span

REST = 8
"""For how many steps a swap may not be undone."""


def improve(problem: Problem, rows: Rows, enough: Number, plays: int) -> Rows:
    """The shortest rows met when at most `plays` are tried; stops at `enough`. Never longer than what it was given.

    >>> from pipelab.placement import Placement
    >>> problem = Problem.of(Placement.loop(2), 3, memory_limit=3)
    >>> better = improve(problem, problem.numbered(["FFFIWIWIW", "FIWFIWFIW"]), enough=9, plays=50)
    >>> problem.measure(problem.play(better))
    10
    """
    current, played = [list(row) for row in rows], problem.play(rows)
    best, kept = problem.measure(played), rows
    resting: dict[tuple[int, int], int] = {}
    step = 0
    while plays > 0 and best > enough:
        step += 1
        options = []
        for rank, position in _swaps(problem, current, played):
            plays -= 1
            after = _swapped(problem, current, rank, position)
            if after is None:
                continue
            length = problem.measure(after)
            if length < best or resting.get((rank, position), 0) <= step:
                options.append((length, sum(row[-1].end for row in after), rank, position, after))
            if length < best or plays <= 0:
                break
        if not options:
            break
        length, _, rank, position, played = min(options, key=lambda option: option[:4])
        _swap(current[rank], position)
        resting[rank, position] = step + REST
        if length < best:
            best, kept = length, [list(row) for row in current]
    return kept


def _swapped(problem: Problem, rows: list[list[Action]], rank: int, position: int) -> list[list[Span]] | None:
    """The spans with two neighbours swapped, or None where the rows would lock each other."""
    _swap(rows[rank], position)
    try:
        return problem.play(rows)
    except Stuck:
        return None
    finally:
        _swap(rows[rank], position)


def _swap(row: list[Action], position: int) -> None:
    row[position - 1], row[position] = row[position], row[position - 1]


def _swaps(problem: Problem, rows: list[list[Action]], played: list[list[Span]]) -> Iterator[tuple[int, int]]:
    """Rank and position of every pair (position - 1, position) on the longest chain that may trade places."""
    stages = problem.placement.stages
    change = {F: problem.one, I: problem.weight - problem.one, W: -problem.weight}
    for rank, position in _chain(problem, rows, played):
        first, second = rows[rank][position - 1], rows[rank][position]
        if first[:2] == second[:2] or first in needs(second, stages):
            continue
        held = sum(change[action.kind] for action in rows[rank][: position - 1])
        if held + change[second.kind] <= problem.limits[rank]:
            yield rank, position


def _chain(problem: Problem, rows: list[list[Action]], played: list[list[Span]]) -> Iterator[tuple[int, int]]:
    """From the end of the longest rank back to the start: each action that its neighbour before made wait."""
    place = {action: (rank, position) for rank, row in enumerate(rows) for position, action in enumerate(row)}
    late = [row[-1].end - offset for row, offset in zip(played, problem.offset, strict=True)]
    rank = late.index(max(late))
    position = len(played[rank]) - 1
    while True:
        start = played[rank][position].start
        if position and played[rank][position - 1].end == start:
            yield rank, position
        stage, kind, microbatch = rows[rank][position]
        for (source, need), latency in problem.inputs[stage, kind]:
            other, there = place[Action(source, need, microbatch)]
            if other != rank and played[other][there].end + latency == start:
                rank, position = other, there
                break
        else:
            if not position:
                return
            position -= 1
