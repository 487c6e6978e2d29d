"""What do ranks need to train, whatever the machine? Their stages, a worker and an optimizer each, and a warm-up.

Read next: `virtual_ranks` (all ranks are threads of this process), `process_rank` (this process is one rank).
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor, nn

from pipelab.action import W
from pipelab.clock import Clock, undisturbed
from pipelab.costs import Link
from pipelab.failure import RunError
from pipelab.loss import Loss
from pipelab.lower import Program
from pipelab.memory import ActivationMeter
from pipelab.mesh import Mesh
from pipelab.optimizer import Optimizer
from pipelab.partition import cut
from pipelab.randomness import Randomness
from pipelab.stage import Stage
from pipelab.transport import Transport
from pipelab.watch import Watch, first_finding
from pipelab.worker import Microbatches, Record, Worker, split_batch


@dataclass(frozen=True)
class Job:
    """What is to be trained, and how: the same on every rank and every machine."""

    model: nn.Sequential
    program: Program
    mesh: Mesh
    loss: Loss
    optimizer: Optimizer
    seed: int
    device: torch.device
    transport: str
    clock: str
    link: Link
    blocking: bool
    at: list[int] | None
    timeout: float
    watch: bool = False


class Ranks(ABC):
    """The ranks of a run that live in this process; a context, so that all they take is given back.

    `history` has one list a step of the records of its ranks; `collect` gives those of all ranks.
    """

    def __init__(self, job: Job, ranks: Iterable[int], transport: Transport, clocks: Iterable[Clock]) -> None:
        self.job = job
        self.history: list[list[Record]] = []
        self.slices = cut(job.model, job.program.schedule.stages, at=job.at)
        randomness = Randomness(job.seed)
        self.workers = []
        for rank, clock in zip(ranks, clocks, strict=True):
            stages, meter = _stages(job, rank, self.slices, randomness)
            self.workers.append(
                Worker(
                    rank,
                    job.program,
                    stages,
                    transport=transport,
                    clock=clock,
                    meter=meter,
                    link=job.link,
                    blocking=job.blocking,
                )
            )
        own = [[p for stage in worker.stages.values() for p in stage.layers.parameters()] for worker in self.workers]
        self.parameters = [parameter for parameters in own for parameter in parameters]
        self.optimizers = [job.optimizer(parameters) for parameters in own if parameters]
        self.resources = ExitStack()
        self.residual = 0.0

    def __enter__(self) -> Self:
        self.resources.enter_context(undisturbed())
        for worker in self.workers:
            for stage in worker.stages.values():
                self.resources.enter_context(stage.attached())
        return self

    def __exit__(self, *exception: object) -> None:
        self.resources.__exit__(*exception)  # type: ignore[arg-type]

    def split(self, step: int, batch: tuple[Tensor, Tensor]) -> Microbatches:
        """The micro-batches of a step, on the run's device."""
        return split_batch(step, batch, self.job.program.schedule.microbatches).to(self.job.device)

    def warm_up(self, batch: Microbatches) -> None:
        """One step whose gradients and buffers are thrown away: first calls are slow and would be read as bubbles."""
        buffers = [
            (stage.layers, {name: buffer.clone() for name, buffer in stage.layers.named_buffers()})
            for worker in self.workers
            for stage in worker.stages.values()
        ]
        self._run(batch)
        for layers, before in buffers:
            for name, buffer in before.items():  # not those that a first forward makes, such as a cache of positions
                layers.get_buffer(name).copy_(buffer)

    def step(self, batch: Microbatches) -> float:
        """Gradients of all micro-batches, then one step of every rank's optimizer; gives the loss."""
        records = self._run(batch)
        for optimizer in self.optimizers:
            optimizer.step()
        self.history.append(records)
        shares = {microbatch: share for record in records for microbatch, share in record.losses.items()}
        return self._agree(sum(shares[microbatch] for microbatch in sorted(shares)))

    def _run(self, batch: Microbatches) -> list[Record]:
        for parameter in self.parameters:
            parameter.grad = None
        records = self._execute(batch)
        if self.job.watch:
            findings = self._of_all([finding for record in records for finding in record.findings])
            found = first_finding(findings, self.job.program.schedule)
            if found is not None:  # before an optimizer spreads it
                raise RunError(str(found))
        return records

    @abstractmethod
    def _execute(self, batch: Microbatches) -> list[Record]:
        """Run the rows of these ranks once, side by side. Raises RunError, or Aborted after another rank failed."""

    @property
    @abstractmethod
    def pids(self) -> tuple[int, ...]:
        """The process of every global rank."""

    @abstractmethod
    def _agree(self, loss: float) -> float:
        """The loss of the step, from what these ranks know of it."""

    @abstractmethod
    def _of_all(self, mine: list[Any]) -> list[Any]:
        """The lists of all ranks, joined."""

    @abstractmethod
    def collect(self) -> list[list[Record]]:
        """For every step the records of all ranks; the model then has the trained values of every stage."""


def _stages(
    job: Job, rank: int, slices: list[nn.Sequential], randomness: Randomness
) -> tuple[dict[int, Stage], ActivationMeter]:
    """The stages of a rank, and the meter that counts what they keep."""
    schedule = job.program.schedule
    split = {action.stage for _, _, action in schedule.actions() if action.kind == W}
    own = schedule.placement.stages_on(rank)
    for stage in own:
        slices[stage].to(job.device)
    meter = ActivationMeter(t for stage in own for t in (*slices[stage].parameters(), *slices[stage].buffers()))
    stages = {
        stage: Stage(
            slices[stage],
            first=stage == 0,
            loss=job.loss if stage == schedule.stages - 1 else None,
            split=stage in split,
            randomness=randomness,
            meter=meter,
            watch=Watch(rank, stage) if job.watch else None,
        )
        for stage in own
    }
    return stages, meter
