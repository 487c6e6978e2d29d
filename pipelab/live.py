"""What is known of a run while it goes on? A listener of the feed that keeps the state, for whoever draws it.

Give it to `train` as `feed=`, or hand it each event from a listener of your own, and read its attributes whenever you
like, from any thread. It keeps one whole step and the one that goes on, so it stays small however long the run is.
"""

from typing import NamedTuple

from pipelab.feed import Ended, Event, Spans, Started, StepBegun, StepEnded
from pipelab.trace import Span, Trace


class Progress(NamedTuple):
    """A step as far as it is known: its number (-1 before the first), and by rank spans and (time, bytes) points."""

    step: int
    spans: tuple[tuple[Span, ...], ...]
    memory: tuple[tuple[tuple[float, int], ...], ...]

    @classmethod
    def none(cls, step: int, ranks: int) -> "Progress":
        """A step of which nothing is known."""
        return cls(step, ((),) * ranks, ((),) * ranks)

    def with_more(self, event: Spans) -> "Progress":
        """This step, and what a rank tells further of it."""
        spans, memory = list(self.spans), list(self.memory)
        spans[event.rank] += event.spans
        memory[event.rank] += event.memory
        return Progress(self.step, tuple(spans), tuple(memory))


class Live:
    """The state of a run, from its events.

    `started` is the `Started` event or None, `ended` the `Ended` event or None. `step` counts from 0 (-1 before the
    first). `losses` has the loss of every step that is over. `current` is the trace of the step that goes on, as far as
    it is known, with a row for each global rank, and `trace` that of the last whole step (None before); `progress` and
    `whole` have the same by rank, with the memory. `held` and `peaks` are activation bytes by rank: those held at the
    last known moment, and the most so far. `targets` is how many targets (tokens) the last step had. Without a flush
    all steps are one, which is whole when the run is over. The next run begins everything anew.

    >>> from pipelab import Action, build
    >>> from pipelab.mesh import Mesh
    >>> live = Live()
    >>> live(Started(build("gpipe", ranks=2, microbatches=1), Mesh(pp=2), "virtual", "memory"))
    >>> live(StepBegun(0))
    >>> live(Spans(0, 0, (Span(0, "compute", Action.parse("0F0"), 0.0, 0.5),), ((0.0, 7), (0.5, 4)), last=False))
    >>> live.current.makespan, live.held, live.peaks, live.trace
    (0.5, (4, 0), (7, 0), None)
    >>> live(StepEnded(0, loss=1.25, targets=64))
    >>> live.losses, live.trace.makespan, live.tokens_per_second
    ([1.25], 0.5, 128.0)
    """

    def __init__(self) -> None:
        self.started: Started | None = None
        self.ended: Ended | None = None
        self.losses: list[float] = []
        self.held: tuple[int, ...] = ()
        self.peaks: tuple[int, ...] = ()
        self.targets = 0
        self.progress = Progress.none(-1, 0)
        self.whole: Progress | None = None

    def __call__(self, event: Event) -> None:
        """Take an event, in the order of the feed."""
        match event:
            case Started():
                self.__init__()  # type: ignore[misc]
                self.started, self.progress = event, Progress.none(-1, event.mesh.size)
                self.held = self.peaks = (0,) * event.mesh.size
            case StepBegun():
                self.progress = Progress.none(event.step, len(self.held))
            case Spans():
                self.progress = self.progress.with_more(event)
                self._count(event.rank, [held for _, held in event.memory])
            case StepEnded():
                self.losses.append(event.loss)
                self.targets = event.targets if self._flush else self.targets + event.targets
                self.whole = self.progress if self._flush else None
            case Ended():
                self.ended = event
                if not (self._flush or event.error or event.dropped):
                    self.whole = self.progress

    def _count(self, rank: int, held: list[int]) -> None:
        if held:
            most = max(self.peaks[rank], *held)
            self.held = (*self.held[:rank], held[-1], *self.held[rank + 1 :])
            self.peaks = (*self.peaks[:rank], most, *self.peaks[rank + 1 :])

    @property
    def _flush(self) -> bool:
        return self.started is None or self.started.schedule.flush

    @property
    def step(self) -> int:
        """The step that goes on, or went on last."""
        return self.progress.step

    @property
    def current(self) -> Trace | None:
        """The trace of the step that goes on, or went on last, as far as it is known."""
        return None if self.started is None else self.trace_of(self.progress)

    @property
    def trace(self) -> Trace | None:
        """The trace of the last whole step."""
        return None if self.whole is None else self.trace_of(self.whole)

    def trace_of(self, progress: Progress) -> Trace:
        """What is known of a step, as a trace."""
        assert self.started is not None
        schedule, mesh, spans = self.started.schedule, self.started.mesh, progress.spans
        of_pipeline = schedule.placement.chunks_per_rank()
        chunks = tuple(of_pipeline[mesh.coordinates(rank)[1]] for rank in range(mesh.size))
        return Trace(schedule.name, self.started.clock, chunks, tuple(span for row in spans for span in row))

    @property
    def tokens_per_second(self) -> float | None:
        """Targets of the last whole step over its makespan, in seconds of the run's clock; None before."""
        trace = self.trace
        makespan = float(trace.makespan) if trace is not None else 0.0
        return self.targets / makespan if makespan else None
