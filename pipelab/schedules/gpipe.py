"""GPipe: split the batch. What do micro-batches buy, and what do they cost? Read next: `one_f_one_b`."""

from pipelab.action import B, F
from pipelab.placement import Placement
from pipelab.schedule import Letter, Schedule, stagger


def gpipe(ranks: int, microbatches: int) -> Schedule:
    """All forwards, then all backwards: the ranks overlap, and every rank holds all M micro-batches.

    The word of every rank is [f] * M + [b] * M (Huang et al. 2019, section 2.3).

    >>> print(gpipe(2, 2))
    0F0 0F1 0B0 0B1
    1F0 1F1 1B0 1B1
    """

    def word(rank: int) -> list[Letter]:
        return stagger(([(rank, F)] * microbatches, 0), ([(rank, B)] * microbatches, microbatches))

    return Schedule.from_words("gpipe", Placement.loop(ranks), microbatches, word)
