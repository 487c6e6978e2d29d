"""What if the pipeline is never flushed? All steps are one stream of micro-batches, each of which updates the weights.

Read first: `schedules/pipedream` (the order), then `weight_versions` (what a stage keeps).
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor, nn

from pipelab.costs import Link
from pipelab.loss import Loss, count_targets
from pipelab.lower import lower
from pipelab.mesh import Mesh
from pipelab.optimizer import Optimizer
from pipelab.run import Run
from pipelab.schedule import Schedule
from pipelab.schedules import GENERATORS, build
from pipelab.virtual_ranks import VirtualRanks
from pipelab.weight_versions import UpdatingStage, Versions
from pipelab.worker import Microbatches, Record, Worker, memory_of, trace_of


def train_without_flush(
    model: nn.Sequential, batches: Sequence[tuple[Tensor, Tensor]], schedule: Schedule, mesh: Mesh, *,
    loss: Loss, optimizer: Optimizer, seed: int, device: torch.device, clock: str, link: Link, at: list[int] | None,
    on_step: Callable[[int, float], None] | None, timeout: float,
) -> Run:  # fmt: skip
    """What `train` does with a schedule without a flush: K batches of M micro-batches are one schedule of K x M.

    Each micro-batch's loss is the mean over its own targets, and its gradient is an update of its own. So a step, M
    micro-batches, moves the weights M times; its loss is the mean over all its targets. Raises as `train` does.
    """
    stream = _of_all_steps(schedule, len(batches))
    with VirtualRanks(
        model, lower(replace(schedule, flush=True)), loss, None, seed, device, clock, link, at, timeout
    ) as ranks:
        ranks.warm_up(ranks.split(0, batches[0]))
        steps = [ranks.split(step, batch) for step, batch in enumerate(batches)]
    told = _Losses(steps, on_step)
    make_stage = partial(UpdatingStage, optimizer=optimizer)
    with VirtualRanks(model, lower(stream), loss, None, seed, device, clock, link, at, timeout, make_stage) as ranks:
        records = ranks.run(_joined(steps, told))
        versions = _versions(stream, records, ranks.workers)
    trace = trace_of(stream, clock, records)
    memory = memory_of([records], 0)
    return Run(stream, mesh, told.steps, [trace], trace, memory, model, versions)


def _of_all_steps(schedule: Schedule, steps: int) -> Schedule:
    """The same schedule with the micro-batches of all steps."""
    name, ranks, microbatches = schedule.name, schedule.ranks, schedule.microbatches
    if name not in GENERATORS or build(name, ranks, microbatches) != schedule:
        raise ValueError(
            f"{name} says flush=False, but is not a named schedule that can be written for more micro-batches; "
            "build pipedream, or leave flush at True"
        )
    return build(name, ranks, steps * microbatches)


def _joined(steps: Sequence[Microbatches], told: "_Losses") -> Microbatches:
    """The micro-batches of all steps as one stream; each has only its own targets to share its loss among."""
    inputs = [x for step in steps for x in step.inputs]
    targets = [y for step in steps for y in step.targets]
    return Microbatches(0, inputs, targets, [count_targets(y) for y in targets], told)


class _Losses:
    """Hears the losses of the micro-batches in their order, and puts them together into those of the steps."""

    def __init__(self, steps: Sequence[Microbatches], on_step: Callable[[int, float], None] | None) -> None:
        self.steps: list[float] = []
        self._shares = [[count_targets(y) / max(step.totals[0], 1) for y in step.targets] for step in steps]
        self._heard: list[float] = []
        self._on_step = on_step

    def __call__(self, microbatch: int, loss: float) -> None:
        shares = self._shares[len(self.steps)]
        self._heard.append(loss * shares[len(self._heard)])
        if len(self._heard) == len(shares):
            self.steps.append(sum(self._heard))
            self._heard = []
            if self._on_step is not None:
                self._on_step(len(self.steps) - 1, self.steps[-1])


def _versions(schedule: Schedule, records: Sequence[Record], workers: Sequence[Worker]) -> Versions:
    staleness: list[list[int]] = [[] for _ in range(schedule.stages)]
    for update in (update for record in records for update in record.updates):
        staleness[update.stage].append(update.staleness)
    own = [[s.versions for s in worker.stages.values() if isinstance(s, UpdatingStage)] for worker in workers]
    return Versions(
        staleness=tuple(map(tuple, staleness)),
        peaks=tuple(sum(versions.peak for versions in stages) for stages in own),
        weights=tuple(sum(versions.one for versions in stages) for stages in own),
        update_seconds=tuple(sum(update.seconds for update in record.updates) for record in records),
    )
