"""Inference: forwards only. Why does a pipeline that generates starve, and one that reads does not?"""

from dataclasses import replace

from pipelab.action import F
from pipelab.counts import count
from pipelab.placement import Placement
from pipelab.schedule import Letter, Schedule


def inference(ranks: int, microbatches: int, groups: int | None = None) -> Schedule:
    """Forwards only, one micro-batch after the other: no backward waits, and nothing is held.

    The word of every rank is [f] * M. With `groups` it is the generation of tokens: M / groups rounds, in each of which
    every group of sequences gets one token, which its next round begins with. A group comes round only after P ranks,
    so that with fewer groups than ranks each rank works groups / P of the time.
    Raises ValueError when `groups` is no count, or M not a multiple of it.

    >>> print(inference(2, 3))
    0F0 0F1 0F2
    1F0 1F1 1F2
    """

    def word(rank: int) -> list[Letter]:
        return [(rank, F)] * microbatches

    if groups is not None and microbatches % count("groups", groups):
        raise ValueError(
            f"inference generates in whole rounds, so microbatches must be a multiple of groups: got {microbatches} "
            f"and {groups}; try microbatches={groups * -(-microbatches // groups)}"
        )
    schedule = Schedule.from_words("inference", Placement.loop(ranks), microbatches, word)
    return replace(schedule, forward_only=True, groups=groups or 0)
