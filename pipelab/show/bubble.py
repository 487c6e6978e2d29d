"""How does the bubble fall with the number of micro-batches? By formula, simulated, and measured if there is a run."""

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from pipelab.action import parts
from pipelab.costs import Costs
from pipelab.formulas import formula
from pipelab.schedule import Schedule
from pipelab.schedules import build, chunks_of
from pipelab.show.palette import MARKERS, line_look
from pipelab.show.table import columns
from pipelab.simulate import simulate
from pipelab.trace import BUBBLES, Number, Trace
from pipelab.units import BUBBLE_MEANINGS, CLOCK_NAMES, listed, percent

if TYPE_CHECKING:
    from pipelab.show.chart import Chart


class Series(NamedTuple):
    """The bubbles of one schedule, from one source, by number of micro-batches; and how plotly draws them."""

    words: str
    bubbles: Mapping[int, Number]
    look: dict[str, Any]


def bubble_chart(
    names: Sequence[str], ranks: int, microbatches: Sequence[int], kind: str = "step", *,
    chunks: int = 1, measured: Sequence[Trace] = (),
) -> "Chart":  # fmt: skip
    """The bubble of each schedule over M: a line by formula, open marks simulated (F = I = W), full ones measured.

    `kind` is one of the three bubbles; `chunks` goes to schedules of several stages a rank; each trace of `measured` is
    a point of the schedule that it names. Raises ValueError for an unknown name or kind, or without any M.

    >>> bubble_chart(["gpipe", "1f1b"], ranks=4, microbatches=[1, 8])
    <chart: 4 ranks, bubble step: gpipe and 1f1b 75.0 % at M = 1, 27.3 % at M = 8>
    """
    from pipelab.show.chart import chart

    if kind not in BUBBLES or not names or not microbatches:
        raise ValueError(
            f"a bubble chart needs schedules, numbers of micro-batches and one of the bubbles {listed(BUBBLES)}:"
            f" got {list(names)}, {list(microbatches)} and {kind!r}"
        )
    counts = sorted({*microbatches, *map(_microbatches, measured)})
    drawn: list[Series] = []
    for turn, name in enumerate(names):
        wanted = chunks if chunks_of(name) == "any" else None
        drawn += _series(turn, {m: build(name, ranks, m, wanted) for m in counts}, kind, measured)
    title = _finding(drawn, ranks, kind, counts)
    lines = [[words, *(percent(of[m]) if m in of else "-" for m in counts)] for words, of, _ in drawn]
    figure = chart(title, columns([["M", *counts], *lines]), height=470)
    for words, bubbles, look in drawn:
        figure.add_scatter(
            x=list(bubbles), y=[100 * float(bubble) for bubble in bubbles.values()], name=words, **look,
            hovertemplate=f"{words}: %{{y:.1f}} % with M = %{{x}}<extra></extra>",
        )  # fmt: skip
    figure.update_layout(legend={"orientation": "v", "x": 1.02, "y": 1, "yanchor": "top"})
    figure.update_xaxes(title_text="micro-batches a step, M", type="log", tickvals=counts)
    figure.update_yaxes(title_text=f"bubble {kind} (%):<br>{BUBBLE_MEANINGS[kind]}", rangemode="tozero")
    return figure


def _series(turn: int, schedules: Mapping[int, Schedule], kind: str, measured: Sequence[Trace]) -> Iterator[Series]:
    """Those of one schedule that have any point; lines of later ones are thinner, so that none hides another."""
    first = next(iter(schedules.values()))
    name, shape = first.name, {"P": first.ranks, "V": first.stages // first.ranks}
    line = {**line_look(turn), "width": max(5 - 1.5 * turn, 2)}
    colour, mark = line["color"], MARKERS[turn % len(MARKERS)]
    open_mark = {"symbol": f"{mark}-open", "size": max(18 - 6 * turn, 6), "color": colour, "line": {"width": 2}}
    by_formula = {}
    for m in range(min(schedules), max(schedules) + 1):
        try:
            by_formula[m] = formula(name, f"bubble_{kind}", M=m, **shape)
        except ValueError:  # outside the domain of the closed form
            continue
    if by_formula:
        yield Series(f"{name}, formula", by_formula, {"mode": "lines", "line": line})
    simulated = {m: simulate(schedule, Costs.uniform()).bubble(kind) for m, schedule in schedules.items()}
    yield Series(f"{name}, simulated", simulated, {"mode": "markers", "marker": open_mark})
    runs = sorted((trace for trace in measured if trace.schedule == name), key=_microbatches)
    for clock in dict.fromkeys(trace.clock for trace in runs):
        points = {_microbatches(trace): trace.bubble(kind) for trace in runs if trace.clock == clock}
        look = {"mode": "markers", "marker": {"symbol": mark, "size": 9, "color": colour}}
        yield Series(f"{name}, measured in {CLOCK_NAMES[clock]}", points, look)


def _microbatches(trace: Trace) -> int:
    return 1 + max(action.microbatch for row in trace.compute for span in row for action in parts(span.action))


def _finding(drawn: Sequence[Series], ranks: int, kind: str, counts: Sequence[int]) -> str:
    """The simulated bubbles at both ends, together for the schedules in which they are equal everywhere."""
    alike: dict[tuple[Number, ...], list[str]] = {}
    for words, bubbles, _ in drawn:
        if words.endswith("simulated"):
            alike.setdefault(tuple(bubbles.values()), []).append(words.removesuffix(", simulated"))
    said = []
    for shown, names in alike.items():
        ends = [f"{percent(shown[end])} at M = {counts[end]}" for end in (0, -1)]
        words = f"{percent(shown[0])} at every M" if len(set(shown)) == 1 else ", ".join(ends)
        said.append(f"{listed(names)} {words}")
    return f"{ranks} rank{'s' * (ranks != 1)}, bubble {kind}: {'; '.join(said)}"
