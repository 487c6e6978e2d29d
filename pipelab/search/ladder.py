"""Within which limits to look? In the same ones for every shape, so that more memory can never make it longer.

What is found within limits that are all at most as large as one's own is within one's own, too. They depend on the
shape and on `weight_memory`, never on the limits that are asked for, and what is found within one entry depends on
that entry alone. So whoever has more memory, on all ranks or on some, chooses among all that was found for less, and
more: the shortest of a larger set is never longer. (The published words are chosen from in the same way, by their
peaks; and an entry is passed over only where its lower bound says that nothing shorter can be found there.)

Rules and local search get a list of limits (`ladder`). Waves get every limit there is, of a few shapes (`shapes`). One
shape is the same for all ranks, so with one limit no schedule is longer than the published heuristic.

With a limit a rank, waves get one's own limits and the smaller lists (`below`): on small shapes all of them, so more
memory still never makes it longer. On larger ones there are too many and the nearest are tried. Then a larger list can
miss what a smaller one met.

Read next: `joined`.
"""

from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction
from itertools import chain, combinations, islice, product
from math import ceil, comb, floor
from typing import NamedTuple

from pipelab.search.greedy import NEVER
from pipelab.search.problem import Limits, Problem
from pipelab.search.waves import HABITS
from pipelab.trace import Number

THOROUGH, BRIEF, RULES, GLANCE = 4, 3, 2, 1


class Rung(NamedTuple):
    """Limits to search within, and the effort: local search too, rules and waves only, rules only, or a single rule."""

    limits: Limits
    effort: int


def ladder(problem: Problem) -> list[Rung]:
    """All rungs within the problem's limits.

    >>> from pipelab.placement import Placement
    >>> [rung.limits for rung in ladder(Problem.of(Placement.loop(2), 3, memory_limit=[2, 1]))]
    [(1, 1), (2, 1)]
    """
    efforts: dict[Limits, int] = {}
    uneven = BRIEF if problem.actions <= SMALL else GLANCE
    searched = [(BRIEF if problem.actions > LARGE else THOROUGH, _main(problem))]
    if problem.chunks == 1 and problem.actions <= LARGE:
        searched += [(RULES, _between(problem)), (uneven, _uneven(problem))]
    unit = problem.one * problem.chunks
    for effort, steps in searched:
        for step in steps:
            limits = tuple(floor(held * unit) for held in step)
            if limits not in efforts:
                efforts[limits] = effort
    return [Rung(limits, effort) for limits, effort in efforts.items() if fits(limits, problem.limits)]


def shapes(problem: Problem) -> list[Limits]:
    """Shapes of limits in which waves are sent at every level: how much less than the level each rank has.

    The same for all ranks; slopes from the first rank to the last; and one rank that has less than its neighbours.

    >>> from pipelab.placement import Placement
    >>> shapes(Problem.of(Placement.loop(3), 3))[:6]
    [(0, 0, 0), (0, 1, 2), (0, 1, 1), (0, 2, 4), (0, 2, 3), (1, 0, 0)]
    """
    if problem.chunks > 1 or problem.actions > VAST:
        return []
    ranks = range(problem.ranks)
    slopes = SLOPES if problem.actions <= SLOPED else SLOPES[:1]
    less = [[slope * rank for rank in ranks] for slope in slopes]
    if problem.actions <= SMALL:
        dips = product(less[:2], ranks, (1, 2))
        less += [[low + dip * (rank == odd) for rank, low in enumerate(base)] for base, odd, dip in dips]
    return [tuple(ceil(low * problem.one) for low in shape) for shape in less]


def below(problem: Problem) -> Number:
    """How many letters to play in waves within smaller lists of limits: all there are, some, or none.

    None with one limit for all ranks, where `shapes` has all that more memory must not lose.

    >>> from pipelab.placement import Placement
    >>> [below(Problem.of(Placement.loop(P), 8, memory_limit=[3] + [2] * (P - 1))) for P in (4, 5)]
    [inf, 300000]
    """
    if problem.chunks > 1 or problem.actions > VAST:
        return 0
    if problem.ranks <= FEW and problem.actions <= SMALL:
        return NEVER
    return max(LETTERS, len(HABITS) * problem.actions) if len(set(problem.limits)) > 1 else 0


