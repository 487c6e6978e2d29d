"""How is one step drawn with plotly? A bar for every span, or a raster where they are too many."""

from collections import defaultdict
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

from pipelab.action import Action, parts
from pipelab.lower import peer
from pipelab.show.palette import COLLECTIVE, EDGE, IDLE, INK, lighter, look, order
from pipelab.show.raster import majority, stretches
from pipelab.trace import Number, Span, Trace, number
from pipelab.units import Unit, chunk_of, homes, origin

if TYPE_CHECKING:
    import plotly.graph_objects as go

MOST_BARS = 3000  # a browser draws these in a fraction of a second
MOST_LABELS = 1000  # and this many texts in them
PIXELS = 800  # of the axis in a notebook; where it is narrower plotly hides the labels that do not fit
MOST_MESSAGES = 700
CELLS = 120_000
THICKNESS = 0.8  # of a row
STRIP = 0.2  # of a row, for collectives: they go on within or beside the work

HOVER = (
    "<b>%{customdata[0]}</b> %{customdata[1]}<br>rank %{customdata[2]} · stage %{customdata[3]}"
    " · micro-batch %{customdata[4]}<br>start %{customdata[5]} · end %{customdata[6]}"
    " · duration %{customdata[7]}%{customdata[8]}<extra></extra>"
)


class Axis(NamedTuple):
    """The time axis that several steps may share: its unit, and its length in the trace's time."""

    unit: Unit
    length: Number


class Bar(NamedTuple):
    """One action as it is drawn: a pair makes two bars of half the height."""

    action: Action
    span: Span
    offset: float
    height: float
    waited: str


def timeline_traces(trace: Trace, axis: Axis, legend: set[str]) -> list["go.Bar | go.Heatmap | go.Scatter"]:
    """The pictures of one step; kinds that are new to `legend` are added to it and shown in the legend."""
    if sum(map(len, trace.compute)) > MOST_BARS:
        return _columns(trace, axis.unit, legend)
    drawn = [_track(trace, axis.unit, legend), *_bars(trace, axis, legend)]
    collectives = [span for span in trace.spans if span.lane == "collective" and span.end > span.start]
    if 0 < len(collectives) <= MOST_BARS:
        drawn.append(_collectives(trace, collectives, axis.unit, legend))
    messages = [span for span in trace.spans if span.lane == "send" and span.end > span.start]
    if 0 < len(messages) <= MOST_MESSAGES:
        drawn.append(_messages(trace, messages, axis.unit, legend))
    return drawn


def _track(trace: Trace, unit: Unit, legend: set[str]) -> "go.Bar":
    """The grey track under every rank: what stays visible of it is idle time."""
    import plotly.graph_objects as go

    return go.Bar(
        orientation="h",
        y=list(range(trace.ranks)),
        x=[unit.of(trace.makespan)] * trace.ranks,
        base=[0] * trace.ranks,
        width=THICKNESS,
        offset=-THICKNESS / 2,
        hoverinfo="skip",
        **_entry("idle", 0, legend),
    )


def _bars(trace: Trace, axis: Axis, legend: set[str]) -> list["go.Bar"]:
    groups: dict[tuple[str, int], list[Bar]] = defaultdict(list)
    chunk = chunk_of(trace)
    for bar in _each_bar(trace, axis.unit):
        groups[bar.action.kind, chunk[bar.action.stage] % 2].append(bar)
    many = sum(map(len, groups.values())) > MOST_LABELS
    labels = {key: None if many else _labels(bars, axis.length) for key, bars in groups.items()}
    return [
        _kind(trace, bars, axis.unit, labels[kind, late], _entry(kind, late, legend))
        for (kind, late), bars in sorted(groups.items(), key=lambda item: (order(item[0][0]), item[0]))
    ]


def _kind(trace: Trace, bars: list[Bar], unit: Unit, labels: list[str] | None, entry: dict[str, Any]) -> "go.Bar":
    """All bars of one kind and one look."""
    import plotly.graph_objects as go

    first = origin(trace)
    return go.Bar(
        orientation="h",
        y=[bar.span.rank for bar in bars],
        x=[unit.of(bar.span.end - bar.span.start) for bar in bars],
        base=[unit.of(bar.span.start - first) for bar in bars],
        width=[bar.height for bar in bars],
        offset=[bar.offset for bar in bars],
        text=labels,
        textposition="inside" if labels else "none",
        insidetextanchor="middle",
        textangle=0,
        insidetextfont={"color": INK, "size": 13},
        customdata=[_hover(trace, bar, unit) for bar in bars],
        hovertemplate=HOVER,
        **entry,
    )


def _entry(kind: str, late: int, legend: set[str], hatched: bool = True) -> dict[str, Any]:
    """How a kind looks in the bars and in the legend; a later chunk (every second one) is lighter."""
    seen, name = look(kind), f"{kind}{late}"
    hatch = {"shape": seen.hatch, "fgcolor": seen.hatch_colour, "fgopacity": 0.4, "size": 7, "solidity": 0.17}
    marker = {"color": lighter(seen.colour) if late else seen.colour, "line": {"color": EDGE, "width": 0.7}}
    if kind == "idle":
        seen, marker = seen._replace(words=""), {"color": IDLE, "line": {"color": IDLE, "width": 0}}
    elif hatched:
        marker["pattern"] = hatch
    return {
        "marker": marker,
        "name": f"{kind}, later chunk" if late else f"{kind} {seen.words}".strip(),
        "legendgroup": name,
        "legendrank": 1000 + 10 * order(kind)[0] + late,
        "showlegend": _new(name, legend),
    }


