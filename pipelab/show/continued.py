"""Does a run that was stopped and changed still learn the same? Its losses over those of one that nobody touched."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from pipelab.show.palette import IDLE, RANK_COLOURS
from pipelab.show.table import columns

if TYPE_CHECKING:
    from pipelab.run import Run
    from pipelab.show.chart import Chart

SIGNS = ("circle", "square", "diamond", "triangle-up", "x", "star")


def continued_chart(runs: Sequence["Run"], uninterrupted: Sequence[float], title: str | None = None) -> "Chart":
    """The losses of runs that went on from one another, each with its own sign, over the line of one whole run.

    Raises ValueError without a run, and for one that has no state or ends after the whole one.

    >>> import torch, pipelab as pl
    >>> model = torch.nn.Sequential(*(torch.nn.Linear(4, 4) for _ in range(2)))
    >>> batch = torch.ones(6, 4), torch.zeros(6, dtype=torch.int64)
    >>> run = pl.train(model, [batch] * 3, pl.build("1f1b", ranks=2, microbatches=3))
    >>> continued_chart([run], run.losses)
    <chart: 1 layout, 3 steps: every loss equals the uninterrupted run's, to the last bit>
    """
    from pipelab.show.chart import chart

    if not runs or any(run.state is None or run.state.step > len(uninterrupted) for run in runs):
        raise ValueError("give runs with a state, none of which ends after the uninterrupted one")
    lines = [
        [step, _name(run), f"{ours:.6f}", f"{uninterrupted[step]:.6f}"]
        for run in runs
        for step, ours in zip(_steps(run), run.losses, strict=True)
    ]
    text = columns([["step", "layout", "loss", "uninterrupted"], *lines])
    figure = chart(title or _finding(runs, uninterrupted), text, height=420, showlegend=True)
    figure.add_scatter(
        x=list(range(len(uninterrupted))), y=list(uninterrupted), name="uninterrupted", mode="lines",
        line={"color": "#9A9A9A", "width": 5}, hovertemplate="uninterrupted, step %{x}: %{y:.6f}<extra></extra>",
    )  # fmt: skip
    for place, run in enumerate(runs):
        steps, name = _steps(run), _name(run)
        figure.add_scatter(
            x=list(steps), y=run.losses, name=name, mode="markers",
            marker={"color": RANK_COLOURS[place % len(RANK_COLOURS)], "symbol": SIGNS[place % len(SIGNS)], "size": 11},
            hovertemplate=f"{name}, step %{{x}}: %{{y:.6f}}<extra></extra>",
        )  # fmt: skip
        if place % 2:
            figure.add_vrect(x0=steps[0] - 0.5, x1=steps[-1] + 0.5, fillcolor=IDLE, line_width=0, layer="below")
    figure.update_xaxes(title_text="step (counted, not timed)", dtick=max(1, len(uninterrupted) // 12))
    figure.update_yaxes(title_text="loss (cross-entropy a token, in nats)")
    return figure


def _steps(run: "Run") -> range:
    assert run.state is not None
    return range(run.state.step - len(run.losses), run.state.step)


def _name(run: "Run") -> str:
    axes = {"pp": run.mesh.pp, "tp": run.mesh.tp, "dp": run.mesh.dp}
    shown = ", ".join(f"{axis} = {size}" for axis, size in axes.items() if size > 1 or axis == "pp")
    return f"{run.schedule.name}, {shown}"


def _finding(runs: Sequence["Run"], uninterrupted: Sequence[float]) -> str:
    """What the curves show, in one sentence."""
    pairs = [(ours, uninterrupted[step]) for run in runs for step, ours in zip(_steps(run), run.losses, strict=True)]
    said = f"{len(runs)} layout{'s' * (len(runs) > 1)}, {len(pairs)} steps"
    if all(ours == theirs for ours, theirs in pairs):
        return f"{said}: every loss equals the uninterrupted run's, to the last bit"
    apart = max(abs(ours - theirs) / max(abs(theirs), 1e-300) for ours, theirs in pairs)
    return f"{said}: losses equal the uninterrupted run's but for {apart:.1g} of their size"
