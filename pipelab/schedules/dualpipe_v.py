"""DualPipeV: a forward and a backward overlapped in one slot. Last of the schedules; read next: `dependencies`."""

from pipelab.action import B, F, I, W
from pipelab.placement import Placement
from pipelab.schedule import Schedule, Word


def dualpipe_v(ranks: int, microbatches: int) -> Schedule:
    """A V of two chunks a rank; each forward overlaps a backward of the other chunk, to hide their messages.

    Each line of the word below is a phase, as in DeepSeek's code (2025, DualPipe, `dualpipev.py`; DeepSeek-V3 report,
    section 3.2.1). Only where the ranks fill and drain is the backward split. It needs M >= 2P; for fewer, the
    micro-batches from M on are taken out of the word for 2P.

    >>> print(dualpipe_v(2, 4))
    0F0 0F1 0F2 3F0 3I0 3W0 3F1 0F3+3B1 3F2+0B0 3B2 3F3+0B1 3B3 0I2 0W2 0I3 0W3
    1F0 2F0 1F1 2F1 1F2 2B0 2F2+1B0 1F3+2B1 2F3+1B1 2B2 1B2 2I3 1I3 2W3 1W3
    """
    P, M = ranks, max(microbatches, 2 * ranks)

    def word(rank: int) -> Word:
        a, b, k = rank, 2 * P - 1 - rank, P - 1 - rank
        # At the turn of the V the first two would only wait for each other: they are not overlapped.
        first = [(a, F), (b, B)] if k == 0 else [((a, F), (b, B))]
        drained = [b, a] * (rank + 1)
        whole, split = drained[: rank + 1], drained[rank + 1 :]
        weights = [(stage, W) for stage in split + [a] * k]
        return [
            *[(a, F)] * (2 * k),
            *[(a, F), (b, F)] * (rank + 1),
            *[(b, I), (b, W), (b, F)] * k,
            *[*first, ((b, F), (a, B))],
            *[((a, F), (b, B)), ((b, F), (a, B))] * (M - 2 * P + rank),
            *[(b, B), ((b, F), (a, B))] * k,
            *[(stage, B) for stage in whole],
            *[(stage, I) for stage in split],
            *[letter for weight in weights[:k] for letter in (weight, (a, I))],
            *weights[k:],
        ]

    return Schedule.from_words("dualpipe-v", Placement.vee(P), microbatches, word, drop_rest=microbatches < M)
