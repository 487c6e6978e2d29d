"""What time is it on a rank? Virtual time counts each action's own work; wall time is what the host's clock says.

In virtual time P ranks need no P processors: an action starts when its rank and its inputs are ready, and lasts as long
as its own computation took. Two cores then show the timeline of eight.
"""

import contextlib
import ctypes
import os
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from functools import partial
from typing import TypeVar

import torch

from pipelab.trace import Span

Result = TypeVar("Result")
Spans = list[Span]
Curve = list[tuple[float, int]]
"""Activation bytes over time, as (time, bytes) steps."""


class Turn:
    """Lets one rank compute at a time and measures its work: the caches are its own, as on a processor of its own.

    On a CPU the seconds are processor time of the rank's thread, which other programs cannot stretch; where that clock
    is coarser than 10 microseconds, they are seconds that passed. `alone` is the lock that ranks share: of the threads
    of a process, or a `FileLock` of the processes of a host. (On a GPU see `cuda_clock.CudaTurn`.)
    """

    def __init__(self, device: torch.device, alone: AbstractContextManager[object] | None = None) -> None:
        self._alone = alone or threading.Lock()
        fine = time.get_clock_info("thread_time").resolution <= 1e-5
        self._read = time.thread_time if device.type == "cpu" and fine else time.perf_counter
        self._begun = 0.0

    def take(self) -> None:
        """Wait for the turn."""
        self._alone.__enter__()
        self._begin()

    def give(self) -> float:
        """Give it back; the seconds of work since it was taken."""
        try:
            return self._seconds()
        finally:
            self._alone.__exit__(None, None, None)

    def _begin(self) -> None:
        self._begun = self._read()

    def _seconds(self) -> float:
        return self._read() - self._begun


def measure(turn: Turn, work: Callable[[], Result]) -> tuple[Result, float]:
    """Wait for the turn, do the work; give its result and its seconds."""
    turn.take()
    try:
        result = work()
    finally:
        seconds = turn.give()
    return result, seconds


class Clock(ABC):
    """The clock of one rank, restarted at each step."""

    @property
    @abstractmethod
    def now(self) -> float:
        """Seconds since the restart."""

    @abstractmethod
    def restart(self, origin: float) -> None:
        """Set the clock to 0 at this reading of `time.perf_counter`."""

    @abstractmethod
    def run(self, work: Callable[[], Result]) -> tuple[Result, float, float]:
        """Do the work; give its result, its start and its end."""

    @abstractmethod
    def wait_until(self, arrival: float) -> None:
        """Go on only at this time."""

    @abstractmethod
    def meet(self, exchange: Callable[[float], tuple[Result, float]]) -> tuple[Result, float, float]:
        """In the midst of `run`, wait for other ranks: `exchange` is told the time, and gives a result and the time to
        go on at. Gives the result, and from when to when that lasted."""

    @abstractmethod
    def beside(self, begin: float, seconds: float) -> tuple[float, float]:
        """From when to when a collective went that this rank has just waited for at the end of its work: it could begin
        at `begin` and takes `seconds` by its link; a rank has one such at a time."""

    def aside(self, work: Callable[[], Result]) -> tuple[Result, float, float]:
        """Do what is not the pipeline's work, such as an update: as `run`, so that the timeline shows a gap, but for
        virtual time, which stands still meanwhile."""
        return self.run(work)

    def placed(self, time: float, later: float = 0.0) -> float:
        """For a span: `time`, which is now, or so much later; on a GPU, when it has done what it was given by now."""
        return time + later

    def settle(self, spans: Spans, curve: Curve) -> tuple[Spans, Curve]:
        """After a step, what `run` gave in seconds: a clock may know its times only then."""
        return spans, curve

    def reached(self, spans: Spans, curve: Curve) -> tuple[Spans, Curve]:
        """The same of a step that breaks off, without waiting: its messages may never come."""
        return spans, curve


