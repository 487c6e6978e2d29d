"""What is searched for? P ranks with one stage each, or V, M micro-batches, and on every rank a limit of memory.

    F I W   work of each stage for one micro-batch         start   when micro-batch 0 can reach each stage
    limits  what each rank may hold, in memory units       one, weight   a micro-batch until the end of I, then until W

With one stage a rank, a stage's number is its rank's. Times are whole ticks where the costs are exact, and memory
always is, so no comparison is a matter of rounding. Read next: `bound`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from itertools import accumulate
from math import floor, lcm
from numbers import Rational, Real
from typing import Any, cast

from pipelab.action import Action, F, I, W
from pipelab.costs import Costs
from pipelab.dependencies import Value, dataflow
from pipelab.engine import Inputs, play
from pipelab.placement import Placement
from pipelab.schedule import Schedule
from pipelab.trace import Number, Span, plain

OBJECTIVES = ("span", "step")
Letters = list[list[str]]
"""For each rank, with one stage, its letters F, I, W; micro-batches are taken in their order, so numbers follow."""
Rows = Sequence[Sequence[Action]]
Limits = tuple[int, ...]
"""What each rank may hold, or holds at most, in memory units."""


@dataclass(frozen=True)
class Problem:
    """One shape with its costs and limits, in ticks and memory units. `offset` is where a rank's clock is read from.

    Under "span" a rank's time runs from its own first forward, under "step" from the beginning.

    >>> problem = Problem.of(Placement.loop(2), 4, Costs.uniform(hop=1), 1.5, weight_memory=0.5, objective="span")
    >>> problem.F, problem.start, problem.limits, (problem.one, problem.weight)
    ((1, 1), (0, 2), (3, 3), (2, 1))
    """

    placement: Placement
    microbatches: int
    F: tuple[Number, ...]
    I: tuple[Number, ...]  # noqa: E741
    W: tuple[Number, ...]
    hop_down: tuple[Number, ...]
    """hop_down[s]: latency of activations from stage s to s+1."""
    hop_up: tuple[Number, ...]
    """hop_up[s]: latency of gradients from stage s+1 to s."""
    ticks: int
    """Ticks in one unit of the costs."""
    one: int
    weight: int
    limits: Limits
    objective: str

    @classmethod
    def of(
        cls,
        placement: Placement,
        microbatches: int,
        costs: Costs | None = None,
        memory_limit: Number | Sequence[Number] | None = None,
        weight_memory: Number = 1,
        objective: str = "span",
    ) -> "Problem":
        """Check what a user asked for. Raises ValueError with the remedy."""
        if objective not in OBJECTIVES:
            raise ValueError(f"objective is 'span' (a rank's own window) or 'step' (the whole step): got {objective!r}")
        if not _is_real(weight_memory) or not 0 <= weight_memory <= 1:
            raise ValueError(
                f"weight_memory is the share of a micro-batch held from I to W, from 0 to 1: got {weight_memory!r}"
            )
        one, weight = Fraction(weight_memory).denominator, Fraction(weight_memory).numerator
        chunks, asked = placement.chunks_per_rank(), limit_per_rank(placement.ranks, microbatches, memory_limit)
        limits = tuple(floor(limit * one * parts) for limit, parts in zip(asked, chunks, strict=True))
        costs = Costs.uniform() if costs is None else costs
        if not isinstance(costs, Costs):
            raise ValueError(f"costs are pl.Costs, as Costs.uniform() or Costs.per_stage(...): got {costs!r}")
        durations, rank_of = costs.durations(placement), placement.rank_of
        times = [[durations[stage, kind] for stage in range(placement.stages)] for kind in (F, I, W)]
        apart = [rank_of[stage] != rank_of[stage + 1] for stage in range(placement.stages - 1)]
        times.append([costs.latency((stage, F)) if hop else 0 for stage, hop in enumerate(apart)])
        times.append([costs.latency((stage + 1, I)) if hop else 0 for stage, hop in enumerate(apart)])
        ticks = _ticks(times)
        f, i, w, down, up = (tuple(int(time * ticks) if ticks else time for time in row) for row in times)
        return cls(placement, microbatches, f, i, w, down, up, ticks or 1, one, weight, limits, objective)

    @property
    def ranks(self) -> int:
        """Number of ranks, P."""
        return self.placement.ranks

    @property
    def chunks(self) -> int:
        """Stages a rank, V."""
        return self.placement.stages // self.placement.ranks

    @property
    def actions(self) -> int:
        """Number of actions of every solution."""
        return 3 * self.placement.stages * self.microbatches

    @cached_property
    def start(self) -> tuple[Number, ...]:
        """When micro-batch 0 reaches each stage at the earliest."""
        forward = zip(self.F, self.hop_down, strict=False)
        return tuple(accumulate(forward, lambda t, one: t + sum(one), initial=0))

    @cached_property
    def offset(self) -> tuple[Number, ...]:
        """Where the clock of each rank is read from; a rank without stages stays at 0."""
        own = (self.placement.stages_on(rank) if self.objective == "span" else () for rank in range(self.ranks))
        return tuple(self.start[stages[0]] if stages else 0 for stages in own)

    @cached_property
    def work(self) -> tuple[Number, ...]:
        """Busy time of each rank."""
        total = [self.microbatches * (f + i + w) for f, i, w in zip(self.F, self.I, self.W, strict=True)]
        return tuple(sum(total[stage] for stage in self.placement.stages_on(rank)) for rank in range(self.ranks))

    @cached_property
    def durations(self) -> dict[Value, Number]:
        """The time of every (stage, kind), as the engine takes it."""
        times = {F: self.F, I: self.I, W: self.W}
        return {(stage, kind): time for kind, row in times.items() for stage, time in enumerate(row)}

    @cached_property
    def inputs(self) -> Inputs:
        """What every (stage, kind) needs, and the latency of each, as the engine takes it."""
        hops = {-1: (0, *self.hop_down), 0: [0] * self.placement.stages, 1: self.hop_up}
        return {
            (stage, kind): [(source, hops[source[0] - stage][stage]) for source in sources]
            for (stage, kind), sources in dataflow(self.placement.stages).items()
        }

    def play(self, rows: Rows) -> list[list[Span]]:
        """The spans of each rank, in ticks: what `simulate` does, many times over. Raises Stuck."""
        return play(rows, self.inputs, self.durations, self.microbatches)

    def measure(self, played: list[list[Span]]) -> Number:
        """The objective, from the spans of each rank."""
        return self.length([row[-1].end for row in played])

    def length(self, ends: Sequence[Number]) -> Number:
        """The objective, from the end of each rank: every rank's first action is the F of micro-batch 0, at once."""
        return max(end - offset for end, offset in zip(ends, self.offset, strict=True))

    def in_units(self, length: Number) -> Number:
        """A time in the unit of the costs."""
        return plain(Fraction(length) / self.ticks) if isinstance(length, int) else length

    def numbered(self, letters: Letters) -> Rows:
        """The actions of the letters of each rank, with one stage a rank."""
        words = [[(rank, kind) for kind in row] for rank, row in enumerate(letters)]
        rows = Schedule.from_words("zb-auto", self.placement, self.microbatches, words.__getitem__).rows
        return cast(Rows, rows)

    def peaks(self, rows: Rows) -> Limits:
        """The most that each rank holds under these rows, in memory units.

        >>> problem = Problem.of(Placement.loop(1), 2)
        >>> problem.peaks(problem.numbered(["FIFWIW"]))
        (2,)
        """
        change = {F: self.one, I: self.weight - self.one, W: -self.weight}
        return tuple(max(accumulate(change[action.kind] for action in row)) for row in rows)


