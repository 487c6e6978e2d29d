"""What time is it on a GPU? Timing events that the GPU stamps itself, told on the host's clock, stopping neither.

A host that looks at its own clock sees when work was launched, not when it ran; a host that waits for the GPU after
every action destroys the overlap that it wants to see. An event costs microseconds, and nothing waits for it.
"""

import math
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any, NamedTuple

import torch

from pipelab.clock import Curve, Result, Spans, Turn, WallClock

ANCHORS = 5
"""Events compared with the host's clock at each anchoring; the quickest comparison is kept."""


def new_event() -> Any:
    """A CUDA event that carries a time."""
    return torch.cuda.Event(enable_timing=True)


class CudaTurn(Turn):
    """Lets one rank use the whole GPU at a time and measures its work by two events.

    Nothing else runs meanwhile, so P such turns on one GPU show what P GPUs would. An action shorter than the launching
    of its kernels is measured as long as that takes, as on a GPU of its own.
    """

    def __init__(
        self,
        device: torch.device,
        alone: AbstractContextManager[object] | None = None,
        make: Callable[[], Any] = new_event,
    ) -> None:
        super().__init__(device, alone)
        self._device = device
        self._start, self._end = make(), make()

    def _begin(self) -> None:
        torch.cuda.synchronize(self._device)  # what was launched outside of any turn is not this work's
        self._start.record()

    def _seconds(self) -> float:
        self._end.record()
        self._end.synchronize()
        return float(self._start.elapsed_time(self._end)) / 1e3


class Anchor(NamedTuple):
    """One moment on both clocks: an event, the host's seconds, and by how much they may be wrong."""

    event: Any
    seconds: float
    error: float


def closest(looks: Sequence[tuple[float, float]]) -> tuple[int, float, float]:
    """Of looks at the host's clock before and after an event, the closest: (which, the event's seconds, error).

    The event happened between the two looks; its time is taken as the middle, wrong by half the gap at most.

    >>> closest([(1.0, 1.5), (2.0, 2.25), (3.0, 4.0)])
    (1, 2.125, 0.125)
    """
    index = min(range(len(looks)), key=lambda i: looks[i][1] - looks[i][0])
    before, after = looks[index]
    return index, (before + after) / 2, (after - before) / 2


class Moment:
    """A time on the GPU, in the host's seconds: NaN until the GPU has reached it and it was drained. With `later` that
    much after it."""

    __slots__ = ("event", "later", "seconds")

    def __init__(self, event: Any, later: float = 0.0) -> None:
        self.event = event
        self.later = later
        self.seconds = math.nan


class Stamps:
    """Takes moments on the streams of one GPU. The events come from a pool and go back to it.

    CUDA tells a difference of events in float32 milliseconds, so `anchor` is called anew at each step: within a
    second of the anchor the rounding stays below 0.1 microseconds.
    """

    def __init__(self, size: int = 4096, make: Callable[[], Any] = new_event) -> None:
        self._make = make
        self._free = [make() for _ in range(size)]
        for event in self._free:
            event.record()  # CUDA makes an event at its first record
        self._pending: deque[Moment] = deque()
        self._tries = [make() for _ in range(ANCHORS)]
        self._anchor: Anchor | None = None

    @property
    def error(self) -> float:
        """Seconds by which the last anchor may be wrong."""
        return self._anchor.error if self._anchor else 0.0

    def anchor(self) -> None:
        """Compare the two clocks; waits for the GPU, so call it where a step waits for it anyway."""
        self.settle()
        looks = []
        for event in self._tries:
            before = time.perf_counter()
            event.record()
            event.synchronize()
            looks.append((before, time.perf_counter()))
        index, seconds, error = closest(looks)
        self._anchor = Anchor(self._tries[index], seconds, error)

    def take(self, stream: Any = None, later: float = 0.0) -> Moment:
        """Stamp this place of a stream, the current one unless said otherwise; the host goes on at once."""
        event = self._free.pop() if self._free else self._make()
        event.record(stream)
        moment = Moment(event, later)
        self._pending.append(moment)
        return moment

    def drain(self) -> None:
        """Tell the moments that the GPU has reached, oldest first, without waiting for any."""
        while self._pending and self._pending[0].event.query():
            self._tell(self._pending.popleft())

    def settle(self) -> None:
        """Tell all moments; waits for those that the GPU has not reached."""
        while self._pending:
            self._pending[0].event.synchronize()
            self._tell(self._pending.popleft())

    def _tell(self, moment: Moment) -> None:
        assert self._anchor is not None, "anchor() comes before the first moment is told"
        since = self._anchor.event.elapsed_time(moment.event) / 1e3
        moment.seconds = self._anchor.seconds + since + moment.later
        self._free.append(moment.event)
        moment.event = None


class CudaWallClock(WallClock):
    """The host's clock for work on a GPU: it begins and ends where the GPU says, and the host never waits for it.

    `run` therefore gives moments, which `settle` turns into seconds when the step is over.
    """

    def __init__(self, stamps: Stamps) -> None:
        super().__init__()
        self.stamps = stamps

    def restart(self, origin: float) -> None:
        """Set the clock to 0 at this reading of `time.perf_counter`, and compare it with the GPU's anew."""
        super().restart(origin)
        self.stamps.anchor()

    def run(self, work: Callable[[], Result]) -> tuple[Result, Any, Any]:
        """Launch the work between two stamps; gives its result and two moments."""
        start = self.stamps.take()
        result = work()
        end = self.stamps.take()
        self.stamps.drain()
        return result, start, end

    def meet(self, exchange: Callable[[float], tuple[Result, float]]) -> tuple[Result, Any, Any]:
        """Launch the exchange between two stamps: the GPU waits for the others, the host does not."""
        start = self.stamps.take()
        result, _ = exchange(self.now)
        return result, start, self.stamps.take()

    def beside(self, begin: float, seconds: float) -> tuple[float, Any]:
        """Until this place of the stream, which waits for it."""
        return begin, self.stamps.take()

    def placed(self, time: float, later: float = 0.0) -> Any:
        """A moment: the host, which carries messages, is ahead of the GPU, and nothing leaves before it is computed."""
        return self.stamps.take(later=later)

    def settle(self, spans: Spans, curve: Curve) -> tuple[Spans, Curve]:
        """The spans and the memory curve with seconds since the restart in the place of moments; waits for the GPU, for
        all of an update too, so that ranks that meet then set out together."""
        self.stamps.take()
        self.stamps.settle()
        return self._told(spans, curve)

    def reached(self, spans: Spans, curve: Curve) -> tuple[Spans, Curve]:
        """The same, without what the GPU has not reached: it may wait for a rank that is gone."""
        self.stamps.drain()
        spans, curve = self._told(spans, curve)
        there = [span for span in spans if not math.isnan(span.start + span.end)]
        return there, [point for point in curve if not math.isnan(point[0])]

    def _told(self, spans: Spans, curve: Curve) -> tuple[Spans, Curve]:
        settled = [span._replace(start=self._read(span.start), end=self._read(span.end)) for span in spans]
        return settled, [(self._read(moment), held) for moment, held in curve]

    def _read(self, moment: Any) -> float:
        seconds = moment.seconds - self._origin if isinstance(moment, Moment) else moment  # collectives: host time
        return float(seconds)
