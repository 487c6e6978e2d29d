"""How does a step look? Ranks as rows, time to the right, and below, on the same axis, what each rank holds.

Read next: `bars` (one step drawn) and `memory` (the curves below it).
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from pipelab.action import parts
from pipelab.show.bars import Axis, timeline_traces
from pipelab.show.memory import Curve, amounts, memory_panel
from pipelab.show.palette import INK
from pipelab.show.text import timeline_text
from pipelab.trace import Trace
from pipelab.units import CLOCK_NAMES, Unit, figures_text, finding, listed, time_unit

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
    from plotly.subplots import make_subplots

    from pipelab.show.chart import chart

    unit = time_unit([trace])
    lines, what = memory_panel(trace, memory, unit)
    rows = height_of(trace)
    title, figures = title or finding(trace), figures_text(trace, unit)
    figure = make_subplots(
        figure=chart(title, timeline_text(trace), height=rows + GAP + MEMORY, alt=f"{title}. {figures}."),
        rows=2,
        cols=1,
        shared_xaxes=True,
        row_heights=[rows, MEMORY],
        vertical_spacing=GAP / (rows + GAP + MEMORY),
    )
    figure.add_traces(timeline_traces(trace, Axis(unit, trace.makespan), set()), rows=1, cols=1)
    figure.add_traces(lines, rows=2, cols=1)
    style(figure, figures)
    rank_axis(figure, trace.ranks, 1)
    figure.update_yaxes(**amounts(lines, what), fixedrange=True, row=2, col=1)
    figure.update_xaxes(range=[0, unit.of(trace.duration) or 1])  # the last sums of gradients come after all work
    figure.update_xaxes(title_text=axis_title([trace], unit), row=2, col=1)
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
    from plotly.subplots import make_subplots

    from pipelab.show.chart import chart

    if not traces:
        raise ValueError("compare needs at least one trace; make one with simulate(schedule, costs)")
    names = list(titles) if titles is not None else [trace.schedule for trace in traces]
    if len(names) != len(traces):
        raise ValueError(f"compare needs one title a trace, {len(traces)} in all: got {len(names)}")
    unit = time_unit(traces)
    figures = [figures_text(trace, unit) for trace in traces]
    heights = [height_of(trace, most=900 // len(traces)) for trace in traces]
    gap = 40
    total = sum(heights) + gap * (len(traces) - 1)
    title = _comparison(traces, names, unit)
    captions = [f"{name}, {words}" for name, words in zip(names, figures, strict=True)]
    text = "\n\n".join(f"{name}\n{timeline_text(trace)}" for name, trace in zip(names, traces, strict=True))
    figure = make_subplots(
        figure=chart(title, f"\n{text}", height=total, alt=f"{title}. {'. '.join(captions)}."),
        rows=len(traces),
        cols=1,
        shared_xaxes=True,
        row_heights=heights,
        vertical_spacing=gap / total,
        subplot_titles=[f"<b>{name}</b>, {words}" for name, words in zip(names, figures, strict=True)],
    )
    figure.update_annotations(x=0, xanchor="left", font={"size": 13, "color": INK})
    axis, legend = Axis(unit, max(trace.makespan for trace in traces)), set[str]()
    for row, trace in enumerate(traces, start=1):
        figure.add_traces(timeline_traces(trace, axis, legend), rows=row, cols=1)
        rank_axis(figure, trace.ranks, row)
    style(figure)
    figure.update_xaxes(range=[0, unit.of(max(trace.duration for trace in traces)) or 1])
    figure.update_xaxes(title_text=axis_title(traces, unit), row=len(traces), col=1)
    return figure


def height_of(trace: Trace, most: int = 640) -> int:
    """Pixels for the rows of a timeline: fewer a rank where they are many, more for two actions in a slot."""
    slots = max((len(parts(span.action)) for row in trace.compute for span in row), default=1)
    each = 36 if slots == 1 else 54
    return max(min(each * min(trace.ranks, 8) + 9 * max(trace.ranks - 8, 0), most), 2 * each)


def style(figure: "Chart", subtitle: str = "") -> None:
    """Room for a title and, on top, a legend of as many lines as it needs."""
    from pipelab.show.chart import style_axes

    heading: dict[str, Any] = {"y": 1, "yref": "container", "yanchor": "top", "pad": {"t": 16}}
    if subtitle:
        heading["subtitle"] = {"text": subtitle, "font": {"size": 13, "color": INK}}
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
        range=[ranks - 0.5, -0.5],
        tickvals=list(named),
        ticktext=[f"rank {rank}" for rank in named],
        showgrid=False,
        fixedrange=True,
        row=row,
        col=1,
    )


def axis_title(traces: Sequence[Trace], unit: Unit) -> str:
    clocks = dict.fromkeys(CLOCK_NAMES.get(trace.clock, trace.clock) for trace in traces)
    return f"{' and '.join(clocks)} ({unit.name or 'in the unit of the costs'})"


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
