"""How is this process one rank of a run? It runs its own row, and in the end all gather what they have measured.

Every rank calls `train` with the same arguments (SPMD: single program, multiple data). Read next: `world` (who the
others are), `transport.processes` (how messages reach them).
"""

from typing import Any

from pipelab.alarm import watched
from pipelab.clock import make_clock, make_turn
from pipelab.collector import collector_at_rest
from pipelab.ranks import Job, Ranks
from pipelab.transport.processes import Processes, make_groups
from pipelab.worker import Microbatches, Record
from pipelab.world import World


GRACE = 5.0
"""Seconds that a rank waits longer than the timeout: whoever watches all ranks speaks first, and names the culprit."""


class ProcessRank(Ranks):
    """The one rank of a run that this process is. It raises what its own work raises, or Aborted after another's."""

    def __init__(self, job: Job) -> None:
        patience = job.timeout + GRACE
        self.world = World(job.mesh.size, patience)
        try:
            _, rank, _ = job.mesh.coordinates(self.world.rank)
            self.members = job.mesh.group("pp", self.world.rank)
            groups = make_groups(job.program, _pipelines(job), self.world)
            self.transport = Processes(
                job.program, rank, groups, device=job.device, timeout=patience, blocking=job.blocking
            )
            clock = make_clock(job.clock, job.device, make_turn(job.device, self.world.turn()))
            super().__init__(job, [rank], self.transport, [clock])
            self.states = [[*layers.parameters(), *layers.buffers()] for layers in self.slices]
        except BaseException:
            self.world.close()
            raise
        self.residual = self.world.residual
        self._origin = 0.0

    def __enter__(self) -> "ProcessRank":
        super().__enter__()
        self.resources.callback(self.world.close)
        self.resources.callback(self.transport.close)
        (worker,) = self.workers
        worker.recorder = self.resources.enter_context(watched(self.job.timeout))
        worker.recorder.names = self.members
        return self

    def warm_up(self, batch: Microbatches) -> None:
        """As on every machine; then all ranks set out together."""
        super().warm_up(batch)
        self._agree(0.0)

    def _execute(self, batch: Microbatches) -> list[Record]:
        (worker,) = self.workers
        worker.clock.restart(self._origin)
        self.transport.begin(batch.inputs)
        with collector_at_rest():
            record = worker.run(batch)
        taken = self.transport.finish()
        if self.job.clock == "wall":
            record.spans = [
                span._replace(end=max(span.end, taken[span.action] - self._origin)) if span.lane == "send" else span
                for span in record.spans
            ]
        return [record]

    @property
    def pids(self) -> tuple[int, ...]:
        return self.world.pids

    def _agree(self, loss: float) -> float:
        (worker,) = self.workers
        worker.recorder.waiting("the end of the step", "its own", [r for r in range(len(self.members)) if r != worker.rank])
        losses, self._origin = self.world.meet(loss)
        return losses[self.members[self.job.program.placement.rank_of[-1]]]

    def _of_all(self, mine: list[Any]) -> list[Any]:
        return [each for theirs in self.world.everybody(mine) for each in theirs]

    def collect(self) -> list[list[Record]]:
        everyone = self.world.everybody([record for (record,) in self.history])
        for stage, state in enumerate(self.states):
            self.world.share(self.members[self.job.program.placement.rank_of[stage]], state)
        return [[everyone[member][step] for member in self.members] for step in range(len(self.history))]


def _pipelines(job: Job) -> list[tuple[int, ...]]:
    """The global ranks of every pipeline of the mesh."""
    mesh = job.mesh
    return [mesh.group("pp", mesh.global_rank(dp=dp, tp=tp)) for dp in range(mesh.dp) for tp in range(mesh.tp)]
