"""Where does the time go? The idle time of each rank by cause, as stacked bars and as a table for the terminal."""

from typing import TYPE_CHECKING

from pipelab.explain import CAUSES, Explanation
from pipelab.show.palette import CAUSES as LOOKS
from pipelab.show.palette import hatched
from pipelab.show.table import columns
from pipelab.trace import plain
from pipelab.units import finding, time_label, time_unit

if TYPE_CHECKING:
    from pipelab.show.chart import Chart


def idle_chart(explanation: Explanation, title: str | None = None) -> "Chart":
    """The idle time of each rank as one bar of stacked causes; the length of a bar is the rank's idle time.

    >>> from pipelab import Costs, build, explain, simulate
    >>> figure = idle_chart(explain(simulate(build("1f1b", ranks=4, microbatches=8), Costs.uniform())))
    >>> [bar.name for bar in figure.data], figure.layout.title.text
    (['warm-up', 'cool-down', 'dependency'], '1f1b: 27.3 % of the step is idle')
    """
    from pipelab.show.chart import chart

    trace = explanation.trace
    unit = time_unit([trace])
    title = title or finding(trace)
    height = min(190 + 36 * trace.ranks, 900)
    figure = chart(title, idle_text(explanation), height=height, alt=f"{title}. {explanation}", barmode="stack")
    for cause in CAUSES:
        times = [unit.of(causes[cause]) for causes in explanation.idle]
        if max(times) <= 0:
            continue
        figure.add_bar(
            orientation="h", y=[f"rank {rank}" for rank in range(trace.ranks)], x=times, name=cause,
            marker=hatched(LOOKS[cause].colour, LOOKS[cause].hatch),
            hovertemplate=f"%{{y}}: %{{x:.4g}} {unit.name} {cause}<br>{CAUSES[cause]}<extra></extra>",
        )  # fmt: skip
    figure.update_layout(showlegend=True)
    figure.update_xaxes(title_text=f"idle, {time_label([trace.clock], unit)}")
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
    return columns(lines)
