"""How long is a step with so many micro-batches? The U-curve: predicted as a line, measured as points."""

from collections.abc import Sequence
from math import ceil, floor, log2
from typing import TYPE_CHECKING

from pipelab.show.palette import line_look
from pipelab.show.table import columns
from pipelab.units import CLOCK_NAMES

if TYPE_CHECKING:
    from pipelab.microbatch import Sweep
    from pipelab.show.chart import Chart


def microbatch_chart(sweeps: Sequence["Sweep"], title: str | None = None) -> "Chart":
    """Steps over the number of micro-batches, a curve for each number of ranks; a star marks the best predicted.

    A cross marks the rule of thumb, M = 4P, where there is such an M. Raises ValueError without a sweep.

    >>> from pipelab.microbatch import Sweep
    >>> figure = microbatch_chart([Sweep(2, {2: 0.004, 4: 0.003, 8: 0.0035}, {4: 0.0031})])
    >>> figure.layout.title.text
    'P = 2: the shortest step predicted is at M = 4; the rule M = 4P makes it 16.7 % longer'
    """
    from pipelab.show.chart import chart

    if not sweeps:
        raise ValueError("there is no sweep to draw; give one, with the steps by number of micro-batches")
    figure = chart(title or _finding(sweeps), _text(sweeps), height=460, margin_t=70)
    figure.update_layout(legend={"orientation": "v", "x": 1.02, "y": 1, "yanchor": "top"})
    for turn, sweep in enumerate(sweeps):
        line, by_rule = line_look(turn), [sweep.rule] if sweep.rule == 4 * sweep.ranks else []
        for name, points, look in (
            ("predicted", sweep.predicted, {"mode": "lines", "line": line}),
            ("measured", sweep.measured, {"mode": "markers", "marker": {"size": 9}}),
            ("best predicted", _at(sweep, [sweep.best]), _sign("star-open", 19)),
            ("M = 4P", _at(sweep, by_rule), _sign("x-open", 14)),
        ):
            if points:
                counts = sorted(points)
                figure.add_scatter(
                    x=counts, y=[1e3 * points[count] for count in counts], name=f"P = {sweep.ranks}, {name}", **look,
                    hovertemplate=f"P = {sweep.ranks}, {name}: %{{y:.4g}} ms with M = %{{x}}<extra></extra>",
                )  # fmt: skip
                figure.data[-1].update(line_color=line["color"], marker_color=line["color"])
    counts = sorted({count for sweep in sweeps for count in sweep.predicted})
    figure.update_xaxes(title_text="micro-batches a step, M (same batch)", type="log", tickvals=counts)
    clocks = " and ".join(sorted({CLOCK_NAMES[sweep.clock] for sweep in sweeps}))
    steps = [1e3 * step for sweep in sweeps for step in (*sweep.predicted.values(), *sweep.measured.values())]
    figure.update_yaxes(
        title_text=f"step (ms)<br>points: {clocks}; lines: simulated",
        type="log",
        tickvals=[2.0**power for power in range(floor(log2(min(steps))), ceil(log2(max(steps))) + 1)],
    )
    return figure


def _text(sweeps: Sequence["Sweep"]) -> str:
    """A line for each number of micro-batches: the steps predicted and measured, in ms."""
    counts = sorted({count for sweep in sweeps for count in sweep.predicted})
    made = [
        (f"P = {sweep.ranks}, {name}", steps)
        for sweep in sweeps
        for name, steps in (("predicted", sweep.predicted), ("measured", sweep.measured))
        if steps
    ]
    lines = (
        [count, *(f"{1e3 * steps[count]:.1f}" if count in steps else "-" for _, steps in made)] for count in counts
    )
    return columns([["M", *(f"{name} (ms)" for name, _ in made)], *lines])


def _at(sweep: "Sweep", counts: Sequence[int]) -> dict[int, float]:
    return {count: sweep.predicted[count] for count in counts}


def _sign(symbol: str, size: int) -> dict[str, object]:
    return {"mode": "markers", "marker": {"symbol": symbol, "size": size, "line": {"width": 2.5}}}


def _finding(sweeps: Sequence["Sweep"]) -> str:
    """What the curves show, in one sentence."""
    if len(sweeps) > 1:
        bests = ", ".join(f"{sweep.best} for P = {sweep.ranks}" for sweep in sweeps)
        return f"The best number of micro-batches, predicted: {bests}"
    (sweep,) = sweeps
    said = f"P = {sweep.ranks}: the shortest step predicted is at M = {sweep.best}"
    if sweep.rule != 4 * sweep.ranks:
        return said
    if sweep.rule == sweep.best:
        return f"{said}, as the rule M = 4P says"
    longer = sweep.predicted[sweep.rule] / sweep.predicted[sweep.best] - 1
    return f"{said}; the rule M = 4P makes it {100 * longer:.1f} % longer"
