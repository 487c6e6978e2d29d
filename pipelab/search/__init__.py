"""Which order of work is the shortest within a memory limit? A search, and a bound that says how good it is.

Candidates come from three sources: the published words, rules of thumb with a dial (`greedy`, `dials`), and the waves
of the published heuristic (`waves`); then neighbours trade places (`improve`). Every limit is searched together with
all smaller steps of one ladder, so that more memory for all ranks can only help. `bound` says what none can beat.

Read next: `problem`.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from fractions import Fraction
from itertools import chain, islice
from math import floor
from typing import NamedTuple

from pipelab.costs import Costs
from pipelab.placement import Placement
from pipelab.schedule import Letter, Schedule
from pipelab.search.bound import ROUNDING, bound
from pipelab.search.dials import tried, words
from pipelab.search.greedy import dispatch
from pipelab.search.improve import improve, replay
from pipelab.search.problem import Problem, Rows
from pipelab.search.waves import waves
from pipelab.trace import Number, ratio

__all__ = ["Found", "find", "lower_bound"]


class Found(NamedTuple):
    """A schedule, its length under the objective, and a length that none with one stage a rank goes below."""

    schedule: Schedule
    length: Number
    lower_bound: Number

    @property
    def gap(self) -> Number:
        """How much longer than the bound: 0 means that nothing shorter exists with one stage a rank."""
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
    takes 1 from the start of F to the end of I, then `weight_memory` to the end of W. `objective` is "span", the
    longest time from a rank's own first start to its own last end, or "step", the makespan.

    All times are compared exactly where the costs are exact. Raises ValueError with the remedy.

    >>> found = find(4, 8, memory_limit=7)
    >>> found.length, found.lower_bound, found.gap
    (24, 24, Fraction(0, 1))
    """
    problem = Problem.of(ranks, microbatches, costs, memory_limit, weight_memory, objective)
    length, rows = _shortest(problem)
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
    """A length that no schedule with one stage a rank goes below within these limits; the options are those of `find`.

    >>> lower_bound(4, 8), lower_bound(4, 8, objective="step")
    (27, 27)
    """
    problem = Problem.of(ranks, microbatches, costs, memory_limit, weight_memory, objective)
    return problem.in_units(bound(problem))


def _letters(rows: Rows, rank: int) -> list[Letter]:
    return [(rank, kind) for kind in rows[rank]]


Known = tuple[Number, Rows]
"""A length and the rows that have it."""


def _shortest(problem: Problem) -> Known:
    """The best of the published words that fit and of all levels of the ladder that could still be better."""
    published = [(_length(problem, rows), rows, problem.peaks(rows)) for rows in words(problem)]
    enough = bound(problem)
    if isinstance(enough, float):
        enough *= 1 + 4 * ROUNDING  # a bound in floats lies a little below the length that meets it
    best = _first_shortest(_within(published, problem.limits))
    for level, limits in _levels(problem):
        if best[0] <= enough:
            break
        at_level = replace(problem, limits=limits)
        if bound(at_level) < best[0]:
            found = _search(at_level, level, _within(published, limits), enough)
            best = _first_shortest([best, found])
    return best


def _search(problem: Problem, level: Fraction, known: list[Known], enough: Number) -> Known:
    """Turn the dials and send the waves within these limits, then let the best rows improve."""
    most = None if level in _main_levels(problem) else FEW
    dials = islice(tried(problem, int(level), bound(problem)), most)
    turned = (dispatch(problem, problem.limits, dial) for dial in dials)
    for played in chain(turned, waves(problem, problem.limits)):
        known.append((problem.length(played.ends), played.rows))
        if known[-1][0] <= enough:
            return known[-1]
    best = _first_shortest(known)
    plays = min(PLAYS, REPLAYED // _actions(problem))
    if level not in _main_levels(problem) or plays < FEW:
        return best
    rows = improve(problem, problem.limits, best[1], enough, plays)
    return _length(problem, rows), rows


def _within(published: list[tuple[Number, Rows, tuple[int, ...]]], limits: tuple[int, ...]) -> list[Known]:
    return [
        (length, rows)
        for length, rows, peaks in published
        if all(peak <= limit for peak, limit in zip(peaks, limits, strict=True))
    ]


def _first_shortest(known: list[Known]) -> Known:
    return min(known, key=lambda one: one[0])


def _length(problem: Problem, rows: Rows) -> Number:
    played = replay(problem, rows)
    assert played is not None
    return problem.length(played.finish())


PLAYS, REPLAYED = 300, 60_000
"""Replays of one local search: at most so many, and so many actions in all."""


def _levels(problem: Problem) -> Iterator[tuple[Fraction, tuple[int, ...]]]:
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
            yield step, limits


def _ladder(problem: Problem) -> list[Fraction]:
    """The steps of memory, the same for every limit: the main ones, and all counts where that does not take long."""
    M, steps = problem.microbatches, _main_levels(problem)
    return sorted(steps | set(map(Fraction, range(1, M + 1)))) if _actions(problem) <= MIDDLING else sorted(steps)


def _main_levels(problem: Problem) -> set[Fraction]:
    """Where every dial and local search are worth their time: quarters of P, on small shapes all counts."""
    P, M = problem.ranks, problem.microbatches
    steps = {Fraction(step) for step in (1, 2, 3, M)} | {Fraction(quarters * P, 4) for quarters in range(1, 13)}
    if _actions(problem) <= SMALL:
        steps |= {Fraction(step) for step in range(1, M + 1)}
    if problem.weight in (0, problem.one):
        steps = {Fraction(floor(step)) for step in steps}  # what is held is whole micro-batches
    return {step for step in steps if 1 <= step <= M}


def _actions(problem: Problem) -> int:
    return 3 * problem.ranks * problem.microbatches


SMALL, MIDDLING = 1000, 4000
"""Up to so many actions every count of micro-batches is searched in full, or at least with the first few dials."""

FEW = 4
"""Dials at such a level; and fewer replays than this are not worth a local search."""
