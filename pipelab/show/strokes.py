"""How are words, lines and marks written in SVG? Short, so that a notebook of pictures stays small."""

from collections.abc import Mapping
from html import escape
from math import hypot
from re import sub
from types import MappingProxyType

from pipelab.show.palette import EDGE, INK

Point = tuple[float, float]
Points = list[Point]
"""In pixels."""

LINE, LETTER = 16, 6.4  # pixels: the height of a line of words and the width of a letter, at size 12

DASHES: Mapping[str, tuple[int, ...]] = MappingProxyType(
    {"dot": (1, 1), "dash": (3, 3), "longdash": (5, 5), "dashdot": (3, 1, 1, 1), "longdashdot": (5, 2, 1, 2)}
)
"""In widths of the line, but at least three pixels."""

SYMBOLS: Mapping[str, tuple[int, ...]] = MappingProxyType(
    {
        "circle": (),
        "square": (-9, -9, 9, -9, 9, 9, -9, 9),
        "diamond": (0, -12, 12, 0, 0, 12, -12, 0),
        "triangle-up": (0, -12, 11, 7, -11, 7),
        "cross": (4, -11, 4, -4, 11, -4, 11, 4, 4, 4, 4, 11, -4, 11, -4, 4, -11, 4, -11, -4, -4, -4, -4, -11),
        "x": (-10, -5, -5, -10, 0, -5, 5, -10, 10, -5, 5, 0, 10, 5, 5, 10, 0, 5, -5, 10, -10, 5, -5, 0),
        "star": (0, -14, 3, -4, 13, -4, 5, 2, 8, 11, 0, 5, -8, 11, -5, 2, -13, -4, -3, -4),
    }
)
"""The corners of a mark in twentieths of its size; a circle has none."""

HATCHES: Mapping[str, str] = MappingProxyType(
    {
        "/": '<path d="M0 6 6 0"/>',
        "\\": '<path d="M0 0 6 6"/>',
        "x": '<path d="M0 0 6 6M0 6 6 0"/>',
        "-": '<path d="M0 3H6"/>',
        "|": '<path d="M3 0V6"/>',
        ".": '<circle cx="3" cy="3" r="0.8"/>',
    }
)
"""The hatches of the palette, in plotly's words, as tiles of 6 pixels."""


def words(
    x: float, y: float, said: str, anchor: str = "start", size: int = 12, turned: float = 0, colour: str = INK
) -> str:  # fmt: skip
    """Words in one or more lines, with plotly's `<br>` and `<b>`; nothing else in them is read as a tag.

    >>> words(1, 2, "<b>a</b> < b")
    '<text x="1" y="2"><tspan font-weight="bold">a</tspan> &lt; b</text>'
    """
    bold = r'<tspan font-weight="bold">\1</tspan>'
    lines = [sub("&lt;b&gt;(.*?)&lt;/b&gt;", bold, escape(line, quote=False)) for line in said.split("<br>")]
    x, y = round(x, 1), round(y, 1)
    lines[1:] = [f'<tspan x="{x:g}" dy="{LINE}">{line}</tspan>' for line in lines[1:]]
    look = f' text-anchor="{anchor}"' * (anchor != "start") + f' font-size="{size}"' * (size != 12)
    look += f' fill="{escape(colour)}"' * (colour != INK)
    look += f' transform="rotate({turned:g} {x:g} {y:g})"' * (turned != 0)
    return f'<text x="{x:g}" y="{y:g}"{look}>{"".join(lines)}</text>'


def width(said: str) -> float:
    """About how wide words are: the longest of their lines.

    >>> width("<b>four</b><br>in") == 4 * LETTER
    True
    """
    return LETTER * max(len(sub("</?b>", "", line)) for line in said.split("<br>"))


def path(points: Points, shape: str | None = None) -> str:
    """The data of a line through points: straight, in stairs ("hv") or bent ("spline").

    >>> path([(0, 0), (1, 2), (3, 2)]), path([(0, 0), (1, 2), (3, 2)], "hv")
    ('M0 0L1 2H3', 'M0 0H1V2H3')
    """
    if shape == "spline":
        return _bent(points)
    said: list[str] = []
    last = (float("nan"), float("nan"))
    for x, y in stairs(points) if shape == "hv" else points:
        x, y = round(x, 1), round(y, 1)
        if not said:
            said.append(f"M{x:g} {y:g}")
        elif (x, y) != last:
            said.append(f"H{x:g}" if y == last[1] else f"V{y:g}" if x == last[0] else f"L{x:g} {y:g}")
        last = x, y
    return "".join(said)


def stairs(points: Points) -> Points:
    """The corners of steps that hold until the next point."""
    made = points[:1]
    for x, y in points[1:]:
        if abs(y - made[-1][1]) >= 0.05:
            made += [(x, made[-1][1]), (x, y)]
    return [*made, (points[-1][0], made[-1][1])]


def _bent(points: Points) -> str:
    """Catmull and Rom's curve through the points."""
    around = [points[0], *points, points[-1]]
    said = f"M{points[0][0]:.1f} {points[0][1]:.1f}"
    for (a, b), (c, d), (e, f), (g, h) in zip(around, around[1:], around[2:], around[3:], strict=False):
        bends = (c + (e - a) / 6, d + (f - b) / 6, e - (g - c) / 6, f - (h - d) / 6, e, f)
        said += "C" + " ".join(f"{bend:.1f}" for bend in bends)
    return said


def stroke(colour: str, thick: float, dash: str | None = None) -> str:
    """The attributes of a line."""
    lengths = " ".join(f"{length * max(thick, 3):g}" for length in DASHES.get(dash or "", ()))
    return f' stroke="{escape(colour)}" stroke-width="{thick:g}"' + f' stroke-dasharray="{lengths}"' * bool(lengths)


def mark(x: float, y: float, symbol: str, size: float) -> str:
    """One mark, without its colours: those are told of all marks of a kind at once."""
    corners = SYMBOLS[symbol]
    if not corners:
        return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{size / 2:g}"/>'
    places = zip(corners[::2], corners[1::2], strict=True)
    return f'<path d="{path([(x + dx * size / 20, y + dy * size / 20) for dx, dy in places])}Z"/>'


def tile(colour: str, hatch: str) -> tuple[str, str]:
    """The name of a hatch on a colour, and its definition: equal names of several pictures mean equal tiles."""
    name = f"h{list(HATCHES).index(hatch)}{sub('[^0-9A-Za-z]', '-', colour)}"
    ground = f'<path d="M0 0H6V6H0Z" fill="{escape(colour)}"/>'
    lines = f'<g stroke="{EDGE}" stroke-opacity="0.4" fill="{EDGE}">{HATCHES[hatch]}</g>'
    return name, f'<pattern id="{name}" width="6" height="6" patternUnits="userSpaceOnUse">{ground}{lines}</pattern>'


def arrow(tail: Point, tip: Point, short: tuple[float, float], colour: str, thick: float) -> str:
    """A line with a head at its tip, which ends `short` of both."""
    (x0, y0), (x1, y1) = tail, tip
    length = hypot(x1 - x0, y1 - y0) or 1
    along, across = (x1 - x0) / length, (y1 - y0) / length

    def at(far: float, aside: float = 0) -> Point:
        return x0 + far * along - aside * across, y0 + far * across + aside * along

    end, head, half = length - short[1], 4.5 * thick, 2 * thick
    corners = [at(end), at(end - head, half), at(end - head, -half)]
    line = f'<path d="{path([at(short[0]), at(end - head)])}"{stroke(colour, thick)}/>'
    return line + f'<path d="{path(corners)}Z" fill="{escape(colour)}"/>'
