"""Train a model with a schedule, for real: threads of this process are the ranks, and virtual time is their clock.

Read next: `worker` (what a rank does), `stage` (what it does it with), `reference` (what the numbers must equal).
"""

import itertools
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from contextlib import ExitStack
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pipelab.action import B, F, I, Pair, W
from pipelab.clock import Clock, Turn, VirtualClock, WallClock, undisturbed
from pipelab.costs import Costs, Link, middle
from pipelab.formulas import formula
from pipelab.loss import Loss, count_targets, cross_entropy
from pipelab.lower import Program, lower
from pipelab.memory import ActivationMeter, Memory
from pipelab.mesh import Mesh
from pipelab.partition import cut
from pipelab.randomness import Randomness
from pipelab.schedule import Schedule
from pipelab.simulate import simulate
from pipelab.stage import Stage
from pipelab.trace import BUBBLES, Trace, median_trace
from pipelab.transport import Aborted
from pipelab.transport.memory import Mailboxes
from pipelab.validate import validate
from pipelab.worker import Microbatches, Record, Worker, split_batch

Optimizer = Callable[[list[nn.Parameter]], torch.optim.Optimizer]
"""Makes the optimizer of one rank from its parameters."""


class RunError(RuntimeError):
    """A run that failed: the sentence names the rank, what it was doing, and the cause."""


