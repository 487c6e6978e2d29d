"""What is searched for? P ranks with one stage each, M micro-batches, and on every rank a limit of memory.

    F I W   work of each rank for one micro-batch          start   when micro-batch 0 can reach each rank
    limits  what each rank may hold, in memory units       one, weight   a micro-batch until the end of I, then until W

Times are whole ticks where the costs are exact, and memory always is, so no comparison is a matter of rounding.
Read next: `bound`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import accumulate
from math import lcm
from numbers import Rational, Real
from typing import Any

from pipelab.action import F, I, W
from pipelab.costs import Costs
from pipelab.placement import Placement
from pipelab.trace import Number, plain

OBJECTIVES = ("span", "step")
Rows = list[list[str]]
"""For each rank its letters F, I, W; micro-batches are taken in their order, so the numbers follow by counting."""


@dataclass(frozen=True)
class Problem:
    """One shape with its costs and limits, in ticks and memory units. `offset` is where a rank's clock is read from.

    Under "span" a rank's time runs from its own first forward, under "step" from the beginning.

    >>> problem = Problem.of(2, 4, Costs.uniform(hop=1), memory_limit=1.5, weight_memory=0.5, objective="span")
    >>> problem.F, problem.start, problem.limits, (problem.one, problem.weight)
    ((1, 1), (0, 2), (3, 3), (2, 1))
    """

    ranks: int
    microbatches: int
    F: tuple[Number, ...]
    I: tuple[Number, ...]  # noqa: E741
    W: tuple[Number, ...]
    hop_down: tuple[Number, ...]
    """hop_down[r]: latency of activations from rank r to r+1."""
    hop_up: tuple[Number, ...]
    """hop_up[r]: latency of gradients from rank r+1 to r."""
    ticks: int
    """Ticks in one unit of the costs."""
    one: int
    weight: int
    limits: tuple[int, ...]
    objective: str

    @classmethod
    def of(
        cls,
        ranks: int,
        microbatches: int,
        costs: Costs | None,
        memory_limit: Number | Sequence[Number] | None,
        weight_memory: Number,
        objective: str,
    ) -> "Problem":
        """Check what a user asked for. Raises ValueError with the remedy."""
        if objective not in OBJECTIVES:
            raise ValueError(f"objective is 'span' (a rank's own window) or 'step' (the whole step): got {objective!r}")
        if not _is_real(weight_memory) or not 0 <= weight_memory <= 1:
            raise ValueError(
                f"weight_memory is the share of a micro-batch held from I to W, from 0 to 1: got {weight_memory!r}"
            )
        one, weight, limits = _memory(limit_per_rank(ranks, microbatches, memory_limit), Fraction(weight_memory))
        costs = Costs.uniform() if costs is None else costs
        if not isinstance(costs, Costs):
            raise ValueError(f"costs are pl.Costs, as Costs.uniform() or Costs.per_stage(...): got {costs!r}")
        durations = costs.durations(Placement.loop(ranks))
        times = [[durations[rank, kind] for rank in range(ranks)] for kind in (F, I, W)]
        times.append([costs.latency((rank, F)) for rank in range(ranks - 1)])
        times.append([costs.latency((rank + 1, I)) for rank in range(ranks - 1)])
        ticks = _ticks(times)
        f, i, w, down, up = (tuple(int(time * ticks) if ticks else time for time in row) for row in times)
        return cls(ranks, microbatches, f, i, w, down, up, ticks or 1, one, weight, limits, objective)

    @property
    def start(self) -> tuple[Number, ...]:
        """When micro-batch 0 reaches each rank at the earliest."""
        return tuple(accumulate(range(self.ranks - 1), lambda t, r: t + self.F[r] + self.hop_down[r], initial=0))

    @property
    def offset(self) -> tuple[Number, ...]:
        """Where the clock of each rank is read from."""
        return self.start if self.objective == "span" else (0,) * self.ranks

    @property
    def work(self) -> tuple[Number, ...]:
        """Busy time of each rank."""
        return tuple(self.microbatches * (f + i + w) for f, i, w in zip(self.F, self.I, self.W, strict=True))

    def length(self, ends: Sequence[Number]) -> Number:
        """The objective, from the end of each rank."""
        return max(end - offset for end, offset in zip(ends, self.offset, strict=True))

    def in_units(self, length: Number) -> Number:
        """A time in the unit of the costs."""
        return plain(Fraction(length) / self.ticks) if isinstance(length, int) else length

    def peaks(self, rows: Rows) -> tuple[int, ...]:
        """The most that each rank holds under these rows, in memory units.

        >>> problem = Problem.of(1, 2, None, memory_limit=2, weight_memory=1, objective="span")
        >>> problem.peaks(["FIFWIW"])
        (2,)
        """
        change = {F: self.one, I: self.weight - self.one, W: -self.weight}
        return tuple(max(accumulate(map(change.__getitem__, row))) for row in rows)

    def fits(self, rows: Rows) -> bool:
        """Does every rank stay within its limit?"""
        return all(peak <= limit for peak, limit in zip(self.peaks(rows), self.limits, strict=True))


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


def _memory(limits: list[Fraction], share: Fraction) -> tuple[int, int, tuple[int, ...]]:
    """A whole micro-batch, the part kept for W, and the limits, as whole numbers of one common unit."""
    unit = lcm(share.denominator, *(limit.denominator for limit in limits))
    return unit, int(share * unit), tuple(int(limit * unit) for limit in limits)


def _ticks(times: list[list[Number]]) -> int:
    """Ticks in one unit of time that make every exact time whole; 0 where a time is a float."""
    flat = [time for row in times for time in row]
    if not all(isinstance(time, Rational) for time in flat):
        return 0
    return lcm(*(Fraction(time).denominator for time in flat))


def _is_real(value: object) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)
