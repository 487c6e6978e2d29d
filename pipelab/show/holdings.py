"""Who holds what, and when? Stacked areas over time, one panel a rank, one column a run, one area a cause."""

from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from pipelab.show.memory import Curve, largest_unit
from pipelab.show.palette import EDGE, GRID, INK
from pipelab.show.table import columns
from pipelab.trace import number
from pipelab.units import Unit, digits, origin, time_unit

if TYPE_CHECKING:
    import plotly.graph_objects as go

    from pipelab.run import Run
    from pipelab.show.chart import Chart

CAUSE_LOOKS: Mapping[str, tuple[str, str, str]] = MappingProxyType(
    {
        "parameters": ("#999999", "", "parameters"),
        "optimizer": ("#D0D0D0", "|", "optimizer state"),
        "gradients": ("#E69F00", "/", "gradients"),
        "activations": ("#56B4E9", "", "activations"),
        "recompute": ("#CC79A7", "x", "recomputed activations"),
        "deferred": ("#2CB88A", ".", "inputs waiting for W"),
        "communication": ("#F0E442", "\\", "messages"),
    }
)
"""Colour (Okabe and Ito's and two greys) and hatch of each cause, in plotly's words, and its name; from the bottom."""

MOST_RANKS = 8
PANEL = 128


def holdings_chart(runs: "Mapping[str, Run]", title: str | None = None) -> "Chart":
    """What each rank of each run holds over time, by cause, in the run's typical step; `runs` has them by name.

    Of several pipelines the first is shown.

    A dotted line is the most that a rank holds. The title says how much that is on the fullest rank of each run. Raises
    ValueError for no run, for runs of different numbers of ranks, and for more than 8 ranks.

    >>> import pipelab as pl, torch
    >>> batch = torch.ones(4, 256), torch.zeros(4, dtype=torch.int64)
    >>> model = torch.nn.Sequential(torch.nn.Linear(256, 256), torch.nn.Linear(256, 256))
    >>> figure = holdings_chart({"gpipe": pl.train(model, [batch], pl.build("gpipe", 2, 2))})
    >>> figure.layout.title.text
    'The fullest rank holds 1.008 MiB with gpipe'
    """
    from pipelab.show.chart import chart

    ranks = _ranks(runs)
    unit = time_unit([run.trace for run in runs.values()])
    most = max(max(run.memory.totals) for run in runs.values())
    size, name = largest_unit([[(0, most)]])
    causes = _causes(runs)
    figure = chart(
        title or _finding(runs, size, name), _table(runs, causes, size, name), height=194 + PANEL * ranks,
        margin={"l": 64, "r": 40, "t": 144, "b": 52},
        legend={"orientation": "h", "x": 0, "y": 1 + 34 / (PANEL * ranks), "yanchor": "bottom", "traceorder": "normal"},
    )  # fmt: skip
    figure.set_subplots(
        rows=ranks, cols=len(runs), shared_xaxes="all", shared_yaxes="all", column_titles=list(runs),
        row_titles=[f"rank {rank}" for rank in range(ranks)], horizontal_spacing=0.02, vertical_spacing=0.1 / ranks,
    )  # fmt: skip
    for column, (called, run) in enumerate(runs.items(), start=1):
        for rank in range(ranks):
            place: dict[str, Any] = {"row": rank + 1, "col": column}
            for area in _areas(run, rank, causes, unit, (size, name), f"{called}, rank {rank}"):
                figure.add_trace(area.update(showlegend=(rank, column) == (0, 1)), **place)
            peak = run.memory.totals[run.memory.pipelines[0][rank]] / size
            figure.add_hline(peak, line={"color": INK, "width": 1, "dash": "dot"}, **place)
            figure.add_annotation(
                text=f"{digits(peak)} {name}", x=0.995, xref="x domain", xanchor="right", y=peak, yanchor="bottom",
                showarrow=False, font={"size": 12, "color": INK}, **place,
            )  # fmt: skip
    figure.update_xaxes(gridcolor=GRID, zeroline=False)
    figure.update_yaxes(gridcolor=GRID, fixedrange=True, range=[0, 1.2 * most / size])
    figure.update_yaxes(title_text=name, col=1)
    figure.update_xaxes(title_text=f"{next(iter(runs.values())).clock_label} ({unit.name})", row=ranks)
    return figure


def _causes(runs: "Mapping[str, Run]") -> list[str]:
    """Those that occur in any of the runs, from the bottom."""
    peaks = [run.memory.peaks_by_cause(member) for run in runs.values() for member in run.memory.pipelines[0]]
    return [cause for cause in CAUSE_LOOKS if any(held[cause] for held in peaks)]


def _ranks(runs: "Mapping[str, Run]") -> int:
    counts = {run.trace.ranks for run in runs.values()}
    if len(counts) != 1 or max(counts) > MOST_RANKS:
        raise ValueError(f"a chart of holdings shows runs of one number of ranks, at most {MOST_RANKS}: got {counts}")
    return counts.pop()


def _areas(
    run: "Run", rank: int, causes: Sequence[str], unit: Unit, size: tuple[int, str], where: str
) -> "Iterator[go.Scatter]":
    """One area a cause, all on the times at which any of them changes."""
    import plotly.graph_objects as go

    curves, begin = run.memory.by_cause(run.memory.pipelines[0][rank]), origin(run.trace)
    times = sorted({time for curve in curves.values() for time, _ in curve} | {begin + run.trace.makespan})
    for cause in causes:
        colour, hatch, words = CAUSE_LOOKS[cause]
        amounts = [held / size[0] for held in _at(curves[cause], times)]
        yield go.Scatter(
            x=[unit.of(number(time - begin)) for time in times], y=amounts, name=words, stackgroup="all",
            line={"shape": "hv", "width": 0.6, "color": EDGE}, fillcolor=colour,
            fillpattern={"shape": hatch, "fgcolor": EDGE, "fgopacity": 0.45, "size": 6, "solidity": 0.2},
            customdata=[digits(amount) for amount in amounts],
            hovertemplate=f"{where}: %{{customdata}} {size[1]} of {words} from %{{x:.4g}} {unit.name}<extra></extra>",
        )  # fmt: skip


def _at(curve: Curve, times: Sequence[Any]) -> list[int]:
    """What is held from each of these times on."""
    changes, held = [time for time, _ in curve], [0, *(int(amount) for _, amount in curve)]
    return [held[bisect_right(changes, time)] for time in times]


def _finding(runs: "Mapping[str, Run]", size: int, name: str) -> str:
    said = [f"{digits(max(run.memory.totals) / size)} {name} with {called}" for called, run in runs.items()]
    return f"The fullest rank holds {', '.join(said)}"


def _table(runs: "Mapping[str, Run]", causes: Sequence[str], size: int, name: str) -> str:
    """The most of each cause, which need not come at one time, and of all together."""
    rows = [["at most, " + name, *(CAUSE_LOOKS[cause][2] for cause in causes), "all"]]
    for called, run in runs.items():
        for rank, member in enumerate(run.memory.pipelines[0]):
            peaks = run.memory.peaks_by_cause(member)
            amounts = [*(peaks[cause] for cause in causes), run.memory.totals[member]]
            rows.append([f"{called}, rank {rank}", *(digits(amount / size) for amount in amounts)])
    return columns(rows)