class VirtualClock(Clock):
    """Counts the rank's own work and what it waited for, in seconds of a machine with one processor a rank."""

    now = 0.0

    def __init__(self, turn: Turn) -> None:
        self._turn = turn
        self._beside = 0.0

    def restart(self, origin: float) -> None:
        """Set the clock to 0."""
        self.now = self._beside = 0.0

    def run(self, work: Callable[[], Result]) -> tuple[Result, float, float]:
        """Do the work and let its own duration pass."""
        start = self.now
        result, seconds = measure(self._turn, work)
        self.now += seconds
        return result, start, self.now

    def wait_until(self, arrival: float) -> None:
        """Jump to the time when the message is there."""
        self.now = max(self.now, arrival)

    def meet(self, exchange: Callable[[float], tuple[Result, float]]) -> tuple[Result, float, float]:
        """Let the others have the turn while this rank waits for them, and jump to the time that all go on at."""
        self.now += self._turn.give()
        start = self.now
        try:
            result, ready = exchange(start)
            self.now = max(start, ready)
        finally:
            self._turn.take()
        return result, start, self.now

    def beside(self, begin: float, seconds: float) -> tuple[float, float]:
        """As soon as it could begin and the one before was over."""
        start = max(begin, self._beside)
        self._beside = start + seconds
        return start, self._beside

    def aside(self, work: Callable[[], Result]) -> tuple[Result, float, float]:
        """Do the work while virtual time stands still; its end is where it would be if time went on."""
        result, seconds = measure(self._turn, work)
        return result, self.now, self.now + seconds


class WallClock(Clock):
    """The host's own clock. With more ranks than processors its timelines show time-sharing, not pipelines."""

    def __init__(self) -> None:
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
        return result, start, self.now

    def wait_until(self, arrival: float) -> None:
        """Sleep until then, if it is still to come."""
        seconds = arrival - self.now
        if seconds > 0:  # even a sleep of no time gives the processor away
            time.sleep(seconds)

    def meet(self, exchange: Callable[[float], tuple[Result, float]]) -> tuple[Result, float, float]:
        """Wait for the others; while a modelled link would still be busy, sleep."""
        start = self.now
        result, ready = exchange(start)
        self.wait_until(ready)
        return result, start, self.now

    def beside(self, begin: float, seconds: float) -> tuple[float, float]:
        """Until now, for it was waited for: a rank that works meanwhile does not see when it was over."""
        self.wait_until(begin + seconds)
        return begin, self.now


class FileLock:
    """A lock between processes of one host: whoever holds the file. The system takes it back from one that dies."""

    def __init__(self, path: str) -> None:
        import fcntl  # POSIX only; where it is missing, nobody comes here

        self._file = open(path, "rb")  # noqa: SIM115 (open for as long as the lock is used)
        self._flock = partial(fcntl.flock, self._file)
        self._take, self._give = fcntl.LOCK_EX, fcntl.LOCK_UN

    def __enter__(self) -> None:
        self._flock(self._take)

    def __exit__(self, *exception: object) -> None:
        self._flock(self._give)


def make_turn(device: torch.device, alone: AbstractContextManager[object] | None = None) -> Turn:
    """What measures work alone on this device; the ranks of a run on one host share the lock `alone`."""
    from pipelab.cuda_clock import CudaTurn  # it builds on this file

    return CudaTurn(device, alone) if device.type == "cuda" else Turn(device, alone)


def make_clock(name: str, device: torch.device, turn: Turn) -> Clock:
    """The clock of one rank, "virtual" or "wall"; the ranks that share `turn` compute one at a time in virtual time."""
    from pipelab.cuda_clock import CudaWallClock, Stamps

    if name == "virtual":
        return VirtualClock(turn)
    if name == "wall":
        return CudaWallClock(Stamps()) if device.type == "cuda" else WallClock()
    raise ValueError(f"a run's clock is 'virtual' or 'wall': got {name!r}")


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
