"""How short can any schedule be? Five reasons that no order of work escapes. Read next: `words`.

    return   the time from the end of an F on a stage until its gradient is back: work and hops of the stages after it

1. A rank does all its work, and before its first I it has nothing to do but the forwards that its memory holds.
2. Likewise at the end: after its last F starts, the work that is left is that of the micro-batches it holds.
3. A micro-batch stays on a rank for F + return + I, so few places mean many rounds.
4. The memory a rank holds, summed over time, is at most its limit times the time.
5. Before the last gradient leaves rank j, j has done all F and I, and the W that memory forced; then the
   gradient climbs to rank r, whose own W still follows.

They are for stage r on rank r. Reasons 1, 4 and 5, in a weaker form, also hold for every other placement.
"""

from pipelab.search.problem import Problem
from pipelab.trace import Number

ROUNDING = 1e-12


def bound(problem: Problem) -> Number:
    """A length, in ticks, that no schedule within the limits goes below.

    With one stage a rank, zero hops, F = I = W and limit P it is ZB-H1's M (F+I+W) + (P-1)(F+I-W): none
    in that memory is shorter than the published one (Qi et al. 2024, table 2); a V of two chunks can be.

    >>> from pipelab.placement import Placement
    >>> problems = Problem.of(Placement.loop(4), 8), Problem.of(Placement.vee(4), 8)
    >>> [problem.in_units(bound(problem)) for problem in problems]
    [27, 24]
    """
    back = _returns(problem)
    if problem.placement.rank_of == tuple(range(problem.ranks)):
        heads = [start - offset for start, offset in zip(problem.start, problem.offset, strict=True)]
        alone = max(head + _alone(problem, rank, back) for rank, head in enumerate(heads))
        length = max(alone, _through(problem, back))
    else:
        length = max(_on_any_placement(problem, rank, back) for rank in set(problem.placement.rank_of))
    return length * (1 - ROUNDING) if isinstance(length, float) else length


def _returns(problem: Problem) -> list[Number]:
    """For each stage the time from the end of an F to the start of its I, at the earliest."""
    back: list[Number] = [0] * problem.placement.stages
    for stage in reversed(range(problem.placement.stages - 1)):
        hops = problem.hop_down[stage] + problem.hop_up[stage]
        back[stage] = back[stage + 1] + problem.F[stage + 1] + problem.I[stage + 1] + hops
    return back


def _alone(problem: Problem, rank: int, returns: list[Number]) -> Number:
    """Reasons 1 to 4: what one rank needs from its first start to its last end."""
    back = returns[rank]
    M, f, i, w = problem.microbatches, problem.F[rank], problem.I[rank], problem.W[rank]
    one, weight, limit = problem.one, problem.weight, problem.limits[rank]
    places = min(limit // one, M)
    work: Number = M * (f + i + w) + _first_wait(problem, rank, back)
    if limit // one < M:  # then the last F comes after the first I, and the two waits are apart
        left: Number = places * (i + w)
        if weight:
            left = max(left, (i + w) + (limit - one) // weight * w + (places - 1) * i)
            work += max(0, back + i + w - left)
    rounds = -(-M // places)
    stay = f + back + i
    filled = rounds * (stay + w) if weight == one else rounds * stay + w
    return max(work, filled, _shared(M * (stay * one + w * weight), limit))


def _shared(area: Number, limit: int) -> Number:
    """Reason 4: the time in which so much memory times time can be held."""
    return area / limit if isinstance(area, float) else -(-area // limit)


def _on_any_placement(problem: Problem, rank: int, returns: list[Number]) -> Number:
    """Reasons 1, 4 and 5 for a rank with any stages.

    The stage whose gradient is back first ends the first wait; all stages share the memory; the last I is one of the
    lowest stage, and its gradient has yet to climb to stage 0, whose rank starts at 0.
    """
    f, i, w, stages = problem.F, problem.I, problem.W, problem.placement.stages_on(rank)
    M, limit, lowest = problem.microbatches, problem.limits[rank], stages[0]
    first_back = min(problem.start[s] + f[s] + returns[s] for s in stages) - problem.start[lowest]
    before = min(limit // problem.one * max(f[s] for s in stages), M * sum(f[s] for s in stages))
    wait: Number = max(0, first_back - before)
    stays: Number = sum((f[s] + returns[s] + i[s]) * problem.one + w[s] * problem.weight for s in stages)
    alone = max(wait + problem.work[rank], _shared(M * stays, limit))
    climb = sum(i[s] + problem.hop_up[s] for s in range(lowest)) + w[0]
    last_gradient = problem.start[lowest] + wait + M * sum(f[s] + i[s] for s in stages)
    return max(problem.start[lowest] - problem.offset[rank] + alone, last_gradient + climb)


def _first_wait(problem: Problem, rank: int, back: Number) -> Number:
    """Idle time between a rank's first F and its first I: its memory may be full before the gradient is back."""
    places = min(problem.limits[rank] // problem.one, problem.microbatches)
    return max(0, back - (places - 1) * problem.F[rank])


def _through(problem: Problem, back: list[Number]) -> Number:
    """Reason 5, for every pair of ranks r <= j."""
    offset, start, longest = problem.offset, problem.start, problem.work[0]
    for j in range(problem.ranks):
        M, places = problem.microbatches, problem.limits[j] - problem.one
        forced = max(0, M - 1 - places // problem.weight) if problem.weight else 0
        end: Number = start[j] + M * (problem.F[j] + problem.I[j]) + forced * problem.W[j]
        end += _first_wait(problem, j, back[j])
        for r in range(j, -1, -1):
            longest = max(longest, end - offset[r] + problem.W[r])
            if r:
                end += problem.hop_up[r - 1] + problem.I[r - 1]
    return longest
