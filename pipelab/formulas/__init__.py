"""What does theory say of a schedule, before anything is simulated? Read next: `costs`, then `simulate`.

A makespan is the longest chain of actions that wait for one another. Each function of this package names those
chains for one schedule, so it needs no clock and no rows: formula and simulation are two independent witnesses, held
equal by a test.

Read `case` first, then `whole_backward`, `zero_bubble` and `v_shape`.

    P ranks   M micro-batches   V chunks a rank   F, I, W work of one rank for one micro-batch   B = I + W
"""

from decimal import Decimal
from fractions import Fraction

from pipelab.counts import count
from pipelab.formulas import v_shape as vee
from pipelab.formulas import whole_backward as whole
from pipelab.formulas import zero_bubble as zero
from pipelab.formulas.case import Case, ClosedForm

PEAKS = ("peak_in_flight", "peak_until_input")
QUANTITIES = ("makespan", "span", "bubble_step", "bubble_span", "bubble_overhead", *PEAKS)

Time = int | float | Fraction | Decimal


def formula(
    name: str,
    quantity: str,
    *,
    P: int,
    M: int,
    V: int | None = None,
    F: Time = 1,
    I: Time = 1,  # noqa: E741
    W: Time = 1,
    hop: Time = 0,
    rank: int | None = None,
) -> Fraction:
    """The exact time, bubble or memory of a named schedule on equal ranks.

    Times are in any one unit; `hop` is the latency between two ranks and occupies neither. `peak_in_flight` (until
    W) and `peak_until_input` (until I) are in micro-batches, on `rank`, or on the fullest rank when none is given. V
    is the schedule's own number of chunks, or 1, when it is left out. Definitions of the bubbles: `Trace.bubble`.
    Raises ValueError for an unknown name, and outside a closed form's domain, which it names.

    >>> formula("1f1b", "makespan", P=4, M=8)
    Fraction(33, 1)
    >>> formula("zb-h1", "bubble_step", P=4, M=8), formula("1f1b", "peak_in_flight", P=4, M=8, rank=3)
    (Fraction(1, 9), Fraction(1, 1))
    """
    if name not in CLOSED_FORMS:
        raise ValueError(f"there is no closed form for {name!r}; there is one for {', '.join(CLOSED_FORMS)}")
    if quantity not in QUANTITIES:
        raise ValueError(f"there is no quantity {quantity!r}; the quantities are {', '.join(QUANTITIES)}")
    times = (_time(letter, value) for letter, value in (("F", F), ("I", I), ("W", W), ("hop", hop)))
    closed = CLOSED_FORMS[name]
    case = Case(count("P", P), count("M", M), _chunks(name, closed.chunks, V), *times)
    if not closed.backward:
        case = case._replace(I=Fraction(0), W=Fraction(0))
    if quantity in PEAKS:
        later = quantity == "peak_until_input" and closed.peak_until_input
        peak = later or closed.peak
        return Fraction(max(peak(case, one) for one in _ranks(case, rank)))
    if rank is not None:
        raise ValueError(f"{quantity} is of all ranks together; leave rank out, only {' and '.join(PEAKS)} take it")
    return _timed(quantity, closed, case)


def _timed(quantity: str, closed: ClosedForm, case: Case) -> Fraction:
    """A makespan, a span, or one of the three bubbles (0 where there is no work at all)."""
    if quantity == "makespan":
        return closed.makespan(case)
    if quantity == "span":
        return closed.span(case)
    if not case.ideal:
        return Fraction(0)
    if quantity == "bubble_step":
        return 1 - case.ideal / closed.makespan(case)
    if quantity == "bubble_span":
        return 1 - case.ideal / closed.span(case)
    return closed.makespan(case) / case.ideal - 1


CLOSED_FORMS = {
    "naive": ClosedForm(whole.naive_makespan, whole.naive_makespan, whole.naive_peak),
    "gpipe": ClosedForm(whole.gpipe_makespan, whole.gpipe_makespan, whole.gpipe_peak),
    "1f1b": ClosedForm(whole.one_f_one_b_makespan, whole.one_f_one_b_makespan, whole.one_f_one_b_peak),
    "interleaved": ClosedForm(
        whole.interleaved_makespan, whole.interleaved_makespan, whole.interleaved_peak, chunks="any"
    ),
    "looped-bfs": ClosedForm(whole.looped_bfs_makespan, whole.looped_bfs_makespan, whole.gpipe_peak, chunks="any"),
    "interleaved-zb": ClosedForm(
        zero.interleaved_zb_makespan,
        zero.interleaved_zb_span,
        zero.interleaved_zb_peak,
        zero.interleaved_zb_peak_until_input,
        chunks="any",
    ),
    # Until I it holds what 1F1B does, whose forwards and I it has (Qi et al. 2024, section 2.3).
    "zb-h1": ClosedForm(zero.zb_h1_makespan, zero.zb_h1_span, zero.zb_h1_peak, whole.one_f_one_b_peak),
    "zb-h2": ClosedForm(zero.zb_h2_makespan, zero.zb_h2_span, zero.zb_h2_peak, zero.zb_h2_peak_until_input),
    "zb-v": ClosedForm(vee.zb_v_makespan, vee.zb_v_span, vee.zb_v_peak, chunks=2),
    "v-half": ClosedForm(vee.v_half_makespan, vee.v_half_makespan, vee.v_half_peak, chunks=2),
    "v-min": ClosedForm(vee.v_min_makespan, vee.v_min_makespan, vee.v_min_peak, vee.v_min_peak_until_input, chunks=2),
    "1f1b-v": ClosedForm(vee.one_f_one_b_v_makespan, vee.one_f_one_b_v_makespan, vee.one_f_one_b_v_peak, chunks=2),
    "dualpipe-v": ClosedForm(vee.dualpipe_v_makespan, vee.dualpipe_v_makespan, vee.dualpipe_v_peak, chunks=2),
    "pipedream": ClosedForm(whole.one_f_one_b_makespan, whole.one_f_one_b_makespan, whole.one_f_one_b_peak),
    "inference": ClosedForm(whole.inference_makespan, whole.inference_span, whole.inference_peak, backward=False),
}
"""By name. Where rank 0 starts first and ends last, span and makespan are the same."""


def _chunks(name: str, chunks: int | str, V: int | None) -> int:
    """V as asked for, where the schedule can have it."""
    number = None if V is None else count("V", V)
    if chunks == "any":
        return number or 1
    if number not in (None, chunks):
        has = "one chunk" if chunks == 1 else "two chunks"
        remedy = "leave V out" if chunks == 2 else "leave V out, or ask for interleaved"
        raise ValueError(f"{name} has {has} a rank: got V={V}; {remedy}")
    return int(chunks)


def _ranks(case: Case, rank: int | None) -> range:
    """The rank asked for, or all."""
    if rank is None:
        return range(case.P)
    if rank not in range(case.P) or isinstance(rank, bool):
        raise ValueError(f"rank must be one of 0..{case.P - 1}: got {rank!r}")
    return range(rank, rank + 1)


def _time(letter: str, value: Time) -> Fraction:
    try:
        time = Fraction(value)
    except (TypeError, ValueError, OverflowError):  # not a number, nan, infinite
        time = Fraction(-1)
    if time < 0 or isinstance(value, str | bool):
        raise ValueError(f"{letter} must be a time of at least 0: got {value!r}")
    return time
