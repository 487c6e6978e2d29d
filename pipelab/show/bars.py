"""How is one step drawn with plotly? A bar for every span, or a raster where they are too many."""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from operator import attrgetter
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple

from pipelab.action import Action, parts
from pipelab.lower import peer
from pipelab.show.palette import COLLECTIVE, IDLE, INK, hatched, lighter, look, order
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

INSIDE: Mapping[str, Any] = MappingProxyType(
    {"textposition": "inside", "insidetextanchor": "middle", "textangle": 0, "insidetextfont": {"color": INK}}
)
"""Words in the middle of a bar, where they have room."""

HOVER = (
    "<b>%{customdata[0]}</b> %{customdata[1]}<br>rank %{customdata[2]} · stage %{customdata[3]}"
    " · micro-batch %{customdata[4]}<br>start %{customdata[5]} · end %{customdata[6]}"
    " · duration %{customdata[7]}%{customdata[8]}<extra></extra>"
)


class Bar(NamedTuple):
    """One action as it is drawn: a pair makes two bars of half the height."""

    action: Action
    span: Span
    offset: float
    height: float
    hover: list[Any]


def timeline_traces(trace: Trace, unit: Unit, length: Number) -> list["go.Bar | go.Heatmap | go.Scatter"]:
    """The pictures of one step, on an axis of this `length` (in the trace's time), which other steps may share."""
    if sum(map(len, trace.compute)) > MOST_BARS:
        return _columns(trace, unit)
    drawn = [_track(trace, unit), *_bars(trace, unit, length)]
    collectives = [span for span in trace.spans if span.lane == "collective" and span.end > span.start]
    if 0 < len(collectives) <= MOST_BARS:
        drawn.append(_collectives(trace, collectives, unit))
    messages = [span for span in trace.spans if span.lane == "send" and span.end > span.start]
    if 0 < len(messages) <= MOST_MESSAGES:
        drawn.append(_messages(trace, messages, unit))
    return drawn


def bars_of(pieces: Iterable[tuple[Any, Number, Number]], unit: Unit, first: Number = 0, **look: Any) -> "go.Bar":
    """Bars on a time axis that begins at `first`, from pieces (row, start, end); `look` is plotly's."""
    import plotly.graph_objects as go

    rows, starts, ends = zip(*pieces, strict=True)
    lengths = [unit.of(end - start) for start, end in zip(starts, ends, strict=True)]
    return go.Bar(orientation="h", y=rows, x=lengths, base=[unit.of(start - first) for start in starts], **look)


def _track(trace: Trace, unit: Unit) -> "go.Bar":
    """The grey track under every rank: what stays visible of it is idle time."""
    whole = [(rank, 0, trace.makespan) for rank in range(trace.ranks)]
    place: dict[str, Any] = {"width": THICKNESS, "offset": -THICKNESS / 2, "hoverinfo": "skip"}
    return bars_of(whole, unit, **place, **_entry("idle", 0))


def _bars(trace: Trace, unit: Unit, length: Number) -> list["go.Bar"]:
    """One picture for each kind and look: they share colour, hatch and whether they have letters."""
    groups: dict[tuple[str, int], list[Bar]] = defaultdict(list)
    chunk = chunk_of(trace)
    for bar in _each_bar(trace, unit):
        groups[bar.action.kind, chunk[bar.action.stage] % 2].append(bar)
    many = sum(map(len, groups.values())) > MOST_LABELS
    drawn = []
    for (kind, late), bars in sorted(groups.items(), key=lambda item: (order(item[0][0]), item[0])):
        labels = None if many else _labels(bars, length)
        look = {**INSIDE, **_entry(kind, late), "textposition": "inside" if labels else "none"}
        drawn.append(
            bars_of(
                ((bar.span.rank, bar.span.start, bar.span.end) for bar in bars), unit, origin(trace),
                width=[bar.height for bar in bars], offset=[bar.offset for bar in bars], text=labels,
                customdata=[bar.hover for bar in bars], hovertemplate=HOVER, **look,
            )
        )  # fmt: skip
    return drawn


