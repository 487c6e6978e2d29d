"""1F1B: start a backward as soon as one can run. Same time as GPipe, less memory. Read next: `interleaved`."""

from pipelab.action import B, F
from pipelab.placement import Placement
from pipelab.schedule import Letter, Schedule, stagger


def one_f_one_b(ranks: int, microbatches: int) -> Schedule:
    """One forward, one backward in turn, after P-1-r forwards: rank r never holds more than P-r micro-batches.

    With k = min(P-1-r, M) the word of rank r is [f] * k + [f, b] * (M-k) + [b] * k
    (PipeDream-Flush: Narayanan et al. 2021, section 2.2.1).

    >>> print(one_f_one_b(2, 3))
    0F0 0F1 0B0 0F2 0B1 0B2
    1F0 1B0 1F1 1B1 1F2 1B2
    """

    def word(rank: int) -> list[Letter]:
        warmup = min(ranks - 1 - rank, microbatches)
        return stagger(([(rank, F)] * microbatches, 0), ([(rank, B)] * microbatches, warmup))

    return Schedule.from_words("1f1b", Placement.loop(ranks), microbatches, word)
