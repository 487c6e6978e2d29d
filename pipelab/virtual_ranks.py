"""How does one process play many ranks? Each rank is a thread with its own worker, stages, clock and optimizer.

Read next: `worker` (what a rank does), `stage` (what it does it with).
"""

import os
import time
import traceback
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from typing import Any

import torch
from torch import nn

from pipelab.clock import Turn, make_clock, make_turn
from pipelab.collectives import Group
from pipelab.collector import collector_at_rest
from pipelab.failure import Fate, RunError, hang
from pipelab.feed import Tell, nobody
from pipelab.flight_recorder import WAITING
from pipelab.job import Job
from pipelab.microbatches import Microbatches
from pipelab.outline import Outline
from pipelab.place import Groups, Place, all_groups
from pipelab.ranks import Ranks, Result, gradients, state
from pipelab.record import Record
from pipelab.tensor_parallel import join_state, shard_dims
from pipelab.transport import Aborted
from pipelab.transport.meetings import Meetings, Seat
from pipelab.transport.memory import Mailboxes
from pipelab.worker import Worker


class VirtualRanks(Ranks):
    """All ranks of a run, as threads of this process. With replicas or shards each pipeline has a copy of the model."""

    def __init__(self, job: Job, tell: Tell = nobody) -> None:
        mesh = job.mesh
        self.mailboxes = {(dp, tp): Mailboxes(job.timeout) for dp in range(mesh.dp) for tp in range(mesh.tp)}
        self.meetings = Meetings(job.timeout)
        turn = make_turn(job.device)
        groups = all_groups(mesh, job.program.placement, job.ties)
        super().__init__(job, [self._place(job, groups, rank, turn) for rank in range(mesh.size)], tell)

    def _place(self, job: Job, groups: Groups, global_rank: int, turn: Turn) -> Place:
        dp, _, tp = job.mesh.coordinates(global_rank)
        clock = make_clock(job.clock, job.device, turn)
        seats = {}
        for name, families in groups.items():
            for members in families:
                if global_rank in members:
                    index = members.index(global_rank)
                    carrier = Seat(self.meetings, f"{name} group {list(members)}", index, len(members))
                    seats[name] = Group(name.split()[0], members, index, carrier, clock, job.link.among(members))
        return Place(global_rank, self.mailboxes[dp, tp], clock, seats=seats)

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

    def _execute(self, batch: Microbatches, workers: Sequence[Worker]) -> list[Record]:
        origin = time.perf_counter()
        for worker in workers:
            worker.clock.restart(origin)
        with collector_at_rest():  # a full collection would be read as the work of whichever action it falls into
            return self._on_each(lambda number: workers[number].run(self._own(workers[number], batch)))

    def _on_each(self, work: Callable[[int], Result]) -> list[Result]:
        futures = [self.pool.submit(work, number) for number in range(len(self.workers))]
        try:
            done, _ = wait(futures, return_when=FIRST_EXCEPTION)
        except BaseException:  # the stop button: the ranks end where they are, and tell how far they came
            self._abort()
            wait(futures)
            raise
        if any(future.exception() for future in done):
            fates = [Fate(worker.global_rank, notes=worker.recorder.notes()) for worker in self.workers]
            self._abort()
            wait(futures)
            raise self._failure(futures, fates)
        return [future.result() for future in futures]

    def _failure(self, futures: list[Future[Result]], fates: Sequence[Fate]) -> RunError:
        for worker, fate, future in zip(self.workers, fates, futures, strict=True):
            cause = future.exception()
            if cause is None or isinstance(cause, Aborted):
                continue
            if isinstance(cause, TimeoutError) and fate.last is not None and fate.last.state == WAITING:
                error = hang(fates, self.job.timeout)
            else:
                failed = f"rank {worker.global_rank} failed at {worker.at or 'the end of the step'}"
                text = "".join(traceback.format_exception(cause))
                error = RunError(f"{failed}: {type(cause).__name__}: {cause}", "", text, worker.global_rank)
            error.__cause__ = cause
            return error
        raise AssertionError("a run failed without a cause")

    @property
    def pids(self) -> tuple[int, ...]:
        return (os.getpid(),) * self.job.mesh.size

    def _agree(self, loss: float, *outlines: Outline) -> tuple[float, list[Outline]]:
        return loss, list(outlines)

    def _of_all(self, mine: list[Any]) -> list[Any]:
        return mine

    def _at_first(self, mine: list[Any]) -> list[Any]:
        return mine

    def collect(self) -> list[list[Record]]:
        """The records; where ranks have copies, the model gets the values and gradients of the first replica's."""
        if not self.job.in_place:
            with torch.no_grad():
                for stage, layers in enumerate(self.job.slices):
                    self._bring_home(stage, layers)
        return list(self.history)

    def _bring_home(self, stage: int, layers: nn.Sequential) -> None:
        mesh, rank = self.job.mesh, self.job.program.placement.rank_of[stage]
        shards = [self.workers[mesh.global_rank(pp=rank, tp=tp)].stages[stage].layers for tp in range(mesh.tp)]
        dims = shard_dims(shards[0])
        values, grads = (join_state(each, dims) for each in (list(map(state, shards)), list(map(gradients, shards))))
        for name, tensor in state(layers).items():
            tensor.copy_(values[name])
            if name in grads:
                tensor.grad = grads[name].to(tensor.device, copy=True)  # the caller's model may be elsewhere
