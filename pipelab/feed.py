"""How does training tell what it does, while it does it? As events, to a listener that can never hold it up.

`train(..., feed=listener)` calls `listener(event)` for each event below, in this order and in one thread of its own:

    Started   StepBegun Spans Spans ... StepEnded   StepBegun Spans ... StepEnded   Ended

The values are those of the final `Run`, and every span and point comes once. In virtual time the spans of a step come
while it goes on, ten times a second; in wall-clock time each rank's come when its step is over, for its clock knows
them only then; over gloo a send then ends as it departs, for where it landed is known when all is gathered (`flights`).
Under torchrun the listener of rank 0 is called; the spans of the others come at the end of each step.
Without a flush a run is one long step of spans, step 0, and the losses of its steps come meanwhile.
A step that breaks off is told as far as it was executed; only of processes that are killed, as all others are when one
fails or the stop button is pressed, the last tenth of a second may be missing.

Nothing here waits for the listener: 1024 events have room, then the oldest are dropped, to the end of their step, and
counted (`Ended.dropped`, and a warning): no step is told with a gap that looks whole. If it raises, it is not called
again, training goes on, and a warning afterwards says so. Read next: `reporter` (the side of the ranks), and `live`, a
listener that knows the state of the run, for whoever draws it; `show.live_text` draws it in a terminal.
"""

import threading
import traceback
import warnings
from collections import deque
from collections.abc import Callable
from typing import NamedTuple

from pipelab.mesh import Mesh
from pipelab.schedule import Schedule
from pipelab.trace import Span

EVERY = 0.1
"""Seconds between two looks at what the ranks have done."""

ROOM = 1024
"""Events that may wait for a slow listener."""

BEFORE = -1
"""The step of what is told before the first."""

FAREWELL = 5.0
"""Seconds that a listener has for what is left, once the run is over."""


class Started(NamedTuple):
    """A run has begun: what is trained, by which clock ("virtual" or "wall") and transport."""

    schedule: Schedule
    mesh: Mesh
    clock: str
    transport: str


class StepBegun(NamedTuple):
    """Step `step`, counted from 0, has begun; the warm-up is none."""

    step: int


class Spans(NamedTuple):
    """What a global rank has done since its last: spans, and activation memory as (time, bytes) points.

    On a mesh with replicas or shards the spans, too, bear the global rank. `last` marks a rank's last of the step; a
    step that broke off has it for what was executed of it.
    """

    step: int
    rank: int
    spans: tuple[Span, ...]
    memory: tuple[tuple[float, int], ...]
    last: bool


class StepEnded(NamedTuple):
    """All spans of the step have been told; its loss, and how many targets (tokens) it had."""

    step: int
    loss: float
    targets: int


class Ended(NamedTuple):
    """The run is over: `error` is "" or what ended it, `dropped` how many events a slow listener has missed."""

    error: str
    dropped: int


OfStep = StepBegun | Spans | StepEnded
Event = Started | OfStep | Ended
Listener = Callable[[Event], object]
Tell = Callable[[OfStep], object]


def nobody(event: OfStep) -> None:
    """Who is told where nobody listens."""


