"""Which axis of a mesh moves how many bytes? A bar for each axis, in parts by what is moved."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

from pipelab.show.memory import largest_unit
from pipelab.show.palette import BARS, INK
from pipelab.show.table import columns
from pipelab.units import digits, percent

if TYPE_CHECKING:
    from pipelab.show.chart import Chart


def traffic_chart(moved: Mapping[str, Mapping[str, int]], title: str | None = None, what: str = "a step") -> "Chart":
    """The bytes that each axis moves, by axis and then by kind ({"tp": {"activations": 4096, ...}, ...}).

    `what` says in which time or work they are moved. Raises ValueError when no byte is.

    >>> traffic_chart({"tp": {"activations": 3072}, "pp": {"activations": 512, "gradients": 512}})
    <chart: tp moves the most: 3 of 4 KiB a step, 75.0 %>
    """
    from pipelab.show.chart import chart, hatched

    sums = {axis: sum(kinds.values()) for axis, kinds in moved.items()}
    if not sum(sums.values()):
        raise ValueError("no byte is moved, so there is nothing to draw")
    size, unit = largest_unit([[(0, max(sums.values()))]])
    most = max(sums, key=lambda axis: sums[axis])
    total = sum(sums.values())
    share = f"{digits(sums[most] / size)} of {digits(total / size)} {unit} {what}, {percent(sums[most] / total)}"
    title = title or f"{most} moves the most: {share}"
    kinds = list(dict.fromkeys(kind for of_axis in moved.values() for kind in of_axis))
    lines = [
        [axis, *(f"{of_axis.get(kind, 0):,}" for kind in kinds), f"{sums[axis]:,}"] for axis, of_axis in moved.items()
    ]
    text = columns([["bytes", *kinds, "all"], *lines])
    figure = chart(title, text, height=200 + 50 * len(moved), barmode="stack", showlegend=True)
    for turn, kind in enumerate(kinds):
        amounts = [of_axis.get(kind, 0) / size for of_axis in moved.values()]
        figure.add_bar(
            orientation="h",
            y=list(moved),
            x=amounts,
            name=kind,
            text=[digits(amount) if amount else "" for amount in amounts],
            textposition="inside",
            textangle=0,
            insidetextfont={"color": INK},
            marker=hatched(*BARS[turn % len(BARS)]),
            hovertemplate=f"%{{y}}: %{{x:.4g}} {unit} of {kind}<extra></extra>",
        )
    figure.update_xaxes(title_text=f"moved {what} ({unit}; counted, not timed)")
    figure.update_yaxes(autorange="reversed", fixedrange=True, title_text="axis")
    return figure
