"""How does the timeline live in a notebook? A widget that shows a trace. Read next: `watched`, one that grows."""

from collections.abc import Callable, Sequence
from typing import Any

import anywidget
import traitlets

from pipelab.explain import Explanation
from pipelab.show.live.columns import RULE, STYLE, trace_block
from pipelab.show.live.overlaid import overlay_block
from pipelab.show.live.script import script, stylesheet
from pipelab.show.memory import Curve
from pipelab.show.overlay import gap_text, overlay_text
from pipelab.show.text import timeline_text
from pipelab.trace import Number, Trace
from pipelab.units import figures_text, finding


class Timeline(anywidget.AnyWidget):
    """The interactive timeline of a trace: zoom, pan, hover, select, messages, memory; all of it by keys, too.

    `memory` holds one curve of (time, bytes) a rank, without it the micro-batches in flight are drawn; `limit` draws a
    line, one number or one a rank. `show` replaces the trace. Raises ValueError when `memory` or `limit` does not fit
    the ranks.

    >>> from pipelab import Costs, build, simulate
    >>> step = Timeline(simulate(build("1f1b", ranks=4, microbatches=8), Costs.uniform()), limit=4)
    >>> step.alt
    '1f1b: 27.3 % of the step is idle. simulated time: makespan 33; bubbles: step 27.3 %, span 27.3 %, overhead 37.5 %.'
    """

    _esm = script()
    _css = stylesheet()
    looks = traitlets.Dict(STYLE).tag(sync=True)  # DOMWidget has a `style` of its own
    rule = traitlets.Dict(RULE).tag(sync=True)
    frame = traitlets.Bytes().tag(sync=True)
    heading: Any = traitlets.List().tag(sync=True)  # title and figures, in place of the frame's own
    losses: Any = traitlets.List().tag(sync=True)  # of a run's steps, drawn small
    now = traitlets.Float(None, allow_none=True).tag(sync=True)  # what is later than this is dimmed
    ghosts: Any = traitlets.List().tag(sync=True)  # what could be placed next
    placing = traitlets.Bool(False).tag(sync=True)
    note = traitlets.Unicode().tag(sync=True)  # said below the picture, and to screen readers
    text = traitlets.Unicode().tag(sync=True)
    selected = traitlets.Unicode()
    """The selected action as text, "" if none: `observe` it like every trait."""

    def __init__(
        self,
        trace: Trace | None = None,
        memory: Sequence[Curve] | None = None,
        limit: "Number | Sequence[Number] | None" = None,
    ) -> None:
        super().__init__()
        self.trace = trace
        self.alt = ""
        self.on_event: Callable[[dict[str, Any]], None] = lambda event: None
        self.on_msg(self._hear)
        if trace is not None:
            self.show(trace, memory, limit)

    def show(
        self,
        trace: Trace,
        memory: Sequence[Curve] | None = None,
        limit: "Number | Sequence[Number] | None" = None,
    ) -> None:
        """Show this trace in place of what was there."""
        block = trace_block(trace, memory, limit)
        self.trace, self.alt = trace, f"{finding(trace)}. {figures_text(trace)}."
        with self.hold_sync():
            self.text, self.heading = "", []
            self.frame = block

    def as_text(self) -> str:
        """The same in a terminal's way; "" as long as nothing has happened."""
        return timeline_text(self.trace) if self.trace is not None and self.trace.counted else ""

    def _hear(self, _: Any, event: dict[str, Any], __: Any) -> None:
        if event["type"] == "text":
            self.text = self.as_text()
        elif event["type"] == "select":
            self.selected = event["action"]
        self.on_event(event)

    def _repr_mimebundle_(self, **options: Any) -> Any:
        """Beside the widget the step as text, for where no widget can be."""
        bundle = super()._repr_mimebundle_(**options)
        data = bundle[0] if isinstance(bundle, tuple) else bundle
        if data and (text := self.as_text()):
            data["text/plain"] = text
        return bundle


class Overlay(Timeline):
    """The interactive timeline of an explanation of two traces, as `show.overlay` has it standing still.

    >>> from pipelab import Costs, build, explain, simulate
    >>> one, other = (simulate(build("1f1b", ranks=4, microbatches=8), Costs.uniform(hop=hop)) for hop in (0, 1))
    >>> Overlay(explain(other, against=one)).alt
    'here is 16 longer than there: communication 16'
    """

    def __init__(self, explanation: Explanation) -> None:
        super().__init__()
        self.explanation = explanation
        self.alt = gap_text(explanation)
        self.frame = overlay_block(explanation)

    def as_text(self) -> str:
        return overlay_text(self.explanation)
