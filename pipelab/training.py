"""Train a model with a schedule, for real: ranks are threads of this process in virtual time, or processes.

Read first: `running`. Read next: `reference` (what the numbers must equal).
"""

import itertools
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from math import inf

import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh

from pipelab.asynchronous import check_stream
from pipelab.checkpoint import Saving
from pipelab.checkpointing import policies_of
from pipelab.costs import Link, Network
from pipelab.data import Batches
from pipelab.device_mesh import from_device_mesh
from pipelab.evaluation import Evaluation
from pipelab.feed import Feed, Listener, OfStep, Started, StepEnded
from pipelab.fit import check_fit
from pipelab.job import Job, own_device, usable_device
from pipelab.loss import Loss, cross_entropy
from pipelab.lower import lower
from pipelab.mesh import Mesh
from pipelab.message_order import RULES, check_messages
from pipelab.optimizer import Optimizer, adamw, check_parts
from pipelab.partition import cut
from pipelab.recompute import NONE
from pipelab.refusals import (
    CLOCKS,
    refuse_evaluation,
    refuse_machine,
    refuse_mesh,
    refuse_shapes_alone,
    refuse_update,
)
from pipelab.resume import Resume, continued, saving_of, starting_point
from pipelab.run import Run
from pipelab.running import NO_BATCH, Batch, OnStep, run_here, run_launched
from pipelab.schedule import Schedule
from pipelab.state import put_back
from pipelab.tensor_parallel import check_tensor_shards
from pipelab.validate import validate
from pipelab.weight_update import Rate
from pipelab.world import is_first, is_rank

NOT_CARRIED_OVER = {"model", "schedule", "mesh", "steps", "at", "resume"}
"""The arguments of `train` that a run which is reshaped does not take over."""


