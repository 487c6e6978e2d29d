"""Where does the time go? The idle time of each rank by cause, as stacked bars and as a table for the terminal."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING

from pipelab.explain import CAUSES, Explanation
from pipelab.show.palette import EDGE, GRID, INK, PAPER
from pipelab.trace import plain
from pipelab.units import CLOCK_NAMES, finding, time_unit

if TYPE_CHECKING:
    import plotly.graph_objects as go

CAUSE_LOOKS: Mapping[str, tuple[str, str]] = MappingProxyType(
    {
        "warm-up": ("#56B4E9", ""),
        "cool-down": ("#E69F00", "/"),
        "dependency": ("#F0E442", "\\"),
        "communication": ("#CC79A7", "x"),
        "imbalance": ("#2CB88A", "."),
        "jitter": ("#BBBBBB", "-"),
    }
)
"""Colour (Okabe and Ito's) and hatch of each cause, in plotly's words."""


def idle_chart(explanation: Explanation, title: str | None = None) -> "go.Figure":
    """The idle time of each rank as one bar of stacked causes; the length of a bar is the rank's idle time.

    >>> from pipelab import Costs, build, explain, simulate
    >>> figure = idle_chart(explain(simulate(build("1f1b", ranks=4, microbatches=8), Costs.uniform())))
    >>> [bar.name for bar in figure.data], figure.layout.title.text
    (['warm-up', 'cool-down', 'dependency'], '1f1b: 27.3 % of the step is idle')
    """
    import plotly.graph_objects as go

    trace = explanation.trace
    unit = time_unit([trace])
    figure = go.Figure()
    for cause in CAUSES:
        times = [unit.of(causes[cause]) for causes in explanation.idle]
        if max(times) <= 0:
            continue
        colour, hatch = CAUSE_LOOKS[cause]
        pattern = {"shape": hatch, "fgcolor": EDGE, "fgopacity": 0.4, "size": 7, "solidity": 0.17}
        figure.add_bar(
            orientation="h",
            y=[f"rank {rank}" for rank in range(trace.ranks)],
            x=times,
            name=cause,
            marker={"color": colour, "line": {"color": EDGE, "width": 0.7}, "pattern": pattern},
            hovertemplate=f"%{{y}}: %{{x:.4g}} {unit.name} {cause}<br>{CAUSES[cause]}<extra></extra>",
        )
    title = title or finding(trace)
    figure.update_layout(
        template="plotly_white",
        title={"text": title, "font": {"size": 20, "color": INK}, "x": 0, "xref": "paper"},
        barmode="stack",
        height=min(190 + 36 * trace.ranks, 900),
        margin={"l": 84, "r": 30, "t": 96, "b": 52},
        paper_bgcolor=PAPER,
        plot_bgcolor=PAPER,
        font={"family": "Helvetica, Arial, sans-serif", "size": 13, "color": INK},
        legend={"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom", "traceorder": "normal"},
        showlegend=True,
        modebar={"remove": ["sendChartToCloud", "lasso2d", "select2d"]},
        meta={"alt": f"{title}. {explanation}"},
    )
    clock = CLOCK_NAMES[trace.clock]
    figure.update_xaxes(title_text=f"idle, {clock} ({unit.name or 'in the unit of the costs'})", gridcolor=GRID)
    figure.update_yaxes(autorange="reversed", fixedrange=True)
    return figure


def idle_text(explanation: Explanation) -> str:
    """The idle time of each rank by cause, in columns; causes that do not occur are left out.

    >>> from pipelab import Costs, build, explain, simulate
    >>> print(idle_text(explain(simulate(build("gpipe", ranks=2, microbatches=2), Costs.uniform()))))
    idle    warm-up  cool-down  dependency  all
    rank 0        0          0           3    3
    rank 1        1          2           0    3
    """
    unit = time_unit([explanation.trace])
    causes = [cause for cause in CAUSES if any(unit.text(idle[cause]) != unit.text(0) for idle in explanation.idle)]
    lines = [["idle", *causes, "all"]]
    for rank, idle in enumerate(explanation.idle):
        times = [*(idle[cause] for cause in causes), plain(sum(idle.values()))]
        lines.append([f"rank {rank}", *(unit.text(time) for time in times)])
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(
            [line[0].ljust(widths[0]), *(word.rjust(width) for word, width in zip(line[1:], widths[1:], strict=True))]
        )
        for line in lines
    )
