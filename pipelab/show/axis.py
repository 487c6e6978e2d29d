"""Where does a value stand in a still picture? On an axis as plotly describes it: linear, logarithmic or of names."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from math import ceil, floor, isfinite, log10
from numbers import Real
from typing import Any

from pipelab.show.strokes import width
from pipelab.show.text import next_round_number

ACROSS, UPRIGHT, FEWEST = 80, 40, 4
"""Pixels from tick to tick, at least, but about four have room in any panel."""


@dataclass
class Scale:
    """What axes that match one another share: the names on them, and the numbers that must be seen.

    `loose` leaves room at both ends, as marks need it; `from_zero` shows the zero, as bars need it.
    """

    names: dict[Any, int] = field(default_factory=dict)
    numbers: list[float] = field(default_factory=list)
    loose: bool = False
    from_zero: bool = False

    def show(self, numbers: Iterable[float], loose: bool = False, from_zero: bool = False) -> None:
        """These must be seen, too."""
        self.numbers += filter(isfinite, numbers)
        self.loose |= loose
        self.from_zero |= from_zero


class Axis:
    """One axis: `number` puts a value on it, `at` a number into the picture, once it is laid from pixel to pixel.

    >>> from types import SimpleNamespace
    >>> axis = Axis(SimpleNamespace(type="log", range=(0, 2), tickvals=None, ticktext=None), Scale())
    >>> axis.lay(100, 300)
    >>> axis.at(axis.number(10)), [word for _, word in axis.ticks()]
    (200.0, ['1', '10', '100'])
    """

    def __init__(self, look: Any, scale: Scale) -> None:
        self.look, self.scale = look, scale
        self.near = self.far = self.low = self.high = 0.0

    def number(self, value: Any) -> float:
        """The turn of a name, the power of ten on a logarithmic axis; what is not there is not a number."""
        if value is None or isinstance(value, (str, tuple)):
            return float(self.scale.names.get(value, "nan"))
        if self.look.type == "log":
            return log10(value) if value > 0 else float("nan")
        return float(value)

    def lay(self, near: float, far: float) -> None:
        """From one pixel to another, so that all that must be seen has room."""
        self.near, self.far = near, far
        if self.look.range and None not in self.look.range:
            self.low, self.high = map(float, self.look.range)
            return
        zero = self.scale.from_zero and self.look.type != "log"
        numbers = [*self.scale.numbers, *([0.0] if zero else [])] or [0.0, 1.0]
        low, high = min(numbers), max(numbers)
        room = (0.06 * (high - low) or 0.5) if self.scale.loose else 0
        self.low, self.high = low - room * (not zero or low < 0), high + room * (not zero or high > 0)
        if self.look.autorange == "reversed":
            self.low, self.high = self.high, self.low

    def at(self, number: float) -> float:
        """The pixel of a number."""
        return self.near + (self.far - self.near) * (number - self.low) / ((self.high - self.low) or 1)

    def shows(self, number: float) -> bool:
        """Whether it is between the ends."""
        return min(self.low, self.high) - 1e-9 <= number <= max(self.low, self.high) + 1e-9

    def labels(self) -> list[tuple[float, str]]:
        """The pixels of the ticks whose words are shown and have room, from one end to the other."""
        upright, last, made = self.near > self.far, float("-inf"), []
        for at, said in sorted((self.at(number), said) for number, said in self.ticks()):
            half = 6.0 if upright else width(said) / 2 + 3
            if at - half >= last and self.look.showticklabels is not False and self.look.visible is not False:
                last = at + half
                made.append((at, said))
        return made

    def ticks(self) -> list[tuple[float, str]]:
        """Where there are ticks (as numbers), and their words."""
        low, high = sorted((self.low, self.high))
        words = self.look.ticktext
        if self.scale.names:
            made = [(float(at), name if isinstance(name, str) else name[-1]) for name, at in self.scale.names.items()]
        elif self.look.tickvals is not None:
            made = [
                (self.number(value), f"{value:g}" if words is None else words[place])
                for place, value in enumerate(self.look.tickvals)
            ]
        elif self.look.type == "log":
            steps = (1, 2, 5) if high - low < 2 else (1,)
            values = [step * 10.0**power for power in range(floor(low), ceil(high) + 1) for step in steps]
            made = [(log10(value), f"{value:g}") for value in values]
        else:
            most = max(abs(self.far - self.near) / (UPRIGHT if self.near > self.far else ACROSS), FEWEST)
            step = self.look.dtick or next_round_number(((high - low) or 1) / min(most, self.look.nticks or most))
            first = self.look.tick0 or 0
            turns = range(ceil((low - first) / step - 1e-6), floor((high - first) / step + 1e-6) + 1)
            made = [(first + turn * step, f"{round(first + turn * step, 12):.6g}") for turn in turns]
        return [(number, word) for number, word in made if self.shows(number)]


def axes_of(layout: Any, traces: Iterable[Any]) -> Mapping[str, Axis] | None:
    """The axes of these traces by plotly's short names, such as "y2"; None where one is of another sort."""
    scales: dict[str, Scale] = {}
    axes: dict[str, Axis] = {}
    for trace in traces:
        for letter in "xy":
            short = trace[f"{letter}axis"] or letter
            look = layout[f"{letter}axis{short[1:]}"]
            if look.type == "date" or look.overlaying or look.side in ("top", "right"):
                return None
            scale = scales.setdefault(look.matches or short, Scale(from_zero=look.rangemode == "tozero"))
            axes.setdefault(short, Axis(look, scale))
            for value in values_of(trace[letter]):
                if isinstance(value, str | tuple):
                    scale.names.setdefault(value, len(scale.names))
                elif not isinstance(value, Real | None):
                    return None
    return axes


def values_of(data: Any) -> list[Any]:
    """The values of a trace along an axis; names in groups become pairs (group, name)."""
    values = [] if data is None else list(data)
    return list(zip(*values, strict=True)) if values and isinstance(values[0], (list, tuple)) else values
