"""What is there to see without a notebook's front end? The plotly figure, and the step as text."""

import os
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from pipelab.show.live.columns import limits_of
from pipelab.show.memory import Curve, largest_unit
from pipelab.show.palette import LIGHT
from pipelab.show.text import timeline_text
from pipelab.show.timeline import timeline
from pipelab.trace import Number, Trace

if TYPE_CHECKING:
    import plotly.graph_objects as go


def in_a_notebook() -> bool:
    """Whether widgets may be shown: there is a kernel, and `PIPELAB_HEADLESS` is not set (or 0).

    >>> in_a_notebook()
    False
    """
    if os.environ.get("PIPELAB_HEADLESS", "0") not in ("", "0"):
        return False
    try:
        from IPython.core.getipython import get_ipython
    except ImportError:
        return False
    return hasattr(get_ipython(), "kernel")


class Still:
    """What stands still: `.figure` (plotly) and `.text`; in a notebook both are shown, one below the other."""

    def __init__(self, what: str, figure: "go.Figure", text: str) -> None:
        self.figure = figure
        self.text = text
        self._what = what

    def __repr__(self) -> str:
        return f"<{self._what}, as a figure and as text>"

    def _ipython_display_(self) -> None:
        from IPython.display import display

        display(self.figure)
        print(self.text)


def still(
    trace: Trace,
    memory: Sequence[Curve] | None = None,
    limit: "Number | Sequence[Number] | None" = None,
    rows: Iterable[tuple[str, str, str]] = (),
) -> Still:
    """One step that stands still, with its limits, and rows of (what, simulated, formula) below.

    >>> from pipelab import Costs, build, simulate
    >>> still(simulate(build("gpipe", ranks=2, microbatches=2), Costs.uniform())).text.splitlines()[0][:28]
    'rank 0  F0--------F1--------'
    """
    figure = timeline(trace, memory)
    limits = [] if limit is None else limits_of(limit, trace.ranks)
    size = largest_unit(memory)[0] if memory is not None else 1
    for one in sorted(set(limits)):
        line = {"line_dash": "dash", "line_color": LIGHT.alarm, "annotation_text": f"limit {one:g}"}
        figure.add_hline(y=one / size, row=2, col=1, **line)
    table = [f"{what}: {made}" + (f" (formula {theory})" if theory else "") for what, made, theory in rows]
    return Still(f"the timeline of {trace.schedule}", figure, "\n".join([timeline_text(trace), *table]))
