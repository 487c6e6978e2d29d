"""How does one process play many ranks? Each rank is a thread with its own worker, stages, clock and optimizer.

Read next: `worker` (what a rank does), `stage` (what it does it with).
"""

import os
import time
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from typing import Any

from pipelab.clock import make_clock, make_turn
from pipelab.collector import collector_at_rest
from pipelab.failure import Fate, RunError, deadlock, describe
from pipelab.feed import Tell, nobody
from pipelab.ranks import Job, Ranks
from pipelab.transport import Aborted
from pipelab.transport.memory import Mailboxes
from pipelab.worker import Microbatches, Record


class VirtualRanks(Ranks):
    """All ranks of a run, as threads of this process."""

    def __init__(self, job: Job, tell: Tell = nobody) -> None:
        ranks = range(job.program.placement.ranks)
        turn = make_turn(job.device)
        self.mailboxes = Mailboxes(job.timeout)
        super().__init__(job, ranks, self.mailboxes, [make_clock(job.clock, job.device, turn) for _ in ranks], tell)

    def __enter__(self) -> "VirtualRanks":
        super().__enter__()
        self.pool = self.resources.enter_context(ThreadPoolExecutor(len(self.workers), thread_name_prefix="rank"))
        return self

    def __exit__(self, *exception: object) -> None:
        self.mailboxes.abort()
        super().__exit__(*exception)

    def _execute(self, batch: Microbatches) -> list[Record]:
        origin = time.perf_counter()
        for worker in self.workers:
            worker.clock.restart(origin)
        with collector_at_rest():  # a full collection would be read as the work of whichever action it falls into
            futures = [self.pool.submit(worker.run, batch) for worker in self.workers]
            try:
                done, _ = wait(futures, return_when=FIRST_EXCEPTION)
            except BaseException:  # the stop button: the ranks end where they are, and tell how far they came
                self.mailboxes.abort()
                wait(futures)
                raise
        if any(future.exception() for future in done):
            whereabouts = self._whereabouts()
            self.mailboxes.abort()
            wait(futures)
            raise self._failure(futures, whereabouts)
        return [future.result() for future in futures]

    def _failure(self, futures: list[Future[Record]], whereabouts: str) -> RunError:
        for worker, future in zip(self.workers, futures, strict=True):
            cause = future.exception()
            if cause is not None and not isinstance(cause, Aborted):
                report = whereabouts if isinstance(cause, TimeoutError) else ""
                error = RunError(f"rank {worker.rank} failed at {worker.at}: {type(cause).__name__}: {cause}", report)
                error.__cause__ = cause
                return error
        raise AssertionError("a run failed without a cause")

    def _whereabouts(self) -> str:
        """Who waited for whom."""
        fates = [Fate(worker.rank, notes=worker.recorder.notes()) for worker in self.workers]
        return "\n".join(filter(None, (describe(fates), deadlock({fate.rank: fate.last for fate in fates}))))

    @property
    def pids(self) -> tuple[int, ...]:
        return (os.getpid(),) * self.job.mesh.size

    def _agree(self, loss: float) -> float:
        return loss

    def _of_all(self, mine: list[Any]) -> list[Any]:
        return mine

    def collect(self) -> list[list[Record]]:
        return self.history
