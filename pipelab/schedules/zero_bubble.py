"""Zero bubble: split the backward, B = I + W, and let the W that nobody waits for fill the bubble."""

from pipelab.action import F, I, W
from pipelab.placement import Placement
from pipelab.schedule import Letter, Schedule, stagger


def zb_h1(ranks: int, microbatches: int) -> Schedule:
    """1F1B with the weight gradients put off: a third of its bubble when F = I = W, with 1F1B's largest memory.

    With k = P-1-r the word of rank r is [f] * k + [f, i] * r + [f, i, w] * (M-P+1) + [i, w] * k + [w] * r
    for M >= P-1; below, the same streams with fewer letters (Qi et al. 2024, section 2.3).

    >>> print(zb_h1(2, 3))
    0F0 0F1 0I0 0W0 0F2 0I1 0W1 0I2 0W2
    1F0 1I0 1F1 1I1 1W0 1F2 1I2 1W1 1W2
    """

    def word(rank: int) -> list[Letter]:
        warmup, delay = ranks - 1 - rank, rank
        letters = {kind: [(rank, kind)] * microbatches for kind in (F, I, W)}
        return stagger((letters[F], 0), (letters[I], warmup), (letters[W], warmup + delay))

    return Schedule.from_words("zb-h1", Placement.loop(ranks), microbatches, word)