def _labels(bars: list[Bar], length: Number) -> list[str] | None:
    """Letter and micro-batch where most of these bars have room for it, else the micro-batch or nothing."""
    short = sorted(bar.span.end - bar.span.start for bar in bars)[len(bars) // 10]  # measured bars differ
    pixels = PIXELS * short / length if length else 0
    digits = len(str(max(bar.action.microbatch for bar in bars)))
    for kind in (bars[0].action.kind, ""):
        if pixels >= 6 + 6 * len(kind) + 4.7 * digits:  # plotly's margin, and its smallest letter and digits
            # Padded to one width (a digit is two quarter spaces), so that plotly shows all of them or none.
            return [
                f"{pad}{kind}{bar.action.microbatch}{pad}"
                for bar in bars
                for pad in ["\N{FOUR-PER-EM SPACE}" * (digits - len(str(bar.action.microbatch)))]
            ]
    return None


def _each_bar(trace: Trace, unit: Unit) -> Iterator[Bar]:
    for row, home in zip(trace.compute, homes(trace), strict=True):
        free = origin(trace)
        for span in row:
            waited = ""
            if span.waiting_for is not None:
                stage = span.waiting_for.stage
                where = f" on rank {home[stage]}" if stage in home else ""
                waited = f"<br>waited {unit.text(span.start - free)} for {span.waiting_for}{where}"
            free = span.end
            together = parts(span.action)
            height = THICKNESS / len(together)
            for turn, action in enumerate(together):
                yield Bar(action, span, -THICKNESS / 2 + turn * height, height, waited)


def _hover(trace: Trace, bar: Bar, unit: Unit) -> list[str | int]:
    span, first = bar.span, origin(trace)
    stage, kind, microbatch = bar.action
    words = look(kind).words + (f", overlapped in {span.action}" if bar.action != span.action else "")
    times = (span.start - first, span.end - first, span.end - span.start)
    return [str(bar.action), words, span.rank, stage, microbatch, *map(unit.text, times), bar.waited]


def _columns(trace: Trace, unit: Unit, legend: set[str]) -> list["go.Heatmap | go.Bar"]:
    """One cell a rank and column in the colour of what fills most of it; bars of no length for the legend."""
    import plotly.graph_objects as go

    columns = min(max(CELLS // trace.ranks, 200), 1500)
    first, scale = origin(trace), columns / (number(trace.makespan) or 1)

    def position(time: Number) -> float:
        return number(time - first) * scale

    def letter(action: Action) -> str:
        return action.kind

    cells = [majority(stretches(row, position, letter), columns, "idle") for row in trace.compute]
    kinds = sorted({kind for row in cells for kind in row}, key=order)
    place = {kind: index for index, kind in enumerate(kinds)}
    entries = [_entry(kind, 0, legend, hatched=False) for kind in kinds]
    colours = [entry["marker"]["color"] for entry in entries]
    width = unit.of(trace.makespan) / columns
    picture = go.Heatmap(
        z=[[place[kind] for kind in row] for row in cells],
        x0=width / 2,
        dx=width,
        colorscale=[[(index + edge) / len(kinds), colour] for index, colour in enumerate(colours) for edge in (0, 1)],
        zmin=-0.5,
        zmax=len(kinds) - 0.5,
        showscale=False,
        text=cells,
        hovertemplate="rank %{y:d}, time %{x:.4g}: mostly %{text}<extra></extra>",
        ygap=1 if trace.ranks <= 128 else 0,
        name="columns",
    )
    return [picture, *(go.Bar(orientation="h", x=[None], y=[0], **entry) for entry in entries)]


def _collectives(trace: Trace, spans: list[Span], unit: Unit, legend: set[str]) -> "go.Bar":
    """A strip along the lower edge of a rank's row, where it reduces or gathers with others."""
    import plotly.graph_objects as go

    first = origin(trace)
    return go.Bar(
        orientation="h",
        y=[span.rank for span in spans],
        x=[unit.of(span.end - span.start) for span in spans],
        base=[unit.of(span.start - first) for span in spans],
        width=STRIP,
        offset=THICKNESS / 2 - STRIP,
        customdata=[[str(span.action), span.rank, unit.text(span.end - span.start)] for span in spans],
        hovertemplate="<b>collective</b> in %{customdata[0]}<br>rank %{customdata[1]}"
        " · duration %{customdata[2]}<extra></extra>",
        marker={"color": COLLECTIVE, "line": {"width": 0}},
        name="collective",
        legendgroup="collective",
        legendrank=2000,
        showlegend=_new("collective", legend),
    )


def _messages(trace: Trace, messages: list[Span], unit: Unit, legend: set[str]) -> "go.Scatter":
    """A thin line from each departure of a message to its arrival, hidden until asked for in the legend."""
    import plotly.graph_objects as go

    home = homes(trace)
    times: list[float | None] = []
    rows: list[int | None] = []
    for span in messages:
        receiver = home[span.rank].get(peer(span.action).stage, span.rank)  # type: ignore[arg-type]
        times += [unit.of(span.start - origin(trace)), unit.of(span.end - origin(trace)), None]
        rows += [span.rank, receiver, None]
    return go.Scatter(
        x=times,
        y=rows,
        mode="lines",
        line={"color": INK, "width": 1},
        name="messages (click)",
        legendgroup="messages",
        legendrank=3000,
        showlegend=_new("messages", legend),
        visible="legendonly",
        hoverinfo="skip",
    )


def _new(entry: str, legend: set[str]) -> bool:
    """Whether the legend lacks this entry, which it has from now on."""
    known = entry in legend
    legend.add(entry)
    return not known
