"""How is a chart drawn where no script runs? As SVG, from plotly's own description.

Drawn are lines, marks, words, stacked areas and bars, shapes and annotations; the legend always lies on top.
"""

from collections.abc import Iterator, Mapping
from html import escape
from itertools import groupby
from math import isfinite
from re import sub
from textwrap import wrap
from typing import TYPE_CHECKING, Any

from pipelab.show.axis import Axis, axes_of, values_of
from pipelab.show.forms import Curve, each, forms_of, is_known, mode_of
from pipelab.show.palette import GRID, INK, PAPER
from pipelab.show.strokes import LINE, Points, arrow, mark, path, stairs, stroke, tile, width, words

if TYPE_CHECKING:
    import plotly.graph_objects as go

MOST_MARKS = 6000
"""With more the picture would be larger than the rest of a notebook; the text remains."""

WIDTH, ROOM, SIGN = 1000, 14, 30  # pixels
TITLE, HEAD = 100, 23  # letters in a line of the title, and its height in pixels


def chart_svg(figure: "go.Figure") -> str | None:
    """The chart as SVG, 1000 wide; None where it has something that is not drawn here, or too many marks.

    >>> from pipelab.show import loss_chart
    >>> chart_svg(loss_chart({"gpipe": [5.5, 4.0]}))[:5]
    '<svg '
    """
    traces = [trace for trace in figure.data if trace.visible in (None, True)]
    if not traces or not all(map(is_known, traces)):
        return None
    if sum(len(values_of(trace.y if trace.x is None else trace.x)) for trace in traces) > MOST_MARKS:
        return None
    axes = axes_of(figure.layout, traces)
    over = [*figure.layout.shapes, *figure.layout.annotations]
    places = {(one[f"{letter}ref"] or letter).split()[0] for one in over for letter in "xy"}
    if axes is None or not places <= {*axes, "paper"}:
        return None
    return _Picture(figure.layout, traces, axes).svg()


def _colour(trace: Any) -> str | None:
    """The colour of a trace, in the legend and wherever its marks have none of their own."""
    own: str | None = each(trace.marker.color, 1)[0]
    return (trace.line.color or own) if trace.type == "scatter" else own


