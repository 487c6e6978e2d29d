"""How do ranks tell what they do, without stopping for it? A thread looks at their growing records.

Read first: `feed`, whose listener hears it.
"""

import contextlib
import threading
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

from pipelab.feed import EVERY, Spans, Tell
from pipelab.trace import Span


class HasRecord(Protocol):
    """A worker, as far as the feed knows it: its global rank, and the growing record of its step."""

    @property
    def global_rank(self) -> int: ...

    record: Any


class Reporter:
    """Tells what the ranks of this process do: a thread looks at their growing records, so that no rank stops for it.

    It is a context around the run. `early` is whether times are known before a step is over; else all is told there.
    """

    def __init__(self, workers: Sequence[HasRecord], tell: Tell, *, early: bool) -> None:
        self._workers = workers
        self._tell = tell
        self._step: int | None = None
        self._before: dict[int, Any] = {}
        self._told: dict[int, tuple[int, int]] = {}
        self._lock = threading.Lock()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._follow, name="report", daemon=True) if early else None

    def __enter__(self) -> "Reporter":
        if self._thread is not None:
            self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._over.set()
        if self._thread is not None:
            self._thread.join()

    @contextlib.contextmanager
    def step(self, number: int) -> Iterator[None]:
        """Within it the step is executed; at its end, also of one that breaks off, all is told."""
        with self._lock:
            self._before = {worker.global_rank: worker.record for worker in self._workers}
            self._told = {worker.global_rank: (0, 0) for worker in self._workers}
            self._step = number
        try:
            yield
        finally:
            with self._lock:
                for worker in self._workers:
                    self._look(worker, number, last=True)
                self._step = None

    def _follow(self) -> None:
        while not self._over.wait(EVERY):
            with self._lock:
                if self._step is not None:
                    for worker in self._workers:
                        self._look(worker, self._step, last=False)

    def _look(self, worker: HasRecord, step: int, *, last: bool) -> None:
        spans: tuple[Span, ...] = ()
        points: tuple[tuple[float, int], ...] = ()
        if worker.record is not self._before[worker.global_rank]:
            known, counted = self._told[worker.global_rank]
            spans, points = tuple(worker.record.spans[known:]), tuple(worker.record.curve[counted:])
            self._told[worker.global_rank] = known + len(spans), counted + len(points)
        if spans or points or last:
            rank = worker.global_rank
            own = tuple(span if span.rank == rank else span._replace(rank=rank) for span in spans)
            self._tell(Spans(step, rank, own, points, last))
