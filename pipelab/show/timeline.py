"""How does a step look? Ranks as rows, time to the right, and below, on the same axis, what each rank holds.

Read next: `bars` (one step drawn) and `memory` (the curves below it).
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from pipelab.action import parts
from pipelab.show.bars import timeline_traces
from pipelab.show.memory import Curve, amounts, memory_panel
from pipelab.show.palette import INK
from pipelab.show.text import timeline_text
from pipelab.trace import Number, Trace
from pipelab.units import Unit, figures_text, finding, listed, time_label, time_unit

if TYPE_CHECKING:
    from pipelab.show.chart import Chart

TOP, BOTTOM, MEMORY, GAP = 112, 52, 190, 30  # pixels
LEGEND_LINE, LEGEND_ENTRIES = 30, 5  # pixels a line, and entries that have room in it
MOST_NAMED_RANKS = 16


def timeline(trace: Trace, memory: Sequence[Curve] | None = None, title: str | None = None) -> "Chart":
    """The figure of one step: bars by rank, and below them the memory of each rank on the same time axis.

    `memory` holds one step curve of (time, bytes) a rank, in the trace's time; without it the micro-batches
    in flight are drawn. The title says what is seen, unless you give one. Above 3000 bars a raster takes
    their place. Raises ValueError when `memory` has not one curve a rank.

    >>> from pipelab import Costs, build, simulate
    >>> figure = timeline(simulate(build("1f1b", ranks=4, microbatches=8), Costs.uniform()))
    >>> figure.layout.title.text
    '1f1b: 27.3 % of the step is idle'
    """
    unit = time_unit([trace])
    lines, what = memory_panel(trace, memory, unit)
    title, figures, rows = title or finding(trace), figures_text(trace, unit), height_of(trace)
    figure = panels(title, timeline_text(trace), f"{title}. {figures}.", [rows, MEMORY], GAP)
    figure.add_traces(timeline_traces(trace, unit, trace.makespan), rows=1, cols=1)
    figure.add_traces(lines, rows=2, cols=1)
    style(figure, figures)
    rank_axis(figure, trace.ranks, 1)
    figure.update_yaxes(**amounts(lines, what), fixedrange=True, row=2, col=1)
    time_axis(figure, [trace], trace.duration, 2)  # the last sums of gradients come after all work
    figure.update_layout(legend2={"x": 1.01, "xanchor": "left", "y": MEMORY / (rows + GAP + MEMORY), "yanchor": "top"})
    return figure


def compare(traces: Sequence[Trace], titles: Sequence[str] | None = None) -> "Chart":
    """Several steps one under another on one time axis, so that their lengths can be compared by eye.

    Each has a line with its clock, makespan and bubbles. A simulated trace beside a measured one is taken to
    be in seconds. Raises ValueError without a trace, or when there is not one title a trace.

    >>> from pipelab import Costs, build, simulate
    >>> steps = [simulate(build(name, 4, 8), Costs.uniform()) for name in ("1f1b", "zb-h1")]
    >>> compare(steps).layout.title.text
    'shortest step: zb-h1 (27), longest: 1f1b (33)'
    """
    if not traces:
        raise ValueError("compare needs at least one trace; make one with simulate(schedule, costs)")
    names = list(titles) if titles is not None else [trace.schedule for trace in traces]
    if len(names) != len(traces):
        raise ValueError(f"compare needs one title a trace, {len(traces)} in all: got {len(names)}")
    unit = time_unit(traces)
    figures = [figures_text(trace, unit) for trace in traces]
    title = _comparison(traces, names, unit)
    captions = [f"{name}, {words}" for name, words in zip(names, figures, strict=True)]
    text = "\n\n".join(f"{name}\n{timeline_text(trace)}" for name, trace in zip(names, traces, strict=True))
    figure = panels(
        title, f"\n{text}", f"{title}. {'. '.join(captions)}.",
        [height_of(trace, most=900 // len(traces)) for trace in traces], 40,
        [f"<b>{name}</b>, {words}" for name, words in zip(names, figures, strict=True)],
    )  # fmt: skip
    length = max(trace.makespan for trace in traces)
    for row, trace in enumerate(traces, start=1):
        figure.add_traces(timeline_traces(trace, unit, length), rows=row, cols=1)
        rank_axis(figure, trace.ranks, row)
    style(figure)
    time_axis(figure, traces, max(trace.duration for trace in traces), len(traces))
    return figure


def panels(
    title: str, text: str, alt: str, heights: Sequence[int], gap: int, captions: Sequence[str] | None = None
) -> "Chart":
    """An empty chart of panels below one another, with room for a caption each, on one time axis."""
    from pipelab.show.chart import chart

    total = sum(heights) + gap * (len(heights) - 1)
    figure = chart(title, text, height=total, alt=alt)
    figure.set_subplots(
        rows=len(heights), cols=1, shared_xaxes=True, row_heights=list(heights), vertical_spacing=gap / total,
        subplot_titles=captions,
    )  # fmt: skip
    figure.update_annotations(x=0, xanchor="left", font={"size": 13, "color": INK})
    return figure


def height_of(trace: Trace, most: int = 640) -> int:
    """Pixels for the rows of a timeline: fewer a rank where they are many, more for two actions in a slot."""
    slots = max((len(parts(span.action)) for row in trace.compute for span in row), default=1)
    each = 36 if slots == 1 else 54
    return max(min(each * min(trace.ranks, 8) + 9 * max(trace.ranks - 8, 0), most), 2 * each)


def style(figure: "Chart", subtitle: str = "") -> None:
    """Room for a title and, on top, a legend that names each kind once, of as many lines as it needs."""
    from pipelab.show.chart import style_axes

    heading: dict[str, Any] = {"y": 1, "yref": "container", "yanchor": "top", "pad": {"t": 16}}
    if subtitle:
        heading["subtitle"] = {"text": subtitle, "font": {"size": 13, "color": INK}}
    named = set[str]()
    for drawn in figure.data:
        if drawn.legendgroup:
            drawn.showlegend = drawn.legendgroup not in named
            named.add(drawn.legendgroup)
    entries = sum(drawn.showlegend is True and drawn.legend is None for drawn in figure.data)
    lines = -(-entries // LEGEND_ENTRIES)
    top = TOP + LEGEND_LINE * max(lines - 1, 0) if subtitle else TOP + 14  # without one, two lines have room
    height = figure.layout.height
    figure.update_layout(
        title=heading,
        height=round(height + top + BOTTOM),
        margin={"l": 84, "r": 100 if subtitle else 30, "t": top, "b": BOTTOM},
        barmode="overlay",
        uniformtext={"minsize": 8, "mode": "hide"},
        legend={"x": -0.01, "xanchor": "left", "y": 1 + (4 if subtitle else 26) / height, "traceorder": None},
    )
    style_axes(figure)


def rank_axis(figure: "Chart", ranks: int, row: int) -> None:
    every = -(-ranks // MOST_NAMED_RANKS)
    named = range(0, ranks, every)
    figure.update_yaxes(
        range=[ranks - 0.5, -0.5], tickvals=list(named), ticktext=[f"rank {rank}" for rank in named], showgrid=False,
        fixedrange=True, row=row, col=1,
    )  # fmt: skip


def time_axis(figure: "Chart", traces: Sequence[Trace], length: Number, last: int) -> None:
    """From 0 to `length` in every panel; clock and unit stand below the `last`."""
    unit = time_unit(traces)
    figure.update_xaxes(range=[0, unit.of(length) or 1])
    figure.update_xaxes(title_text=time_label([trace.clock for trace in traces], unit), row=last, col=1)


def _comparison(traces: Sequence[Trace], names: Sequence[str], unit: Unit) -> str:
    """Which step is the shortest and which the longest, in one sentence."""
    lengths = [trace.makespan for trace in traces]
    times = [unit.text(length) for length in lengths]
    least, most = unit.text(min(lengths)), unit.text(max(lengths))
    if least == most:
        return f"{listed(names)}: a step of {least}"
    shortest, longest = (
        listed([name for name, time in zip(names, times, strict=True) if time == extreme]) for extreme in (least, most)
    )
    return f"shortest step: {shortest} ({least}), longest: {longest} ({most})"
