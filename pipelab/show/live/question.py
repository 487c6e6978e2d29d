"""What does the playground ask, and what is the answer? Without sliders: a frozen question, a function, an answer."""

from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from pipelab.costs import Costs
from pipelab.formulas import CLOSED_FORMS, formula
from pipelab.lower import lower
from pipelab.schedule import Schedule
from pipelab.schedules import build, options_of
from pipelab.simulate import simulate, simulate_program
from pipelab.trace import BUBBLES, Number, Trace, number
from pipelab.units import digits, percent


@dataclass(frozen=True)
class Question:
    """A schedule and its shape, the times of F, I and W and of a hop, and what spoils them. Raises ValueError for an
    unknown schedule.

    `imbalance` makes the last rank's stages so much longer (0.5: half as long again); `limit` is a memory limit in
    micro-batches, 0 for none; `lanes` shows every message.
    """

    schedule: str = "1f1b"
    ranks: int = 4
    microbatches: int = 8
    chunks: int = 1
    F: Number = 1
    I: Number = 1  # noqa: E741
    W: Number = 1
    hop: Number = 0
    imbalance: Number = 0
    limit: int = 0
    lanes: bool = False

    def __post_init__(self) -> None:
        options_of(self.schedule)


@dataclass(frozen=True)
class Answer:
    """The schedule, its trace in simulated time, and rows of (what, simulated, formula) in words."""

    schedule: Schedule
    trace: Trace
    rows: tuple[tuple[str, str, str], ...]
    remark: str


def answer(question: Question) -> Answer:
    """Build and simulate what is asked for, beside the formula where there is one.

    Raises ValueError when there is no such schedule, or none within the limit.

    >>> for row in answer(Question("1f1b", ranks=4, microbatches=8, limit=3)).rows[-2:]:
    ...     print(row)
    ('most in flight, by rank', '4 3 2 1', '4 3 2 1')
    ('limit 3', 'rank 0 is above it', '')
    """
    q = question
    takes, options = options_of(q.schedule), dict[str, Any]()
    if "chunks" in takes:
        options["chunks"] = q.chunks
    if "costs" in takes:
        options["costs"] = Costs.uniform(q.F, q.I, q.W, q.hop)
    if "memory_limit" in takes and q.limit:
        options["memory_limit"] = q.limit
    schedule = build(q.schedule, q.ranks, q.microbatches, **options)
    costs = _costs(q, schedule)
    trace = simulate_program(lower(schedule), costs) if q.lanes else simulate(schedule, costs)
    theory, remark = _theory(q, schedule.stages // schedule.ranks)
    return Answer(schedule, trace, tuple(_rows(q, trace, theory)), remark)


def _costs(q: Question, schedule: Schedule) -> Costs:
    even = Costs.uniform(q.F, q.I, q.W, q.hop)
    if not q.imbalance:
        return even
    times = even.durations(schedule.placement)
    longer = [1 + q.imbalance * (rank == q.ranks - 1) for rank in schedule.placement.rank_of]
    stages = {kind: [times[stage, kind] * more for stage, more in enumerate(longer)] for kind in ("F", "I", "W")}
    return Costs.per_stage(stages["F"], stages["I"], stages["W"], q.hop)


def _theory(q: Question, chunks: int) -> tuple[dict[str, str], str]:
    """Each quantity by formula, in words; or why there is none."""
    if q.imbalance:
        return {}, "The formulas are for equal ranks: with the last rank longer by 0 you see them."
    if q.schedule not in CLOSED_FORMS:
        return {}, f"There is no closed form for {q.schedule}: it is found by search."
    case = {"P": q.ranks, "M": q.microbatches, "V": chunks, "F": q.F, "I": q.I, "W": q.W, "hop": q.hop}
    found, remarks = {}, []
    for quantity, words in {"makespan": _time, **{f"bubble_{kind}": percent for kind in BUBBLES}}.items():
        try:
            found[quantity] = words(formula(q.schedule, quantity, **case))  # type: ignore[arg-type]
        except ValueError as error:
            remarks.append(str(error))
    try:
        peaks = (formula(q.schedule, "peak_in_flight", rank=rank, **case) for rank in range(q.ranks))  # type: ignore[arg-type]
        found["peak"] = _listed(peaks)
    except ValueError as error:
        remarks.append(str(error))
    return found, remarks[0] if remarks else ""


def _rows(q: Question, trace: Trace, theory: dict[str, str]) -> Iterator[tuple[str, str, str]]:
    yield "makespan", _time(trace.makespan), theory.get("makespan", "")
    for kind in BUBBLES:
        yield f"bubble, {kind}", percent(trace.bubble(kind)), theory.get(f"bubble_{kind}", "")
    peaks = trace.peak_in_flight
    yield "most in flight, by rank", _listed(peaks), theory.get("peak", "")
    if q.limit:
        above = [str(rank) for rank, peak in enumerate(peaks) if peak > q.limit]
        ranks = f"rank {above[0]} is" if len(above) == 1 else f"ranks {', '.join(above)} are"
        yield f"limit {q.limit}", f"{ranks} above it" if above else "kept by all ranks", ""


def _time(value: Number) -> str:
    return digits(number(value))


def _listed(values: Any) -> str:
    return " ".join(f"{float(value):g}" for value in values)


def exact(value: float) -> Number:
    """A slider's float as the exact number that it shows.

    >>> exact(0.25), exact(2.0)
    (Fraction(1, 4), 2)
    """
    found = Fraction(value).limit_denominator(100)
    return found.numerator if found.denominator == 1 else found