def train(
    model: nn.Sequential,
    batches: Iterable[Batch],
    schedule: Schedule,
    mesh: Mesh | DeviceMesh | None = None,
    *,
    loss: Loss = cross_entropy,
    optimizer: Optimizer = adamw,
    steps: int | None = None,
    seed: int = 0,
    device: str | torch.device = "cpu",
    transport: str = "memory",
    clock: str | None = None,
    comm: str = "overlapped",
    link: Link | Network = Link(),  # noqa: B008 (a frozen value)
    at: list[int] | None = None,
    memory_limit: float | None = None,
    checkpointing: str | Sequence[str] = NONE,
    hoist: int = 0,
    on_step: OnStep | None = None,
    feed: Listener | None = None,
    timeout: float = 600.0,
    watch: bool = False,
    evaluation: Evaluation | None = None,
    autocast: torch.dtype | None = None,
    clip: float | None = None,
    rate: Rate | None = None,
    zero: bool = False,
    sequence_parallel: bool = False,
    save: str | os.PathLike[str] | Saving | None = None,
    resume: Resume | None = None,
) -> Run:
    """Train `model`, cut into the schedule's stages, one step per batch; it is changed in place, as training does.

    `batches` gives (inputs, targets); each is cut into the schedule's M micro-batches, on a mesh with replicas into dp
    x M: replica 0 takes the first M. `steps` bounds how many are taken. `at` cuts the model by hand (first layer of
    each stage after the first). `link` models the time of messages and collectives (a `Network`: fast within a host,
    slow between); with comm="blocking" a rank waits until each has arrived, "overlapped" goes on. A warm-up step before
    the first leaves no trace: parameters, buffers, generators and batches are as they were. With `watch` norms of
    activations and gradients are noted (`Run.norms`), and the first value that is not finite ends the run, with its
    layer's name, as do replicas whose weights are no longer equal, bit for bit. `on_step(step, loss)` is called here
    after each step; `feed(event)`, in a thread of its own, is told spans, memory and losses as they come, and can never
    hold the ranks up (see `pipelab.feed`).
    `evaluation` is what to evaluate on between steps (`Run.evaluations`).
    `checkpointing` is a policy, or one a stage, of which activations are recomputed (`pipelab.recompute` lists them),
    and `hoist` puts that forward, as in `lower`.
    `autocast` (torch.bfloat16) lets layers compute in lower precision where that is safe; weights stay as they are.
    A run that is predicted to need more memory than there is does not begin (see `fit`); `memory_limit` is what one
    rank may hold, in bytes, math.inf for no such check.
    `clip` bounds the norm of all gradients together, `rate(step)` is a factor of the learning rate.
    `save` is a folder for a checkpoint after the last step, or a `Saving`, which says how often. `resume` is such a
    folder, or a run of this session: training goes on where that one ended, whatever its schedule and mesh, with steps
    numbered on. Then batches that can be indexed are continued there; an iterator is what is yet to come.
    A schedule without a flush, such as pipedream, takes all batches at once; see `asynchronous`.

    On a `mesh` (or torch DeviceMesh) with dp replicas and tp tensor shards the same model is trained by dp x pp x tp
    ranks (see `data_parallel`, `tensor_parallel`); with `zero` each replica updates, and keeps the optimizer's state
    of, one share of the weights; with `sequence_parallel` tensor shards share the tokens where they do not share the
    features.

    transport="memory" plays all ranks in this process. With "gloo" (CPU) or "nccl" (a GPU each) they are processes: in
    one that torchrun started, `train` runs its rank, and every rank calls it with the same arguments; otherwise it
    starts them on this host: they draw `Batches` (of `pipelab.data`) for themselves, and are sent all of any others
    before the first step. The clock is "virtual" or "wall" (for nccl, unless said otherwise). A run may be long: of
    every step its figures are kept, and the spans of the last 100 (see `Run`).

    Raises ScheduleError or ValueError before any work when something does not fit, RunError when a rank fails, and in
    a rank that stops because another failed, Aborted.

    >>> from pipelab import build
    >>> model = nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 3))
    >>> batch = torch.ones(6, 4), torch.zeros(6, dtype=torch.int64)
    >>> run = train(model, [batch] * 2, build("1f1b", ranks=2, microbatches=3))
    >>> len(run.losses), run.clock, run.losses[1] < run.losses[0]
    (2, 'virtual', True)
    """
    arguments = {name: value for name, value in locals().items() if name not in NOT_CARRIED_OVER}  # all others
    validate(schedule)
    if schedule.forward_only:
        raise ValueError(f"{schedule.name} has no backward, so nothing is learned; it is for pipelab.inference")
    if not schedule.flush:
        check_stream(
            schedule, watch=watch, clip=clip, rate=rate, evaluation=evaluation, save=save is not None,
            resume=resume is not None,
        )  # fmt: skip
    mesh = _mesh(mesh, schedule)
    refuse_mesh(mesh, schedule, link)
    check_tensor_shards(model, mesh.tp, sequence_parallel=sequence_parallel)
    refuse_update(mesh, clip, zero, sequence_parallel)
    refuse_evaluation(evaluation, mesh.dp * schedule.microbatches)
    if autocast not in (None, torch.bfloat16):
        raise ValueError(f"autocast is torch.bfloat16, which needs no scaling of the loss, or None: got {autocast}")
    if not 0 < timeout < inf:
        raise ValueError(f"timeout is how many seconds a rank may wait for another, above 0: got {timeout}")
    device, launches = usable_device(device), transport in RULES and not is_rank()
    if is_rank():
        device = own_device(device)  # before anything starts CUDA, and on the first GPU for every rank
    if zero or mesh.tp > 1:
        check_parts(optimizer, flat=zero, device=torch.device("cpu") if launches else device)
    refuse_machine(transport, device, comm, mesh, clock, link)
    by_stage = policies_of(model, schedule.stages, checkpointing, at)
    job = Job(
        model=model, program=lower(schedule, mesh, checkpointing=by_stage, hoist=hoist), checkpointing=by_stage,
        hoist=hoist, mesh=mesh, loss=loss, optimizer=optimizer, seed=seed, device=device,
        transport=transport, clock=clock or CLOCKS[transport], link=link, blocking=comm == "blocking", at=at,
        timeout=timeout, watch=watch, fed=feed is not None, evaluation=evaluation, autocast=autocast, clip=clip,
        rate=rate, zero=zero, sequence_parallel=sequence_parallel,
        start=starting_point(resume, model, optimizer, seed),
    )  # fmt: skip
    if not schedule.flush and job.ties:
        (stage, name), (other, its) = job.ties[0][:2]
        raise ValueError(
            f"parameter {name} of stage {stage} is also {its} of stage {other}, and {schedule.name} updates each stage"
            " by itself; give each layer its own, or take 1f1b"
        )
    if transport in RULES:
        check_messages(job.program, RULES[transport], blocking=job.blocking)
    events = Feed(feed if is_first() else None)
    given: Iterator[Batch] = itertools.islice(continued(batches, job.first), steps)
    first = next(given, None)
    if first is None:
        raise ValueError(NO_BATCH)
    check_fit(job, first, memory_limit)
    refuse_shapes_alone(model)
    job = replace(job, saving=saving_of(save, job.first))
    if job.start is not None:
        cut(model, schedule.stages, at=at)  # refuses what does not fit before the model is changed
        put_back(job.start, model)
    given = itertools.chain([first], given)
    with events:
        events.put(Started(schedule, mesh, job.clock, transport))
        if launches:
            sent = batches if isinstance(batches, Batches) else list(given)
            run = run_launched(job, sent, steps, on_step, events)
        else:
            run = run_here(job, given, lambda event: _tell(event, events, on_step))
    return run if is_rank() else replace(run, arguments=arguments)


def _tell(event: OfStep, feed: Feed, on_step: OnStep | None) -> None:
    feed.put(event)
    if on_step is not None and isinstance(event, StepEnded):
        on_step(event.step, event.loss)


def _mesh(mesh: Mesh | DeviceMesh | None, schedule: Schedule) -> Mesh:
    if mesh is None or isinstance(mesh, Mesh):
        return mesh or Mesh(pp=schedule.ranks)
    if isinstance(mesh, DeviceMesh):
        return from_device_mesh(mesh)
    raise ValueError(f"mesh is a pipelab.Mesh or a torch DeviceMesh, as in Mesh(dp=2, pp=4): got {mesh!r}")
