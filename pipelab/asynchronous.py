"""What if the pipeline is never flushed? All steps are one stream of micro-batches, each of which updates the weights.

Read first: `schedules/pipedream` (the order), then `weight_versions` (what a stage keeps).
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

from torch import Tensor

from pipelab.feed import StepBegun, StepEnded, Tell
from pipelab.job import Job
from pipelab.loss import count_targets
from pipelab.lower import lower
from pipelab.microbatches import Microbatches
from pipelab.ranks import Ranks
from pipelab.record import Record
from pipelab.run import Run
from pipelab.schedule import Schedule
from pipelab.schedules import build, resized
from pipelab.weight_versions import UpdatingStage, Versions


def train_without_flush(
    job: Job, batches: Sequence[tuple[Tensor, Tensor]], tell: Tell, machine: Callable[[Job, Tell], Ranks]
) -> Run:
    """What `train` does with a schedule without a flush: K batches of M micro-batches are one schedule of K x M.

    Each micro-batch's loss is the mean over its own targets, and its gradient is an update of its own. So a step, M
    micro-batches, moves the weights M times; its loss is the mean over all its targets. A listener hears one long step
    of spans, and the losses as they come. Raises as `train` does.
    """
    schedule, optimizer = job.program.schedule, job.optimizer
    assert optimizer is not None
    stream = build(schedule.name, schedule.ranks, len(batches) * schedule.microbatches)
    rows = partial(lower, checkpointing=job.checkpointing, hoist=job.hoist)
    with machine(replace(job, program=rows(replace(schedule, flush=True)), optimizer=None, fed=False), tell) as ranks:
        steps = [ranks.split(step, batch) for step, batch in enumerate(batches)]
        ranks.warm_up(steps[0])
    told = _Losses(steps, tell)
    make_stage = partial(UpdatingStage, optimizer=optimizer)
    with machine(replace(job, program=rows(stream), optimizer=None, make_stage=make_stage), tell) as ranks:
        tell(StepBegun(0))
        ranks.step(_joined(steps, told))
        (records,) = collected = ranks.collect()
        told.at_last(records)
        return ranks.measured(collected, told.steps, _versions(stream, records))


def check_stream(schedule: Schedule, **between: object) -> None:
    """Raise ValueError for a schedule that cannot be written for the micro-batches of all steps, and where anything is
    asked for that has its place `between` two steps, such as watch=True."""
    name = schedule.name
    if resized(schedule, schedule.ranks, schedule.microbatches) is None:
        raise ValueError(
            f"{name} says flush=False, but is not a named schedule that can be written for more micro-batches; "
            "build pipedream, or leave flush at True"
        )
    for what, asked in between.items():
        if asked:
            raise ValueError(
                f"{what} works between two steps, and {name} has nothing between them; leave it out, or take 1f1b"
            )


def _joined(steps: Sequence[Microbatches], told: "_Losses") -> Microbatches:
    """The micro-batches of all steps as one stream; each has only its own targets to share its loss among."""
    inputs = [x for step in steps for x in step.inputs]
    targets = [y for step in steps for y in step.targets]
    return Microbatches(0, inputs, targets, [count_targets(y) for y in targets], told)


class _Losses:
    """Hears the losses of the micro-batches in their order, and puts them together into those of the steps."""

    def __init__(self, steps: Sequence[Microbatches], tell: Tell) -> None:
        self.steps: list[float] = []
        self._shares = [[count_targets(y) / max(step.targets_in_all, 1) for y in step.targets] for step in steps]
        self._targets = [step.targets_in_all for step in steps]
        self._heard: list[float] = []
        self._tell = tell

    def __call__(self, microbatch: int, loss: float) -> None:
        shares = self._shares[len(self.steps)]
        self._heard.append(loss * shares[len(self._heard)])
        if len(self._heard) == len(shares):
            self.steps.append(sum(self._heard))
            self._heard = []
            number = len(self.steps) - 1
            self._tell(StepEnded(number, self.steps[-1], self._targets[number]))

    def at_last(self, records: Sequence[Record]) -> None:
        """Hear all at the end, in a process that has not computed them itself."""
        if not self.steps:
            for microbatch, loss in sorted(item for record in records for item in record.losses.items()):
                self(microbatch, loss)


def _versions(schedule: Schedule, records: Sequence[Record]) -> Versions:
    staleness: list[list[int]] = [[] for _ in range(schedule.stages)]
    held: list[list[int]] = [[] for _ in range(schedule.stages)]
    for update in (update for record in records for update in record.updates):
        staleness[update.stage].append(update.staleness)
        held[update.stage].append(update.held)
    own = [schedule.placement.stages_on(rank) for rank in range(schedule.ranks)]
    return Versions(
        staleness=tuple(map(tuple, staleness)),
        peaks=tuple(sum(max(held[stage]) for stage in stages) for stages in own),
        weights=tuple(sum(held[stage][-1] for stage in stages) for stages in own),  # in the end nobody needs an old one
        update_seconds=tuple(
            float(sum(span.end - span.start for span in record.spans if span.lane == "memory")) for record in records
        ),
    )
