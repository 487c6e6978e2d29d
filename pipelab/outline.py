"""What does a step come to? Its makespan, its span and its three bubbles, from four times of each rank.

Read next: `trace`, which has all spans; of a long run only the figures of its early steps are kept.
"""

from collections.abc import Sequence
from fractions import Fraction
from math import inf
from typing import NamedTuple

Number = int | float | Fraction

BUBBLES = ("step", "span", "overhead")


class Outline(NamedTuple):
    """One rank in a step: its busy time, its first start, its last end, and the last end of its collectives.

    Without work it starts at inf and ends at -inf, as do collectives of which there are none.
    """

    busy: Number
    start: Number
    end: Number
    over: Number


class Figures(NamedTuple):
    """What a step comes to: the busy time of each rank, makespan, span and duration, as `Trace` has them."""

    busy: tuple[Number, ...]
    makespan: Number
    span: Number
    duration: Number

    @classmethod
    def of(cls, ranks: Sequence[Outline]) -> "Figures":
        """From the outlines of all ranks.

        >>> Figures.of([Outline(3, 0, 4, 6), Outline(2, 1, 5, 6)])
        Figures(busy=(3, 2), makespan=5, span=4, duration=6)
        """
        edges = [(rank.start, rank.end) for rank in ranks if rank.start <= rank.end]
        over = max(rank.over for rank in ranks)
        return cls(tuple(rank.busy for rank in ranks), makespan(edges), longest(edges), makespan(edges, over))

    def bubble(self, kind: str) -> Number:
        """One of the three idle shares, see `Trace.bubble`. Raises ValueError for another word."""
        if kind not in BUBBLES:
            raise ValueError(f"a bubble is 'step', 'span' or 'overhead': got {kind!r}")
        ideal = max(self.busy)
        if not ideal:
            return 0
        if kind == "step":
            return 1 - ratio(sum(self.busy), len(self.busy) * self.makespan)
        return 1 - ratio(ideal, self.span) if kind == "span" else ratio(self.makespan, ideal) - 1


def makespan(edges: Sequence[tuple[Number, Number]], over: Number = -inf) -> Number:
    """From the first start to the last end of the ranks that work, or until all is `over`; 0 where none works."""
    return max(over, *(end for _, end in edges)) - min(start for start, _ in edges) if edges else 0


def longest(edges: Sequence[tuple[Number, Number]]) -> Number:
    """The longest time from a rank's own start to its own end."""
    return max((end - start for start, end in edges), default=0)


def ratio(part: Number, whole: Number) -> Number:
    """part / whole, as a Fraction where both are exact."""
    if isinstance(part, float) or isinstance(whole, float):
        return float(part) / float(whole)
    return Fraction(part, whole)
