"""Looped BFS: interleaving, grouped. What if each chunk takes all micro-batches at once? Read next: `interleaved`."""

from pipelab.action import B, F
from pipelab.placement import Placement
from pipelab.schedule import Letter, Schedule
from pipelab.schedules.gpipe import last_in_first_out


def looped_bfs(ranks: int, microbatches: int, chunks: int = 1) -> Schedule:
    """GPipe with V chunks a rank, taken one after the other: a bubble of 1/V, and all M micro-batches held.

    The word of every rank is [f] * M for each of its stages, then [b] * M for each, from the last back. Breadth first:
    a stage's weights are needed, and its gradients are complete, in one piece, which suits sharded data parallelism
    (Lamy-Poirier 2023, section 4). Backwards go last in, first out, as in PyTorch.

    >>> print(looped_bfs(2, 2, chunks=2))
    0F0 0F1 2F0 2F1 2B1 2B0 0B1 0B0
    1F0 1F1 3F0 3F1 3B1 3B0 1B1 1B0
    """

    def word(rank: int) -> list[Letter]:
        stages = range(rank, ranks * chunks, ranks)
        forwards = [(stage, F) for stage in stages for _ in range(microbatches)]
        return forwards + [(stage, B) for stage in reversed(stages) for _ in range(microbatches)]

    return last_in_first_out(Schedule.from_words("looped-bfs", Placement.loop(ranks, chunks), microbatches, word))
