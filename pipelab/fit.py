"""Will it fit? What a run is predicted to hold beside what there is, and what to do where it is too much.

Read first: `memory_prediction`.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from functools import partial
from math import inf
from typing import NamedTuple

import torch
from torch import Tensor

from pipelab.balance import STATES
from pipelab.checkpointing import policies_of
from pipelab.holdings import PARAMETERS
from pipelab.host import available_memory, free_gpu_memory
from pipelab.job import Job
from pipelab.lower import lower
from pipelab.memory_prediction import Prediction, predict_memory
from pipelab.microbatches import cut_batch
from pipelab.recompute import FULL, NONE
from pipelab.schedules import build
from pipelab.units import digits
from pipelab.world import is_rank

LEAN = ("1f1b", "v-half", "v-min")
"""The schedules that are tried instead where one does not fit; the later take less, and longer."""
ENOUGH = 2
"""Remedies that are told."""
Batch = tuple[Tensor, Tensor]


def check_fit(job: Job, batch: Batch, limit: float | None = None) -> None:
    """Raise ValueError, with the remedy found, where a run of this job is predicted not to fit into memory.

    `limit` bounds the bytes of each rank. Without one the bound is what the host has left, or the GPU, for all ranks
    that share it; then nothing is predicted where a rough guess says that there is plenty, and a model that cannot be
    predicted passes.
    """
    cut_batch(0, batch, job.mesh.dp * job.program.schedule.microbatches)  # refuses what is no batch of a step
    if limit is not None and not limit > 0:
        raise ValueError(f"memory_limit must be positive: got {limit:g}; leave it out for what the machine has")
    room = memory_left(job) if limit is None else limit
    if room is None or room == inf or (limit is None and rough_bytes(job, batch) <= room / 2):
        return
    try:
        held = _predicted(job, batch)
    except ValueError:
        if limit is not None:
            raise
        return
    need_of = _need_of_a_place if limit is None else _need_of_a_rank
    need = need_of(job, held)
    if need.bytes > room:
        causes = held.causes[need.rank]
        cause = max(causes, key=lambda cause: causes[cause])
        what = f"{need.who} {_gib(need.bytes)} of {_gib(room)}, {cause} above all"
        raise ValueError(f"will not fit: {what}; {_remedy(job, batch, room, need_of)}")


class _Need(NamedTuple):
    """What is needed in one place, by whom, and which rank's need to look at."""

    bytes: int
    who: str
    rank: int


def _need_of_a_rank(job: Job, held: Prediction) -> _Need:
    """Where each rank has a limit: that of the fullest."""
    most = max(held.totals)
    rank = held.totals.index(most)
    return _Need(most, f"rank {rank} needs", rank)


def _need_of_a_place(job: Job, held: Prediction) -> _Need:
    """Where ranks share a host, or a GPU: that of the fullest, without the parameters that are there already."""
    size = job.mesh.size
    alone = job.transport == "memory" and (job.mesh.dp, job.mesh.tp) == (1, 1)  # else ranks have copies
    there = alone and all(p.device.type == job.device.type for p in job.model.parameters())
    totals = [
        total + waiting - (causes[PARAMETERS] if there else 0)
        for total, waiting, causes in zip(held.totals, held.waiting, held.causes, strict=True)
    ]
    needs = []
    for ranks in _sharing(job):
        own = [job.mesh.coordinates(rank)[1] for rank in ranks if rank < size]
        who = f"rank {ranks[0]} needs" if len(own) == 1 else f"the {len(own)} ranks that share it need"
        needs.append(_Need(sum(totals[rank] for rank in own), who, max(own, key=lambda rank: totals[rank])))
    return max(needs)


def _sharing(job: Job) -> list[list[int]]:
    """The global ranks of this host that share one memory."""
    first, size = 0, job.mesh.size
    if is_rank():
        local = int(os.environ.get("LOCAL_RANK", "0"))
        first, size = int(os.environ["RANK"]) - local, int(os.environ.get("LOCAL_WORLD_SIZE", size))
    places = torch.cuda.device_count() if job.device.type == "cuda" and job.transport != "memory" else 1
    return [list(range(first + place, first + size, places)) for place in range(min(places, size))]


