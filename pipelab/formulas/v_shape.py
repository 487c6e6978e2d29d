"""ZB-V, V-Half, V-Min, 1F1B-V, DualPipeV: two chunks a rank in a V. How small are bubble and memory together?

A chunk's F takes F/2, so the figures count slots of F/2. All but DualPipeV are drawn for F = I = W and no hop: there
the form is exact, elsewhere it is refused. Those of V-Half, V-Min and 1F1B-V are of the blocks and the squeezing in
`pipelab.schedules.v_shape` (Qi et al. 2024, Controllable Memory, print asymptotes for the first two: 1/2 and 2/3 of
1F1B's bubble).
"""

from fractions import Fraction

from pipelab.formulas.case import Case, within


def zb_v_makespan(case: Case) -> Fraction:
    """3M F + (P-1)F/2: the last rank is P-1 slots late and has no bubble; below M = 2P-1, 2P-1-M forwards are missing.

    F = I = W and no hop, any P and M (Qi et al. 2024, Zero Bubble, section 6; M < 2P-1 derived here).
    """
    return max(zb_v_span(case), case.ideal + (case.P - 1) * case.F / 2)


def zb_v_span(case: Case) -> Fraction:
    """3M F for M >= 2P-1: zero bubble. F = I = W and no hop, any P and M (as the makespan)."""
    _alike(case, "zb-v")
    return case.ideal + max(0, 2 * case.P - 1 - case.M) * case.F


def zb_v_peak(case: Case, rank: int) -> Fraction:
    """P on every rank, at most M, and on the first ranks at most what comes before the first backward.

    Any P and M (Qi et al. 2024, Zero Bubble, section 6; small M derived here).
    """
    return min(Fraction(case.P), Fraction(case.M), Fraction(case.M + 1 + rank, 2))


def v_half_makespan(case: Case) -> Fraction:
    """3M F + (3P-7)F/2 for even P, (3P-4)F/2 for odd P. F = I = W, no hop, P >= 3 and M >= 2P."""
    within(case, case.P > 2, "v-half", "P=1 and P >= 3")
    _alike(case, "v-half", case.M >= 2 * case.P, ", M >= 2P")
    return case.ideal + (3 * case.P - (7 if case.P % 2 == 0 else 4)) * case.F / 2 * (case.P > 1)


def v_half_peak(case: Case, rank: int) -> int:
    """P/2 + 1, rounded down, on every rank. M >= 2P."""
    within(case, case.M >= 2 * case.P, "v-half", "M >= 2P")
    return case.P // 2 + 1


def v_min_makespan(case: Case) -> Fraction:
    """3M F + (4P-5)F/2, or (4P-7)F/2 where 3 divides P: there and back once. F = I = W, no hop and M > P."""
    _alike(case, "v-min", case.M > case.P, ", M > P")
    return case.ideal + (4 * case.P - (7 if case.P % 3 == 0 else 5)) * case.F / 2 * (case.P > 1)


def v_min_peak(case: Case, rank: int) -> Fraction:
    """(P+4)/3, rounded down; half a micro-batch less on rank 0 if P mod 3 is 2. M >= 2P."""
    within(case, case.M >= 2 * case.P, "v-min", "M >= 2P")
    return (case.P + 4) // 3 - Fraction(case.P % 3 == 2 and rank == 0, 2)


def v_min_peak_until_input(case: Case, rank: int) -> Fraction:
    """None is known."""
    raise ValueError("v-min has no closed form for peak_until_input; ask for peak_in_flight, or simulate it")


def one_f_one_b_v_makespan(case: Case) -> Fraction:
    """3M F + 2(P-1)F + 3/2 F for each pause of the block on the way, (P-1)/3. F = I = W, no hop and M >= 2P."""
    _alike(case, "1f1b-v", case.M >= 2 * case.P, ", M >= 2P")
    return case.ideal + (4 * (case.P - 1) + 3 * ((case.P - 1) // 3)) * case.F / 2


def one_f_one_b_v_peak(case: Case, rank: int) -> int:
    """2P/3 + 1, rounded down, on every rank. M >= 2P."""
    within(case, case.M >= 2 * case.P, "1f1b-v", "M >= 2P")
    return 2 * case.P // 3 + 1


def dualpipe_v_makespan(case: Case) -> Fraction:
    """M(F+B) + (P-1)(F&B + B - 3W), each of one chunk: half of a rank's. F&B = F + B, the pair's time.

    F = I, W <= F, no hop and M >= 2P (DeepSeek-AI 2024, DualPipe; their PP counts 2P stages).
    """
    F, B, W = case.F / 2, case.B / 2, case.W / 2
    inside = case.M >= 2 * case.P and case.F == case.I and case.W <= case.F and not case.hop
    within(case, inside, "dualpipe-v", "M >= 2P, F = I, W <= F and hop 0")
    return case.ideal + (case.P - 1) * ((F + B) + B - 3 * W)


def dualpipe_v_peak(case: Case, rank: int) -> Fraction:
    """2P+1 chunks on every rank, at most M micro-batches; below M = 2P the first ranks hold less.

    Any P and M (DeepSeek-AI 2024, DualPipe; small M derived here).
    """
    return min(Fraction(2 * case.P + 1, 2), Fraction(case.M), Fraction(case.M + 1 + rank, 2))


def _alike(case: Case, name: str, enough: bool = True, microbatches: str = "") -> None:
    inside = case.F == case.I == case.W and not case.hop and enough
    within(case, inside, name, f"F = I = W and hop 0{microbatches}")