def fits(held: Limits, limits: Limits) -> bool:
    """Is no rank over its limit?"""
    return all(one <= most for one, most in zip(held, limits, strict=True))


Steps = Iterator[tuple[Fraction, ...]]
"""Limits in micro-batches."""

SMALL, LARGE, VAST = 1000, 50_000, 100_000
"""Up to so many actions all counts of micro-batches are searched thoroughly; above so many, the main levels only; and
above so many, waves at these alone."""

SLOPES, SLOPED = (Fraction(0), Fraction(1), Fraction(1, 2), Fraction(2), Fraction(3, 2)), 10_000
"""By how many micro-batches a rank has less than the rank before; above so many actions, always as much."""

LEVELS, GLANCES = 200_000, 300_000
"""Further levels, and uneven limits, are as many as together have so many actions, or a few more."""


FEW, LETTERS = 4, 300_000
"""Up to so many ranks, on small shapes, all smaller lists get their waves; on more ranks those of so many letters, but
at least all waves of one's own list."""


def _main(problem: Problem) -> Steps:
    """The same for all ranks: quarters of P and the first few counts, on small shapes all counts of micro-batches.

    With several chunks there is nothing but local search to do, from a few orders: a few steps are enough.
    """
    P, M = problem.ranks, problem.microbatches
    counts: Sequence[int] = (1, 2, 3, M)
    quarters: Sequence[int] = range(1, 13)
    if problem.chunks > 1:
        counts, quarters = (M,), (2, 4, 8)
    elif problem.actions <= SMALL:
        counts = range(1, M + 1)
    for step in chain(map(Fraction, counts), (Fraction(n * P, 4) for n in quarters)):
        if 1 <= step <= M:
            yield (step,) * P


def _between(problem: Problem) -> Steps:
    """The same for all ranks: tenths of P from P to 2P, then all counts, as far as there is time for them."""
    P, M = problem.ranks, problem.microbatches
    steps = chain((Fraction(n * P, 10) for n in range(20, 10, -1)), map(Fraction, range(1, M + 1)))
    for step in islice((step for step in steps if step <= M), max(10, LEVELS // problem.actions)):
        yield (step,) * P


def _uneven(problem: Problem) -> Steps:
    """Slopes and plateaus that fall from the first rank to the last, and one rank that has less than all others."""
    P, most = problem.ranks, max(36, GLANCES // problem.actions)
    for high, slope in product((Fraction(n * P, 4) for n in range(8, 0, -1)), (1, 2)):
        yield tuple(max(Fraction(1), min(Fraction(problem.microbatches), high) - slope * rank) for rank in range(P))
    borders = range(1, P) if P <= 8 else [P // 4, P // 2, 3 * P // 4]
    cuts = [cut for plateaus in (1, 2) for cut in combinations(borders, plateaus)]
    falling = _heights(problem, most * 2 // 3, lambda n: sum(comb(n, len(cut) + 1) for cut in cuts))
    for cut in cuts:
        for heights in combinations(falling, len(cut) + 1):
            yield tuple(heights[sum(rank >= border for border in cut)] for rank in range(P))
    for high, low in combinations(_heights(problem, most // 3, lambda n: P * comb(n, 2)), 2):
        for odd in range(P):
            yield tuple(low if rank == odd else high for rank in range(P))


def _heights(problem: Problem, most: int, rungs: Callable[[int], int]) -> list[Fraction]:
    """Halves from 2P down to 1 in about equal ratios, as many as make no more than `most` rungs."""
    top = min(2 * problem.ranks, problem.microbatches)
    chosen: set[Fraction] = set()
    for parts in range(1, 8 * top):
        finer = {Fraction(round(2 * top ** (part / parts)), 2) for part in range(parts + 1)}
        if rungs(len(finer)) > most:
            break
        chosen = finer
    return sorted(chosen, reverse=True)