def memory_left(job: Job) -> int | None:
    """The bytes that this host has left, or for a run on GPUs the fullest of them; None where nobody says."""
    if job.device.type == "cpu":
        return available_memory()
    if job.transport == "memory" or is_rank():
        index = job.device.index or 0
        free, _ = torch.cuda.mem_get_info(index)
        return free + torch.cuda.memory_reserved(index) - torch.cuda.memory_allocated(index)
    return free_gpu_memory()  # a caller of ranks leaves the GPUs alone


def rough_bytes(job: Job, batch: Batch) -> int:
    """More than a run holds, as a rule: every number that a matrix takes or gives, four times, for the whole batch."""
    parameters = list(job.model.parameters())
    features = sum(p.shape[0] + p.shape[1] for p in parameters if p.dim() >= 2)
    inputs = batch[0]
    places = inputs.numel() // (inputs.shape[-1] if inputs.is_floating_point() and inputs.dim() > 1 else 1)
    itemsize = max((p.itemsize for p in parameters), default=0)
    return STATES * sum(p.nbytes for p in parameters) + 4 * places * features * itemsize


def _predicted(job: Job, batch: Batch) -> Prediction:
    assert job.loss is not None and job.optimizer is not None
    return predict_memory(
        job.model, job.program.schedule, batch, job.mesh, loss=job.loss, optimizer=job.optimizer, at=job.at,
        device=job.device.type, transport=job.transport, zero=job.zero,
        sequence_parallel=job.sequence_parallel, checkpointing=job.checkpointing or NONE, hoist=job.hoist,
        make_stage=partial(job.make_stage, lower_precision=job.autocast),
    )  # fmt: skip


def _remedy(job: Job, batch: Batch, room: float, need_of: Callable[[Job, Prediction], _Need]) -> str:
    """The first that fit instead, by prediction; or what comes nearest."""
    fitting, found = [], []
    for what, other in _others(job, batch):
        size = need_of(other, _predicted(other, batch)).bytes
        found.append((size, what))
        if size <= room:
            fitting.append(f"{what} would need {_gib(size)}")
        if len(fitting) == ENOUGH:
            break
    if fitting:
        return "; ".join(fitting)
    nearest = f"; nearest comes {min(found)[1]}, with {_gib(min(found)[0])}" if found else ""
    return f"take smaller micro-batches, more ranks, or a smaller model{nearest}"


def _others(job: Job, batch: Batch) -> Iterator[tuple[str, Job]]:
    """What might fit instead: a leaner schedule, smaller micro-batches, more ranks."""
    schedule = job.program.schedule
    ranks, microbatches, name = schedule.ranks, schedule.microbatches, schedule.name
    chunks = schedule.stages // ranks
    rows = len(batch[0]) // (job.mesh.dp * microbatches)
    counts = sorted({2 * microbatches, rows * microbatches}) if rows > 1 else []
    policies = set(job.checkpointing) - {NONE}
    policy = policies.pop() if len(policies) == 1 else NONE
    leaner = [(f"{lean} instead of {name}", lean, ranks, microbatches, None, policy) for lean in LEAN if lean != name]
    tries: list[tuple[str, str, int, int, int | None, str]] = [
        *leaner[:1],
        *((f"{count} micro-batches of the same batch", name, ranks, count, chunks, policy) for count in counts),
        *leaner[1:],
        *[("checkpointing full", name, ranks, microbatches, chunks, FULL)] * (policy == NONE),
        (f"{2 * ranks} ranks", name, 2 * ranks, microbatches, chunks, policy),
    ]
    for what, other, pp, count, parts, recomputing in tries:
        with suppress(ValueError):  # rows from a file have no name, and not every name takes every number
            changed = build(other, pp, count, parts)
            if changed.stages <= len(job.model):
                mesh = replace(job.mesh, pp=pp)
                by_stage = policies_of(job.model, changed.stages, recomputing)
                program = lower(changed, mesh, checkpointing=by_stage, hoist=job.hoist)
                yield what, replace(job, program=program, mesh=mesh, at=None, checkpointing=by_stage)


def _gib(size: float) -> str:
    """Bytes in words: GiB, or MiB where that is less than one."""
    return f"{digits(size / 2**30)} GiB" if size >= 2**30 else f"{digits(size / 2**20)} MiB"
