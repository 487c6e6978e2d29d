"""What do ranks need to run, whatever the machine? Their stages, a worker and an optimizer each, and a warm-up.

Read next: `virtual_ranks` (all ranks are threads of this process), `process_rank` (this process is one rank).
"""

import copy
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import accumulate
from typing import Any, Self, TypeVar

import torch
from torch import Tensor, nn

from pipelab.action import Action, F, R, W, parts
from pipelab.checkpoint import Saving
from pipelab.checkpointing import Checkpointing, block_names
from pipelab.clock import undisturbed
from pipelab.collectives import add_traffic, traffic_of
from pipelab.costs import Link, Network
from pipelab.cuda_memory import Allocator
from pipelab.data_parallel import first_that_differs
from pipelab.evaluation import Evaluation, ForwardStage, in_evaluation_mode
from pipelab.failure import RunError
from pipelab.feed import Reporter, Tell, nobody
from pipelab.loss import Loss
from pipelab.lower import Program, lower
from pipelab.memory import ActivationMeter
from pipelab.mesh import Mesh
from pipelab.optimizer import Optimizer
from pipelab.partition import cut
from pipelab.parts import join, part_of, take_up
from pipelab.place import Place
from pipelab.randomness import Randomness
from pipelab.run import Run
from pipelab.stage import Stage
from pipelab.state import State
from pipelab.tensor_parallel import loss_of, shard
from pipelab.tied import Tie, find_ties, tie
from pipelab.trace import Span, median_trace
from pipelab.watch import Watch, first_finding
from pipelab.weight_update import Rate, WeightUpdate
from pipelab.weight_versions import Versions
from pipelab.worker import Microbatches, Record, Worker, memory_of, split_batch, trace_of
from pipelab.world import is_first

Result = TypeVar("Result")


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
    link: Link | Network = Link()  # noqa: RUF009 (a frozen value)
    blocking: bool = False
    at: list[int] | None = None
    timeout: float = 600.0
    watch: bool = False
    autocast: torch.dtype | None = None
    sequence_parallel: bool = False
    zero: bool = False
    clip: float | None = None
    rate: Rate | None = None
    evaluation: Evaluation | None = None
    start: State | None = None
    saving: Saving | None = None
    make_stage: Callable[..., Stage] = Stage
    checkpointing: tuple[str, ...] = ()
    hoist: int = 0
    """The policy of each stage; an R in the program says for which micro-batches, and `hoist` puts it forward."""
    fed: bool = False
    """Whether somebody listens: then every rank tells what it does (see `feed`)."""

    @property
    def first(self) -> int:
        """The number of the first step: so many have been taken before."""
        return 0 if self.start is None else self.start.step

    @cached_property
    def slices(self) -> list[nn.Sequential]:
        """The layers of each stage, uncut."""
        return cut(self.model, self.program.schedule.stages, at=self.at)

    @cached_property
    def forwards(self) -> Program:
        """The program without its backwards."""
        schedule = self.program.schedule
        rows = tuple(
            tuple(action for element in row for action in parts(element) if action.kind == F) for row in schedule.rows
        )
        return lower(replace(schedule, rows=rows, forward_only=True))

    @cached_property
    def ties(self) -> list[Tie]:
        """The weights that more than one stage has."""
        return find_ties(self.slices)


def usable_device(name: str | torch.device) -> torch.device:
    """The device of this name. Raises ValueError when it is a GPU and there is none."""
    device = torch.device(name)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"device {device}: torch sees no CUDA device here; use device='cpu'")
    return device


