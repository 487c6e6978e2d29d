"""Which order of work is the shortest within a memory limit? A search, and a bound that says how good it is.

    problem   what is asked          greedy    rules that make a schedule     improve   swaps along the longest chain
    bound     what cannot be beaten  dials     which rules are tried

Every limit is searched as itself and as all smaller ones of a fixed ladder, so a larger limit can only help.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from fractions import Fraction
from typing import NamedTuple

from pipelab.costs import Costs
from pipelab.placement import Placement
from pipelab.schedule import Letter, Schedule
from pipelab.search.bound import bound
from pipelab.search.dials import tried, words
from pipelab.search.greedy import dispatch
from pipelab.search.improve import improve, replay
from pipelab.search.problem import Problem, Rows
from pipelab.trace import Number, ratio

__all__ = ["Found", "find", "lower_bound"]


class Found(NamedTuple):
    """A schedule, its length under the objective, and a length that no schedule within the limits goes below."""

    schedule: Schedule
    length: Number
    lower_bound: Number

    @property
    def gap(self) -> Number:
        """How much longer than the bound: 0 means that nothing shorter exists."""
        return ratio(self.length, self.lower_bound) - 1 if self.lower_bound else 0


def find(
    ranks: int,
    microbatches: int,
    costs: Costs | None = None,
    memory_limit: Number | Sequence[Number] | None = None,
    weight_memory: Number = 1,
    objective: str = "span",
) -> Found:
    """The shortest schedule found for these costs within this memory, one stage a rank.

    `memory_limit` is in whole micro-batches' activations, for all ranks or one per rank (default: P); a micro-batch
    takes 1 from the start of F to the end of I, then `weight_memory` to the end of W. `objective` is "span", the longest
    time from a rank's own first start to its own last end, or "step", the makespan. Raises ValueError with the remedy.

    >>> found = find(4, 8, memory_limit=7)
    >>> found.length, found.lower_bound, found.gap
    (24, 24, Fraction(0, 1))
    """
    problem = Problem.of(ranks, microbatches, costs, memory_limit, weight_memory, objective)
    rows, length = _shortest(problem)
    schedule = Schedule.from_words("zb-auto", Placement.loop(ranks), microbatches, lambda rank: _letters(rows, rank))
    return Found(schedule, problem.in_units(length), problem.in_units(bound(problem)))


def lower_bound(
    ranks: int,
    microbatches: int,
    costs: Costs | None = None,
    memory_limit: Number | Sequence[Number] | None = None,
    weight_memory: Number = 1,
    objective: str = "span",
) -> Number:
    """A length that no schedule within these limits goes below; the options are those of `find`.

    >>> lower_bound(4, 8), lower_bound(4, 8, objective="step")
    (27, 27)
    """
    problem = Problem.of(ranks, microbatches, costs, memory_limit, weight_memory, objective)
    return problem.in_units(bound(problem))


def _letters(rows: Rows, rank: int) -> list[Letter]:
    return [(rank, kind) for kind in rows[rank]]


def _shortest(problem: Problem) -> tuple[Rows, Number]:
    """The best of the published words that fit and of all levels of the ladder that could still be better."""
    enough = bound(problem)
    best = min(
        ((_length(problem, rows), number, rows) for number, rows in enumerate(words(problem)) if problem.fits(rows)),
        key=lambda known: known[:2],
    )
    rows, length = best[2], best[0]
    for level, limits in _levels(problem):
        if length <= enough:
            break
        if bound(replace(problem, limits=limits)) < length:
            found, shorter = _search(problem, level, limits, enough)
            if shorter < length:
                rows, length = found, shorter
    return rows, length


def _length(problem: Problem, rows: Rows) -> Number:
    played = replay(problem, rows)
    assert played is not None
    return problem.length(played.finish())


def _search(problem: Problem, level: int, limits: tuple[int, ...], enough: Number) -> tuple[Rows, Number]:
    """Turn the dials at one level, then let the best of them improve."""
    at_level = replace(problem, limits=limits)
    best: tuple[Rows, Number] | None = None
    for dial in tried(problem, level, bound(at_level)):
        played = dispatch(problem, limits, dial)
        length = problem.length(played.ends)
        if best is None or length < best[1]:
            best = played.rows, length
        if length <= enough:
            return best
    assert best is not None
    for rows in words(problem):
        if at_level.fits(rows):
            length = _length(problem, rows)
            if length < best[1]:
                best = rows, length
    plays = min(PLAYS, REPLAYED // (3 * problem.ranks * problem.microbatches))
    rows = improve(problem, limits, best[0], enough, plays)
    return rows, _length(problem, rows)


PLAYS, REPLAYED = 300, 200_000
"""Replays of one local search: at most so many, and so many actions in all."""


def _levels(problem: Problem) -> Iterator[tuple[int, tuple[int, ...]]]:
    """The limits of memory to search, from the given ones down: each rank's own, cut to each step of the ladder."""
    seen = set()
    steps = _ladder(problem)
    own = [max(step for step in steps if step <= Fraction(limit, problem.one)) for limit in problem.limits]
    for step in reversed(steps):
        if step > max(own):
            continue
        limits = tuple(int(min(step, limit) * problem.one) for limit in own)
        if limits not in seen:
            seen.add(limits)
            yield int(step), limits


def _ladder(problem: Problem) -> list[Fraction]:
    """The steps of memory, the same for every limit: all counts on small shapes, quarters of P and M on large ones."""
    P, M = problem.ranks, problem.microbatches
    if 3 * P * M <= 4000:
        steps = {Fraction(step) for step in range(1, M + 1)}
        if 0 < problem.weight < problem.one:
            steps |= {Fraction(step, 4) for step in range(4, 4 * min(M, P + 1))}
    else:
        steps = {Fraction(k * P // 4) for k in range(1, 13)} | {Fraction(k) for k in (1, 2, 3, M)}
    return sorted(step for step in steps if 1 <= step <= M)
