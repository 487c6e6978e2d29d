"""How is a step drawn where no script runs? As SVG: bars with hatch and letter, for print, mail and plain viewers."""

from collections.abc import Iterator, Mapping, Sequence
from html import escape
from types import MappingProxyType

from pipelab.action import parts
from pipelab.show.palette import EDGE, GRID, IDLE, INK, PAPER, lighter, look, order
from pipelab.show.text import next_round_number
from pipelab.trace import Number, Trace
from pipelab.units import CLOCK_NAMES, Unit, chunk_of, digits, listed, origin

MOST_BARS = 2000
"""With more the picture would be larger than the rest of a notebook; the text remains."""

LEFT, RIGHT, WIDTH, ROW, BAR, LINE = 70, 14, 1000, 26, 20, 22  # pixels
LETTER = 7  # wide

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


def steps_svg(traces: Sequence[Trace], captions: Sequence[str], title: str, unit: Unit) -> str | None:
    """Steps below one another on one time axis, with a caption each; None where they have too many bars.

    >>> from pipelab import Costs, build, simulate
    >>> trace = simulate(build("1f1b", ranks=2, microbatches=2), Costs.uniform())
    >>> steps_svg([trace], ["simulated time"], "1f1b", Unit("", 1))[:5]
    '<svg '
    """
    if sum(len(row) for trace in traces for row in trace.compute) > MOST_BARS:
        return None
    length = max(trace.makespan for trace in traces) or 1
    drawn, top = [_text(LEFT, 24, title, size=17)], 40.0
    for trace, caption in zip(traces, captions, strict=True):
        drawn += [_text(LEFT, top + 14, caption), *_step(trace, length, top + LINE)]
        top += LINE + ROW * trace.ranks + 10
    clocks = listed(list(dict.fromkeys(CLOCK_NAMES[trace.clock] for trace in traces)))
    drawn += [*_axis(length, top, unit), _text(LEFT, top + 34, f"{clocks} ({unit.name or 'in the unit of the costs'})")]
    kinds = {action.kind for trace in traces for row in trace.compute for span in row for action in parts(span.action)}
    later = any(chunks > 1 for trace in traces for chunks in trace.chunks)
    drawn += _legend(sorted(kinds, key=order), later, top + 46)
    height = top + 46 + LINE
    tiles = "".join(
        f'<pattern id="h{place}" width="6" height="6" patternUnits="userSpaceOnUse">{tile}</pattern>'
        for place, tile in enumerate(HATCHES.values())
    )
    size = f'viewBox="0 0 {WIDTH} {height:g}" width="{WIDTH}" height="{height:g}"'
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" {size} role="img" fill="{INK}"'
        f' font-family="Helvetica, Arial, sans-serif" font-size="12"><title>{escape(title)}</title>'
        f'<defs><g stroke="{EDGE}" stroke-opacity="0.4" fill="{EDGE}">{tiles}</g></defs>'
        f'<rect width="100%" height="100%" fill="{PAPER}"/>{"".join(drawn)}</svg>'
    )


def _step(trace: Trace, length: Number, top: float) -> Iterator[str]:
    """The rows of one step: idle time is what stays grey."""
    scale, first, chunk = (WIDTH - LEFT - RIGHT) / float(length), float(origin(trace)), chunk_of(trace)
    for rank, row in enumerate(trace.compute):
        y = top + ROW * rank
        yield _text(LEFT - 8, y + 15, f"rank {rank}", anchor="end")
        yield f'<rect x="{LEFT}" y="{y:g}" width="{scale * float(trace.makespan):.1f}" height="{BAR}" fill="{IDLE}"/>'
        for span in row:
            together = parts(span.action)
            x, width = LEFT + scale * (float(span.start) - first), scale * float(span.end - span.start)
            height = BAR / len(together)
            for turn, action in enumerate(together):
                label = f"{action.kind}{action.microbatch}"
                yield _bar(x, y + turn * height, width, height, action.kind, chunk[action.stage] % 2)
                if width >= LETTER * len(label) + 6 and len(together) == 1:
                    yield _text(x + width / 2, y + 14.5, label, anchor="middle")


def _bar(x: float, y: float, width: float, height: float, kind: str, late: int = 0) -> str:
    seen = look(kind)
    place = f'x="{x:.1f}" y="{y:g}" width="{width:.1f}" height="{height:g}"'
    bar = f'<rect {place} fill="{lighter(seen.colour) if late else seen.colour}" stroke="{EDGE}" stroke-width="0.7"/>'
    if seen.hatch in HATCHES:
        bar += f'<rect {place} fill="url(#h{list(HATCHES).index(seen.hatch)})"/>'
    return bar


def _axis(length: Number, y: float, unit: Unit) -> Iterator[str]:
    end = unit.of(length)
    step = next_round_number(end / 10)
    for tick in range(int(end / step + 1e-9) + 1):
        x = LEFT + (WIDTH - LEFT - RIGHT) * tick * step / end
        yield f'<path d="M{x:.1f} {y - 8:g}v6" stroke="{GRID}"/>'
        yield _text(x, y + 12, digits(tick * step), anchor="middle")


def _legend(kinds: Sequence[str], later: bool, y: float) -> Iterator[str]:
    x = float(LEFT)
    for kind in kinds:
        words = f"{kind} {look(kind).words}"
        yield _bar(x, y, 14, 14, kind) + _text(x + 20, y + 11, words)
        x += 40 + LETTER * len(words)
    yield f'<rect x="{x:g}" y="{y:g}" width="14" height="14" fill="{IDLE}"/>{_text(x + 20, y + 11, "idle")}'
    if later:
        yield _text(x + 70, y + 11, "lighter: every second chunk of a rank")


def _text(x: float, y: float, words: str, anchor: str = "start", size: int = 12) -> str:
    look = f' text-anchor="{anchor}"' * (anchor != "start") + f' font-size="{size}"' * (size != 12)
    return f'<text x="{x:.1f}" y="{y:g}"{look}>{escape(words)}</text>'
