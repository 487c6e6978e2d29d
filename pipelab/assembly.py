"""Of what is a rank made? Its layers (a copy, a shard, or the caller's own), stages, weight update and worker.

Read next: `worker` (what it does), `ranks` (all of them together).
"""

import copy
from collections.abc import Iterable, Mapping

from torch import nn

from pipelab.action import Action, R, W
from pipelab.checkpointing import Checkpointing, block_names
from pipelab.cuda_memory import Allocator
from pipelab.evaluation import ForwardStage
from pipelab.job import Job
from pipelab.memory import ActivationMeter
from pipelab.parts import take_up
from pipelab.place import Place
from pipelab.randomness import Randomness
from pipelab.stage import Stage
from pipelab.tensor_parallel import loss_of, shard
from pipelab.tied import tie
from pipelab.watch import Watch
from pipelab.weight_update import WeightUpdate
from pipelab.worker import Worker


def make_worker(job: Job, place: Place) -> tuple[Worker, WeightUpdate | None]:
    """The rank at this place, and what updates its weights: nothing, where the job has no optimizer."""
    _, rank, _ = job.mesh.coordinates(place.global_rank)
    layers = _layers(job, place, job.program.placement.stages_on(rank))
    tied = tie(layers, job.ties)
    update = None
    if job.optimizer is not None:
        update = WeightUpdate(place, layers, tied, job.optimizer, clip=job.clip, rate=job.rate, zero=job.zero)
        if job.start is not None:
            index = 0 if place.tp is None else place.tp.index
            take_up(job.start, list(layers.values()), update, (index, job.mesh.tp))
    stages, meter = _stages(job, place, layers)
    worker = Worker(
        rank, job.program, stages, transport=place.transport, clock=place.clock, meter=meter, link=job.link,
        members=job.mesh.group("pp", place.global_rank), blocking=job.blocking, tp=place.tp,
        sums=None if update is None else update.sums,
    )  # fmt: skip
    return worker, update


def make_evaluator(job: Job, place: Place, worker: Worker) -> Worker:
    """A rank that runs the forwards alone, through the layers of the one that trains."""
    meter = ActivationMeter()
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


def _layers(job: Job, place: Place, stages: Iterable[int]) -> dict[int, nn.Sequential]:
    """The layers of a rank's stages, to have for itself: this shard's part of them, where there are several."""
    own: dict[int, nn.Sequential]
    if place.tp is not None:
        wide = job.sequence_parallel
        own = {stage: shard(job.slices[stage], place.tp, sequence_parallel=wide) for stage in stages}
    elif job.in_place:
        own = {stage: job.slices[stage] for stage in stages}
    else:
        own = {stage: copy.deepcopy(job.slices[stage]) for stage in stages}
    return {stage: layers.to(job.device) for stage, layers in own.items()}


def _stages(job: Job, place: Place, own: Mapping[int, nn.Sequential]) -> tuple[dict[int, Stage], ActivationMeter]:
    """The stages of a rank, and the meter that counts what they keep."""
    schedule, tp = job.program.schedule, place.tp
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
            checkpointing=_checkpointing(job, place, stage, layers, meter),
        )
        for stage, layers in own.items()
    }
    return stages, meter


def _checkpointing(
    job: Job, place: Place, stage: int, layers: nn.Sequential, meter: ActivationMeter
) -> Checkpointing | None:
    """What a stage recomputes: the program says of which micro-batches, counted as a replica counts its own."""
    replica, rank, _ = job.mesh.coordinates(place.global_rank)
    first = replica * job.program.schedule.microbatches
    row = [step for step in job.program.rows[rank] if isinstance(step, Action) and step.kind == R]
    again = [first + microbatch for owner, _, microbatch in row if owner == stage]
    if not again:
        return None
    return Checkpointing(layers, job.checkpointing[stage], block_names(job.model), again, meter)
