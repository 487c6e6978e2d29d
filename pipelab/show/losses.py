"""Do several runs learn alike? Their losses over the steps, one curve a run."""

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import TYPE_CHECKING

from pipelab.show.palette import line_look
from pipelab.show.table import columns
from pipelab.units import listed

if TYPE_CHECKING:
    from pipelab.show.chart import Chart

ROUNDING = 1e-6
"""Losses that differ by less are told as equal up to rounding."""


def loss_chart(losses: Mapping[str, Sequence[float]], title: str | None = None) -> "Chart":
    """The loss of each run, by name, over its steps; a run without a name of its own goes by its schedule's.

    Raises ValueError when there is no loss.

    >>> loss_chart({"gpipe": [5.5, 4.0], "1f1b": [5.5, 4.0]})
    <chart: gpipe and 1f1b have the same losses, to the last digit>
    """
    from pipelab.show.chart import chart

    losses = {name: list(run) for name, run in losses.items() if len(run)}
    if not losses:
        raise ValueError("there is no loss to draw; give at least one run's, as in {'1f1b': run.losses}")
    steps = max(map(len, losses.values()))
    lines = [
        [step + 1, *(f"{run[step]:.4f}" if step < len(run) else "-" for run in losses.values())]
        for step in range(steps)
    ]
    title = title or _finding(losses)
    figure = chart(title, columns([["step", *losses], *lines]), height=420)
    for turn, (name, run) in enumerate(losses.items()):
        figure.add_scatter(
            x=list(range(1, 1 + len(run))), y=run, name=name, mode="lines",
            line={**line_look(turn), "width": max(6 - 2 * turn, 2)},
            hovertemplate=f"{name}: %{{y:.4f}} in step %{{x}}<extra></extra>",
        )  # fmt: skip
    figure.update_layout(showlegend=True)
    figure.update_xaxes(title_text="step (counted, not timed)", tick0=1, **({"dtick": 1} if steps <= 20 else {}))
    figure.update_yaxes(title_text="loss (cross-entropy a token, in nats)")
    return figure


def _finding(losses: Mapping[str, Sequence[float]]) -> str:
    """Whether the runs learn the same, or which ends lowest."""
    if len(losses) == 1:
        ((name, run),) = losses.items()
        return f"{name}: loss {run[0]:.3f} in the first step, {run[-1]:.3f} in the last of {len(run)}"
    apart = max(abs(a - b) for one, other in combinations(losses.values(), 2) for a, b in zip(one, other, strict=False))
    if not apart:
        return f"{listed(list(losses))} have the same losses, to the last digit"
    if apart < ROUNDING:
        return f"{listed(list(losses))} have the same losses up to rounding ({apart:.0e})"
    common = min(map(len, losses.values()))
    last = {name: f"{run[common - 1]:.3f}" for name, run in losses.items()}
    low, high = (choose(last.values(), key=float) for choose in (min, max))
    lowest, highest = ([name for name in last if last[name] == end] for end in (low, high))
    have = "has" if len(lowest) == 1 else "have"
    if low == high:
        return f"after {common} steps {listed(lowest)} have a loss of {low}, but not in every step"
    return (
        f"after {common} steps {listed(lowest)} {have} the lowest loss ({low}), {listed(highest)} the highest ({high})"
    )
