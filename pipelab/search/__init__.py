"""Which order of work is the shortest within a memory limit? A search, and a bound that says how good it is.

Candidates come from three sources: the published words (`words`), rules of thumb with a dial (`greedy`, `dials`), and
the waves of the published heuristic (`waves`); then neighbours trade places (`improve`). This is done within limits
that do not depend on those asked for (`ladder`), so that more memory can only help. `bound` says what none can beat.

Orders are timed by the engine that also simulates. Only `greedy` and `waves` have clocks of their own, because what
they do next depends on the time; a test holds them to `simulate`, which is earlier only where a rule waits in vain.

Read next: `problem`.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import islice
from typing import Any, NamedTuple

from pipelab.collector import collector_at_rest
from pipelab.costs import Costs
from pipelab.placement import Placement
from pipelab.schedule import Schedule
from pipelab.search.bound import ROUNDING, bound
from pipelab.search.dials import tried
from pipelab.search.greedy import Played, dispatch
from pipelab.search.improve import improve
from pipelab.search.joined import cut, in_a_row, joined
from pipelab.search.ladder import BRIEF, GLANCE, RULES, THOROUGH, below, fits, ladder, shapes
from pipelab.search.problem import Limits, Problem, Rows
from pipelab.search.waves import waves, waves_below, waves_within
from pipelab.search.words import words
from pipelab.trace import Number, ratio

__all__ = ["Found", "find", "gap", "lower_bound", "published"]


class Found(NamedTuple):
    """A schedule, its length under the objective, and a length that none with as many stages a rank goes below."""

    schedule: Schedule
    length: Number
    lower_bound: Number

    @property
    def gap(self) -> Number:
        """How much longer than the bound: 0 means that nothing shorter exists with as many stages a rank."""
        return gap(self.length, self.lower_bound)


def gap(length: Number, least: Number) -> Number:
    """By which part a length is longer than its bound; exact where both are.

    >>> gap(28, 27)
    Fraction(1, 27)
    """
    return ratio(length, least) - 1 if least else 0


@collector_at_rest()
def find(
    ranks: int,
    microbatches: int,
    costs: Costs | None = None,
    memory_limit: Number | Sequence[Number] | None = None,
    weight_memory: Number = 1,
    objective: str = "span",
    chunks: int = 1,
) -> Found:
    """The shortest schedule found for these costs within this memory, with one stage a rank or with `chunks` of them.

    `memory_limit` is in whole micro-batches' activations, for all ranks or one per rank (default: P); a micro-batch
    takes 1 from the start of F to the end of I, then `weight_memory` to the end of W (a chunk its share of that). Both
    are kept to the last bit: the float 0.8 is a little more than Fraction(4, 5), five of which fit into 4.
    `objective` is "span", the longest time from a rank's own first start to its own last end, or "step", the makespan.

    It is never longer than a published order of as many chunks that fits, nor, up to 100,000 actions, than the
    published heuristic within these limits (`waves`). More memory never makes it longer with one limit for all ranks,
    nor with a list up to four ranks and 1,000 actions; beyond, a list that grows hardly ever does (`ladder` says why).
    All times are compared exactly where the costs are exact. With several chunks the published orders, two in a V or
    any number in a loop, are improved; and it is never longer than with one (`joined`). Raises ValueError with the
    remedy.

    >>> found = find(4, 8, memory_limit=7)
    >>> found.length, found.lower_bound, found.gap
    (24, 24, Fraction(0, 1))
    >>> find(4, 8, memory_limit=4).length, find(4, 8, memory_limit=4, chunks=2).length
    (27, 24)
    """
    problems = _problems(ranks, microbatches, costs, memory_limit, weight_memory, objective, chunks=chunks)
    found, least = list[Found](), _least(problems)
    for problem in problems:
        if not found or found[-1].length > least:
            length, rows = _with_any_stages(problem)
            schedule = Schedule("zb-auto", problem.placement, microbatches, tuple(map(tuple, rows)))
            found.append(Found(schedule, problem.in_units(length), least))
    return min(found, key=lambda one: one.length)


def lower_bound(
    ranks: int,
    microbatches: int,
    costs: Costs | None = None,
    memory_limit: Number | Sequence[Number] | None = None,
    weight_memory: Number = 1,
    objective: str = "span",
    chunks: int = 1,
) -> Number:
    """A length that no schedule of this many chunks a rank goes below within these limits; options as in `find`.

    >>> lower_bound(4, 8), lower_bound(4, 8, objective="step"), lower_bound(4, 8, chunks=2)
    (27, 27, 24)
    """
    return _least(_problems(ranks, microbatches, costs, memory_limit, weight_memory, objective, chunks=chunks))


def published(*shape: Any, chunks: int = 1, **options: Any) -> Number:
    """The shortest published order of so many chunks a rank that fits the limits; arguments as in `find`.

    >>> published(4, 8), published(4, 8, chunks=2)
    (27, 24)
    """
    problems = _problems(*shape, chunks=chunks, **options)
    return min(problem.in_units(known.length) for problem in problems for _, known in _named(problem))


def _least(problems: list[Problem]) -> Number:
    return min(problem.in_units(bound(problem)) for problem in problems)


def _problems(ranks: int, microbatches: int, *asked: Any, chunks: int, **options: Any) -> list[Problem]:
    """One problem a placement: the chunks in a loop or next to each other, and two also in a V."""
    vee = [Placement.vee(ranks)] if chunks == 2 else []
    placements = dict.fromkeys([Placement.loop(ranks, chunks), *vee, in_a_row(ranks, chunks)])
    return [Problem.of(placement, microbatches, *asked, **options) for placement in placements]


class Known(NamedTuple):
    """Rows and their length in ticks."""

    length: Number
    rows: Rows


Named = list[tuple[Limits, Known]]
"""The published words that fit, with the peaks of each."""


def _with_any_stages(problem: Problem) -> Known:
    """The shortest; where the stages of a rank are in a row, that of one stage a rank, cut."""
    if problem.chunks == 1 or problem.placement != in_a_row(problem.ranks, problem.chunks):
        return _shortest(problem)
    rows = cut(_shortest(joined(problem)).rows, problem.chunks)
    return Known(problem.measure(problem.play(rows)), rows)


def _shortest(problem: Problem) -> Known:
    """The best of the published words that fit, all rungs of the ladder, and all waves that could still be better."""
    named = _named(problem)
    best = _best_named(named, problem)
    enough = bound(problem)
    if isinstance(enough, float):
        enough *= 1 + 4 * ROUNDING  # a bound in floats lies a little below the length that meets it
    rungs = [(replace(problem, limits=rung.limits), rung.effort) for rung in ladder(problem)]
    by_bound = ((bound(at_rung), -sum(at_rung.limits), number) for number, (at_rung, _) in enumerate(rungs))
    for least, _, number in sorted(by_bound):
        if best.length <= max(enough, least):
            break
        at_rung, effort = rungs[number]
        best = min(best, _search(at_rung, effort, _best_named(named, at_rung), enough), key=_length)
        if effort == BRIEF:
            best = _with_waves(problem, best, waves(at_rung, best.length), enough)
    for less in shapes(problem):
        best = _with_waves(problem, best, waves_within(problem, less, best.length), enough)
    return _with_waves(problem, best, waves_below(problem, best.length, below(problem)), enough)


def _named(problem: Problem) -> Named:
    played = ((problem.peaks(rows), rows) for rows in words(problem))
    fitting = ((peaks, rows) for peaks, rows in played if fits(peaks, problem.limits))
    return [(peaks, Known(problem.measure(problem.play(rows)), rows)) for peaks, rows in fitting]


def _with_waves(problem: Problem, best: Known, sent: Iterator[Played], enough: Number) -> Known:
    """The best after these waves, each shorter than all before; none is sent where nothing shorter exists."""
    while best.length > enough and (played := next(sent, None)):
        best = min(best, _known(problem, played), key=_length)
    return best


def _known(problem: Problem, played: Played) -> Known:
    rows = problem.numbered(played.rows)
    return Known(problem.measure(problem.play(rows)), rows)


def _search(problem: Problem, effort: int, named: Known, enough: Number) -> Known:
    """Turn the dials and send the waves within these limits, then let the best rows improve; or less, by effort."""
    best, plays = named, min(PLAYS, REPLAYED // problem.actions)
    thorough = effort == THOROUGH and plays >= FEWEST
    for played in _played(problem, effort, thorough):
        if problem.length(played.ends) < best.length:
            best = _known(problem, played)
            if best.length <= enough:
                return best
    if not thorough:
        return best
    rows = improve(problem, best.rows, enough, plays)
    return Known(problem.measure(problem.play(rows)), rows)


def _played(problem: Problem, effort: int, send: bool) -> Iterator[Played]:
    """What rules give, and waves if they are to be sent; both are for one stage a rank."""
    if problem.chunks == 1:
        level = max(problem.limits) // problem.one
        for dial in islice(tried(problem, level, bound(problem)), DIALS.get(effort)):
            yield dispatch(problem, dial)
        if send:
            yield from waves(problem)


def _best_named(named: Named, problem: Problem) -> Known:
    return min((known for peaks, known in named if fits(peaks, problem.limits)), key=_length)


def _length(known: Known) -> Number:
    return known.length


PLAYS, REPLAYED, FEWEST = 300, 60_000, 4
"""Replays of one local search: at most so many, and so many actions in all; but none where that makes fewer than 4."""

DIALS = {GLANCE: 1, RULES: 4, BRIEF: 4}
"""How many dials to try where the effort is small."""
