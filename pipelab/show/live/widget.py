"""How does the timeline live in a notebook? A widget that shows a trace, or grows with one while it happens."""

from collections.abc import Callable, Iterable, Sequence
from threading import Event, Lock, Thread
from types import TracebackType
from typing import Any

import anywidget
import traitlets

from pipelab.action import parts
from pipelab.show.live.columns import RULE, STYLE, TimeAxis, empty_block, shape, span_block, trace_block
from pipelab.show.live.script import script, stylesheet
from pipelab.show.memory import Curve
from pipelab.show.text import timeline_text
from pipelab.trace import Number, Span, Trace
from pipelab.units import Unit, figures_text, finding

TIMES_A_SECOND = 10


class Timeline(anywidget.AnyWidget):
    """The interactive timeline of a trace: zoom, pan, hover, select, messages, memory; all of it by keys, too.

    `memory` holds one curve of (time, bytes) a rank, without it the micro-batches in flight are drawn; `limit` draws a
    line, one number or one a rank. `show` replaces the trace, `append` adds to one that grows. Raises ValueError when
    `memory` or `limit` does not fit the ranks.

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
        self._axis: TimeAxis | None = None
        self._sent: list[bytes] = []
        self._bars = 0
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
        self._sent, self._bars, self._axis = [], 0, None
        with self.hold_sync():
            self.text, self.heading = "", []
            self.frame = block

    @classmethod
    def growing(cls, schedule: str, chunks: Sequence[int], clock: str, unit: Unit | None = None) -> "Timeline":
        """A timeline without bars yet, for `append`: one entry of `chunks` a rank. Times start at the first span.

        >>> step = Timeline.growing("1f1b", chunks=(1, 1), clock="virtual")
        >>> from pipelab import Action
        >>> step.append([Span(0, "compute", Action(0, "F", 0), 2.0, 2.5)])
        1
        """
        made = cls()
        made.trace = Trace(schedule, clock, tuple(chunks), ())
        made.alt = f"{schedule}, growing"
        unit = unit or (Unit("", 1) if clock == "simulated" else Unit("ms", 1000))
        made._axis = TimeAxis(unit)
        made.frame = empty_block(shape(schedule, clock, chunks, unit))
        return made

    def append(self, spans: Iterable[Span]) -> int:
        """Add spans to a growing timeline; only they are sent. Returns how many bars there are. See `Feed`.

        Raises ValueError on a timeline that shows a finished trace.
        """
        if self._axis is None or self.trace is None:
            raise ValueError("this timeline shows a finished trace; make one that grows with Timeline.growing(...)")
        new = tuple(spans)
        if new:
            if not self._bars:
                self._axis = self._axis._replace(origin=min(span.start for span in new))
            block = span_block(new, self._bars, self._axis)
            known = self.trace
            self.trace = Trace(known.schedule, known.clock, known.chunks, known.counted + new)
            self._bars += sum(len(parts(span.action)) for span in new)
            self._sent.append(block)
            self.send({"type": "append"}, [block])
        return self._bars

    def _hear(self, _: Any, event: dict[str, Any], __: Any) -> None:
        if event["type"] == "missing":
            for block in self._sent:
                self.send({"type": "append"}, [block])
        elif event["type"] == "text" and self.trace is not None:
            self.text = timeline_text(self.trace)
        elif event["type"] == "select":
            self.selected = event["action"]
        self.on_event(event)

    def _repr_mimebundle_(self, **options: Any) -> Any:
        """Beside the widget the step as text, for where no widget can be."""
        bundle = super()._repr_mimebundle_(**options)
        data = bundle[0] if isinstance(bundle, tuple) else bundle
        if data and self.trace is not None and self.trace.counted:
            data["text/plain"] = timeline_text(self.trace)
        return bundle


class Feed:
    """Passes spans of a run on to a growing timeline, ten times a second at most, from a thread of its own.

    The run calls `feed(span)`, which only puts it on a list: about a microsecond. What goes wrong in the picture never
    reaches the run. Leave the `with` block, or call `close`, to pass on the rest.

    >>> from pipelab import Action
    >>> step = Timeline.growing("1f1b", chunks=(1,), clock="virtual")
    >>> with Feed(step) as feed:
    ...     feed(Span(0, "compute", Action(0, "F", 0), 0.0, 0.5))
    >>> len(step.trace.spans)
    1
    """

    def __init__(self, timeline: Timeline) -> None:
        self.timeline = timeline
        self.error: Exception | None = None
        self._waiting: list[Span] = []
        self._lock = Lock()
        self._closed = Event()
        self._thread = Thread(target=self._run, name="timeline feed", daemon=True)
        self._thread.start()

    def __call__(self, span: Span) -> None:
        """Take one span; from any thread."""
        with self._lock:
            self._waiting.append(span)

    def close(self) -> None:
        """Pass on what is left, and end."""
        self._closed.set()
        self._thread.join(timeout=5)

    def __enter__(self) -> "Feed":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def _run(self) -> None:
        while not self._closed.wait(1 / TIMES_A_SECOND):
            self._pass_on()
        self._pass_on()

    def _pass_on(self) -> None:
        with self._lock:
            spans, self._waiting = self._waiting, []
        try:
            if spans and self.error is None:
                self.timeline.append(spans)
        except Exception as error:  # the picture fails, the run goes on; who asks finds the error here
            self.error = error
