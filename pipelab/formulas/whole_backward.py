"""Naive, GPipe, 1F1B, looped BFS, interleaved: B = I + W is one piece; inference has none. Read next: `zero_bubble`."""

from fractions import Fraction

from pipelab.counts import round_sizes
from pipelab.formulas.case import Case, positive, round_trips


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
    return steps * (case.F + case.B) + 2 * (steps - round_trips(case)) * case.hop


def one_f_one_b_peak(case: Case, rank: int) -> int:
    """The warm-up of P-1-rank forwards and one more, at most M.

    Any P and M (Narayanan et al. 2021, section 2.2.1).
    """
    return min(case.P - rank, case.M)


def looped_bfs_makespan(case: Case) -> Fraction:
    """M(F+B) + (P-1)(F+B)/V for M >= P, without hops: GPipe with chunks V times thinner.

    Down the ranks once, P-1 chunks and hops, and chunk by chunk; each of the V-1 times that a rank goes on to its next
    chunk it has done M micro-batches, or waits for the first to come round: P chunks and hops. The same back. Any P,
    M, V, work and hop (Lamy-Poirier 2023, section 4; M < P and the hops derived here).
    """
    P, M, V = case.P, case.M, case.V

    def one_way(work: Fraction) -> Fraction:
        step = work + case.hop
        around = P * step if P > 1 else Fraction(0)
        return (P - 1) * step + M * work + (V - 1) * max(M * work, around)

    return one_way(case.F / V) + one_way(case.B / V)


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
    above = [max(0, size - P) for size in round_sizes(case.P, case.M)]

    def between(hidden: Fraction, rounds: list[int]) -> Fraction:
        return sum((positive(P * (hop - hidden) - n * (forward + backward)) for n in rounds), Fraction(0))

    ends = positive(P * hop - above[0] * forward) + positive(P * hop - above[-1] * backward)
    return ends + max(between(forward, above[:-1]), between(backward, above[1:]))


def _refuse_long_hops(case: Case) -> None:
    if 2 * case.hop * case.V > case.F + case.B:
        raise ValueError(
            "interleaved has a closed form for hops of at most half the work of a chunk, 2 hop <= (F+B)/V: "
            f"got hop={case.hop}, (F+B)/V={(case.F + case.B) / case.V}"
        )
    sizes = round_sizes(case.P, case.M)
    first, last = sizes[0], sizes[-1]
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
    warmup = (case.V - 1) * round_sizes(case.P, case.M)[0] + 2 * (case.P - 1 - rank)
    return Fraction(min(warmup + 1, case.V * case.M), case.V)


def inference_makespan(case: Case) -> Fraction:
    """(M+P-1) F + (P-1) hop: down the ranks once, and the last rank without a pause. Any P, M, F and hop."""
    return (case.M + case.P - 1) * case.F + (case.P - 1) * case.hop


def inference_span(case: Case) -> Fraction:
    """No rank pauses once it has begun. Any P, M, F and hop."""
    return case.M * case.F


def inference_peak(case: Case, rank: int) -> int:
    """Nothing is held for a backward: only the micro-batch that is worked on. Any P and M."""
    return 1