def limit_per_rank(
    ranks: int, microbatches: int, limit: Number | Sequence[Number] | None, what: str = "memory_limit"
) -> list[Fraction]:
    """One limit a rank; more than all M micro-batches is the same as M. Raises ValueError that names `what` it limits.

    >>> [str(limit) for limit in limit_per_rank(2, 4, [1.5, 9])]
    ['3/2', '4']
    """
    given: Any = [ranks] * ranks if limit is None else [limit] * ranks if _is_real(limit) else limit
    if not isinstance(given, Sequence) or isinstance(given, str) or not all(map(_is_real, given)):
        raise ValueError(f"{what} is a number of micro-batches, or a list of one per rank: got {limit!r}")
    if len(given) != ranks:
        raise ValueError(f"{what} has {len(given)} numbers for {ranks} ranks; give one per rank, or one for all")
    for rank, value in enumerate(given):
        if not value >= 1:
            raise ValueError(
                f"{what} is {value} on rank {rank}, but a rank holds at least the one micro-batch it works on;"
                " give 1 or more"
            )
    return [Fraction(min(value, microbatches)) for value in given]


def _ticks(times: list[list[Number]]) -> int:
    """Ticks in one unit of time that make every exact time whole; 0 where a time is a float."""
    flat = [time for row in times for time in row]
    if not all(isinstance(time, Rational) for time in flat):
        return 0
    return lcm(*(Fraction(time).denominator for time in flat))


def _is_real(value: object) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)