def _entry(kind: str, late: int) -> dict[str, Any]:
    """How a kind looks in the bars and in the legend; a later chunk (every second one) is lighter."""
    seen = look(kind)
    marker = hatched(lighter(seen.colour) if late else seen.colour, seen.hatch, seen.hatch_colour)
    words = f"{kind}, later chunk" if late else f"{kind} {seen.words}"
    if kind == "idle":
        marker, words = {"color": IDLE, "line": {"color": IDLE, "width": 0}}, kind
    return {
        "marker": marker,
        "name": words,
        "legendgroup": f"{kind}{late}",
        "legendrank": 1000 + 10 * order(kind)[0] + late,
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
    first = origin(trace)
    for row, home in zip(trace.compute, homes(trace), strict=True):
        free = first
        for span in row:
            times = [unit.text(time) for time in (span.start - first, span.end - first, span.end - span.start)]
            waited = ""
            if span.waiting_for is not None:
                stage = span.waiting_for.stage
                where = f" on rank {home[stage]}" if stage in home else ""
                waited = f"<br>waited {unit.text(span.start - free)} for {span.waiting_for}{where}"
            free = span.end
            together = parts(span.action)
            height = THICKNESS / len(together)
            for turn, action in enumerate(together):
                words = look(action.kind).words + (f", overlapped in {span.action}" if len(together) > 1 else "")
                hover = [str(action), words, span.rank, action.stage, action.microbatch, *times, waited]
                yield Bar(action, span, -THICKNESS / 2 + turn * height, height, hover)


def _columns(trace: Trace, unit: Unit) -> list["go.Heatmap | go.Bar"]:
    """One cell a rank and column in the colour of what fills most of it; bars of no length for the legend."""
    import plotly.graph_objects as go

    columns = min(max(CELLS // trace.ranks, 200), 1500)
    first, scale = origin(trace), columns / (number(trace.makespan) or 1)

    def position(time: Number) -> float:
        return number(time - first) * scale

    cells = [majority(stretches(row, position, attrgetter("kind")), columns, "idle") for row in trace.compute]
    kinds = sorted({kind for row in cells for kind in row}, key=order)
    place = {kind: index for index, kind in enumerate(kinds)}
    entries = [_entry(kind, 0) for kind in kinds]
    for entry in entries:
        entry["marker"].pop("pattern", None)  # cells have no hatch
    colours = [entry["marker"]["color"] for entry in entries]
    width = unit.of(trace.makespan) / columns
    picture = go.Heatmap(
        z=[[place[kind] for kind in row] for row in cells], zmin=-0.5, zmax=len(kinds) - 0.5, showscale=False,
        x0=width / 2, dx=width, ygap=1 if trace.ranks <= 128 else 0, name="columns", text=cells,
        colorscale=[[(index + edge) / len(kinds), colour] for index, colour in enumerate(colours) for edge in (0, 1)],
        hovertemplate="rank %{y:d}, time %{x:.4g}: mostly %{text}<extra></extra>",
    )  # fmt: skip
    return [picture, *(go.Bar(orientation="h", x=[None], y=[0], **entry) for entry in entries)]


def _collectives(trace: Trace, spans: list[Span], unit: Unit) -> "go.Bar":
    """A strip along the lower edge of a rank's row, where it reduces or gathers with others."""
    return bars_of(
        ((span.rank, span.start, span.end) for span in spans), unit, origin(trace),
        width=STRIP, offset=THICKNESS / 2 - STRIP, marker={"color": COLLECTIVE, "line": {"width": 0}},
        customdata=[[str(span.action), span.rank, unit.text(span.end - span.start)] for span in spans],
        hovertemplate="<b>collective</b> in %{customdata[0]}<br>rank %{customdata[1]}"
        " · duration %{customdata[2]}<extra></extra>",
        name="collective", legendgroup="collective", legendrank=2000,
    )  # fmt: skip


def _messages(trace: Trace, messages: list[Span], unit: Unit) -> "go.Scatter":
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
        x=times, y=rows, mode="lines", line={"color": INK, "width": 1}, name="messages (click)",
        legendgroup="messages", legendrank=3000, visible="legendonly", hoverinfo="skip",
    )  # fmt: skip
