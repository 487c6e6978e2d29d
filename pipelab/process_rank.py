"""How is this process one rank of a run? It runs its own row, and in the end all gather what they have measured.

Every rank calls `train` with the same arguments (SPMD: single program, multiple data). Read next: `world` (who the
others are), `transport.processes` (how messages reach them).
"""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from pipelab.action import Action
from pipelab.alarm import watched
from pipelab.clock import Clock, make_clock, make_turn
from pipelab.collectives import Group
from pipelab.collector import collector_at_rest
from pipelab.cuda_clock import CudaWallClock
from pipelab.feed import OfStep, Tell, nobody
from pipelab.flights import landings
from pipelab.job import Job, own_device
from pipelab.launcher import recorder as recorder_of_a_launch
from pipelab.lower import peer
from pipelab.microbatches import Microbatches
from pipelab.outline import Outline
from pipelab.place import Place, all_groups
from pipelab.ranks import Ranks, Result, state
from pipelab.record import Record
from pipelab.tensor_parallel import cut_state, join_state, shard_dims
from pipelab.trace import Span
from pipelab.transport.nccl import Nccl, make_carriers
from pipelab.transport.process_groups import ProcessGroup
from pipelab.transport.processes import Processes, Times, make_groups
from pipelab.worker import Worker
from pipelab.world import World

GRACE = 5.0
"""Seconds that a rank waits longer than the timeout: whoever watches all ranks speaks first, and names the culprit."""


