"""How does one process play many ranks? Each rank is a thread with its own worker, stages, clock and optimizer.

Read next: `worker` (what a rank does), `stage` (what it does it with).
"""

import time
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from contextlib import ExitStack

import torch
from torch import Tensor, nn

from pipelab.action import W
from pipelab.clock import Clock, Turn, VirtualClock, WallClock, undisturbed
from pipelab.collector import collector_at_rest
from pipelab.costs import Link
from pipelab.failure import Fate, RunError, deadlock, describe
from pipelab.loss import Loss, count_targets
from pipelab.lower import Program
from pipelab.memory import ActivationMeter
from pipelab.optimizer import Optimizer
from pipelab.partition import cut
from pipelab.randomness import Randomness
from pipelab.stage import Stage
from pipelab.transport import Aborted
from pipelab.transport.memory import Mailboxes
from pipelab.worker import Microbatches, Record, Worker, split_batch


class VirtualRanks:
    """The virtual ranks of one run: their workers, threads and optimizers; a context, so that all are given back."""

    def __init__(
        self, model: nn.Sequential, program: Program, loss: Loss | None, optimizer: Optimizer | None, seed: int,
        device: torch.device, clock: str, link: Link, at: list[int] | None, timeout: float,
        make_stage: Callable[..., Stage] = Stage,
    ) -> None:  # fmt: skip
        self.model = model
        self.program = program
        self.device = device
        self.mailboxes = Mailboxes(timeout)
        slices = cut(model, program.schedule.stages, at=at)
        clocks = _clocks(clock, device, program.placement.ranks)
        self.workers = [
            Worker(rank, program, stages, transport=self.mailboxes, clock=clocks[rank], meter=meter, link=link)
            for rank, (stages, meter) in enumerate(_stages(program, slices, loss, Randomness(seed), make_stage))
        ]
        own = [[p for stage in worker.stages.values() for p in stage.layers.parameters()] for worker in self.workers]
        self.optimizers = [optimizer(parameters) for parameters in own if parameters and optimizer is not None]
        self._resources = ExitStack()

    def __enter__(self) -> "VirtualRanks":
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
        if not (isinstance(batch, tuple | list) and len(batch) == 2 and all(isinstance(t, Tensor) for t in batch)):
            raise ValueError(f"step {step}: a batch is a pair of tensors (inputs, targets): got {type(batch).__name__}")
        inputs, targets = (tensor.to(self.device) for tensor in batch)
        return split_batch(step, (inputs, targets), self.program.schedule.microbatches, count_targets(targets))

    def warm_up(self, batch: Microbatches) -> None:
        """One step whose gradients and buffers are thrown away: first calls are slow and would be read as bubbles."""
        before = {name: buffer.clone() for name, buffer in self.model.named_buffers()}
        self._run(batch)
        for name, buffer in before.items():  # not those that a first forward makes, such as a cache of positions
            self.model.get_buffer(name).copy_(buffer)

    def step(self, batch: Microbatches) -> list[Record]:
        """Gradients of all micro-batches, then one step of every rank's optimizer."""
        records = self._run(batch)
        for optimizer in self.optimizers:
            optimizer.step()
        return records

    def run(self, batch: Microbatches) -> list[Record]:
        """Execute the program once, with no update after it: it has none, or its own."""
        return self._run(batch)

    def _run(self, batch: Microbatches) -> list[Record]:
        for parameter in self.model.parameters():
            parameter.grad = None
        origin = time.perf_counter()
        for worker in self.workers:
            worker.clock.restart(origin)
        with collector_at_rest():  # a full collection would be read as the work of whichever action it falls into
            futures = [self.pool.submit(worker.run, batch) for worker in self.workers]
            done, _ = wait(futures, return_when=FIRST_EXCEPTION)
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


def _stages(
    program: Program,
    slices: list[nn.Sequential],
    loss: Loss | None,
    randomness: Randomness,
    make_stage: Callable[..., Stage],
) -> Iterator[tuple[dict[int, Stage], ActivationMeter]]:
    """For each rank its stages and the meter that counts what they keep."""
    split = {action.stage for _, _, action in program.schedule.actions() if action.kind == W}
    last = program.schedule.stages - 1
    for rank in range(program.placement.ranks):
        own = program.placement.stages_on(rank)
        meter = ActivationMeter(t for stage in own for t in (*slices[stage].parameters(), *slices[stage].buffers()))
        yield (
            {
                stage: make_stage(
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
