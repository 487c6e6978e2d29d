"""Which axis of a mesh moves how many bytes? A bar for each axis, in parts by what is moved."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

from pipelab.show.memory import largest_unit
from pipelab.show.palette import BARS, INK, hatched
from pipelab.show.table import columns
from pipelab.units import digits, percent

if TYPE_CHECKING:
    from pipelab.collectives import Volume
    from pipelab.show.chart import Chart


def traffic_chart(
    traffic: "Mapping[tuple[str, str], Volume]", title: str | None = None, what: str = "all ranks send in a step"
) -> "Chart":
    """The bytes that are sent along each axis, by axis and kind, as `Run.sent()` counts them.

    `what` says whose bytes they are, and in which time. Raises ValueError when there are none.

    >>> from pipelab.collectives import Volume
    >>> traffic_chart({("tp", "all_reduce"): Volume(2, 3072), ("pp", "SEND_F"): Volume(1, 1024)})
    <chart: tp moves the most: 3 of 4 KiB that all ranks send in a step, 75.0 %>
    """
    from pipelab.show.chart import chart

    axes, kinds = (list(dict.fromkeys(key[place] for key in traffic)) for place in (0, 1))
    sums = {axis: sum(volume.nbytes for (on, _), volume in traffic.items() if on == axis) for axis in axes}
    if not sum(sums.values()):
        raise ValueError("no byte is sent, so there is nothing to draw")
    size, unit = largest_unit([[(0, max(sums.values()))]])
    total, most = sum(sums.values()), max(sums, key=lambda axis: sums[axis])
    share = f"{digits(sums[most] / size)} of {digits(total / size)} {unit} that {what}, {percent(sums[most] / total)}"
    sent = {kind: [traffic[axis, kind].nbytes if (axis, kind) in traffic else 0 for axis in axes] for kind in kinds}
    lines = [
        [axis, *(f"{sent[kind][place]:,}" for kind in kinds), f"{sums[axis]:,}"] for place, axis in enumerate(axes)
    ]
    text = columns([["bytes", *kinds, "all"], *lines])
    height = 200 + 50 * len(axes)
    figure = chart(title or f"{most} moves the most: {share}", text, height=height, barmode="stack", showlegend=True)
    for turn, kind in enumerate(kinds):
        amounts = [nbytes / size for nbytes in sent[kind]]
        figure.add_bar(
            orientation="h", y=axes, x=amounts, name=kind, textposition="inside", textangle=0,
            text=[digits(amount) if amount else "" for amount in amounts], insidetextfont={"color": INK},
            marker=hatched(*BARS[turn % len(BARS)]),
            hovertemplate=f"%{{y}}: %{{x:.4g}} {unit} by {kind}<extra></extra>",
        )  # fmt: skip
    figure.update_xaxes(title_text=f"what {what} ({unit}; counted, not timed)")
    figure.update_yaxes(autorange="reversed", fixedrange=True, title_text="axis")
    return figure
