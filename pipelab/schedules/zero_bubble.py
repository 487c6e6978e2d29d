"""Zero bubble: split the backward, B = I + W, and let the W that nobody waits for fill the bubble.

Read next: `v_shape`.
"""

from pipelab.action import F, I, W
from pipelab.counts import round_sizes
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
    return _put_off("zb-h1", ranks, microbatches, times=1)


def zb_h2(ranks: int, microbatches: int) -> Schedule:
    """Twice 1F1B's warm-up, and every W put off to its end: no idle span when F = I = W, for twice the memory.

    With k = P-1-r the word of rank r is [f] * 2k + [f, i] * 2r + [f, i, w] * (M-2P+2) + [i, w] * 2k + [w] * 2r for
    M >= 2P-2; below, the same streams with fewer letters (Qi et al. 2024, section 2.3).

    >>> print(zb_h2(2, 3))
    0F0 0F1 0F2 0I0 0W0 0I1 0W1 0I2 0W2
    1F0 1I0 1F1 1I1 1F2 1I2 1W0 1W1 1W2
    """
    return _put_off("zb-h2", ranks, microbatches, times=2)


def _put_off(name: str, ranks: int, microbatches: int, times: int) -> Schedule:
    """I after 1F1B's warm-up so many `times`, and W from the same slot on for all ranks."""

    def word(rank: int) -> list[Letter]:
        letters = {kind: [(rank, kind)] * microbatches for kind in (F, I, W)}
        return stagger((letters[F], 0), (letters[I], times * (ranks - 1 - rank)), (letters[W], times * (ranks - 1)))

    return Schedule.from_words(name, Placement.loop(ranks), microbatches, word)


def interleaved_zb(ranks: int, microbatches: int, chunks: int = 1) -> Schedule:
    """ZB-H1 with V chunks a rank: interleaved 1F1B with the weight gradients put off; one chunk is zb-h1.

    As interleaved, but I goes up the ranks in the time of one chunk, so the warm-up is (V-1) rounds and P-1-r; each W
    waits for r slots more (PyTorch's ScheduleInterleavedZeroBubble; Qi et al. 2024, section 2.3, for one chunk).

    >>> print(interleaved_zb(2, 2, chunks=2))
    0F0 0F1 2F0 2F1 2I0 2W0 2I1 2W1 0I0 0W0 0I1 0W1
    1F0 1F1 3F0 3I0 3F1 3I1 3W0 1I0 3W1 1I1 1W0 1W1
    """
    sizes = round_sizes(ranks, microbatches)

    def word(rank: int) -> list[Letter]:
        stages = range(rank, ranks * chunks, ranks)
        forwards = [(stage, F) for size in sizes for stage in stages for _ in range(size)]
        inputs = [(stage, I) for size in sizes for stage in reversed(stages) for _ in range(size)]
        weights = [(stage, W) for stage, _ in inputs]
        warmup = min((chunks - 1) * sizes[0] + ranks - 1 - rank, len(forwards))
        return stagger((forwards, 0), (inputs, warmup), (weights, warmup + rank))

    return Schedule.from_words("interleaved-zb", Placement.loop(ranks, chunks), microbatches, word)
