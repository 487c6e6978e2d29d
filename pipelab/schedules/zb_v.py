"""ZB-V: two chunks a rank, placed in a V: zero bubble with the memory of 1F1B. Read next: `v_shape`."""

from pipelab.action import F, I, W
from pipelab.placement import Placement
from pipelab.schedule import Letter, Schedule


def zb_v(ranks: int, microbatches: int) -> Schedule:
    """A V of two chunks a rank, the backward split: no idle span when F = I = W, in 1F1B's largest memory.

    Each line of the word below is a phase: the way down, down and up, the turn, the steady state, the way out, and the
    weight gradients left over. It needs M >= 2P-1; for fewer, the micro-batches from M on are taken out of the word for
    2P-1 (Qi et al. 2024, section 6; the same order as PyTorch's ScheduleZBVZeroBubble).

    >>> print(zb_v(2, 3))
    0F0 0F1 0F2 3F0 3I0 3W0 3F1 3I1 3W1 0I0 0W0 3F2 3I2 3W2 0I1 0W1 0I2 0W2
    1F0 2F0 1F1 2F1 2I0 2W0 1F2 1I0 1W0 2F2 2I1 2W1 1I1 2I2 1I2 1W1 2W2 1W2
    """
    P, M = ranks, max(microbatches, 2 * ranks - 1)

    def word(rank: int) -> list[Letter]:
        a, b = rank, 2 * P - 1 - rank
        return [
            *[(a, F)] * (2 * (P - rank) - 1),
            *[(b, F), (a, F)] * rank,
            *[(b, F), (b, I), (b, W)] * (P - rank),
            *[(a, F), (a, I), (a, W), (b, F), (b, I), (b, W)] * (M - 2 * P + 1 + rank),
            *[(a, I), (a, W), (b, F), (b, I), (b, W)] * (P - 1 - rank),
            *[(a, I), (b, I)] * rank,
            *[(a, I), (a, W)] * (P - rank),
            *[(b, W)] * rank,
            *[(a, W)] * rank,
        ]

    return Schedule.from_words("zb-v", Placement.vee(P), microbatches, word, drop_rest=microbatches < M)
