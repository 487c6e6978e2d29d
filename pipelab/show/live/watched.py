"""How is a run watched in a notebook? By a timeline that is a listener of the feed, and grows with the step."""

from collections.abc import Sequence
from threading import Event, Thread
from typing import Any

from pipelab import feed
from pipelab.action import parts
from pipelab.live import Live, Progress
from pipelab.schedule import Schedule
from pipelab.show.live.columns import TimeAxis, block_of, shape
from pipelab.show.live.widget import Timeline
from pipelab.show.live_text import run_lines
from pipelab.trace import Number
from pipelab.units import Unit, finding, time_unit

MOST_LOSSES = 200


class Watch(Timeline):
    """The timeline of a run: give it to `train` as `feed=`. Display it first; it grows in its own cell meanwhile.

    It shows the step that goes on (of steps that take less than a tenth of a second, some), the loss, and the figures
    of the last whole step; in the end, that step. `live` is all that is known. `limit` is in bytes of activations, one
    number or one a rank. The run never waits for it: a thread of its own draws, ten times a second at most.

    >>> from pipelab import build
    >>> from pipelab.feed import Ended, Spans, Started, StepBegun, StepEnded
    >>> from pipelab.mesh import Mesh
    >>> watch = Watch()
    >>> with feed.Feed(watch) as run:
    ...     run.put(Started(build("gpipe", ranks=2, microbatches=1), Mesh(pp=2), "virtual", "memory"))
    >>> watch.alt
    'gpipe has ended before its first step'
    """

    def __init__(self, limit: "Number | Sequence[Number] | None" = None) -> None:
        super().__init__()
        self.live = Live()
        self._limit = limit
        self._news = Event()
        self._painter: Thread | None = None
        self._failed: Exception | None = None
        self._drawn: Progress | None = None
        self._known: list[tuple[int, int]] = []
        self._bars = 0
        self._axis = TimeAxis(Unit("ms", 1000))

    def __call__(self, event: feed.Event) -> None:
        """Take an event, in the order of the feed."""
        self.live(event)
        if isinstance(event, feed.Started):
            self._drawn, self._failed = None, None
            self._painter = Thread(target=self._paint, name="watch", daemon=True)
            self._painter.start()
        self._news.set()
        if isinstance(event, feed.Ended) and self._painter is not None:
            self._painter.join(feed.FAREWELL / 2)
            if self._failed is not None:
                raise self._failed

    def _paint(self) -> None:
        """Bring the screen up to date whenever there is news, with a pause in between."""
        pause = Event()
        try:
            while self.live.ended is None:
                self._news.wait()
                self._news.clear()
                self._draw()
                pause.wait(feed.EVERY)
            self._draw()
            self._settle()
        except Exception as error:  # the picture fails, the run goes on; the feed is told at its end
            self._failed = error

    def _draw(self) -> None:
        """Show the step that goes on; before its first span the last whole one."""
        live = self.live
        progress = live.progress
        if not any(progress.spans) and live.whole is not None:
            progress = live.whole
        if self._drawn is None or progress.step != self._drawn.step:
            self._begin(progress)
        elif progress is not self._drawn:
            self._grow(progress)
        self._tell()

    def _begin(self, progress: Progress) -> None:
        """A step anew, with what is known of it by now."""
        assert self.live.started is not None
        whole = self.live.trace
        unit = time_unit([whole]) if whole is not None else Unit("ms", 1000)
        schedule, mesh, clock, _ = self.live.started
        self._axis, self._bars = TimeAxis(unit), 0
        self._known = [(0, 0)] * len(progress.spans)
        header = shape(schedule.name, clock, self.live.trace_of(progress).chunks, unit, self._limit)
        header |= {"step": progress.step, "length": unit.of(whole.makespan) if whole is not None else 0}
        header["chunk"] = _chunks(schedule)
        if whole is not None:
            kinds = {action.kind for row in whole.compute for span in row for action in parts(span.action)}
            header["expected"] = {"kinds": sorted(kinds), "lanes": sorted({span.lane for span in whole.counted})}
        if mesh.size > mesh.pp:
            places = [mesh.coordinates(rank) for rank in range(mesh.size)]
            header["sides"] = [replica * mesh.tp + shard for replica, _, shard in places]
        self.frame = self._block(header, progress)

    def _grow(self, progress: Progress) -> None:
        """What is new of the step."""
        block = self._block({"step": progress.step, "first": self._bars}, progress)
        self.send({"type": "append"}, [block])

    def _block(self, header: dict[str, Any], progress: Progress) -> bytes:
        spans = [s for row, (known, _) in zip(progress.spans, self._known, strict=True) for s in row[known:]]
        memory = [row[known:] for row, (_, known) in zip(progress.memory, self._known, strict=True)]
        block = block_of(header, spans, self._axis, memory)
        self._drawn, self._bars = progress, self._bars + sum(len(parts(span.action)) for span in spans)
        self._known = [(len(s), len(m)) for s, m in zip(progress.spans, progress.memory, strict=True)]
        return block

    def _tell(self) -> None:
        """Title, figures and losses."""
        live, every = self.live, len(self.live.losses) // MOST_LOSSES + 1
        assert live.started is not None
        state = f"step {live.step}" if live.step >= 0 else "warm-up"
        with self.hold_sync():
            self.alt = f"{live.started.schedule.name}: {state} goes on"
            self.heading = [self.alt, "; ".join(run_lines(live))]
            self.losses = live.losses[::every]

    def _settle(self) -> None:
        """The last whole step as a finished trace; of a run that failed, what was executed of its last."""
        live = self.live
        assert live.started is not None and live.ended is not None
        name, error, trace = live.started.schedule.name, live.ended.error, live.current
        self.trace = trace
        if trace is None or not trace.counted:
            title = f"{name} has ended before its first step"
        elif error:
            title = f"{name} broke off in step {live.step}"
        else:
            self.show(trace, live.progress.memory, self._limit)
            title = finding(trace)
        title += f": {error.splitlines()[0]}" if error else ""
        self.alt, self.heading = title, [title, "; ".join(run_lines(live))]

    def _hear(self, widget: Any, event: dict[str, Any], buffers: Any) -> None:
        if event["type"] == "missing" and self._drawn is not None and self.live.ended is None:
            self._drawn = None  # all of it, next time
            self._news.set()
        super()._hear(widget, event, buffers)


def _chunks(schedule: Schedule) -> list[int]:
    """For each stage, which of its rank's chunks it is."""
    placement = schedule.placement
    return [placement.stages_on(rank).index(stage) for stage, rank in enumerate(placement.rank_of)]
