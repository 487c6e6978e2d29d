"""How much does a rank hold, and when? Step curves on the time axis of the timeline."""

from collections.abc import Iterable, Sequence
from fractions import Fraction
from typing import TYPE_CHECKING

from pipelab.show.palette import RANK_COLOURS, RANK_DASHES
from pipelab.trace import Number, Trace, in_flight, number, plain
from pipelab.units import Unit, digits, origin

if TYPE_CHECKING:
    import plotly.graph_objects as go

Curve = Sequence[tuple[Number, Number]]
"""(time, amount) pairs in the order of time: the amount holds until the next time."""

MOST_CURVES = 8
_BYTES = ((2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB"), (1, "bytes"))


def in_flight_curve(trace: Trace, rank: int) -> list[tuple[Number, Number]]:
    """The micro-batches that a rank holds over time, from the start of F to the end of B or W.

    A chunk counts 1/V. The highest value is the rank's `peak_in_flight`. Raises IndexError for a rank that is
    not there.

    >>> from pipelab import Costs, build, simulate
    >>> in_flight_curve(simulate(build("1f1b", ranks=2, microbatches=2), Costs.uniform()), rank=1)
    [(0, 0), (1, 1), (4, 1), (7, 0)]
    """
    curve: list[tuple[Number, int]] = [(origin(trace), 0)]
    for time, held in in_flight(trace.compute[rank]):
        if curve[-1][0] == time and held >= curve[-1][1]:
            curve.pop()  # what is given up and taken at one time leaves no dip
        curve.append((time, held))
    chunks = max(trace.chunks[rank], 1)
    return [(time, plain(Fraction(held, chunks))) for time, held in curve]


def memory_panel(trace: Trace, memory: Sequence[Curve] | None, unit: Unit) -> tuple[list["go.Scatter"], str]:
    """One step line a rank (8 ranks at most, from the first to the last) and the title of their axis.

    `memory` holds one curve of (time, bytes) a rank; without it the micro-batches in flight are drawn. Raises
    ValueError when there is not one curve a rank.
    """
    if memory is not None and len(memory) != trace.ranks:
        raise ValueError(f"memory needs one curve a rank, {trace.ranks} in all: got {len(memory)}")
    size, name = 1, "micro-batches"
    if memory is not None:
        size, name = largest_unit(memory)
    shown = _spread(trace.ranks)
    lines = []
    for turn, rank in enumerate(shown):
        curve = in_flight_curve(trace, rank) if memory is None else memory[rank]
        points = [(unit.of(time - origin(trace)), number(amount) / size) for time, amount in curve]
        points.append((unit.of(trace.makespan), points[-1][1] if points else 0))
        width = 4 - 2.4 * turn / max(len(shown) - 1, 3)  # the later line is the thinner: none hides another
        lines.append(_line(rank, turn, points, name, width))
    what = "in flight<br>(micro-batches)" if memory is None else f"activation<br>memory ({name})"
    return lines, what if len(shown) == trace.ranks else f"{what}<br>{len(shown)} of {trace.ranks} ranks"


def largest_unit(memory: Sequence[Curve]) -> tuple[int, str]:
    """The unit in which these bytes are told, with its size: the largest that the highest of them fills.

    >>> largest_unit([[(0, 0), (1, 5 * 2**20)]])
    (1048576, 'MiB')
    """
    largest = max((amount for curve in memory for _, amount in curve), default=0)
    return next(((size, name) for size, name in _BYTES if largest >= size), _BYTES[-1])


def _spread(ranks: int) -> list[int]:
    """At most 8 ranks, evenly spread from the first to the last."""
    if ranks <= MOST_CURVES:
        return list(range(ranks))
    return [round(turn * (ranks - 1) / (MOST_CURVES - 1)) for turn in range(MOST_CURVES)]


def _line(rank: int, turn: int, points: Iterable[tuple[float, float]], name: str, width: float) -> "go.Scatter":
    import plotly.graph_objects as go

    times, amounts = zip(*points, strict=True)
    return go.Scatter(
        x=times,
        y=amounts,
        mode="lines",
        name=f"rank {rank}",
        legend="legend2",
        line={
            "shape": "hv",
            "width": width,
            "color": RANK_COLOURS[turn % len(RANK_COLOURS)],
            "dash": RANK_DASHES[turn % len(RANK_DASHES)],
        },
        customdata=[digits(amount) for amount in amounts],
        hovertemplate=f"rank {rank}: %{{customdata}} {name} from %{{x:.4g}}<extra></extra>",
    )
