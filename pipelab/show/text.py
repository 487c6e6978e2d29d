"""How does a step look in a terminal? One line a rank, drawn to scale, without colour and without plotly."""

import math
import re
import textwrap
from collections.abc import Callable, Sequence
from fractions import Fraction

from pipelab.action import Action, Element, Pair, parts
from pipelab.show.palette import look, order
from pipelab.show.raster import majority, stretches
from pipelab.trace import Number, Span, Trace, ratio
from pipelab.units import chunk_of, digits, figures_text, origin, time_unit

IDLE = "·"
PAIR_FILL = "#"
HOLD = "\N{NO-BREAK SPACE}"  # within what a line break should not part; replaced before it is shown
SHORT_BARS = 20  # one bar in 20 may be too short to draw (jitter) before all bars give way to letters
NARROWEST = 20

Position = Callable[[Number], Number]
Letter = Callable[[Action], str]


def timeline_text(trace: Trace, width: int = 100) -> str:
    """The step as text: one line a rank, a time axis, the letters used, and the clock, makespan and bubbles.

    A bar is its letter, its micro-batch where there is room, and a filling; equal bars have equal lengths
    where the times allow it. When bars are shorter than a column, each column shows the kind that fills most
    of it. Upper and lower case alternate with a rank's chunks. No line is longer than `width`. Raises
    ValueError when `width` is below 20.

    >>> from pipelab import Costs, build, simulate
    >>> print(timeline_text(simulate(build("1f1b", ranks=2, microbatches=3), Costs.uniform()), width=60))
    rank 0  F0--F1--········B0======F2--B1======····B2======
    rank 1  ····F0--B0======F1--B1======F2--B2======········
    time    0       2       4       6       8       10      12
    F forward   B full backward   · idle
    1f1b, simulated time: makespan 12; bubbles: step 25.0 %,
    span 25.0 %, overhead 33.3 %
    """
    if width < NARROWEST:
        raise ValueError(f"a timeline needs a width of at least {NARROWEST} columns: got {width}")
    margin, unit = _margin(trace), time_unit([trace])
    columns = _columns(trace, width - margin)
    lines, roomy = _rank_lines(trace, columns, origin(trace), trace.makespan)
    lines.append(f"{unit.name or 'time':<{margin}}{_ruler(unit.of(trace.makespan), columns, width - margin)}")
    lines += _wrapped(_legend(trace, roomy), width)
    lines += _wrapped([re.sub("(?<![,:;]) ", HOLD, f"{trace.schedule}, {figures_text(trace, unit)}")], width)
    return "\n".join(line.rstrip() for line in lines)


def rank_lines(trace: Trace, width: int, until: Number) -> list[str]:
    """The lines of the ranks alone, from time 0 to the time `until`: a step that goes on keeps its place and scale as
    it grows, whichever rank is heard of first."""
    return _rank_lines(trace, max(width - _margin(trace), 1), 0, until)[0]


def _margin(trace: Trace) -> int:
    return len(f"rank {trace.ranks - 1}  ")


def _rank_lines(trace: Trace, columns: int, first: Number, length: Number) -> tuple[list[str], bool]:
    """A line a rank in which `columns` are so long a time since `first`, and whether there was room for bars."""

    def position(time: Number) -> Number:
        return (time - first) * columns / length if length else 0

    letter, roomy, lines = _letters(trace), _roomy(trace, position), []
    for rank, row in enumerate(trace.compute):
        if roomy:
            cells = _bars(row, columns, position, letter)
        else:
            cells = majority(stretches(row, position, letter), columns, IDLE)
        lines.append(f"rank {rank}".ljust(_margin(trace)) + "".join(cells))
    return lines, roomy


def _columns(trace: Trace, most: int) -> int:
    """The columns of the makespan: a whole number for the common time unit of all bars, if there is one."""
    first, makespan = origin(trace), trace.makespan
    units = 1
    for row in trace.compute if makespan else ():
        for span in row:
            for time in span[3:5]:
                share = Fraction(ratio(time - first, makespan))
                near = share.limit_denominator(most)
                units = math.lcm(units, near.denominator)
                if units > most or abs(share - near) > 1e-9:
                    return most
    return most // units * units


def _roomy(trace: Trace, position: Position) -> bool:
    """Whether nearly all bars are at least one column long."""
    lengths = sorted(position(span.end) - position(span.start) for row in trace.compute for span in row)
    lengths = [length for length in lengths if length]
    return not lengths or lengths[len(lengths) // SHORT_BARS] >= 1 - 1e-9


def _bars(row: Sequence[Span], columns: int, position: Position, letter: Letter) -> list[str]:
    """A line in which every bar shows its label and is filled up with the character of its kind."""
    cells = [IDLE] * columns
    for span in row:
        start, end = (min(max(math.floor(position(time) + 0.5), 0), columns) for time in span[3:5])
        if end == start and span.end > span.start and start < columns and cells[start] == IDLE:
            end = start + 1  # short, but it was there
        fits = [label for label in _labels(span.action, letter) if len(label) <= end - start]
        if fits:
            cells[start:end] = fits[0].ljust(end - start, _fill(span.action))
    return cells


def _labels(element: Element, letter: Letter) -> list[str]:
    """What a bar may say, the longest first."""
    together = parts(element)
    full = [f"{letter(action)}{action.microbatch}" for action in together]
    short = [letter(action) for action in together]
    return ["+".join(full), "+".join(short), "".join(short), short[0]]


def _fill(element: Element) -> str:
    return look(element.kind).fill if isinstance(element, Action) else PAIR_FILL


def _letters(trace: Trace) -> Letter:
    """The letter of an action: its kind, upper and lower case in turn for the chunks of a rank."""
    chunk = chunk_of(trace)
    return lambda action: action.kind[0] if chunk[action.stage] % 2 == 0 else action.kind[0].lower()


def _legend(trace: Trace, roomy: bool) -> list[str]:
    elements = [span.action for row in trace.compute for span in row]
    kinds = {action.kind for element in elements for action in parts(element)}
    words = [f"{kind[0]} {look(kind).words}" for kind in sorted(kinds, key=order)]
    words.append(f"{IDLE} idle")
    chunks = 1 + max(chunk_of(trace).values(), default=0)
    if chunks > 1:
        words.append("lower case: the rank's " + ("second chunk" if chunks == 2 else "second, fourth, ... chunk"))
    if not roomy:
        words.append("each column: the kind that fills most of it")
    elif any(isinstance(element, Pair) for element in elements):
        words.append(f"F+B{PAIR_FILL} two at once")
    return [word.replace(" ", HOLD) for word in words]


def _wrapped(words: Sequence[str], width: int) -> list[str]:
    return [line.replace(HOLD, " ") for line in textwrap.wrap("   ".join(words), width)]


def _ruler(length: int | float, columns: int, room: int) -> str:
    """Round times, each beginning in its column and at least 8 columns apart."""
    if not length:
        return "0"
    step = next_round_number(length * 8 / columns)
    line = ""
    for tick in range(int(length / step + 1e-9) + 1):
        label = digits(tick * step)
        start = math.floor(tick * step / length * columns + 0.5)
        if start + len(label) <= room:
            line = line.ljust(start) + label
    return line


def next_round_number(value: float) -> float:
    """The smallest of 1, 2 or 5 times a power of ten that is at least `value`.

    >>> next_round_number(3), next_round_number(0.12)
    (5.0, 0.2)
    """
    power = 10.0 ** math.floor(math.log10(value))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= value * (1 - 1e-9))
