"""How short can any schedule be on this placement, whatever the number of stages a rank? A weaker bound than `bound`.

Three reasons that hold for every placement: a rank starts when the first forward can reach it and then has all its work
to do; when a rank ends its F and I, a gradient of one of its stages has yet to climb to stage 0; and the memory a rank
holds, summed over time, is at most its limit times the time.
"""

from collections.abc import Sequence
from itertools import accumulate

from pipelab.action import F, I, W
from pipelab.costs import Costs
from pipelab.placement import Placement
from pipelab.search.bound import ROUNDING
from pipelab.simulate import arrivals
from pipelab.trace import Number, plain, ratio


def bound_on(placement: Placement, microbatches: int, costs: Costs, limits: Sequence[Number], objective: str) -> Number:
    """A length that no schedule on this placement goes below, with `limits[r]` micro-batches in flight on rank r.

    `objective` is "span" or "step". The memory counts from the start of F to the end of W, a chunk 1/V.

    >>> bound_on(Placement.vee(4), 8, Costs.uniform(), limits=[4] * 4, objective="step")
    Fraction(51, 2)
    """
    times, (reach, back, climb) = costs.durations(placement), _paths(placement, costs)
    longest: Number = 0
    for rank, limit in enumerate(limits):
        own = placement.stages_on(rank)
        if not own:
            continue
        head, tail = (min(path[s] for s in own) if objective == "step" else 0 for path in (reach, climb))
        chain = microbatches * sum(times[s, F] + times[s, I] for s in own)
        work = chain + microbatches * sum(times[s, W] for s in own)
        stay = work + microbatches * sum(back[s] for s in own)
        longest = max(longest, head + work, head + chain + tail, ratio(stay, len(own) * limit))
    return longest * (1 - ROUNDING) if isinstance(longest, float) else plain(longest)


def _paths(placement: Placement, costs: Costs) -> tuple[list[Number], list[Number], list[Number]]:
    """For each stage: when a forward reaches it; from the end of its F to the start of its I; from its I to the end."""
    times, inputs, later = costs.durations(placement), arrivals(placement, costs), range(1, placement.stages)
    down = [dict(inputs[stage, F])[stage - 1, F] for stage in later]
    up = [dict(inputs[stage - 1, I])[stage, I] for stage in later]
    reach = accumulate((times[s - 1, F] + hop for s, hop in zip(later, down, strict=True)), initial=0)
    climb = accumulate((times[s - 1, I] + hop for s, hop in zip(later, up, strict=True)), initial=times[0, W])
    turns = [times[s, F] + times[s, I] + d + u for s, d, u in zip(later, down, up, strict=True)]
    back = list(accumulate(reversed(turns), initial=0))
    return list(reach), back[::-1], list(climb)
