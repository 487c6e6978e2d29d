"""What time is it on a rank? Virtual time counts each action's own work; wall time is what the host's clock says.

In virtual time P ranks need no P processors: an action starts when its rank and its inputs are ready, and lasts as long
as its own computation took. Two cores then show the timeline of eight.
"""

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from typing import Protocol, TypeVar

import torch

Result = TypeVar("Result")
Stopwatch = Callable[[], contextlib.AbstractContextManager[Callable[[], float]]]
"""Opens a measurement; the value it yields tells, after the end, the seconds that passed."""


class Clock(Protocol):
    """The clock of one rank, restarted at each step."""

    now: float

    def restart(self, origin: float) -> None:
        """Set the clock to 0 at this reading of `time.perf_counter`."""

    def run(self, work: Callable[[], Result]) -> tuple[Result, float, float]:
        """Do the work; give its result, its start and its end."""

    def wait_until(self, arrival: float) -> None:
        """Go on only at this time."""


class VirtualClock:
    """Counts the rank's own work and what it waited for, in seconds of a machine with one processor a rank."""

    def __init__(self, stopwatch: Stopwatch) -> None:
        self._stopwatch = stopwatch
        self.now = 0.0

    def restart(self, origin: float) -> None:
        """Set the clock to 0."""
        self.now = 0.0

    def run(self, work: Callable[[], Result]) -> tuple[Result, float, float]:
        """Do the work and let its own duration pass."""
        start = self.now
        with self._stopwatch() as seconds:
            result = work()
        self.now = start + seconds()
        return result, start, self.now

    def wait_until(self, arrival: float) -> None:
        """Jump to the time when the message is there."""
        self.now = max(self.now, arrival)


class WallClock:
    """The host's own clock. With more ranks than processors its timelines show time-sharing, not pipelines."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._origin = time.perf_counter()

    @property
    def now(self) -> float:
        """Seconds since the restart."""
        return time.perf_counter() - self._origin

    def restart(self, origin: float) -> None:
        """Set the clock to 0 at this reading of `time.perf_counter`."""
        self._origin = origin

    def run(self, work: Callable[[], Result]) -> tuple[Result, float, float]:
        """Do the work between two looks at the clock."""
        start = self.now
        result = work()
        _synchronize(self._device)
        return result, start, self.now

    def wait_until(self, arrival: float) -> None:
        """Sleep until then, if it is still to come."""
        time.sleep(max(0.0, arrival - self.now))


@contextlib.contextmanager
def thread_cpu_time() -> Iterator[Callable[[], float]]:
    """Seconds of processor time of this thread: what other threads and programs do does not count."""
    end = begin = time.thread_time()
    yield lambda: end - begin
    end = time.thread_time()


def exclusive(device: torch.device) -> Stopwatch:
    """Elapsed seconds while no other rank computes: for accelerators, and where the thread clock is coarse."""
    alone = threading.Lock()

    @contextlib.contextmanager
    def stopwatch() -> Iterator[Callable[[], float]]:
        with alone:
            _synchronize(device)
            end = begin = time.perf_counter()
            yield lambda: end - begin
            _synchronize(device)
            end = time.perf_counter()

    return stopwatch


def best_stopwatch(device: torch.device) -> Stopwatch:
    """Thread processor time on a CPU that offers it finely (10 microseconds or better), else `exclusive`."""
    fine = time.get_clock_info("thread_time").resolution <= 1e-5
    return thread_cpu_time if device.type == "cpu" and fine else exclusive(device)


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
