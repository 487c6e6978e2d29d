"""How many of each? Ranks, micro-batches and chunks are counts, and micro-batches go through chunks in rounds.

Schedules and formulas, which otherwise know nothing of each other, share these two rules.
"""

import operator


def count(name: str, value: int) -> int:
    """A whole number of at least 1. Raises ValueError that names what it counts.

    >>> count("ranks", 4)
    4
    """
    try:
        number = operator.index(value)
    except TypeError:
        number = 0
    if number < 1 or isinstance(value, bool):
        raise ValueError(f"{name} must be a whole number of at least 1: got {value!r}")
    return number


def round_sizes(ranks: int, microbatches: int) -> list[int]:
    """The rounds of interleaved: of P micro-batches or more, as even as M allows, the larger first.

    >>> round_sizes(4, 8), round_sizes(4, 11), round_sizes(4, 3)
    ([4, 4], [6, 5], [3])
    """
    rounds = max(1, microbatches // ranks)
    share, larger = divmod(microbatches, rounds)
    return [share + 1] * larger + [share] * (rounds - larger)
