"""What do the ranks of a run do together, whatever the machine? A warm-up, steps, evaluations, checkpoints, a record.

Read next: `virtual_ranks` (all ranks are threads of this process), `process_rank` (this process is one rank).
"""

import os
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack, nullcontext
from itertools import accumulate
from typing import Any, Self, TypeVar

from torch import Tensor, nn

from pipelab.assembly import make_evaluator, make_worker
from pipelab.clock import undisturbed
from pipelab.collectives import add_traffic, traffic_of
from pipelab.collector import heap_set_aside
from pipelab.data_parallel import first_that_differs
from pipelab.evaluation import in_evaluation_mode
from pipelab.failure import RunError
from pipelab.feed import Tell, nobody
from pipelab.job import Job
from pipelab.microbatches import Microbatches, split_batch
from pipelab.outline import Figures, Outline
from pipelab.parts import join, part_of
from pipelab.place import Place
from pipelab.record import KEPT, Record, memory_of, trace_of
from pipelab.reporter import Reporter
from pipelab.run import Run
from pipelab.state import State
from pipelab.trace import Span, median_trace
from pipelab.watch import first_finding
from pipelab.weight_versions import Versions
from pipelab.worker import Worker
from pipelab.world import is_first

Result = TypeVar("Result")


class Ranks(ABC):
    """The ranks of a run that live in this process; a context, so that all they take is given back.

    `history` has one list a step of the records of its ranks, for the last `KEPT` steps; `collect` gives those of all
    ranks. `figures` has what every step came to, for each pipeline by its (dp, tp). Where the job is fed, what the
    ranks do is told to `tell` while they do it.
    """

    def __init__(self, job: Job, places: Iterable[Place], tell: Tell = nobody) -> None:
        self.job = job
        mesh = job.mesh
        self.pipelines = {
            (dp, tp): mesh.group("pp", mesh.global_rank(dp=dp, tp=tp)) for dp in range(mesh.dp) for tp in range(mesh.tp)
        }
        self.history: deque[list[Record]] = deque(maxlen=KEPT)
        self.figures: dict[tuple[int, int], list[Figures]] = {key: [] for key in self.pipelines}
        self.gradient_norms: list[float | None] = []
        places = list(places)
        made = [make_worker(job, place) for place in places]
        self.workers = [worker for worker, _ in made]
        self.updates = [update for _, update in made if update is not None]
        pairs = zip(places, self.workers, strict=True) if job.evaluation is not None else ()
        self.evaluators = [make_evaluator(job, place, worker) for place, worker in pairs]
        self.parameters = [p for worker in self.workers for s in worker.stages.values() for p in s.layers.parameters()]
        self.resources = ExitStack()
        self.residual = 0.0
        self.tell = tell
        self.reporter = Reporter(self.workers, tell, early=job.clock == "virtual") if job.fed else None

    def __enter__(self) -> Self:
        self.resources.enter_context(undisturbed())
        self.resources.enter_context(heap_set_aside())
        if self.reporter is not None:
            self.resources.enter_context(self.reporter)
        for worker in self.workers:
            for stage in worker.stages.values():
                self.resources.enter_context(stage.attached())
        return self

    def __exit__(self, *exception: object) -> None:
        self.resources.__exit__(*exception)  # type: ignore[arg-type]

    def evaluate(self, batch: Microbatches) -> float:
        """The loss of a batch in evaluation mode; nothing is learned, and no random number drawn."""
        layers = nn.ModuleList(stage.layers for worker in self.evaluators for stage in worker.stages.values())
        with in_evaluation_mode(layers):
            records = self._execute(batch, self.evaluators)
        return self._agree(_loss_of(records))[0]

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
        schedule, clock = self.job.program.schedule, self.job.clock
        own = [trace_of(schedule, clock, [record]).outline for record in records]
        loss, outlines = self._agree(_loss_of(records), *own)
        for key, members in self.pipelines.items():
            self.figures[key].append(Figures.of([outlines[member] for member in members]))
        self.gradient_norms.append(records[0].gradient_norm)
        return loss

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
            model=whole.model, optimizer=whole.optimizer, kind=whole.kind or "", written_by=job.written_by,
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
        before = self.history[-1] if self.history else [Record() for _ in records]
        for record, earlier in zip(records, before, strict=True):
            record.after(earlier)
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
        job, schedule = self.job, self.job.program.schedule
        replicas = {
            key: [trace_of(schedule, job.clock, [of_step[member] for member in members]) for of_step in records]
            for key, members in self.pipelines.items()
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
            memory=memory_of(records, traces.index(typical), list(self.pipelines.values())),
            replicas=replicas,
            figures=self.figures,
            gradient_norms=self.gradient_norms if job.clip is not None else [],
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
    def _agree(self, loss: float, *outlines: Outline) -> tuple[float, list[Outline]]:
        """The loss of the step, from what these ranks know of it, and the outlines of all ranks."""

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


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