class Feed:
    """Hands events to a listener, if there is one, in a thread of its own; a context around the run, ended by `Ended`.

    >>> heard = []
    >>> with Feed(heard.append) as feed:
    ...     feed.put(StepBegun(0))
    >>> heard
    [StepBegun(step=0), Ended(error='', dropped=0)]
    """

    def __init__(self, listener: Listener | None, room: int = ROOM) -> None:
        if not (listener is None or callable(listener)):
            raise ValueError(f"feed is a function of one event, or a listener such as Live(): got {listener!r}")
        self.dropped = 0
        self._listener = listener
        self._events: deque[Event] = deque()
        self._room = room
        self._changed = threading.Condition()
        self._lost = BEFORE - 1
        self._over = False
        self._failure = ""
        self._thread = threading.Thread(target=self._hand_over, name="feed", daemon=True)

    def __enter__(self) -> "Feed":
        if self._listener is not None:
            self._thread.start()
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if self._listener is None:
            return
        what = "" if error is None else "interrupted" if isinstance(error, KeyboardInterrupt) else str(error)
        with self._changed:
            self._events.append(Ended(what or type(error).__name__ if error else "", self.dropped))
            self._over = True
            self._changed.notify()
        self._thread.join(FAREWELL)
        with self._changed:
            late = len(self._events)
            self._events.clear()
        self._report(self.dropped + late)

    def put(self, event: Event) -> None:
        """Take an event, at once; without room the oldest step is dropped. Without a listener nothing happens."""
        if self._listener is None:
            return
        with self._changed:
            if len(self._events) >= self._room:
                self._drop(BEFORE, _step_of(self._events[0]))
            if _step_of(event) <= self._lost:
                self.dropped += 1
                return
            self._events.append(event)
            self._changed.notify()

    def miss(self, events: int, first: int, last: int) -> None:
        """So many events, of the steps from `first` to `last`, were lost on their way here."""
        with self._changed:
            self.dropped += events
            self._drop(first, last)

    def _drop(self, first: int, last: int) -> None:
        """Drop all of these steps, also what is yet to come: the rest would pass for a whole step."""
        self._lost = max(self._lost, last)
        left = [event for event in self._events if not first <= _step_of(event) <= last]
        self.dropped += len(self._events) - len(left)
        self._events = deque(left)

    def _hand_over(self) -> None:
        assert self._listener is not None
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._events or self._over)
                if not self._events:
                    return
                event = self._events.popleft()
            if not self._failure:
                try:
                    self._listener(event)
                except BaseException:  # whatever it is, it is the listener's and not the run's
                    what = f"the listener of the feed failed at {type(event).__name__} and was not called again"
                    self._failure = f"{what}; training went on.\n{traceback.format_exc()}"

    def _report(self, missed: int) -> None:
        if self._failure:
            warnings.warn(self._failure, RuntimeWarning, stacklevel=4)
        elif missed:
            sentence = f"the listener of the feed was too slow: {missed} events were dropped; the Run itself is whole"
            warnings.warn(sentence, RuntimeWarning, stacklevel=4)


class InOrder:
    """Puts together what processes post, each in its own order: a step ends after its spans, and before the next.

    Posts are numbered: those which a rank had no room for are counted, and of their steps nothing is told. `first` is
    the number of the first step. A context around the run: at its end all that still waits is handed over.
    """

    def __init__(self, feed: Feed, ranks: int, first: int = 0, *, flush: bool = True) -> None:
        self._feed = feed
        self._flush = flush
        self._heard = [-1] * ranks
        self._told = [-1] * ranks
        self._step, self._begun = first, -1
        self._waiting: list[OfStep] = []

    def hear(self, rank: int, number: int, event: OfStep) -> None:
        """Take a post of a rank, and hand over what may be told by now."""
        missed, self._heard[rank] = number - self._heard[rank] - 1, number
        if missed:  # of the step of this event, or of earlier ones that are not over
            self._feed.miss(missed, self._step, event.step)
            self._step = max(self._step, event.step + 1)
        if not self._flush:  # one long step has no order
            return self._feed.put(event)
        if isinstance(event, Spans) and event.last:
            self._told[rank] = event.step
        self._waiting = sorted([*self._waiting, event], key=_place)
        while self._waiting and self._may_go(self._waiting[0]):
            self._pass_on(self._waiting.pop(0))

    def __enter__(self) -> "InOrder":
        return self

    def __exit__(self, *exception: object) -> None:
        for event in self._waiting:  # of a run that failed
            self._feed.put(event)

    def _pass_on(self, event: OfStep) -> None:
        self._feed.put(event)
        if isinstance(event, StepBegun):
            self._begun = max(self._begun, event.step)
        elif isinstance(event, StepEnded):
            self._step = max(self._step, event.step + 1)

    def _may_go(self, event: OfStep) -> bool:
        if event.step != self._step or isinstance(event, StepBegun):
            return event.step <= self._step
        return self._begun == self._step and (isinstance(event, Spans) or min(self._told) >= self._step)


def _step_of(event: Event) -> int:
    return BEFORE if isinstance(event, Started | Ended) else event.step


def _place(event: OfStep) -> tuple[int, int]:
    return event.step, (StepBegun, Spans, StepEnded).index(type(event))
