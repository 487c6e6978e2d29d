"""What does each rank work under each cut? Bars of embedding, blocks and head, beside the step that comes of it."""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from types import MappingProxyType
from typing import TYPE_CHECKING

from pipelab.show.palette import hatched
from pipelab.show.table import columns

if TYPE_CHECKING:
    from pipelab.show.chart import Chart

LAYERS: Mapping[str, tuple[str, str, str]] = MappingProxyType(
    {"E": ("embedding", "#E69F00", "/"), "t": ("blocks", "#56B4E9", ""), "H": ("head and loss", "#CC79A7", "x")}
)
"""The letter of a layer in a layout: its name, and a colour (Okabe and Ito's) and hatch in plotly's words."""


def balance_chart(
    work: Sequence[float], letters: str, cuts: Mapping[str, Sequence[int]], rank_of: Sequence[int],
    steps: Mapping[str, float], clock: str = "virtual time",
) -> "Chart":  # fmt: skip
    """For each cut, by name, the work of every rank for one micro-batch, and the step it leads to.

    `work` has the seconds of each layer and `letters` its letter in a layout, `cuts` the first layer of each stage but
    the first, `steps` the seconds of a step by the same names, on this `clock`. The title compares the first with the
    shortest step.

    >>> figure = balance_chart([1, 1, 1, 3], "EttH", {"even": [2], "good": [3]}, (0, 1), {"even": 10.0, "good": 8.0})
    >>> figure.layout.title.text
    'good makes the step 20.0 % shorter than even (virtual time)'
    """
    from pipelab.show.chart import chart

    height = min(170 + 26 * len(cuts) * (1 + max(rank_of)), 1200)
    figure = chart(_finding(steps, clock), _text(work, cuts, rank_of, steps), height=height, barmode="stack")
    figure.update_layout(margin_l=180)
    for letter, (name, colour, hatch) in LAYERS.items():
        groups, ranks, times = [], [], []
        for cut, at in cuts.items():
            for rank, seconds in enumerate(_work(work, letters, at, rank_of, letter)):
                groups.append(f"<b>{cut}</b><br>{1e3 * steps[cut]:.1f} ms a step")
                ranks.append(f"rank {rank}")
                times.append(1e3 * seconds)
        figure.add_bar(
            orientation="h", y=[groups, ranks], x=times, name=name,
            marker=hatched(colour, hatch),
            hovertemplate=f"%{{y}}: %{{x:.4g}} ms of {name}<extra></extra>",
        )  # fmt: skip
    figure.update_xaxes(title_text="work of a rank for one micro-batch, profiled in virtual time (ms)")
    figure.update_yaxes(autorange="reversed", fixedrange=True)
    return figure


def _text(
    work: Sequence[float], cuts: Mapping[str, Sequence[int]], rank_of: Sequence[int], steps: Mapping[str, float]
) -> str:
    """A line a cut: the work of each rank and the step, in ms."""
    ranks = range(1 + max(rank_of))
    lines = [["ms", *(f"rank {rank}" for rank in ranks), "step"]]
    for cut, at in cuts.items():
        times = [*_work(work, "t" * len(work), at, rank_of, "t"), steps[cut]]
        lines.append([cut, *(f"{1e3 * seconds:.1f}" for seconds in times)])
    return columns(lines)


def _work(work: Sequence[float], letters: str, at: Sequence[int], rank_of: Sequence[int], letter: str) -> list[float]:
    """The seconds of each rank in layers of this letter."""
    times = [0.0] * (1 + max(rank_of))
    for stage, (i, j) in enumerate(pairwise((0, *at, len(work)))):
        times[rank_of[stage]] += sum(time for time, own in zip(work[i:j], letters[i:j], strict=True) if own == letter)
    return times


def _finding(steps: Mapping[str, float], clock: str) -> str:
    first, best = next(iter(steps)), min(steps, key=lambda name: steps[name])
    if first == best:
        return f"No cut makes the step shorter than {first} ({clock})"
    return f"{best} makes the step {100 * (1 - steps[best] / steps[first]):.1f} % shorter than {first} ({clock})"
