"""What does less memory cost in time? Every choice is a point: its peak memory, and the length of its step."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from pipelab.show.memory import largest_unit
from pipelab.show.palette import INK, RANK_COLOURS
from pipelab.show.table import columns
from pipelab.trace import Number, number
from pipelab.units import CLOCK_NAMES, Unit, digits, listed, time_label, unit_for

if TYPE_CHECKING:
    from pipelab.show.chart import Chart

Point = tuple[Number, Number]
"""(peak memory, length of the step)"""


def frontier_chart(
    points: Mapping[str, Point], clock: str, memory: str = "bytes", model: Mapping[str, Point] | Sequence[Point] = (),
    title: str | None = None, relative_to: str | None = None,
) -> "Chart":  # fmt: skip
    """Each choice by name as a point; full marks are on the frontier: no other is as small and as short.

    `clock` is that of the steps ("simulated", "virtual" or "wall"; in seconds unless simulated), `memory` says what is
    counted, "bytes" or such as "micro-batches". `model` is drawn as a line in the order of memory: what a model
    predicts. With `relative_to`, the name of a point, both axes are in per cent of that one. Raises ValueError without
    a point, or for an unknown clock.

    >>> frontier_chart({"none": (8, 33), "every 2": (6, 40), "full": (2, 44)}, "simulated", memory="micro-batches")
    <chart: from none to full: 75.0 % less memory, a 33.3 % longer step>
    """
    from pipelab.show.chart import chart

    if not points or clock not in CLOCK_NAMES:
        raise ValueError(f"a frontier needs points and one of the clocks {listed(list(CLOCK_NAMES))}: got {clock!r}")
    size: float
    size, space = largest_unit([[(0, held)] for held, _ in points.values()]) if memory == "bytes" else (1, memory)
    unit = Unit("", 1) if clock == "simulated" else unit_for(max(step for _, step in points.values()))
    if relative_to is not None:
        whole_held, whole_step = points[relative_to]
        points = {name: (held / whole_held, step / whole_step) for name, (held, step) in points.items()}
        size, space, unit = 0.01, f"% of {relative_to}", Unit(f"% of {relative_to}", 100)
    best = frontier(points)
    title = title or _finding(points, best)
    lines = [
        [name, digits(number(held) / size), digits(unit.of(step)), "yes" if name in best else "no"]
        for name, (held, step) in points.items()
    ]
    head = ["choice", f"peak ({space})", f"step ({unit.name or 'in the unit of the costs'})", "on the frontier"]
    figure = chart(title, columns([head, *lines]), height=460, margin_t=86)
    line = sorted(model.values() if isinstance(model, Mapping) else model)
    if line:
        figure.add_scatter(
            x=[number(held) / size for held, _ in line], y=[unit.of(step) for _, step in line], name="model",
            mode="lines", line={"color": RANK_COLOURS[7], "dash": "dash"}, hoverinfo="skip",
        )  # fmt: skip
    for words, names, mark in (
        ("on the frontier", best, "circle"),
        ("off the frontier", [name for name in points if name not in best], "circle-open"),
    ):
        if names:
            held, steps = zip(*(points[name] for name in names), strict=True)
            figure.add_scatter(
                x=[number(value) / size for value in held], y=[unit.of(step) for step in steps], text=list(names),
                name=words, mode="markers+text", textposition="top center", textfont={"color": INK},
                marker={"symbol": mark, "size": 11, "color": RANK_COLOURS[0], "line": {"width": 2}}, cliponaxis=False,
                hovertemplate=f"%{{text}}: %{{x:.4g}} {space}, %{{y:.4g}} {unit.name}<extra></extra>",
            )  # fmt: skip
    figure.update_layout(showlegend=True)
    figure.update_xaxes(title_text=f"most memory of any rank ({space})", rangemode="tozero")
    figure.update_yaxes(title_text=f"step, {time_label([clock], unit)}")
    return figure


def frontier(points: Mapping[str, Point]) -> list[str]:
    """The choices that no other beats in both, from the shortest step to the least memory.

    >>> frontier({"a": (3, 1), "b": (1, 3), "c": (3, 3)})
    ['a', 'b']
    """
    best: list[str] = []
    for name in sorted(points, key=lambda name: (points[name][1], points[name][0])):
        if not best or points[name][0] < points[best[-1]][0]:
            best.append(name)
    return best


def _finding(points: Mapping[str, Point], best: Sequence[str]) -> str:
    """What the way along the frontier costs, or that there is nothing to choose."""
    if len(best) == 1:
        return f"{best[0]} has the shortest step and the least memory"
    (more, short), (less, long) = points[best[0]], points[best[-1]]
    saved, paid = 1 - number(less) / number(more), number(long) / number(short) - 1
    return f"from {best[0]} to {best[-1]}: {100 * saved:.1f} % less memory, a {100 * paid:.1f} % longer step"