class _Picture:
    """One chart: its axes laid in pixels, its legend in rows, and then all of it written."""

    def __init__(self, layout: Any, traces: list[Any], axes: Mapping[str, Axis]) -> None:
        self.layout, self.traces, self.axes = layout, traces, axes
        self.forms = forms_of(traces, axes, layout.barmode)
        self.title = wrap(sub("<br>|</?b>", " ", layout.title.text or ""), TITLE)
        self.subtitle = layout.title.subtitle.text or ""
        self.head = HEAD * len(self.title) + (LINE if self.subtitle else 0)
        self.tiles: dict[str, str] = {}
        way = layout.colorway or layout.template.layout.colorway or (INK,)
        self.colours = [_colour(trace) or way[turn % len(way)] for turn, trace in enumerate(traces)]
        self.legend = list(self._signs())
        for shape in layout.shapes:
            for letter in "xy":
                if (name := shape[f"{letter}ref"] or letter) in axes:
                    axes[name].scale.show(axes[name].number(shape[f"{letter}{end}"]) for end in "01")
        self._lay()

    def _signs(self) -> Iterator[tuple[float, float, int]]:
        """Where in the legend which trace has its sign: in rows below the title."""
        named = [turn for turn, trace in enumerate(self.traces) if trace.name and trace.showlegend is not False]
        asked = self.layout.showlegend or any(self.traces[turn].showlegend for turn in named)
        if self.layout.showlegend is False or (len(named) < 2 and not asked):
            return
        x, y = float(ROOM), float(ROOM + self.head + 12)
        places = {turn: (trace.legend or "legend", trace.legendrank or 1000) for turn, trace in enumerate(self.traces)}
        for turn in sorted(named, key=lambda turn: places[turn]):
            wide = SIGN + 24 + width(self.traces[turn].name)
            if x > ROOM and x + wide > WIDTH:
                x, y = float(ROOM), y + 21
            yield x, y, turn
            x += wide

    def _lay(self) -> None:
        """Room for title and legend above, and for the words of the upright axes on the left."""
        margin, height = self.layout.margin, self.layout.height or 450
        head = self.legend[-1][1] if self.legend else float(self.head)
        self.top = head + 26 + 14 * any(note.yref == "paper" and note.y > 0.99 for note in self.layout.annotations)
        self.bottom = self.top + height - (100 if margin.t is None else margin.t) - (margin.b or 80)
        self.left, self.right = 40.0, WIDTH - min(max(margin.r or 0, 30), 60)
        upright, flat = ([axis for name, axis in self.axes.items() if name[0] == letter] for letter in "yx")
        for axis in upright:
            axis.lay(*(self.bottom - share * (self.bottom - self.top) for share in axis.look.domain or (0, 1)))
            title = axis.look.title.text
            beside: float = ROOM + 8 + (LINE * len(title.split("<br>")) + 8 if title else 0)
            beside += max((width(name[0]) + 16 for name in axis.scale.names if isinstance(name, tuple)), default=0)
            self.left = max(self.left, beside + max((width(said) for _, said in axis.labels()), default=0))
        for axis in flat:
            axis.lay(*(self.left + share * (self.right - self.left) for share in axis.look.domain or (0, 1)))

    def svg(self) -> str:
        """The whole of it."""
        layout = self.layout
        drawn = [words(ROOM, ROOM + 14 + HEAD * turn, line, size=18) for turn, line in enumerate(self.title)]
        drawn += [words(ROOM, ROOM + self.head - 6, self.subtitle)] if self.subtitle else []
        drawn += [self._shape(shape) for shape in layout.shapes if shape.layer == "below"]
        drawn += [part for name in self.axes for part in self._axis(name)]
        drawn += [part for turn in range(len(self.traces)) for part in self._trace(turn)]
        drawn += [self._shape(shape) for shape in layout.shapes if shape.layer != "below"]
        drawn += [part for note in layout.annotations for part in self._note(note)]
        drawn += [part for x, y, turn in self.legend for part in self._sign(x, y, turn)]
        size = f'viewBox="0 0 {WIDTH} {self.bottom + 50:g}" width="{WIDTH}" height="{self.bottom + 50:g}"'
        return (
            f'<svg xmlns="http://www.w3.org/2000/svg" {size} role="img" fill="{INK}"'
            f' font-family="Helvetica, Arial, sans-serif" font-size="12"><title>{escape(" ".join(self.title))}</title>'
            f"<defs>{''.join(self.tiles.values())}</defs>"
            f'<rect width="100%" height="100%" fill="{PAPER}"/>{"".join(drawn)}</svg>'
        )

    def _axis(self, name: str) -> Iterator[str]:
        """Its grid, the words of its ticks, and its title."""
        axis, upright = self.axes[name], name[0] == "y"
        if axis.look.visible is False:
            return
        other = self.axes.get(axis.look.anchor) or self.axes["x" if upright else "y"]
        if axis.look.showgrid is not False and not axis.scale.names:
            ends = other.near, other.far
            lines = [[(end, axis.at(n)) if upright else (axis.at(n), end) for end in ends] for n, _ in axis.ticks()]
            yield f'<path d="{"".join(map(path, lines))}" stroke="{GRID}"/>'
        for at, said in axis.labels():
            yield words(other.near - 8, at + 4, said, "end") if upright else words(at, other.near + 18, said, "middle")
        pairs = [name for name in axis.scale.names if isinstance(name, tuple)]
        for group, names in groupby(pairs, key=lambda name: name[0]):
            places = [axis.at(axis.number(name)) for name in names]
            yield words(ROOM, sum(places) / len(places), group)
        title, middle = axis.look.title.text, (axis.near + axis.far) / 2
        if title:
            place = (ROOM + 8, middle) if upright else (middle, other.near + 38)
            yield words(place[0], place[1], title, "middle", turned=-90 if upright else 0)

    # ---- traces

    def _trace(self, turn: int) -> Iterator[str]:
        """A trace: what is cut off at the edges of its panel, then its marks and words."""
        trace, form = self.traces[turn], self.forms[turn]
        x, y = self.axes[trace.xaxis or "x"], self.axes[trace.yaxis or "y"]
        panel = f"{x.near:.1f} {y.far:.1f} {x.far - x.near:.1f} {y.near - y.far:.1f}"
        left, top, wide, tall = panel.split()
        yield f'<svg x="{left}" y="{top}" width="{wide}" height="{tall}" viewBox="{panel}">'
        if isinstance(form, Curve):
            points = [(x.at(across), y.at(up)) for across, up in form.points]
            yield from self._line(turn, points, [y.at(low) for low in form.below])
            yield "</svg>"
            seen = [at for at, (across, up) in enumerate(form.points) if x.shows(across) and y.shows(up)]
            if "markers" in mode_of(trace):
                yield from self._marks(turn, seen, points)
            if "text" in mode_of(trace):
                yield from (self._beside(turn, *points[at], form.words[at]) for at in seen)
            return
        boxes = [(sorted(map(x.at, box.x)), sorted(map(y.at, box.y)), box.words) for box in form]
        yield f"<g{self._filled(turn)}>"
        for (x0, x1), (y0, y1), _ in boxes:
            yield f'<rect x="{x0:.1f}" y="{y0:.1f}" width="{x1 - x0:.1f}" height="{y1 - y0:.1f}"/>'
        yield "</g>"
        for (x0, x1), (y0, y1), said in boxes:
            if said and width(said) <= x1 - x0 and y1 - y0 >= LINE - 3:
                yield words((x0 + x1) / 2, (y0 + y1) / 2 + 4, said, "middle")
        yield "</svg>"

    def _filled(self, turn: int) -> str:
        """The attributes of bars and areas: colour, hatch and edge."""
        trace, colour = self.traces[turn], self.colours[turn]
        hatch, edge = trace.marker.pattern if trace.type == "bar" else trace.fillpattern, trace.marker.line
        if trace.type == "scatter":
            colour, edge = trace.fillcolor or colour, trace.line
        fill = escape(colour)
        if hatch.shape:
            name, self.tiles[name] = tile(colour, hatch.shape)
            fill = f"url(#{name})"
        return f' fill="{fill}"' + (stroke(edge.color or colour, edge.width) if edge.width else "")

    def _line(self, turn: int, points: Points, below: list[float]) -> Iterator[str]:
        """The line in pieces between gaps, or the area down to what lies below."""
        trace, line = self.traces[turn], self.traces[turn].line
        if trace.stackgroup:
            low = [(x, y) for (x, _), y in zip(points, below, strict=True)]
            bend = stairs if line.shape == "hv" else list
            yield f'<path d="{path([*bend(points), *reversed(bend(low))])}Z"{self._filled(turn)}/>'
        elif "lines" in mode_of(trace):
            pieces = [list(piece) for there, piece in groupby(points, lambda point: isfinite(sum(point))) if there]
            data = "".join(path(piece, line.shape) for piece in pieces)
            yield f'<path d="{data}" fill="none"{stroke(self.colours[turn], line.width or 2, line.dash)}/>'

    def _marks(self, turn: int, places: list[int], points: Points) -> Iterator[str]:
        """The marks at these of the points; those of one look stand together."""
        marker = self.traces[turn].marker
        symbol, hollow, _ = (marker.symbol or "circle").partition("-open")
        fills, edges = (each(value, len(points)) for value in (marker.color, marker.line.color))
        for (fill, edge), run in groupby(places, key=lambda at: (fills[at], edges[at])):
            thick = marker.line.width or (1 if hollow else 0)
            fill = fill or self.colours[turn]
            look = f' fill="{"none" if hollow else escape(fill)}"' + (
                stroke(fill if hollow else edge or INK, thick) if thick else ""
            )
            yield f"<g{look}>{''.join(mark(*points[at], symbol, marker.size or 6) for at in run)}</g>"

    def _beside(self, turn: int, x: float, y: float, said: str) -> str:
        """The words at a mark, on the side that plotly names, such as "top center"."""
        trace = self.traces[turn]
        up, aside = (trace.textposition or "middle center").split()
        far = (trace.marker.size or 6) / 2 + 5
        x += {"left": -far, "right": far}.get(aside, 0)
        y += {"top": -far, "bottom": far + 9}.get(up, 4)
        return words(x, y, said, {"left": "end", "right": "start"}.get(aside, "middle"))

    def _sign(self, x: float, y: float, turn: int) -> Iterator[str]:
        """A trace in the legend."""
        trace = self.traces[turn]
        if trace.type == "bar" or trace.stackgroup:
            yield f'<rect x="{x:g}" y="{y - 7:g}" width="{SIGN}" height="14"{self._filled(turn)}/>'
        else:
            yield from self._line(turn, [(x, y), (x + SIGN, y)], [])
            if "markers" in mode_of(trace):
                yield from self._marks(turn, [0], [(x + SIGN / 2, y)])
        yield words(x + SIGN + 6, y + 4, trace.name)

    # ---- what lies under and over them

    def _place(self, letter: str, reference: str | None, value: Any, powers: bool = False) -> float:
        """The pixel of a place: on an axis, or as a share of an axis or of all panels."""
        short, _, domain = (reference or letter).partition(" ")
        if short != "paper" and not domain:
            return self.axes[short].at(value if powers else self.axes[short].number(value))
        near, far = (self.left, self.right) if letter == "x" else (self.bottom, self.top)
        if domain:
            near, far = self.axes[short].near, self.axes[short].far
        return near + (far - near) * value

    def _shape(self, shape: Any) -> str:
        (x0, x1), (y0, y1) = (
            [self._place(letter, shape[f"{letter}ref"], shape[f"{letter}{end}"]) for end in "01"] for letter in "xy"
        )
        thick = 2 if shape.line.width is None else shape.line.width
        look = (
            f' fill="{escape(shape.fillcolor or "none")}" opacity="{1 if shape.opacity is None else shape.opacity:g}"'
        )
        look += stroke(shape.line.color or INK, thick, shape.line.dash) if thick else ""
        if shape.type == "circle":
            middle = f'cx="{(x0 + x1) / 2:.1f}" cy="{(y0 + y1) / 2:.1f}"'
            return f'<ellipse {middle} rx="{abs(x1 - x0) / 2:.1f}" ry="{abs(y1 - y0) / 2:.1f}"{look}/>'
        corners = [(x0, y0), (x1, y1)] if shape.type == "line" else [(x0, y0), (x1, y0), (x1, y1), (x0, y1)]
        return f'<path d="{path(corners)}Z"{look}/>'

    def _note(self, note: Any) -> Iterator[str]:
        """An annotation: an arrow, words, or both."""
        x, y = (self._place(letter, note[f"{letter}ref"], note[letter], powers=True) for letter in "xy")
        if note.showarrow is not False:
            tail_x, tail_y = x + (note.ax or -10), y + (note.ay or -30)
            if note.axref not in (None, "pixel"):
                tail_x, tail_y = (self._place(le, note[f"a{le}ref"], note[f"a{le}"], powers=True) for le in "xy")
            thick, ends = note.arrowwidth or 1, (note.startstandoff or 0, note.standoff or 0)
            yield arrow((tail_x, tail_y), (x, y), ends, note.arrowcolor or INK, thick)
            x, y = tail_x, tail_y
        if note.text:
            wide, tall, colour = width(note.text), LINE * len(note.text.split("<br>")), note.font.color or INK
            anchor = {"left": "start", "right": "end"}.get(note.xanchor, "middle")
            if note.textangle:
                yield words(x + 4, y, note.text, "middle", turned=note.textangle, colour=colour)
                return
            y += {"bottom": 10 - tall, "top": LINE}.get(note.yanchor, LINE - 4 - tall / 2)
            if note.bgcolor:
                left = x - {"start": 0, "middle": wide / 2, "end": wide}[anchor]
                place = f'x="{left - 2:.1f}" y="{y - 12:.1f}" width="{wide + 4:.1f}" height="{tall}"'
                yield f'<rect {place} fill="{escape(note.bgcolor)}"/>'
            yield words(x + {"start": 3, "end": -3}.get(anchor, 0), y, note.text, anchor, colour=colour)
