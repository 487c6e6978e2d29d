"""How much does a rank hold, and when? Step curves on the time axis of the timeline."""

from collections.abc import Iterable, Sequence
from fractions import Fraction
from typing import TYPE_CHECKING, Any

from pipelab.show.palette import LIGHT, line_look
from pipelab.show.table import columns
from pipelab.trace import Number, Trace, in_flight, number, plain
from pipelab.units import Unit, digits, origin, time_label, time_unit

if TYPE_CHECKING:
    import plotly.graph_objects as go

    from pipelab.show.chart import Chart

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


def curves_of(trace: Trace, memory: Sequence[Curve] | None) -> Sequence[Curve]:
    """What each rank holds: `memory`, a curve a rank, or without it the micro-batches in flight.

    Raises ValueError when there is not one curve a rank.
    """
    if memory is not None and len(memory) != trace.ranks:
        raise ValueError(f"memory needs one curve a rank, {trace.ranks} in all: got {len(memory)}")
    return [in_flight_curve(trace, rank) for rank in range(trace.ranks)] if memory is None else memory


def memory_panel(trace: Trace, memory: Sequence[Curve] | None, unit: Unit) -> tuple[list["go.Scatter"], str]:
    """One step line a rank (8 ranks at most, from the first to the last) and the title of their axis.

    `memory` is as `curves_of` takes it.
    """
    curves, (size, name) = curves_of(trace, memory), _unit_of(memory)
    shown = _spread(trace.ranks)
    lines = []
    for turn, rank in enumerate(shown):
        points = [(unit.of(time - origin(trace)), number(amount) / size) for time, amount in curves[rank]]
        if points and points[0][0] > 0:
            points.insert(0, (0, 0))  # what is measured begins with the first byte
        points.append((unit.of(trace.makespan), points[-1][1] if points else 0))
        width = 4 - 2.4 * turn / max(len(shown) - 1, 3)  # the later line is the thinner: none hides another
        lines.append(_line(rank, turn, points, name, width))
    what = "in flight<br>(micro-batches)" if memory is None else f"activation<br>memory ({name})"
    return lines, what if len(shown) == trace.ranks else f"{what}<br>{len(shown)} of {trace.ranks} ranks"


def amounts(lines: Iterable["go.Scatter"], what: str) -> dict[str, Any]:
    """The axis of these curves: from zero, and no halves between few micro-batches."""
    few = "micro-batches" in what and max(max(line.y) for line in lines) <= 6
    return {"title_text": what, "rangemode": "tozero", **({"dtick": 1} if few else {"nticks": 6})}


def memory_chart(
    trace: Trace, memory: Sequence[Curve] | None = None, limit: Number | None = None, title: str | None = None
) -> "Chart":
    """What each rank holds over the step, as step lines; arguments as for `timeline`, `limit` in the same amounts.

    >>> from pipelab import Costs, build, simulate
    >>> memory_chart(simulate(build("1f1b", ranks=4, microbatches=8), Costs.uniform()))
    <chart: 1f1b: rank 0 holds the most, 4 micro-batches; rank 3 the least, 1>
    """
    from pipelab.show.chart import chart

    unit = time_unit([trace])
    lines, what = memory_panel(trace, memory, unit)
    size, name = _unit_of(memory)
    tops = [max(curve, key=lambda point: point[1], default=(origin(trace), 0)) for curve in curves_of(trace, memory)]
    peaks = [digits(number(amount) / size) for _, amount in tops]
    times = [unit.text(time - origin(trace)) for time, _ in tops]
    title = title or _finding(trace, [amount for _, amount in tops], peaks, name)
    clock = time_label([trace.clock], unit)
    table = columns(
        [["rank", f"peak ({name})", "first reached at"], *zip(range(trace.ranks), peaks, times, strict=True)]
    )
    text = f"{table}\n{clock}" + (f"; limit {digits(number(limit) / size)} {name}" if limit is not None else "")
    figure = chart(title, text, height=400)
    figure.add_traces(lines)
    figure.update_traces(legend=None)
    figure.update_xaxes(title_text=clock, range=[0, unit.of(trace.makespan) or 1])
    figure.update_yaxes(**amounts(lines, what))
    if limit is not None:
        words = f"limit {digits(number(limit) / size)}"
        figure.add_hline(y=number(limit) / size, line_color=LIGHT.alarm, line_width=1, annotation_text=words)
    return figure


def _finding(trace: Trace, peaks: Sequence[Number], words: Sequence[str], unit: str) -> str:
    most, least = (choose(range(trace.ranks), key=lambda rank: peaks[rank]) for choose in (max, min))
    if words[most] == words[least]:
        return f"{trace.schedule}: every rank holds up to {words[most]} {unit}"
    return f"{trace.schedule}: rank {most} holds the most, {words[most]} {unit}; rank {least} the least, {words[least]}"


def largest_unit(memory: Sequence[Curve]) -> tuple[int, str]:
    """The unit in which these bytes are told, with its size: the largest that the highest of them fills.

    >>> largest_unit([[(0, 0), (1, 5 * 2**20)]])
    (1048576, 'MiB')
    """
    largest = max((amount for curve in memory for _, amount in curve), default=0)
    return next(((size, name) for size, name in _BYTES if largest >= size), _BYTES[-1])


def _unit_of(memory: Sequence[Curve] | None) -> tuple[int, str]:
    return (1, "micro-batches") if memory is None else largest_unit(memory)


def _spread(ranks: int) -> list[int]:
    """At most 8 ranks, evenly spread from the first to the last."""
    if ranks <= MOST_CURVES:
        return list(range(ranks))
    return [round(turn * (ranks - 1) / (MOST_CURVES - 1)) for turn in range(MOST_CURVES)]


def _line(rank: int, turn: int, points: Iterable[tuple[float, float]], name: str, width: float) -> "go.Scatter":
    import plotly.graph_objects as go

    times, amounts = zip(*points, strict=True)
    return go.Scatter(
        x=times, y=amounts, mode="lines", name=f"rank {rank}", legend="legend2",
        line={"shape": "hv", "width": width, **line_look(turn)},
        customdata=[digits(amount) for amount in amounts],
        hovertemplate=f"rank {rank}: %{{customdata}} {name} from %{{x:.4g}}<extra></extra>",
    )  # fmt: skip
