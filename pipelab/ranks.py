"""What do ranks need to run, whatever the machine? Their stages, a worker and an optimizer each, and a warm-up.

Read next: `virtual_ranks` (all ranks are threads of this process), `process_rank` (this process is one rank).
"""

import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, Self

import torch
from torch import Tensor, nn

from pipelab.action import W
from pipelab.clock import Clock, undisturbed
from pipelab.costs import Link
from pipelab.cuda_memory import Allocator
from pipelab.failure import RunError
from pipelab.feed import Reporter, Tell, nobody
from pipelab.loss import Loss
from pipelab.lower import Program
from pipelab.memory import ActivationMeter
from pipelab.mesh import Mesh
from pipelab.optimizer import Optimizer, state_bytes
from pipelab.partition import cut
from pipelab.randomness import Randomness
from pipelab.run import Run
from pipelab.stage import Stage
from pipelab.trace import median_trace
from pipelab.transport import Transport
from pipelab.watch import Watch, first_finding
from pipelab.weight_versions import Versions
from pipelab.worker import Microbatches, Record, Worker, memory_of, split_batch, trace_of
from pipelab.world import is_first


@dataclass(frozen=True)
class Job:
    """What is to be run, and how: the same on every rank and every machine.

    Without a loss the last stage gives what its layers give; without an optimizer `step` changes no weights.
    """

    model: nn.Sequential
    program: Program
    mesh: Mesh
    device: torch.device
    clock: str
    loss: Loss | None = None
    optimizer: Optimizer | None = None
    seed: int = 0
    transport: str = "memory"
    link: Link = Link()  # noqa: RUF009 (a frozen value)
    blocking: bool = False
    at: list[int] | None = None
    timeout: float = 600.0
    watch: bool = False
    make_stage: Callable[..., Stage] = Stage
    fed: bool = False
    """Whether somebody listens: then every rank tells what it does (see `feed`)."""


class Ranks(ABC):
    """The ranks of a run that live in this process; a context, so that all they take is given back.

    `history` has one list a step of the records of its ranks; `collect` gives those of all ranks. Where the job is fed,
    what the ranks do is told to `tell` while they do it.
    """

    def __init__(
        self, job: Job, ranks: Iterable[int], transport: Transport, clocks: Iterable[Clock], tell: Tell = nobody
    ) -> None:
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
        own = [worker.parameters for worker in self.workers]
        self.parameters = [parameter for parameters in own for parameter in parameters]
        self.optimizers = [job.optimizer(parameters) for parameters in own if parameters and job.optimizer is not None]
        self._states: list[int] = []
        self.resources = ExitStack()
        self.residual = 0.0
        self.tell = tell
        self.reporter = Reporter(self.workers, tell, early=job.clock == "virtual") if job.fed else None

    def __enter__(self) -> Self:
        self.resources.enter_context(undisturbed())
        if self.reporter is not None:
            self.resources.enter_context(self.reporter)
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
        records = self.run(batch)
        for optimizer in self.optimizers:
            optimizer.step()
        self._states = self._states or [state_bytes(self.optimizers, worker.parameters) for worker in self.workers]
        for record, states in zip(records, self._states, strict=True):
            record.optimizer = states
        shares = {microbatch: share for record in records for microbatch, share in record.losses.items()}
        return self._agree(sum(shares[microbatch] for microbatch in sorted(shares)))

    def run(self, batch: Microbatches) -> list[Record]:
        """Execute the program once, with no update after it: it has none, or its own."""
        with self.reporter.step(batch.step) if self.reporter is not None else nullcontext():
            records = self._run(batch)
        self._share_news()
        self.history.append(records)
        return records

    def measured(self, records: list[list[Record]], losses: list[float], versions: Versions | None = None) -> Run:
        """What the run measured, from what was collected."""
        job, schedule = self.job, self.job.program.schedule
        traces = [trace_of(schedule, job.clock, of_step) for of_step in records]
        typical = median_trace(traces)
        return Run(
            schedule=schedule,
            mesh=job.mesh,
            losses=losses,
            traces=traces,
            trace=typical,
            memory=memory_of(records, traces.index(typical)),
            model=job.model,
            pids=self.pids,
            first=is_first(),
            cores=_cores() if job.device.type == "cpu" else None,
            residual=self.residual,
            norms=tuple({a: norm for record in of_step for a, norm in record.norms.items()} for of_step in records),
            versions=versions,
            at=tuple(accumulate(len(layers) for layers in self.slices[:-1])),
        )

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

    def _share_news(self) -> None:
        """Bring what the ranks have told to the listener, where it does not get there by itself."""
        return

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
    if job.device.type == "cuda":
        meter.allocator = Allocator(job.device)
    stages = {
        stage: job.make_stage(
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


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