@dataclass(frozen=True, repr=False)
class Run:
    """What a training run did: the loss of each step, the trace and the memory of a typical step, the bubbles.

    `traces` has one trace a step, `trace` the one of median makespan, and `memory` the activation bytes of that step
    (its `peaks` are over all steps). `clock` says whose seconds these are.
    """

    schedule: Schedule
    mesh: Mesh
    losses: list[float]
    traces: list[Trace]
    trace: Trace
    memory: Memory
    model: nn.Sequential

    def __repr__(self) -> str:
        step = f"{1e3 * self.step_seconds:.1f} ms a step in {self.clock} time"
        return f"<Run of {self.schedule.name}: {len(self.losses)} steps, loss {self.losses[-1]:.3f}, {step}>"

    @property
    def clock(self) -> str:
        """ "virtual" or "wall"."""
        return self.trace.clock

    @property
    def step_seconds(self) -> float:
        """Median makespan of the steps, in seconds of the run's clock."""
        return float(middle([trace.makespan for trace in self.traces]))

    def costs(self) -> Costs:
        """The median time of each stage and kind over all steps."""
        return Costs.measured(self.traces)

    def replay(self) -> Trace:
        """The same schedule simulated with the run's own median times."""
        return simulate(self.schedule, self.costs())

    def bubbles(self) -> dict[str, dict[str, float] | None]:
        """Three figures side by side, each as step, span and overhead.

        `measured` is the median over the steps; `replayed` comes from the simulator with the run's median times;
        `formula` is the closed form for equal stages with the run's mean F, I and W, None outside its domain.
        """
        measured = {kind: float(middle([trace.bubble(kind) for trace in self.traces])) for kind in BUBBLES}
        replayed = {kind: float(bubble) for kind, bubble in self.replay().bubbles().items()}
        return {"measured": measured, "replayed": replayed, "formula": self._formula()}

    def _formula(self) -> dict[str, float] | None:
        schedule, costs = self.schedule, self.costs()
        shape = {"P": schedule.ranks, "M": schedule.microbatches, "V": schedule.stages // schedule.ranks}
        hops = list(costs.hop.values()) if isinstance(costs.hop, Mapping) else []
        try:
            times = {**self._mean_work(), "hop": float(sum(hops)) / max(len(hops), 1)}
            return {
                kind: float(formula(schedule.name, f"bubble_{kind}", **shape, **times))  # type: ignore[arg-type]
                for kind in BUBBLES
            }
        except ValueError:
            return None

    def _mean_work(self) -> dict[str, float]:
        """Mean F, I and W of one rank for one micro-batch; a full backward counts as I, for a formula needs I + W."""
        busy = {F: 0.0, I: 0.0, W: 0.0}
        for trace in self.traces:
            for span in itertools.chain(*trace.compute):
                if isinstance(span.action, Pair):
                    raise ValueError("a pair's time cannot be told apart into F, I and W")
                kind = I if span.action.kind == B else span.action.kind
                busy[kind] += float(span.end - span.start)
        share = len(self.traces) * self.schedule.ranks * self.schedule.microbatches
        return {kind: seconds / share for kind, seconds in busy.items()}

    def parameters(self) -> dict[str, Tensor]:
        """Every parameter after the last step, under its name in the uncut model."""
        return {name: parameter.detach() for name, parameter in self.model.named_parameters()}


def adamw(parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    """AdamW with learning rate 1e-3, the default of `train`."""
    return torch.optim.AdamW(parameters, lr=1e-3)


def train(
    model: nn.Sequential,
    batches: Iterable[tuple[Tensor, Tensor]],
    schedule: Schedule,
    mesh: Mesh | None = None,
    *,
    loss: Loss = cross_entropy,
    optimizer: Optimizer = adamw,
    steps: int | None = None,
    seed: int = 0,
    device: str | torch.device = "cpu",
    clock: str = "virtual",
    link: Link = Link(),  # noqa: B008 (a frozen value)
    at: list[int] | None = None,
    on_step: Callable[[int, float], None] | None = None,
    timeout: float = 600.0,
) -> Run:
    """Train `model`, cut into the schedule's stages, one step per batch; it is changed in place, as training does.

    `batches` gives (inputs, targets); each is cut into the schedule's M micro-batches. `steps` bounds how many are
    taken. `at` cuts the model by hand (first layer of each stage after the first). `link` models the time of messages.
    A warm-up step before the first leaves no trace: parameters, buffers, generators and batches are as they were.
    Raises ScheduleError or ValueError before any work when something does not fit, RunError when a rank fails.

    >>> from pipelab import build
    >>> model = nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 3))
    >>> batch = torch.ones(6, 4), torch.zeros(6, dtype=torch.int64)
    >>> run = train(model, [batch] * 2, build("1f1b", ranks=2, microbatches=3))
    >>> len(run.losses), run.clock, run.losses[1] < run.losses[0]
    (2, 'virtual', True)
    """
    validate(schedule)
    mesh = mesh or Mesh(pp=schedule.ranks)
    _refuse_mesh(mesh, schedule)
    steps_of = iter(batches) if steps is None else itertools.islice(batches, steps)
    first = next(steps_of, None)
    if first is None:
        raise ValueError("there is no batch to train on; give at least one (inputs, targets)")
    model.to(device)
    pipeline = _Pipeline(model, lower(schedule), loss, optimizer, seed, torch.device(device), clock, link, at, timeout)
    losses, traces, memories = [], [], []
    with pipeline:
        pipeline.warm_up(pipeline.split(0, first))
        for step, batch in enumerate(itertools.chain([first], steps_of)):
            records = pipeline.step(pipeline.split(step, batch))
            losses.append(_total_loss(records))
            traces.append(_trace(schedule, clock, records))
            memories.append(records)
            if on_step is not None:
                on_step(step, losses[-1])
    typical = median_trace(traces)
    return Run(
        schedule=schedule,
        mesh=mesh,
        losses=losses,
        traces=traces,
        trace=typical,
        memory=_memory(memories, traces.index(typical)),
        model=model,
    )


class _Pipeline:
    """The virtual ranks of one run: their workers, threads and optimizers; a context, so that all are given back."""

    def __init__(
        self, model: nn.Sequential, program: Program, loss: Loss, optimizer: Optimizer, seed: int,
        device: torch.device, clock: str, link: Link, at: list[int] | None, timeout: float,
    ) -> None:  # fmt: skip
        self.model = model
        self.program = program
        self.device = device
        self.mailboxes = Mailboxes(timeout)
        slices = cut(model, program.schedule.stages, at=at)
        clocks = _clocks(clock, device, program.placement.ranks)
        self.workers = [
            Worker(rank, program, stages, transport=self.mailboxes, clock=clocks[rank], meter=meter, link=link)
            for rank, (stages, meter) in enumerate(_stages(program, slices, loss, Randomness(seed)))
        ]
        own = [[p for stage in worker.stages.values() for p in stage.layers.parameters()] for worker in self.workers]
        self.optimizers = [optimizer(parameters) for parameters in own if parameters]
        self._resources = ExitStack()

    def __enter__(self) -> "_Pipeline":
        self._resources.enter_context(undisturbed())
        for worker in self.workers:
            for stage in worker.stages.values():
                self._resources.enter_context(stage.attached())
        self.pool = self._resources.enter_context(ThreadPoolExecutor(len(self.workers), thread_name_prefix="rank"))
        return self

    def __exit__(self, *exception: object) -> None:
        self.mailboxes.abort()
        self._resources.close()

    def split(self, step: int, batch: tuple[Tensor, Tensor]) -> Microbatches:
        """The micro-batches of a step, on the run's device."""
        inputs, targets = (tensor.to(self.device) for tensor in batch)
        return split_batch(step, (inputs, targets), self.program.schedule.microbatches, count_targets(targets))

    def warm_up(self, batch: Microbatches) -> None:
        """One step whose gradients and buffers are thrown away: first calls are slow and would be read as bubbles."""
        before = {name: buffer.clone() for name, buffer in self.model.named_buffers()}
        self._run(batch)
        for name, buffer in self.model.named_buffers():
            buffer.copy_(before[name])

    def step(self, batch: Microbatches) -> list[Record]:
        """Gradients of all micro-batches, then one step of every rank's optimizer."""
        records = self._run(batch)
        for optimizer in self.optimizers:
            optimizer.step()
        return records

    def _run(self, batch: Microbatches) -> list[Record]:
        for parameter in self.model.parameters():
            parameter.grad = None
        origin = time.perf_counter()
        for worker in self.workers:
            worker.clock.restart(origin)
        futures = [self.pool.submit(worker.run, batch) for worker in self.workers]
        done, _ = wait(futures, return_when=FIRST_EXCEPTION)
        if any(future.exception() for future in done):
            self.mailboxes.abort()
            wait(futures)
            raise self._failure(futures)
        return [future.result() for future in futures]

    def _failure(self, futures: list[Future[Record]]) -> RunError:
        for worker, future in zip(self.workers, futures, strict=True):
            cause = future.exception()
            if cause is not None and not isinstance(cause, Aborted):
                error = RunError(f"rank {worker.rank} failed at {worker.at}: {type(cause).__name__}: {cause}")
                error.__cause__ = cause
                return error
        raise AssertionError("a run failed without a cause")


def _stages(
    program: Program, slices: list[nn.Sequential], loss: Loss, randomness: Randomness
) -> Iterator[tuple[dict[int, Stage], ActivationMeter]]:
    """For each rank its stages and the meter that counts what they keep."""
    split = {action.stage for _, _, action in program.schedule.actions() if action.kind == W}
    last = program.schedule.stages - 1
    for rank in range(program.placement.ranks):
        own = program.placement.stages_on(rank)
        meter = ActivationMeter(t for stage in own for t in (*slices[stage].parameters(), *slices[stage].buffers()))
        yield (
            {
                stage: Stage(
                    slices[stage],
                    first=stage == 0,
                    loss=loss if stage == last else None,
                    split=stage in split,
                    randomness=randomness,
                    meter=meter,
                )
                for stage in own
            },
            meter,
        )


def _clocks(clock: str, device: torch.device, ranks: int) -> list[Clock]:
    if clock == "virtual":
        turn = Turn(device)
        return [VirtualClock(turn) for _ in range(ranks)]
    if clock == "wall":
        return [WallClock(device) for _ in range(ranks)]
    raise ValueError(f"a run's clock is 'virtual' or 'wall': got {clock!r}")


def _refuse_mesh(mesh: Mesh, schedule: Schedule) -> None:
    if mesh.pp != schedule.ranks:
        raise ValueError(f"the mesh has pp={mesh.pp} and the schedule {schedule.ranks} ranks; make them equal")
    if mesh.dp != 1 or mesh.tp != 1:
        raise ValueError(f"train runs pipelines only as yet: got dp={mesh.dp}, tp={mesh.tp}; leave both at 1")


def _total_loss(records: list[Record]) -> float:
    shares = {microbatch: share for record in records for microbatch, share in record.losses.items()}
    return sum(shares[microbatch] for microbatch in sorted(shares))


def _trace(schedule: Schedule, clock: str, records: list[Record]) -> Trace:
    spans = tuple(span for record in records for span in record.spans)
    return Trace(schedule.name, clock, schedule.placement.chunks_per_rank(), spans)


def _memory(steps: list[list[Record]], typical: int) -> Memory:
    peaks = tuple(max(records[rank].peak for records in steps) for rank in range(len(steps[0])))
    return Memory(peaks, tuple(tuple(record.curve) for record in steps[typical]))
