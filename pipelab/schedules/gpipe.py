"""GPipe: split the batch. What do micro-batches buy, and what do they cost? Read next: `one_f_one_b`."""

from dataclasses import replace

from pipelab.action import Action, B, F
from pipelab.placement import Placement
from pipelab.schedule import Letter, Schedule, stagger

BACKWARD_ORDERS = ("fifo", "lifo")


def gpipe(ranks: int, microbatches: int, backward_order: str = "fifo") -> Schedule:
    """All forwards, then all backwards: the ranks overlap, and every rank holds all M micro-batches.

    The word of every rank is [f] * M + [b] * M (Huang et al. 2019, section 2.3). The backwards go in the order of the
    forwards, as PyTorch runs them, or last in, first out (`backward_order="lifo"`), as the paper draws them: the time
    is the same.

    >>> print(gpipe(2, 2))
    0F0 0F1 0B0 0B1
    1F0 1F1 1B0 1B1
    >>> print(gpipe(2, 2, backward_order="lifo"))
    0F0 0F1 0B1 0B0
    1F0 1F1 1B1 1B0
    """
    if backward_order not in BACKWARD_ORDERS:
        raise ValueError(f"backward_order is {' or '.join(map(repr, BACKWARD_ORDERS))}: got {backward_order!r}")

    def word(rank: int) -> list[Letter]:
        return stagger(([(rank, F)] * microbatches, 0), ([(rank, B)] * microbatches, microbatches))

    schedule = Schedule.from_words("gpipe", Placement.loop(ranks), microbatches, word)
    return schedule if backward_order == "fifo" else last_in_first_out(schedule)


def last_in_first_out(schedule: Schedule) -> Schedule:
    """The same words, with the backwards counted down from the last micro-batch."""
    last = schedule.microbatches - 1
    rows = tuple(
        tuple(Action(stage, kind, m if kind == F else last - m) for stage, kind, m in row)  # type: ignore[misc]
        for row in schedule.rows
    )
    return replace(schedule, rows=rows)