class Ranks(ABC):
    """The ranks of a run that live in this process; a context, so that all they take is given back.

    `history` has one list a step of the records of its ranks; `collect` gives those of all ranks. Where the job is fed,
    what the ranks do is told to `tell` while they do it.
    """

    def __init__(self, job: Job, places: Iterable[Place], tell: Tell = nobody) -> None:
        self.job = job
        self.history: list[list[Record]] = []
        self.updates: list[WeightUpdate] = []
        places = list(places)
        self.workers = [self._worker(place) for place in places]
        self.evaluators = [] if job.evaluation is None else list(map(self._evaluator, places, self.workers))
        self.parameters = [p for worker in self.workers for s in worker.stages.values() for p in s.layers.parameters()]
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

    @property
    def in_place(self) -> bool:
        """Whether the ranks train the caller's own layers; with replicas, shards and ties they have copies."""
        return (self.job.mesh.dp, self.job.mesh.tp) == (1, 1) and not self.job.ties

    def _worker(self, place: Place) -> Worker:
        job = self.job
        _, rank, _ = job.mesh.coordinates(place.global_rank)
        layers = self._layers(place, job.program.placement.stages_on(rank))
        tied = tie(layers, job.ties)
        sums = None
        if job.optimizer is not None:
            update = WeightUpdate(
                place, layers, tied, job.optimizer, clip=job.clip, rate=job.rate, zero=job.zero
            )  # fmt: skip
            if job.start is not None:
                index = 0 if place.tp is None else place.tp.index
                take_up(job.start, list(layers.values()), update, (index, job.mesh.tp))
            self.updates.append(update)
            sums = update.sums
        stages, meter = self._stages(place, layers)
        return Worker(
            rank, job.program, stages, transport=place.transport, clock=place.clock, meter=meter, link=job.link,
            members=job.mesh.group("pp", place.global_rank), blocking=job.blocking, tp=place.tp, sums=sums,
        )  # fmt: skip

    def _evaluator(self, place: Place, worker: Worker) -> Worker:
        """A rank that runs the forwards alone, through the layers of the one that trains."""
        meter, job = ActivationMeter(), self.job
        stages = {
            stage: ForwardStage(
                own.layers, first=own.first, loss=own.loss, split=False, randomness=own.randomness, meter=meter,
                lower_precision=own.lower_precision,
            )
            for stage, own in worker.stages.items()
        }  # fmt: skip
        return Worker(
            worker.rank, job.forwards, stages, transport=place.evaluating or place.transport, clock=place.clock,
            meter=meter, link=job.link, members=worker.members, blocking=job.blocking, tp=place.tp,
        )  # fmt: skip

    def evaluate(self, batch: Microbatches) -> float:
        """The loss of a batch in evaluation mode; nothing is learned, and no random number drawn."""
        layers = nn.ModuleList(stage.layers for worker in self.evaluators for stage in worker.stages.values())
        with in_evaluation_mode(layers):
            records = self._execute(batch, self.evaluators)
        return self._agree(_loss_of(records))

    def _layers(self, place: Place, stages: Iterable[int]) -> dict[int, nn.Sequential]:
        """The layers of a rank's stages, to have for itself: this shard's part of them, where there are several."""
        job = self.job
        own: dict[int, nn.Sequential]
        if place.tp is not None:
            wide = job.sequence_parallel
            own = {stage: shard(job.slices[stage], place.tp, sequence_parallel=wide) for stage in stages}
        elif self.in_place:
            own = {stage: self.job.slices[stage] for stage in stages}
        else:
            own = {stage: copy.deepcopy(self.job.slices[stage]) for stage in stages}
        return {stage: layers.to(job.device) for stage, layers in own.items()}

    def _stages(self, place: Place, own: Mapping[int, nn.Sequential]) -> tuple[dict[int, Stage], ActivationMeter]:
        """The stages of a rank, and the meter that counts what they keep."""
        job, schedule, tp = self.job, self.job.program.schedule, place.tp
        split = {action.stage for _, _, action in schedule.actions() if action.kind == W}
        meter = ActivationMeter(t for layers in own.values() for t in (*layers.parameters(), *layers.buffers()))
        if job.device.type == "cuda":
            meter.allocator = Allocator(job.device)
        randomness = Randomness(job.seed, part=tp.index if tp is not None and job.sequence_parallel else 0)
        losses = {} if job.loss is None else {schedule.stages - 1: job.loss}
        if tp is not None:
            losses = {stage: loss_of(own[stage], loss) for stage, loss in losses.items() if stage in own}
        stages = {
            stage: job.make_stage(
                layers,
                first=stage == 0,
                loss=losses.get(stage),
                split=stage in split,
                randomness=randomness,
                meter=meter,
                watch=Watch(place.global_rank, stage) if job.watch else None,
                lower_precision=job.autocast,
                checkpointing=self._checkpointing(place, stage, layers, meter),
            )
            for stage, layers in own.items()
        }
        return stages, meter

    def _checkpointing(
        self, place: Place, stage: int, layers: nn.Sequential, meter: ActivationMeter
    ) -> Checkpointing | None:
        """What a stage recomputes: the program says of which micro-batches, counted as a replica counts its own."""
        job = self.job
        replica, rank, _ = job.mesh.coordinates(place.global_rank)
        first = replica * job.program.schedule.microbatches
        row = [step for step in job.program.rows[rank] if isinstance(step, Action) and step.kind == R]
        again = [first + microbatch for owner, _, microbatch in row if owner == stage]
        if not again:
            return None
        return Checkpointing(layers, job.checkpointing[stage], block_names(job.model), again, meter)

    def _own(self, worker: Worker, batch: Microbatches) -> Microbatches:
        """The micro-batches of a worker's replica."""
        replica, _, _ = self.job.mesh.coordinates(worker.global_rank)
        return batch.of_replica(replica, self.job.mesh.dp)

    def split(self, step: int, batch: tuple[Tensor, Tensor]) -> Microbatches:
        """The micro-batches of a step, those of all replicas, on the run's device."""
        return split_batch(step, batch, self.job.mesh.dp * self.job.program.schedule.microbatches).to(self.job.device)

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
        self._update(batch.step, records)
        return self._agree(_loss_of(records))

    def _update(self, step: int, records: Sequence[Record]) -> None:
        """The end of a step on every rank, and what went meanwhile."""
        if not self.updates:
            return
        for record, update, worker, went in zip(
            records, self.updates, self.workers, self._on_each(lambda place: self.updates[place](step)), strict=True
        ):
            add_traffic(record.traffic, traffic_of(meeting for _, meeting in went))
            spans = [Span(worker.rank, "collective", action, meeting.start, meeting.end) for action, meeting in went]
            record.spans += worker.clock.settle(spans, [])[0]
            record.gradient_norm = update.norm
            record.optimizer = update.state_bytes
        if self.job.watch and self.job.mesh.dp > 1:
            differing = [name for name in self._on_each(self._differing) if name is not None]
            if everywhere := sorted(self._of_all(differing)):
                raise RunError(
                    f"the replicas differ after step {step}: first in {everywhere[0]}; they must get equal gradients:"
                    " look for a layer that computes differently on each, or an optimizer with randomness of its own"
                )

    def _differing(self, place: int) -> str | None:
        """The first parameter of a rank that its replicas have otherwise."""
        worker = self.workers[place]
        assert worker.sums is not None
        own = [named for stage in worker.stages.values() for named in stage.layers.named_parameters()]
        return first_that_differs(worker.sums.group, own)

    def state(self, losses: Sequence[float]) -> State | None:
        """Where training stands after steps of these losses, joined from all ranks; None but in the first process, and
        where nothing is trained."""
        if not self.updates:
            return None
        job, mesh = self.job, self.job.mesh
        mine = [
            part_of(mesh.coordinates(worker.global_rank), [s.layers for s in worker.stages.values()], update)
            for worker, update in zip(self.workers, self.updates, strict=True)
        ]
        held = self._at_first(mine)
        if held is None:
            return None
        whole, before = join(held, mesh), () if job.start is None else job.start.losses
        return State(
            step=len(before) + len(losses), seed=job.seed, losses=(*before, *losses),
            model=whole.model, optimizer=whole.optimizer, kind=whole.kind or "", written_by=_writer(job),
        )  # fmt: skip

    def save(self, losses: Sequence[float]) -> None:
        """Write that state; then all ranks set out together again."""
        assert self.job.saving is not None
        state = self.state(losses)
        if state is not None:
            self.job.saving.write(state)
        self._agree(0.0)

    def run(self, batch: Microbatches) -> list[Record]:
        """Execute the program once, with no update after it: it has none, or its own."""
        with self.reporter.step(batch.step) if self.reporter is not None else nullcontext():
            records = self._run(batch)
        self._share_news()
        self.history.append(records)
        return records

    def measured(
        self,
        records: list[list[Record]],
        losses: list[float],
        versions: Versions | None = None,
        state: State | None = None,
    ) -> Run:
        """What the run measured, from what was collected."""
        job, schedule, mesh = self.job, self.job.program.schedule, self.job.mesh
        pipelines = {
            (dp, tp): mesh.group("pp", mesh.global_rank(dp=dp, tp=tp)) for dp in range(mesh.dp) for tp in range(mesh.tp)
        }
        replicas = {
            key: [trace_of(schedule, job.clock, [of_step[member] for member in members]) for of_step in records]
            for key, members in pipelines.items()
        }
        traces = replicas[0, 0]
        typical = median_trace(traces)
        return Run(
            schedule=schedule,
            program=job.program,
            mesh=job.mesh,
            losses=losses,
            traces=traces,
            trace=typical,
            memory=memory_of(records, traces.index(typical), list(pipelines.values())),
            replicas=replicas,
            gradient_norms=[of_step[0].gradient_norm for of_step in records] if job.clip is not None else [],
            traffic=tuple(tuple(record.traffic for record in of_step) for of_step in records),
            model=job.model,
            pids=self.pids,
            first=is_first(),
            cores=_cores() if job.device.type == "cpu" else None,
            residual=self.residual,
            norms=tuple({a: norm for record in of_step for a, norm in record.norms.items()} for of_step in records),
            versions=versions,
            state=state,
            at=tuple(accumulate(len(layers) for layers in self.job.slices[:-1])),
        )

    def _run(self, batch: Microbatches) -> list[Record]:
        for parameter in self.parameters:
            parameter.grad = None
        records = self._execute(batch, self.workers)
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
    def _execute(self, batch: Microbatches, workers: Sequence[Worker]) -> list[Record]:
        """Run the rows of these ranks once, side by side. Raises RunError, or Aborted after another rank failed."""

    @abstractmethod
    def _on_each(self, work: Callable[[int], Result]) -> list[Result]:
        """Do something for each of these ranks (by its number among them), side by side, for they wait for others."""

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
    def _at_first(self, mine: list[Any]) -> list[Any] | None:
        """The lists of all ranks, joined, in the first process; None in the others."""

    @abstractmethod
    def collect(self) -> list[list[Record]]:
        """For every step the records of all ranks; the model then has the trained values of every stage."""


def _loss_of(records: Sequence[Record]) -> float:
    """What these ranks know of the loss of a step; shards know the same."""
    shares = {microbatch: share for record in records for microbatch, share in record.losses.items()}
    own = {place: share for record in records for place, share in record.own_losses.items()}
    return sum(shares[microbatch] for microbatch in sorted(shares)) + sum(own.values())


def state(layers: nn.Module) -> dict[str, Tensor]:
    """What training changes in layers, by name: parameters and buffers."""
    return {**dict(layers.named_parameters()), **dict(layers.named_buffers())}


def gradients(layers: nn.Module) -> dict[str, Tensor]:
    """The gradients of the last step, by the parameters' names."""
    return {name: parameter.grad for name, parameter in layers.named_parameters() if parameter.grad is not None}


def _writer(job: Job) -> dict[str, Any]:
    """By what a state was written, for information."""
    schedule, mesh = job.program.schedule, job.mesh
    return {
        "schedule": schedule.name,
        "microbatches": schedule.microbatches,
        "mesh": {"pp": mesh.pp, "tp": mesh.tp, "dp": mesh.dp},
        "transport": job.transport,
        "torch": torch.__version__,
    }


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
