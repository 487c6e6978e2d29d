"""What is there to draw in a chart? Bars as boxes and curves as points, in the numbers of their axes."""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from math import isfinite
from typing import Any, NamedTuple

from pipelab.show.axis import Axis, values_of
from pipelab.show.strokes import DASHES, HATCHES, SYMBOLS, Points


class Box(NamedTuple):
    """A bar: its ends from left to right and from below, and the words in it."""

    x: tuple[float, float]
    y: tuple[float, float]
    words: str


class Curve(NamedTuple):
    """A curve, with what lies below each of its points if it is the edge of an area, and the words at them."""

    points: Points
    below: list[float]
    words: list[str]


def is_known(trace: Any) -> bool:
    """Whether all of this trace would be drawn as it is meant."""
    if trace.type == "bar":
        return trace.marker.pattern.shape in (None, "", *HATCHES) and isinstance(trace.marker.color, str | None)
    if (
        trace.type != "scatter"
        or trace.fill is not None
        or not all(isinstance(size, int | float | None) for size in (trace.marker.size, trace.marker.line.width))
    ):
        return False
    symbol, line, colours = trace.marker.symbol, trace.line, each(trace.marker.color, 1)
    return (
        (symbol is None or (isinstance(symbol, str) and symbol.removesuffix("-open") in SYMBOLS))
        and line.shape in (None, "linear", "hv", "spline")
        and line.dash in (None, "solid", *DASHES)
        and all(isinstance(colour, str | None) for colour in colours)
    )


def forms_of(traces: Iterable[Any], axes: Mapping[str, Axis], mode: str | None) -> list[list[Box] | Curve]:
    """What each trace draws; `mode` is plotly's `barmode`. The axes learn what must be seen."""
    traces = list(traces)
    bars = [trace for trace in traces if trace.type == "bar"]
    stacked: dict[Any, float] = defaultdict(float)
    return [
        _boxes(trace, axes, stacked, mode, bars) if trace.type == "bar" else _curve(trace, axes, stacked)
        for trace in traces
    ]


def each(value: Any, count: int) -> list[Any]:
    """What plotly takes as one value for all or as one for each.

    >>> each(0.8, 2), each([1, 2], 2)
    ([0.8, 0.8], [1, 2])
    """
    return [value] * count if value is None or isinstance(value, (str, int, float)) else list(value)


def _boxes(
    bar: Any, axes: Mapping[str, Axis], stacked: dict[Any, float], mode: str | None, bars: Sequence[Any]
) -> list[Box]:
    across = bar.orientation == "h"
    panel = axes[bar.xaxis or "x"], axes[bar.yaxis or "y"]
    (along, places), (amount, lengths) = ((panel[1], bar.y), (panel[0], bar.x)) if across else (
        (panel[0], bar.x), (panel[1], bar.y),
    )  # fmt: skip
    lengths = values_of(lengths)
    middles = [along.number(value) for value in (range(len(lengths)) if places is None else values_of(places))]
    beside = [other for other in bars if (other.xaxis, other.yaxis) == (bar.xaxis, bar.yaxis)]
    apart = min((b - a for a, b in pairwise(sorted({*middles})) if b > a), default=1.0)
    groups, turn = (len(beside), beside.index(bar)) if mode in (None, "group") else (1, 0)
    made = []
    for middle, length, width, offset, base, words in zip(
        middles, lengths, *(each(value, len(lengths)) for value in (bar.width, bar.offset, bar.base, bar.text)),
        strict=True,
    ):  # fmt: skip
        if length is None or not isfinite(middle):
            continue
        width = 0.8 * apart / groups if width is None else width
        low = middle + (width * (turn - groups / 2) if offset is None else offset)
        key = bar.xaxis, bar.yaxis, middle, length < 0
        start = float(base) if base is not None else stacked[key] if mode in ("stack", "relative") else 0.0
        stacked[key] += float(length)
        ends = ((start, start + float(length)), (low, low + width))
        x, y = ends if across else ends[::-1]
        made.append(Box(x, y, words if words and bar.textposition != "none" else ""))
        along.scale.show((*ends[1], middle - apart / 2, middle + apart / 2))
        amount.scale.show(ends[0], loose=True, from_zero=True)
    return made


def _curve(trace: Any, axes: Mapping[str, Axis], stacked: dict[Any, float]) -> Curve:
    across, upright = axes[trace.xaxis or "x"], axes[trace.yaxis or "y"]
    values = values_of(trace.y)
    xs = [across.number(value) for value in (range(len(values)) if trace.x is None else values_of(trace.x))]
    ys, below = [upright.number(value) for value in values], [0.0] * len(values)
    if trace.stackgroup:
        keys = [(trace.xaxis, trace.yaxis, trace.stackgroup, x) for x in xs]
        below = [stacked[key] for key in keys]
        ys = [low + y for low, y in zip(below, ys, strict=True)]
        stacked.update(zip(keys, ys, strict=True))
    across.scale.show(xs, loose=mode_of(trace) != "lines")
    upright.scale.show(ys, loose=True, from_zero=bool(trace.stackgroup))
    return Curve(list(zip(xs, ys, strict=True)), below, each("" if trace.text is None else trace.text, len(xs)))


def mode_of(trace: Any) -> str:
    """How a curve is drawn; unsaid, few points get marks, as plotly does it."""
    if trace.stackgroup:
        return "lines"
    return trace.mode or ("lines+markers" if len(values_of(trace.y)) < 20 else "lines")
