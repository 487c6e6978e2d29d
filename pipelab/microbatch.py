"""How large should a micro-batch be? Time of an action as a line, t(b) = a + b c, fitted from runs; then simulate.

b rows in a micro-batch: `a` is paid by every action, however small, and `c` by every row. For a fixed global batch more
micro-batches make the bubble smaller and pay `a` more often, so the step is shortest somewhere in between. Nothing here
knows a schedule: the fitted times go into the simulator, as measured ones do.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from pipelab.costs import Costs
from pipelab.dependencies import Value
from pipelab.schedules import build
from pipelab.simulate import simulate
from pipelab.trace import Number


class Line(NamedTuple):
    """Seconds as a line over the rows of a micro-batch."""

    fixed: float
    per_row: float

    def seconds(self, rows: float) -> float:
        """t(b) = a + b c.

        >>> Line(fixed=2.0, per_row=0.5).seconds(4)
        4.0
        """
        return self.fixed + rows * self.per_row


@dataclass(frozen=True)
class RowTimes:
    """A line for every (stage, kind) of compute, and for every message; `error` is the largest relative misfit.

    >>> costs = {rows: Costs.per_stage(F=[1 + rows], I=[1], W=[rows]) for rows in (1, 2, 4)}
    >>> times = RowTimes.fit(costs)
    >>> round(times.work[0, "F"].per_row, 6), round(times.error, 6), round(times.costs(8).work["F"][0], 6)
    (1.0, 0.0, 9.0)
    """

    work: Mapping[Value, Line]
    hops: Mapping[Value, Line]
    stages: int
    error: float

    @classmethod
    def fit(cls, measured: Mapping[int, Costs]) -> "RowTimes":
        """Fit the costs per stage of several runs, by the rows of a micro-batch; least squares, no line below zero.

        Raises ValueError for fewer than two sizes, or for costs of different stages.
        """
        if len(measured) < 2:
            raise ValueError(f"a line needs runs with two sizes of micro-batches: got {len(measured)}; measure another")
        works = {rows: _by_value(costs.work) for rows, costs in measured.items()}
        hops = {rows: dict(costs.hop) if isinstance(costs.hop, Mapping) else {} for rows, costs in measured.items()}
        for tables in (works, hops):
            if len({frozenset(table) for table in tables.values()}) != 1:
                raise ValueError("these runs differ in stages or kinds of work; fit runs of one schedule and one cut")
        lines, flights = _fit_all(works), _fit_all(hops)
        misfits = [
            abs(lines[value].seconds(rows) / float(seconds) - 1)
            for rows, table in works.items() for value, seconds in table.items() if seconds
        ]  # fmt: skip
        return cls(lines, flights, 1 + max(stage for stage, _ in lines), max(misfits, default=0.0))

    def costs(self, rows: float) -> Costs:
        """The times for micro-batches of this many rows."""
        work, hops = ({value: line.seconds(rows) for value, line in of.items()} for of in (self.work, self.hops))
        return Costs.by_value(work, hops or 0)

    def busiest(self, rows: float) -> Line:
        """The line of the stage that takes longest for so many rows: all its kinds of work in one."""
        totals = [
            Line(
                *(sum(parts) for parts in zip(*(line for (s, _), line in self.work.items() if s == stage), strict=True))
            )
            for stage in range(self.stages)
        ]
        return max(totals, key=lambda line: line.seconds(rows))


@dataclass(frozen=True)
class Sweep:
    """Steps in seconds by number of micro-batches, on so many ranks: predicted, and those that were measured."""

    ranks: int
    predicted: Mapping[int, float]
    measured: Mapping[int, float]
    clock: str = "virtual"

    @property
    def best(self) -> int:
        """The number of micro-batches with the shortest predicted step.

        >>> Sweep(4, {4: 1.2, 8: 1.0, 16: 1.1}, {}).best
        8
        """
        return min(self.predicted, key=lambda count: self.predicted[count])

    @property
    def rule(self) -> int:
        """The number of micro-batches nearest to the rule of thumb, 4P, among those predicted (Huang et al. 2019).

        >>> Sweep(4, {4: 1.2, 8: 1.0, 16: 1.1}, {}).rule
        16
        """
        return min(self.predicted, key=lambda count: abs(count - 4 * self.ranks))


def predict_steps(
    times: RowTimes, schedule: str, ranks: int, rows: int, microbatches: Iterable[int] | None = None,
    chunks: int | None = None,
) -> dict[int, float]:  # fmt: skip
    """The step in seconds for each number of micro-batches M, where a step has `rows` rows in all: simulated.

    Without `microbatches` all that divide `rows`. The best is `min(steps, key=steps.get)`.
    Raises ValueError where M does not divide the rows.

    >>> times = RowTimes.fit({rows: Costs.per_stage(F=[1 + rows] * 2, I=[0, 0], W=[0, 0]) for rows in (1, 2)})
    >>> {count: round(step, 6) for count, step in predict_steps(times, "gpipe", ranks=2, rows=8).items()}
    {1: 18.0, 2: 15.0, 4: 15.0, 8: 18.0}
    """
    if rows < 1:
        raise ValueError(f"a step has a row at least: got {rows}")
    counts = divisors(rows) if microbatches is None else list(microbatches)
    for count in counts:
        if rows % count:
            near = ", ".join(map(str, divisors(rows)))
            raise ValueError(f"{rows} rows cannot be cut into {count} equal micro-batches; take one of {near}")
    return {
        count: float(simulate(build(schedule, ranks, count, chunks), times.costs(rows / count)).makespan)
        for count in counts
    }


def divisors(number: int) -> list[int]:
    """The numbers of equal micro-batches that so many rows can be cut into.

    >>> divisors(12)
    [1, 2, 3, 4, 6, 12]
    """
    return [divisor for divisor in range(1, number + 1) if number % divisor == 0]


def _by_value(work: Mapping[str, Number | tuple[Number | None, ...]]) -> dict[Value, float]:
    if not all(isinstance(times, tuple) for times in work.values()):
        raise ValueError("these costs are not per stage; take those of a run: run.costs()")
    return {
        (stage, kind): float(time)
        for kind, times in work.items() if isinstance(times, tuple)
        for stage, time in enumerate(times) if time is not None
    }  # fmt: skip


def _fit_all(tables: Mapping[int, Mapping[Value, Number]]) -> dict[Value, Line]:
    sizes = sorted(tables)
    return {value: fit_line(sizes, [float(tables[rows][value]) for rows in sizes]) for value in tables[sizes[0]]}


def fit_line(rows: Sequence[float], seconds: Sequence[float]) -> Line:
    """The line through these points that errs least, as shares of each time; neither part below zero.

    >>> [round(part, 6) for part in fit_line([1, 2, 4], [3, 4, 6])], fit_line([1, 2], [1, 1])
    ([2.0, 1.0], Line(fixed=1.0, per_row=0.0))
    """
    weights = [1 / max(time, 1e-12) ** 2 for time in seconds]

    def mean(values: Iterable[float]) -> float:
        return sum(w * value for w, value in zip(weights, values, strict=True)) / sum(weights)

    b, t = mean(rows), mean(seconds)
    spread = mean((row - b) ** 2 for row in rows)
    slope = mean((row - b) * (time - t) for row, time in zip(rows, seconds, strict=True)) / spread
    if slope < 0:
        return Line(t, 0.0)
    if slope * b > t:
        return Line(0.0, mean(row * time for row, time in zip(rows, seconds, strict=True)) / (spread + b * b))
    return Line(t - slope * b, slope)
