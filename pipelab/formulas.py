"""What does theory say of a schedule, before anything is simulated? Read next: `costs`, then `simulate`.

A makespan is the longest chain of actions that wait for one another. Each function below names those chains
for one schedule, so it needs no clock and no rows: formula and simulation are two independent witnesses, held
equal by a test.

    P ranks   M micro-batches   V chunks a rank   F, I, W work of one rank for one micro-batch   B = I + W
"""

import operator
from collections.abc import Callable
from decimal import Decimal
from fractions import Fraction
from typing import NamedTuple

QUANTITIES = ("makespan", "span", "bubble_step", "bubble_span", "bubble_overhead", "peak_in_flight")

Time = int | float | Fraction | Decimal


class Case(NamedTuple):
    """What one formula is asked about: all ranks are equal, and a chunk takes 1/V of its rank's work."""

    P: int
    M: int
    V: int
    F: Fraction
    I: Fraction  # noqa: E741
    W: Fraction
    hop: Fraction

    @property
    def B(self) -> Fraction:
        """The full backward."""
        return self.I + self.W

    @property
    def ideal(self) -> Fraction:
        """Busy time of every rank."""
        return self.M * (self.F + self.B)


def formula(
    name: str,
    quantity: str,
    *,
    P: int,
    M: int,
    V: int = 1,
    F: Time = 1,
    I: Time = 1,  # noqa: E741
    W: Time = 1,
    hop: Time = 0,
    rank: int | None = None,
) -> Fraction:
    """The exact time, bubble or memory of a named schedule on equal ranks.

    Times are in any one unit; `hop` is the latency between two ranks and occupies neither. `peak_in_flight`
    is in micro-batches, on `rank`, or on the fullest rank when none is given. Definitions of the bubbles:
    `Trace.bubble`. Raises ValueError for an unknown name, and outside a closed form's domain, which it names.

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
    case = Case(_count("P", P), _count("M", M), _count("V", V), *times)
    closed = CLOSED_FORMS[name]
    if case.V != 1 and not closed.chunks:
        raise ValueError(f"{name} has one chunk a rank: got V={V}; leave V out, or ask for interleaved")
    if quantity == "peak_in_flight":
        return Fraction(closed.peak(case, _rank(case, rank)))
    if rank is not None:
        raise ValueError(f"{quantity} is of all ranks together; leave rank out, only peak_in_flight takes it")
    return _timed(quantity, closed, case)


def _timed(quantity: str, closed: "ClosedForm", case: Case) -> Fraction:
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


def naive_makespan(case: Case) -> Fraction:
    """M round trips one after the other, each of P forwards, P backwards and 2(P-1) hops.

    Any P, M, work and hop; by definition.
    """
    return case.M * (case.P * (case.F + case.B) + 2 * (case.P - 1) * case.hop)


def naive_peak(case: Case, rank: int) -> int:
    """One micro-batch at a time. Any P and M; by definition."""
    return 1


def gpipe_makespan(case: Case) -> Fraction:
    """(M+P-1)(F+B) + 2(P-1) hop: P-1 forwards, then the last rank without a pause, then P-1 backwards.

    Any P, M, work and hop (Huang et al. 2019, section 2.3; Narayanan et al. 2021, section 2.2.1).
    """
    return (case.M + case.P - 1) * (case.F + case.B) + 2 * (case.P - 1) * case.hop


def gpipe_peak(case: Case, rank: int) -> int:
    """All M forwards come before the first backward. Any P and M (Narayanan et al. 2021, section 2.2.1)."""
    return case.M


def one_f_one_b_makespan(case: Case) -> Fraction:
    """GPipe's work, but its hops are paid in every round trip: (M+P-1)(F+B) + 2(M+P-1 - n) hop.

    n = ceil((M+P-1)/P) is the number of round trips. For P dividing M the hops are 2(P-1)(M/P+1) - 2. Any P,
    M, work and hop (Narayanan et al. 2021, section 2.2.1; Qi et al. 2024, table 2; the hops derived here).
    """
    steps = case.M + case.P - 1
    return steps * (case.F + case.B) + 2 * (steps - _round_trips(case)) * case.hop


def one_f_one_b_peak(case: Case, rank: int) -> int:
    """The warm-up of P-1-rank forwards and one more, at most M.

    Any P and M (Narayanan et al. 2021, section 2.2.1).
    """
    return min(case.P - rank, case.M)


def interleaved_makespan(case: Case) -> Fraction:
    """M(F+B) + (P-1)(F+B)/V + 2(PV-1) hop for P dividing M: the pipeline fills and drains by thin chunks.

    For M < P the next chunk waits for the ring of P ranks, so that M and P trade places in the work. Without
    hops any P, M, V and work; hops as `_refuse_long_hops` says (Narayanan et al. 2021, section 2.2.2;
    Korthikanti et al. 2022, section 4.2.3; P not dividing M, and what a hop between F/V and B/V costs, are
    derived here).
    """
    P, M, V = case.P, case.M, case.V
    if V == 1:
        return one_f_one_b_makespan(case)
    work = (max(M, P) * V + min(M, P) - 1) * (case.F + case.B) / V
    if P == 1 or not case.hop:
        return work
    _refuse_long_hops(case)
    return work + 2 * (P - 1) * case.hop + (V - 1) * _wrap_around(case)


def _wrap_around(case: Case) -> Fraction:
    """What going on to the next chunk costs, once for all rounds: a round is back on its rank after P hops.

    The first round's forwards and the last round's backwards wait for them, less what the micro-batches above
    P of an uneven round fill. In between, a chunk's work of the other kind hides each hop, up to F/V or B/V.
    """
    P, hop, forward, backward = case.P, case.hop, case.F / case.V, case.B / case.V
    above = [max(0, size - P) for size in _rounds(case)]

    def between(hidden: Fraction, rounds: list[int]) -> Fraction:
        return sum((_positive(P * (hop - hidden) - n * (forward + backward)) for n in rounds), Fraction(0))

    ends = _positive(P * hop - above[0] * forward) + _positive(P * hop - above[-1] * backward)
    return ends + max(between(forward, above[:-1]), between(backward, above[1:]))


def _refuse_long_hops(case: Case) -> None:
    if 2 * case.hop * case.V > case.F + case.B:
        raise ValueError(
            "interleaved has a closed form for hops of at most half the work of a chunk, 2 hop <= (F+B)/V: "
            f"got hop={case.hop}, (F+B)/V={(case.F + case.B) / case.V}"
        )
    first, last = _rounds(case)[0], _rounds(case)[-1]
    if first != last and last + 1 < case.V:
        raise ValueError(
            f"interleaved has a closed form with hops for equal rounds, or V at most {last + 1}, one more "
            f"than the smallest: got P={case.P}, M={case.M}, V={case.V}, rounds of {first} and {last}"
        )


def interleaved_peak(case: Case, rank: int) -> Fraction:
    """The warm-up, V-1 chunks of the first round and two for each later rank, and one more, at most all VM.

    P + (P-1)/V on rank 0 when P divides M >= 2P. Any P, M and V (Narayanan et al. 2021, section 2.2.2;
    Korthikanti et al. 2022, section 4.2.3).
    """
    if case.V == 1:
        return Fraction(one_f_one_b_peak(case, rank))
    warmup = (case.V - 1) * _rounds(case)[0] + 2 * (case.P - 1 - rank)
    return Fraction(min(warmup + 1, case.V * case.M), case.V)


def zb_h1_makespan(case: Case) -> Fraction:
    """M(F+I+W) + (P-1)(F+I-W) + 4(P-1) hop for M > P, W <= min(F, I), small hops: W fills the bubble.

    Else the longest of a few chains. Any P, M, work and hop (Qi et al. 2024, section 2.3 and table 2; M <= P,
    a larger W and larger hops derived here).
    """
    return _zb_h1_longest(case, later_by=case.W - case.I - case.hop)


def zb_h1_span(case: Case) -> Fraction:
    """The makespan, unless W is so large that another rank ends last: each starts F + hop later.

    Any P, M, work and hop (Qi et al. 2024, table 2; W > min(F, I) derived here).
    """
    return _zb_h1_longest(case, later_by=case.W - case.I - case.hop - (case.F + case.hop))


def _zb_h1_longest(case: Case, later_by: Fraction) -> Fraction:
    """The longest of the chains there and back, and the one with all M weight gradients.

    There and back, n round trips, is a chain of M+P-1 forwards and as many I; each trip less has two hops
    more and one W fewer, so the longest has the most trips, M-P+1, or the fewest, as in 1F1B. It ends on rank
    0, or on the last rank with a W put off, if each rank on the way ends `later_by` more than 0. All weight
    gradients stand in one chain that lacks up to P-1 of the forwards, and goes down and up once.
    """
    P, M, steps, fewest = case.P, case.M, case.M + case.P - 1, _round_trips(case)
    trips = (fewest, max(fewest, M - P + 1))
    extra = max((n if M > P else 1) * case.W + 2 * (steps - n) * case.hop for n in trips)
    there_and_back = steps * (case.F + case.I) + extra + (min(M, P) - 1) * _positive(later_by)
    all_weights = max(M, P) * case.F + steps * case.I + M * case.W + 2 * (P - 1) * case.hop
    return max(there_and_back, all_weights)


def zb_h1_peak(case: Case, rank: int) -> int:
    """P on every rank, at most M, for a W that is put off keeps its activations.

    Any P and M (Qi et al. 2024, section 2.3, with M_W = M_B).
    """
    return min(case.P, case.M)


def _round_trips(case: Case) -> int:
    """ceil((M+P-1)/P), for in 1F1B a micro-batch must be back on rank 0 before the one P later can start."""
    return -(-(case.M + case.P - 1) // case.P)


def _rounds(case: Case) -> list[int]:
    """The rounds of interleaved: of P micro-batches or more, as even as M allows, the larger first."""
    rounds = max(1, case.M // case.P)
    share, larger = divmod(case.M, rounds)
    return [share + 1] * larger + [share] * (rounds - larger)


def _positive(time: Fraction) -> Fraction:
    return max(Fraction(0), time)


class ClosedForm(NamedTuple):
    """What theory knows of one schedule."""

    makespan: Callable[[Case], Fraction]
    span: Callable[[Case], Fraction]
    peak: Callable[[Case, int], int | Fraction]
    chunks: bool = False


CLOSED_FORMS = {
    "naive": ClosedForm(naive_makespan, naive_makespan, naive_peak),
    "gpipe": ClosedForm(gpipe_makespan, gpipe_makespan, gpipe_peak),
    "1f1b": ClosedForm(one_f_one_b_makespan, one_f_one_b_makespan, one_f_one_b_peak),
    "interleaved": ClosedForm(interleaved_makespan, interleaved_makespan, interleaved_peak, chunks=True),
    "zb-h1": ClosedForm(zb_h1_makespan, zb_h1_span, zb_h1_peak),
}
"""By name. Where rank 0 starts first and ends last, span and makespan are the same."""


def _rank(case: Case, rank: int | None) -> int:
    """The rank asked for; rank 0 warms up longest, so it is the fullest."""
    if rank is None:
        return 0
    if rank not in range(case.P) or isinstance(rank, bool):
        raise ValueError(f"rank must be one of 0..{case.P - 1}: got {rank!r}")
    return rank


def _count(letter: str, value: int) -> int:
    try:
        number = operator.index(value)
    except TypeError:
        number = 0
    if number < 1 or isinstance(value, bool):
        raise ValueError(f"{letter} must be a whole number of at least 1: got {value!r}")
    return number


def _time(letter: str, value: Time) -> Fraction:
    try:
        time = Fraction(value)
    except (TypeError, ValueError, OverflowError):  # not a number, nan, infinite
        time = Fraction(-1)
    if time < 0 or isinstance(value, str | bool):
        raise ValueError(f"{letter} must be a time of at least 0: got {value!r}")
    return time
