"""Interleaved 1F1B: V chunks a rank divide the bubble by V, for more messages and memory. Read next: `zero_bubble`."""

from pipelab.action import B, F
from pipelab.counts import round_sizes
from pipelab.placement import Placement
from pipelab.schedule import Letter, Schedule, stagger


def interleaved(ranks: int, microbatches: int, chunks: int = 1) -> Schedule:
    """Each rank holds V thin stages, P apart, and takes them in turn, a round of micro-batches for each.

    A round has P micro-batches, or a few more where P does not divide M (Narayanan et al. 2021, section 2.2.2).

    >>> print(interleaved(2, 2, chunks=2))
    0F0 0F1 2F0 2F1 2B0 2B1 0B0 0B1
    1F0 1F1 3F0 3B0 3F1 3B1 1B0 1B1
    """
    sizes = round_sizes(ranks, microbatches)

    def word(rank: int) -> list[Letter]:
        stages = range(rank, ranks * chunks, ranks)
        forwards = [(stage, F) for size in sizes for stage in stages for _ in range(size)]
        backwards = [(stage, B) for size in sizes for stage in reversed(stages) for _ in range(size)]
        warmup = (chunks - 1) * sizes[0] + (2 if chunks > 1 else 1) * (ranks - 1 - rank)
        return stagger((forwards, 0), (backwards, min(warmup, len(forwards))))

    return Schedule.from_words("interleaved", Placement.loop(ranks, chunks), microbatches, word)
