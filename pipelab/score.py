"""How good is this schedule? Legal or not, its time and its memory, beside a target and beside what none can beat."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, NamedTuple

from pipelab.costs import Costs
from pipelab.schedule import Schedule, ScheduleError
from pipelab.schedules import build_like
from pipelab.search.bound import bound
from pipelab.search.problem import Problem, limit_per_rank
from pipelab.simulate import simulate
from pipelab.trace import Number, ratio
from pipelab.validate import validate

QUANTITIES = ("makespan", "span", "peak_in_flight")


class Mark(NamedTuple):
    """One quantity: what the schedule has, the target, and the lower bound; None where there is no such number."""

    quantity: str
    value: Number
    target: Number | None
    bound: Number | None

    @property
    def reached(self) -> bool:
        """No more than the target, or no target."""
        return self.target is None or self.value <= self.target


@dataclass(frozen=True)
class Score:
    """What `score` found: `reasons` against the schedule (none if it is legal), else its `marks`; `str` says it all."""

    schedule: str
    target: str | None
    reasons: tuple[str, ...]
    marks: tuple[Mark, ...]

    @property
    def legal(self) -> bool:
        """Whether every rank can run its row to the end."""
        return not self.reasons

    @property
    def reached(self) -> bool:
        """Whether it is legal and no quantity is above its target."""
        return self.legal and all(mark.reached for mark in self.marks)

    @property
    def grade(self) -> str:
        """In words: not legal, legal (without a target), not reached, reached, or beaten (and somewhere better)."""
        if not self.legal or self.target is None:
            return "legal" if self.legal else "not legal"
        if not self.reached:
            return "not reached"
        return "beaten" if any(m.target is not None and m.value < m.target for m in self.marks) else "reached"

    def mark(self, quantity: str) -> Mark:
        """The mark of "makespan", "span" or "peak_in_flight". Raises ValueError for another, or if it is not legal."""
        for mark in self.marks:
            if mark.quantity == quantity:
                return mark
        raise ValueError(
            f"this score has {', '.join(m.quantity for m in self.marks) or 'reasons only'}: got {quantity!r}"
        )

    def __str__(self) -> str:
        if not self.legal:
            more = f" (and {len(self.reasons) - 1} more)" if len(self.reasons) > 1 else ""
            return f"{self.schedule}: not legal: {self.reasons[0]}{more}"
        verdict = f"legal; {self.target}: {self.grade}" if self.target else "legal"
        return "\n".join([f"{self.schedule}: {verdict}", *map(_line, self.marks)])


def score(
    schedule: Schedule,
    target: "Schedule | str | Mapping[str, Any] | None" = None,
    costs: Costs | None = None,
) -> Score:
    """Grade a schedule: is it legal, how long is it, what does it hold, and how far is it from `target` and the bound?

    `target` is a schedule, a name (built for the same shape), or numbers for some of "makespan", "span" and
    "peak_in_flight" (micro-batches on the fullest rank; or one limit per rank). Times come from `costs`, uniform unless
    given. The lower bound (`search.bound`) is for the placement and the memory of the schedule itself. A schedule that
    cannot run is graded, too. Raises ValueError for a target that cannot be compared.

    >>> from pipelab import build
    >>> schedule = Schedule.from_rule("mine", build("1f1b", 4, 8).placement, 8, "IFW", in_flight=4)
    >>> print(score(schedule, target="1f1b"))
    mine: legal; target 1f1b: beaten
      makespan       29, target 33: reached; lower bound in its memory 27
      span           29, target 33: reached; lower bound in its memory 27
      peak in flight 4, target 4: reached
    """
    if not isinstance(schedule, Schedule):
        raise ValueError(f"score takes a schedule, as Schedule.from_text(rows): got {schedule!r:.80}")
    costs = costs or Costs.uniform()
    wanted, what = _target(schedule, target, costs)
    try:
        trace = simulate(validate(schedule), costs)
    except ScheduleError as error:
        return Score(schedule.name, what, tuple(error.reasons), ())
    peaks = trace.peak_in_flight
    marks = [
        Mark("makespan", trace.makespan, wanted.get("makespan"), _bound(schedule, costs, peaks, "step")),
        Mark("span", trace.span, wanted.get("span"), _bound(schedule, costs, peaks, "span")),
        _peak_mark(peaks, wanted.get("peak_in_flight")),
    ]
    return Score(schedule.name, what, (), tuple(marks))


def _target(schedule: Schedule, target: Any, costs: Costs) -> tuple[Mapping[str, Any], str | None]:
    """The numbers to reach, and what to call them."""
    if target is None:
        return {}, None
    if isinstance(target, Mapping):
        return _numbers(schedule, target), "target"
    other = build_like(schedule, target, costs=costs) if isinstance(target, str) else target
    if not isinstance(other, Schedule):
        raise ValueError(f"a target is a schedule, a name, or numbers such as {{'makespan': 27}}: got {target!r}")
    ours, theirs = (f"{s.ranks} ranks and {s.microbatches} micro-batches" for s in (schedule, other))
    if ours != theirs:
        raise ValueError(f"the target has {theirs}, the schedule {ours}; compare two of one shape")
    trace = simulate(other, costs)
    figures = {"makespan": trace.makespan, "span": trace.span, "peak_in_flight": max(trace.peak_in_flight)}
    return figures, f"target {other.name}"


def _numbers(schedule: Schedule, target: Mapping[str, Any]) -> Mapping[str, Any]:
    for quantity, value in target.items():
        if quantity not in QUANTITIES:
            raise ValueError(f"a target names {', '.join(QUANTITIES)}: got {quantity!r}")
        if value is None:
            raise ValueError(f"the target {quantity} has no number: got None; leave it out")
        if quantity == "peak_in_flight":
            limit_per_rank(schedule.ranks, schedule.microbatches, value, what=quantity)
        elif isinstance(value, bool) or not isinstance(value, int | float | Fraction) or not value >= 0:
            raise ValueError(f"the target {quantity} is a time of at least 0: got {value!r}")
    return target


def _peak_mark(peaks: Sequence[Number], target: Any) -> Mark:
    """The fullest rank against one limit; against one limit a rank, the rank that is nearest to its own, or above."""
    if isinstance(target, Sequence):
        peak, limit = max(zip(peaks, target, strict=True), key=lambda pair: pair[0] - pair[1])
        return Mark("peak_in_flight", peak, limit, None)
    return Mark("peak_in_flight", max(peaks), target, None)


def _bound(schedule: Schedule, costs: Costs, peaks: Sequence[Number], objective: str) -> Number | None:
    """What none can beat in this memory; None for forwards only, and where the costs say nothing of I and W."""
    if schedule.forward_only:
        return None  # the bounds are those of training
    held = [max(1, peak) for peak in peaks]  # 0 on a rank without stages
    try:
        problem = Problem.of(schedule.placement, schedule.microbatches, costs, held, objective=objective)
    except ValueError:
        return None
    return problem.in_units(bound(problem))


def _line(mark: Mark) -> str:
    words = f"  {mark.quantity.replace('_', ' '):<14} {float(mark.value):g}"
    if mark.target is not None:
        above = "reached" if mark.reached else f"{float(mark.value - mark.target):g} too much"
        words += f", target {float(mark.target):g}: {above}"
    if mark.bound is not None:
        gap = float(ratio(mark.value, mark.bound) - 1) if mark.bound else 0.0
        words += f"; lower bound in its memory {float(mark.bound):g}" + (" (none is shorter)" if gap <= 1e-9 else "")
    return words
