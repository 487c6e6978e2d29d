"""How does one process play many ranks? Each rank is a thread with its own worker, stages, clock and optimizer.

Read next: `worker` (what a rank does), `stage` (what it does it with).
"""

import copy
import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from typing import Any, TypeVar

import torch
from torch import nn

from pipelab.clock import Clock, Measures, make_clock, make_turn
from pipelab.collectives import Group
from pipelab.collector import collector_at_rest
from pipelab.failure import Fate, RunError, deadlock, describe
from pipelab.feed import Tell, nobody
from pipelab.partition import cut
from pipelab.ranks import Job, Place, Ranks, joined, state
from pipelab.tensor_parallel import shard_dims
from pipelab.transport import Aborted
from pipelab.transport.meetings import Meetings, Seat
from pipelab.transport.memory import Mailboxes
from pipelab.worker import Microbatches, Record, Worker

Result = TypeVar("Result")


class VirtualRanks(Ranks):
    """All ranks of a run, as threads of this process. With replicas or shards each pipeline has a copy of the model."""

    def __init__(self, job: Job, tell: Tell = nobody) -> None:
        mesh = job.mesh
        pipelines = [(dp, tp) for dp in range(mesh.dp) for tp in range(mesh.tp)]
        self.mailboxes = {pipeline: Mailboxes(job.timeout) for pipeline in pipelines}
        self.meetings = Meetings(job.timeout)
        self._copies: dict[tuple[int, int], list[nn.Sequential]] = {}
        turn = make_turn(job.device)
        super().__init__(job, [self._place(job, rank, turn) for rank in range(mesh.size)], tell)

    def _place(self, job: Job, global_rank: int, turn: Measures) -> Place:
        dp, _, tp = job.mesh.coordinates(global_rank)
        clock = make_clock(job.clock, job.device, turn)
        seats = {axis: self._seat(job, axis, global_rank, clock) for axis in ("tp", "dp")}
        return Place(global_rank, self.mailboxes[dp, tp], clock, **seats)

    def _seat(self, job: Job, axis: str, global_rank: int, clock: Clock) -> Group | None:
        members = job.mesh.group(axis, global_rank)
        if len(members) == 1:
            return None
        index = members.index(global_rank)
        carrier = Seat(self.meetings, f"{axis} group {list(members)}", index, len(members))
        return Group(axis, members, index, carrier, clock, job.link.among(members))

    def _layers(self, replica: int, rank: int, shard: int) -> dict[int, nn.Sequential]:
        if (self.job.mesh.dp, self.job.mesh.tp) == (1, 1):
            return super()._layers(replica, rank, shard)
        slices = self._copies.get((replica, shard))
        if slices is None:
            slices = cut(copy.deepcopy(self.job.model), self.job.program.schedule.stages, at=self.job.at)
            self._copies[replica, shard] = slices
        return {stage: slices[stage] for stage in self.job.program.placement.stages_on(rank)}

    def __enter__(self) -> "VirtualRanks":
        super().__enter__()
        self.pool = self.resources.enter_context(ThreadPoolExecutor(len(self.workers), thread_name_prefix="rank"))
        return self

    def __exit__(self, *exception: object) -> None:
        self._abort()
        super().__exit__(*exception)

    def _abort(self) -> None:
        for mailboxes in self.mailboxes.values():
            mailboxes.abort()
        self.meetings.abort()

    def _execute(self, batch: Microbatches) -> list[Record]:
        origin = time.perf_counter()
        for worker in self.workers:
            worker.clock.restart(origin)
        with collector_at_rest():  # a full collection would be read as the work of whichever action it falls into
            return self._on_each(lambda worker: worker.run(self._own(worker, batch)))

    def _on_each(self, work: Callable[[Worker], Result]) -> list[Result]:
        futures = [self.pool.submit(work, worker) for worker in self.workers]
        try:
            done, _ = wait(futures, return_when=FIRST_EXCEPTION)
        except BaseException:  # the stop button: the ranks end where they are, and tell how far they came
            self._abort()
            wait(futures)
            raise
        if any(future.exception() for future in done):
            whereabouts = self._whereabouts()
            self._abort()
            wait(futures)
            raise self._failure(futures, whereabouts)
        return [future.result() for future in futures]

    def _failure(self, futures: list[Future[Result]], whereabouts: str) -> RunError:
        for worker, future in zip(self.workers, futures, strict=True):
            cause = future.exception()
            if cause is not None and not isinstance(cause, Aborted):
                report = whereabouts if isinstance(cause, TimeoutError) else ""
                failed = f"rank {worker.global_rank} failed at {worker.at or 'the end of the step'}"
                error = RunError(f"{failed}: {type(cause).__name__}: {cause}", report)
                error.__cause__ = cause
                return error
        raise AssertionError("a run failed without a cause")

    def _whereabouts(self) -> str:
        """Who waited for whom."""
        fates = [Fate(worker.global_rank, notes=worker.recorder.notes()) for worker in self.workers]
        return "\n".join(filter(None, (describe(fates), deadlock({fate.rank: fate.last for fate in fates}))))

    @property
    def pids(self) -> tuple[int, ...]:
        return (os.getpid(),) * self.job.mesh.size

    def _agree(self, loss: float) -> float:
        return loss

    def _of_all(self, mine: list[Any]) -> list[Any]:
        return mine

    def collect(self) -> list[list[Record]]:
        """The records; where pipelines have copies, the model gets the values of the first replica's."""
        with torch.no_grad():
            for whole, values in self._trained() if self._copies else ():
                whole.copy_(values)
        return self.history

    def _trained(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        mesh, rank_of = self.job.mesh, self.job.program.placement.rank_of
        for stage, layers in enumerate(self.slices):
            owners = [self.workers[mesh.global_rank(pp=rank_of[stage], tp=tp)] for tp in range(mesh.tp)]
            trained = [owner.stages[stage].layers for owner in owners]
            values = joined([state(each) for each in trained], shard_dims(trained[0]) if mesh.tp > 1 else {})
            yield from ((tensor, values[name]) for name, tensor in state(layers).items())
