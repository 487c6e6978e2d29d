"""Which rules are worth trying? A short list of dials, best first. Read next: `waves`."""

from collections.abc import Callable, Iterator
from itertools import islice
from math import ceil, floor

from pipelab.action import F, I
from pipelab.search.greedy import OLDEST, STRICT, Dial
from pipelab.search.problem import Problem
from pipelab.trace import Number

Warmup = tuple[int, ...]


def dials(problem: Problem, level: int, least: Number) -> Iterator[Dial]:
    """Dials in the order in which they help, found on some thousand shapes; `level` is the limit they are made for.

    `least` is a length that cannot be beaten: a rank spends what it has to spare beyond it on waiting.
    """
    at_once, wait, more, much = -1, least, least + least // 50, least + least // 20
    extra, P = max(0, level - problem.ranks), problem.ranks
    filling, turning = _fills(problem), _turns(problem)
    listed: list[tuple[Callable[[], Warmup], str, Number]] = [
        (lambda: filling(0, ceil), F, wait),
        (lambda: filling(0, floor), OLDEST, wait),
        (lambda: turning(extra), I, wait),
        (lambda: turning(extra), F, at_once),
        (lambda: filling(0.25, ceil, True), F, more),
        (lambda: turning(1), OLDEST, more),
        (lambda: filling(0.5, ceil), STRICT, wait),
        (lambda: filling(0.5, ceil), OLDEST, much),
        (lambda: filling(0.25, ceil), OLDEST, at_once),
        (lambda: filling(0, ceil), OLDEST, much),
        (lambda: filling(0.75, ceil), F, wait),
        (lambda: turning(P), F, wait),
        (lambda: turning(1), F, at_once),
        (lambda: turning(P // 4), I, at_once),
        (lambda: (problem.microbatches,) * P, OLDEST, wait),
        (lambda: filling(0.25, floor), F, at_once),
        (lambda: filling(0.25, ceil), STRICT, more),
        (lambda: filling(0.5, ceil), F, much),
        (lambda: turning(0), STRICT, much),
        (lambda: filling(1, ceil), F, more),
        (lambda: turning(extra), F, wait),
        (lambda: filling(0.25, floor), STRICT, wait),
        (lambda: filling(0.5, floor), F, wait),
        (lambda: filling(0, ceil, True), OLDEST, at_once),
    ]
    for warmup, first, target in listed:
        yield Dial(warmup(), first, target)


def tried(problem: Problem, level: int, least: Number) -> list[Dial]:
    """The dials to try at one level, each once: all on small shapes, the first ones where one try takes long."""
    most = max(FEWEST, DISPATCHED // problem.actions)
    return list(dict.fromkeys(islice(dials(problem, level, least), most)))


FEWEST, DISPATCHED = 2, 100_000
"""Dials of one level: so many, or more where all of them together dispatch no more actions than this."""


def _turns(problem: Problem) -> Callable[[int], Warmup]:
    """1F1B's depth P - r, and up to `extra` more where there are ranks after: from ZB-H1 (0) to ZB-H2 (P - 1)."""
    P = problem.ranks
    return lambda extra: tuple(P - rank + min(extra, P - 1 - rank) for rank in range(P))


def _fills(problem: Problem) -> Callable[..., Warmup]:
    """How many micro-batches a rank needs so that it has work until its first gradient is back.

    Each fills F and a `share` of what is left of the slowest rank's F + I + W. `late`: the rank before waits for
    the last of these forwards too, and so on up to rank 0.
    """
    period = max(f + i + w for f, i, w in zip(problem.F, problem.I, problem.W, strict=True))

    def warmup(share: float, rounded: Callable[[float], int], late: bool = False) -> Warmup:
        depths = []
        back = problem.start[-1] + problem.F[-1]  # when a gradient is back
        for rank in reversed(range(problem.ranks)):
            step = problem.F[rank] + share * (period - problem.F[rank])
            gap = back - problem.start[rank]
            depth = min(problem.microbatches, max(1, rounded(gap / step))) if step else problem.microbatches
            depths.append(depth)
            if late:
                back = max(back, problem.start[rank] + depth * problem.F[rank])
            back += problem.I[rank] + (problem.hop_up[rank - 1] if rank else 0)
        return tuple(reversed(depths))

    return warmup