class ProcessRank(Ranks):
    """The one rank of a run that this process is. It raises what its own work raises, or Aborted after another's."""

    def __init__(self, job: Job, tell: Tell = nobody) -> None:
        patience = job.timeout + GRACE
        self.world = World(job.mesh.size, patience)
        try:
            job = replace(job, device=own_device(job.device))
            clock = make_clock(job.clock, job.device, make_turn(job.device, self.world.turn()))
            self.transport = self._transport(job, clock, patience)
            evaluates = job.evaluation is not None
            evaluating = self._transport(replace(job, program=job.forwards), clock, patience) if evaluates else None
            place = Place(self.world.rank, self.transport, clock, evaluating, self._seats(job, clock, patience))
            self.gathers = job.fed and recorder_of_a_launch() is None  # a launched rank posts to its caller by itself
            self.kept: list[OfStep] = []
            own = self.kept.append if self.gathers and self.world.rank > 0 else tell
            super().__init__(job, [place], own)
        except BaseException as error:
            self.world.close(error)
            raise
        self.residual = self.world.residual
        self._origin = 0.0

    def __enter__(self) -> "ProcessRank":
        super().__enter__()
        self.resources.push(self.world.close)
        (worker,) = self.workers
        worker.recorder = self.resources.enter_context(watched(self.job.timeout))
        for evaluator in self.evaluators:
            evaluator.recorder = worker.recorder
        self._agree(0.0)  # a run without a warm-up begins here
        return self

    def _transport(self, job: Job, clock: Clock, patience: float) -> Processes:
        _, rank, _ = job.mesh.coordinates(self.world.rank)
        pipelines = job.mesh.groups("pp")
        groups = make_groups(job.program, pipelines, self.world)
        if job.transport == "gloo":
            return Processes(
                job.program, rank, groups, device=job.device, timeout=patience, blocking=job.blocking
            )  # fmt: skip
        assert isinstance(clock, CudaWallClock)
        return Nccl(
            job.program, rank, groups, carriers=make_carriers(job.program, pipelines, self.world, job.device),
            stamps=clock.stamps, device=job.device, timeout=patience, blocking=job.blocking,
        )  # fmt: skip

    def _seats(self, job: Job, clock: Clock, patience: float) -> dict[str, Group]:
        """Every rank makes all groups, in one order, and has a seat in its own."""
        how: dict[str, Any] = {}
        if job.transport == "nccl":
            how = {"backend": "nccl", "device_id": job.device}  # connected here, and not where its ranks first meet
        seats = {}
        for name, families in all_groups(job.mesh, job.program.placement, job.ties).items():
            for members in families:
                group = self.world.group(members, **how)
                if self.world.rank in members:
                    index = members.index(self.world.rank)
                    carrier = ProcessGroup(group, len(members), patience, stamped=job.clock == "virtual")
                    seats[name] = Group(name.split()[0], members, index, carrier, clock, job.link.among(members))
        return seats

    def _on_each(self, work: Callable[[int], Result]) -> list[Result]:
        return [work(0)]

    def warm_up(self, batch: Microbatches) -> None:
        """As on every machine; then all ranks set out together."""
        super().warm_up(batch)
        self._agree(0.0)

    def _execute(self, batch: Microbatches, workers: Sequence[Worker]) -> list[Record]:
        (worker,) = workers
        transport = worker.transport
        assert isinstance(transport, Processes)
        worker.clock.restart(self._origin)
        own = self._own(worker, batch)
        transport.begin(own.inputs)
        with collector_at_rest():
            record = worker.run(own)
        times = transport.finish()
        if times:
            record.spans = [self._as_measured(span, times) for span in record.spans]
        return [record]

    def _as_measured(self, span: Span, times: Times) -> Span:
        """A message's span with the times of the transport, which are nearer to the wire than the worker's."""
        if span.lane not in ("send", "recv"):
            return span
        assert isinstance(span.action, Action)
        send = peer(span.action) if span.lane == "recv" else span.action
        start, end = times.get((span.lane, send), (span.start + self._origin, span.end + self._origin))
        return span._replace(start=start - self._origin, end=end - self._origin)

    @property
    def pids(self) -> tuple[int, ...]:
        return self.world.pids

    def _agree(self, loss: float, *outlines: Outline) -> tuple[float, list[Outline]]:
        (worker,) = self.workers
        mesh, last = self.job.mesh, self.job.program.placement.rank_of[-1]
        worker.recorder.meeting("the end of the step", [r for r in range(mesh.size) if r != worker.global_rank])
        everyone, self._origin = self.world.meet(loss, *itertools.chain(*outlines))
        in_order = [last, *(rank for rank in range(mesh.pp) if rank != last)]  # others may have losses of their own
        losses = [everyone[mesh.global_rank(dp=dp, pp=rank)][0] for dp in range(mesh.dp) for rank in in_order]
        return sum(losses), [Outline(*times) for _, *times in everyone if times]

    def _share_news(self) -> None:
        if self.gathers:
            for event in self._of_all(self.kept):
                self.tell(event)
            self.kept.clear()

    def _of_all(self, mine: list[Any]) -> list[Any]:
        return [each for theirs in self.world.everybody(mine) for each in theirs]

    def _at_first(self, mine: list[Any]) -> list[Any] | None:
        everyone = self.world.gather(mine)
        return None if everyone is None else [each for theirs in everyone for each in theirs]

    def collect(self) -> list[list[Record]]:
        everyone = self.world.everybody([record for (record,) in self.history])
        for stage, layers in enumerate(self.job.slices):
            self._share_trained(stage, layers)
        steps = [[records[step] for records in everyone] for step in range(len(self.history))]
        if (self.job.transport, self.job.clock) == ("gloo", "wall"):
            for records in steps:
                ends = landings(span for record in records for span in record.spans)
                for record in records:
                    record.spans = [span._replace(end=ends.get(span, span.end)) for span in record.spans]
        return steps

    @torch.no_grad()
    def _share_trained(self, stage: int, layers: nn.Sequential) -> None:
        """Bring a stage's values from the ranks of the first replica that trained it into every rank's whole model."""
        mesh, rank = self.job.mesh, self.job.program.placement.rank_of[stage]
        (worker,) = self.workers
        own, whole = worker.stages.get(stage), state(layers)
        owners = [mesh.global_rank(pp=rank, tp=tp) for tp in range(mesh.tp)]
        dims = self.world.everybody(shard_dims(own.layers) if own is not None else {})[owners[0]]
        shards = [cut_state(whole, dims, index, mesh.tp) for index in range(mesh.tp)]
        for index, owner in enumerate(owners):
            values = state(own.layers) if own is not None and owner == self.world.rank else shards[index]
            shards[index] = {name: value.to(whole[name].device).contiguous() for name, value in values.items()}
            self.world.share(owner, list(shards[index].values()))
        for name, value in join_state(shards, dims).items():
            whole[name].copy_(value)
