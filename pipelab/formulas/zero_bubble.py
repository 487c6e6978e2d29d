"""ZB-H1, ZB-H2 and interleaved ZB: what do weight gradients that are put off buy? Read next: `v_shape`."""

from fractions import Fraction

from pipelab.counts import round_sizes
from pipelab.formulas.case import Case, positive, round_trips, within


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
    P, M, steps, fewest = case.P, case.M, case.M + case.P - 1, round_trips(case)
    trips = (fewest, max(fewest, M - P + 1))
    extra = max((n if M > P else 1) * case.W + 2 * (steps - n) * case.hop for n in trips)
    there_and_back = steps * (case.F + case.I) + extra + (min(M, P) - 1) * positive(later_by)
    all_weights = max(M, P) * case.F + steps * case.I + M * case.W + 2 * (P - 1) * case.hop
    return max(there_and_back, all_weights)


def zb_h1_peak(case: Case, rank: int) -> int:
    """P on every rank, at most M, for a W that is put off keeps its activations.

    Any P and M (Qi et al. 2024, section 2.3, with M_W = M_B).
    """
    return min(case.P, case.M)


def zb_h2_span(case: Case) -> Fraction:
    """M(F+I+W) + (P-1)(F+I-2W+2 hop): rank 0 waits for the first I, and its 2(P-1) further forwards fill the time.

    For M >= 2P-1, W <= F, 2W <= F+I and 2 hop <= F+I-W (Qi et al. 2024, section 2.3 and table 2; the bound on the hop
    found by simulation). With F = I = W and no hop the bubble is zero.
    """
    F, I, W = case.F, case.I, case.W  # noqa: E741
    inside = case.M >= 2 * case.P - 1 and W <= F and 2 * W <= F + I and 2 * case.hop <= F + I - W
    within(case, inside, "zb-h2", "M >= 2P-1, W <= F, 2W <= F+I and 2 hop <= F+I-W")
    return case.ideal + (case.P - 1) * (F + I - 2 * W + 2 * case.hop)


def zb_h2_makespan(case: Case) -> Fraction:
    """The span of rank 0, or of the last rank: without a pause, but P-1 forwards and hops later.

    In the domain of the span (derived here): zero bubble is a parallelogram, and its makespan is longer.
    """
    return max(zb_h2_span(case), case.ideal + (case.P - 1) * (case.F + case.hop))


def zb_h2_peak(case: Case, rank: int) -> int:
    """2P-1 on every rank, at most M. Any P and M (Qi et al. 2024, section 2.3, with M_W = M_B)."""
    return min(2 * case.P - 1, case.M)


def zb_h2_peak_until_input(case: Case, rank: int) -> int:
    """Twice the warm-up of 1F1B, and one. Any P and M (Qi et al. 2024, section 2.3)."""
    return min(2 * (case.P - 1 - rank) + 1, case.M)


def interleaved_zb_makespan(case: Case) -> Fraction:
    """M(F+I+W) + (P-1)(F+I-W)/V: the bubble of ZB-H1, by chunks V times thinner.

    For M >= P, W <= min(F, I) and no hop; for V = 1 wherever ZB-H1 has one (derived here).
    """
    if case.V == 1:
        return zb_h1_makespan(case)
    inside = case.M >= case.P and case.W <= case.F and case.W <= case.I and not case.hop
    within(case, inside, "interleaved-zb", "M >= P, W <= F, W <= I and hop 0, or V=1")
    return case.ideal + (case.P - 1) * (case.F + case.I - case.W) / case.V


def interleaved_zb_span(case: Case) -> Fraction:
    """The makespan, in its domain."""
    return zb_h1_span(case) if case.V == 1 else interleaved_zb_makespan(case)


def interleaved_zb_peak(case: Case, rank: int) -> Fraction:
    """P on every rank when P divides M: V-1 chunks of the first round, and P. Any P, M and V (derived here)."""
    return Fraction(min((case.V - 1) * round_sizes(case.P, case.M)[0] + case.P, case.V * case.M), case.V)


def interleaved_zb_peak_until_input(case: Case, rank: int) -> Fraction:
    """The warm-up and one: rank r less than the peak. Any P, M and V (derived here)."""
    return Fraction(min((case.V - 1) * round_sizes(case.P, case.M)[0] + case.P - rank, case.V * case.M), case.V)
