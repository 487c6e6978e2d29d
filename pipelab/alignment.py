"""How far apart are the clocks of two hosts? Ask the other one the time, often, and believe the fastest answer.

A question leaves at t0 and its answer, the other clock's reading, is back at t1. If both ways took the same time, that
clock read so at (t0 + t1) / 2; at most, this is wrong by half of t1 - t0. (Cristian 1989, doi:10.1007/BF01784024.)
On one host nothing is to be measured: its processes read the same clock.
"""

import time
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch
import torch.distributed as dist

ROUNDS = 50


class Reading(NamedTuple):
    """One question: when it left, what the other clock said, and when the answer was back."""

    left: float
    other: float
    back: float


def offset_of(readings: Iterable[Reading]) -> tuple[float, float]:
    """How many seconds the other clock is ahead, by the reading with the shortest way, and its residual.

    >>> offset_of([Reading(0.0, 10.5, 1.0), Reading(5.0, 15.25, 5.5)])
    (10.0, 0.25)
    """
    best = min(readings, key=lambda reading: reading.back - reading.left)
    return best.other - (best.left + best.back) / 2, (best.back - best.left) / 2


def measure_offset(
    group: Any, reference: int, other: int, *, rounds: int = ROUNDS, clock: Callable[[], float] = time.perf_counter
) -> tuple[float, float]:
    """Called by both ranks: what to add to the clock of `other` to read that of `reference`, and the residual.

    `reference` answers and gets (0, 0).
    """
    said = torch.zeros(1, dtype=torch.float64)
    readings = []
    for _ in range(rounds):
        if dist.get_rank() == reference:
            dist.recv(said, other, group=group)
            said[0] = clock()
            dist.send(said, other, group=group)
        else:
            left = clock()
            dist.send(said, reference, group=group)
            dist.recv(said, reference, group=group)
            readings.append(Reading(left, float(said[0]), clock()))
    return offset_of(readings) if readings else (0.0, 0.0)
