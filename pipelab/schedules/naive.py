"""Naive pipeline: one micro-batch at a time. Why do P ranks run at the speed of one? Read next: `gpipe`."""

from pipelab.action import B, F
from pipelab.placement import Placement
from pipelab.schedule import Letter, Schedule, stagger


def naive(ranks: int, microbatches: int) -> Schedule:
    """One micro-batch at a time goes through all stages and back, so that one rank works and the others wait.

    The word of every rank is [f, b] * M.

    >>> print(naive(2, 2))
    0F0 0B0 0F1 0B1
    1F0 1B0 1F1 1B1
    """

    def word(rank: int) -> list[Letter]:
        return stagger(([(rank, F)] * microbatches, 0), ([(rank, B)] * microbatches, 0))

    return Schedule.from_words("naive", Placement.loop(ranks), microbatches, word)
