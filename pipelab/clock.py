"""What time is it on a rank? Virtual time counts each action's own work; wall time is what the host's clock says.

In virtual time P ranks need no P processors: an action starts when its rank and its inputs are ready, and lasts as long
as its own computation took. Two cores then show the timeline of eight.
"""

import contextlib
import ctypes
import os
import threading
import time
from collections.abc import Callable, Iterator
from typing import Protocol, TypeVar

import torch

Result = TypeVar("Result")


class Clock(Protocol):
    """The clock of one rank, restarted at each step."""

    @property
    def now(self) -> float:
        """Seconds since the restart."""

    def restart(self, origin: float) -> None:
        """Set the clock to 0 at this reading of `time.perf_counter`."""

    def run(self, work: Callable[[], Result]) -> tuple[Result, float, float]:
        """Do the work; give its result, its start and its end."""

    def wait_until(self, arrival: float) -> None:
        """Go on only at this time."""

    def aside(self, work: Callable[[], Result]) -> tuple[Result, float]:
        """Do work that belongs on no timeline, such as an update; give its result and its seconds."""


class VirtualClock:
    """Counts the rank's own work and what it waited for, in seconds of a machine with one processor a rank."""

    def __init__(self, turn: "Turn") -> None:
        self._turn = turn
        self.now = 0.0

    def restart(self, origin: float) -> None:
        """Set the clock to 0."""
        self.now = 0.0

    def run(self, work: Callable[[], Result]) -> tuple[Result, float, float]:
        """Do the work and let its own duration pass."""
        start = self.now
        result, seconds = self._turn.measure(work)
        self.now = start + seconds
        return result, start, self.now

    def wait_until(self, arrival: float) -> None:
        """Jump to the time when the message is there."""
        self.now = max(self.now, arrival)

    def aside(self, work: Callable[[], Result]) -> tuple[Result, float]:
        """Do the work while virtual time stands still."""
        return self._turn.measure(work)


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

    def aside(self, work: Callable[[], Result]) -> tuple[Result, float]:
        """Do the work; the clock on the wall does not stand still, so that the timeline shows a gap."""
        result, start, end = self.run(work)
        return result, end - start


class Turn:
    """Lets one rank compute at a time and measures its work: the caches are its own, as on a processor of its own.

    On a CPU the seconds are processor time of the rank's thread, which other programs cannot stretch; on an
    accelerator, and where that clock is coarser than 10 microseconds, they are seconds that passed.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._alone = threading.Lock()
        fine = time.get_clock_info("thread_time").resolution <= 1e-5
        self._read = time.thread_time if device.type == "cpu" and fine else time.perf_counter

    def measure(self, work: Callable[[], Result]) -> tuple[Result, float]:
        """Wait for the turn, do the work; give its result and its duration."""
        with self._alone:
            _synchronize(self._device)
            begin = self._read()
            result = work()
            _synchronize(self._device)
            return result, self._read() - begin


@contextlib.contextmanager
def undisturbed() -> Iterator[None]:
    """Keep from the timeline what is not the pipeline's work: operators of several threads, and page faults.

    Within it an operator runs on one thread, so that a rank's processor time is all of its work, and glibc keeps the
    memory it is given back, which otherwise costs GPipe, the schedule that holds most, up to a fifth of its time in
    page faults, every step.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    _keep_freed_memory(2**30)
    try:
        yield
    finally:
        _keep_freed_memory(2**17)  # glibc's documented default
        torch.set_num_threads(threads)


def _keep_freed_memory(threshold: int) -> None:
    """Tell glibc to ask the system for memory, and to give it back, only in pieces above `threshold` bytes."""
    trim_threshold, mmap_threshold = -1, -3
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if os.name == "posix" else None
    if mallopt is not None:
        mallopt(trim_threshold, threshold)
        mallopt(mmap_threshold, threshold)


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
