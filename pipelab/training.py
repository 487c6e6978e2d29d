"""Train a model with a schedule, for real: ranks are threads of this process in virtual time, or processes.

Read next: `ranks`, then `reference` (what the numbers must equal).
"""

import itertools
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh

from pipelab.asynchronous import check_stream, train_without_flush
from pipelab.checkpoint import Saving
from pipelab.checkpointing import policies_of
from pipelab.costs import Link, Network
from pipelab.device_mesh import from_device_mesh
from pipelab.evaluation import Evaluation
from pipelab.feed import Feed, InOrder, Listener, OfStep, Spans, Started, StepBegun, StepEnded, Tell, nobody
from pipelab.fit import check_fit
from pipelab.launcher import launch, post
from pipelab.loss import Loss, cross_entropy
from pipelab.lower import lower
from pipelab.mesh import Mesh
from pipelab.message_order import RULES, check_messages
from pipelab.optimizer import Optimizer, adamw, check_parts
from pipelab.partition import cut
from pipelab.process_rank import ProcessRank
from pipelab.ranks import Job, Ranks, usable_device
from pipelab.recompute import NONE
from pipelab.resume import Resume, continued, saving_of, starting_point
from pipelab.run import Run
from pipelab.schedule import Schedule
from pipelab.state import put_back
from pipelab.tensor_parallel import check_tensor_shards
from pipelab.validate import validate
from pipelab.virtual_ranks import VirtualRanks
from pipelab.weight_update import Rate
from pipelab.worker import split_batch
from pipelab.world import is_first, is_rank

Batch = tuple[Tensor, Tensor]
OnStep = Callable[[int, float], None]

CLOCKS = {"memory": "virtual", "gloo": "virtual", "nccl": "wall"}
"""The transports, and the clock of each unless said otherwise."""
COMMUNICATION = ("overlapped", "blocking")

NOT_CARRIED_OVER = {"model", "schedule", "mesh", "steps", "at", "resume"}
"""The arguments of `train` that a run which is reshaped does not take over."""
NO_BATCH = "there is no batch to train on; give at least one (inputs, targets)"
SLOW_IMPORTS = ("pipelab.training", "torch._dynamo")  # the first optimizer of a process imports the second


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
    starts them on this host. The clock is "virtual" or "wall" (for nccl, unless said otherwise).

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
    _refuse_mesh(mesh, schedule, link)
    check_tensor_shards(model, mesh.tp, sequence_parallel=sequence_parallel)
    _refuse_update(mesh, clip, zero, sequence_parallel)
    _refuse_evaluation(evaluation, mesh.dp * schedule.microbatches)
    if autocast not in (None, torch.bfloat16):
        raise ValueError(f"autocast is torch.bfloat16, which needs no scaling of the loss, or None: got {autocast}")
    device = usable_device(device)
    if zero or mesh.tp > 1:
        check_parts(optimizer, flat=zero, device=device)
    _refuse_machine(transport, device, comm, mesh, clock, link)
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
    launches = transport in RULES and not is_rank()
    events = Feed(feed if is_first() else None)
    batches = iter(itertools.islice(continued(batches, job.first), steps))
    first = next(batches, None)
    if first is None:
        raise ValueError(NO_BATCH)
    check_fit(job, first, memory_limit)
    job = replace(job, saving=saving_of(save, job.first))
    if job.start is not None:
        cut(model, schedule.stages, at=at)  # refuses what does not fit before the model is changed
        put_back(job.start, model)
    batches = itertools.chain([first], batches)
    with events:
        events.put(Started(schedule, mesh, job.clock, transport))
        if launches:
            run = _launch(job, list(batches), on_step, events)
        else:
            run = run_here(job, batches, lambda event: _tell(event, events, on_step))
    return run if is_rank() else replace(run, arguments=arguments)


def _tell(event: OfStep, feed: Feed, on_step: OnStep | None) -> None:
    feed.put(event)
    if on_step is not None and isinstance(event, StepEnded):
        on_step(event.step, event.loss)


def run_here(job: Job, batches: Iterable[Batch], tell: Tell = nobody) -> Run:
    """Run a job, a step for each batch, in this process, which plays all ranks or one of them."""
    batches = iter(batches)
    first = next(batches, None)
    if first is None:
        raise ValueError(NO_BATCH)
    machine: Callable[[Job, Tell], Ranks] = VirtualRanks if job.transport == "memory" else ProcessRank
    if not job.program.schedule.flush:
        return train_without_flush(job, [first, *batches], tell, machine)
    losses: list[float] = []
    evaluation, evaluations = job.evaluation, []
    with machine(job, tell) as ranks:
        ranks.warm_up(ranks.split(job.first, first))
        for step, batch in enumerate(itertools.chain([first], batches), job.first):
            microbatches = ranks.split(step, batch)
            tell(StepBegun(step))
            losses.append(ranks.step(microbatches))
            tell(StepEnded(step, losses[-1], microbatches.targets_in_all))
            if evaluation is not None and evaluation.is_due(step):
                found = [ranks.evaluate(ranks.split(step, batch)) for batch in evaluation.batches]
                evaluations.append((step, sum(found) / len(found)))
            if job.saving is not None and job.saving.due(step + 1):
                ranks.save(losses)
        if job.saving is not None:
            ranks.save(losses)
        return replace(ranks.measured(ranks.collect(), losses, state=ranks.state(losses)), evaluations=evaluations)


def _launch(job: Job, batches: list[Batch], on_step: OnStep | None, feed: Feed) -> Run:
    """Train in processes of this host, one a rank, and bring the trained model back into the caller's own."""
    cut(job.model, job.program.schedule.stages, at=job.at)  # refuses what does not fit before a process is started
    for step, batch in enumerate(batches, job.first):
        split_batch(step, batch, job.mesh.dp * job.program.schedule.microbatches)
    with InOrder(feed, job.mesh.size, job.first, flush=job.program.schedule.flush) as order:

        def on_post(rank: int, numbered: tuple[int, OfStep]) -> None:
            order.hear(rank, *numbered)
            if on_step is not None and isinstance(numbered[1], StepEnded):
                on_step(numbered[1].step, numbered[1].loss)

        (run, values), *_ = launch(
            _train_rank, job, batches, ranks=job.mesh.size, timeout=job.timeout, on_post=on_post, preload=SLOW_IMPORTS
        )
    with torch.no_grad():
        for ours, trained in zip(_values(job.model), values, strict=True):
            ours.copy_(trained)
    return replace(run, model=job.model)


def _train_rank(job: Job, batches: list[Batch]) -> tuple[Run | None, list[Tensor]]:
    """One rank of `_launch`: what it tells is posted, with a number. Steps are told by the rank that computes the loss,
    and the first brings the run home, with the values of the model: were its classes, perhaps those of a notebook cell,
    to come too, cloudpickle would give the caller's own the methods of the rank, with the globals of that moment."""
    numbers, tells = itertools.count(), int(os.environ["RANK"]) == job.program.placement.rank_of[-1]

    def tell(event: OfStep) -> None:
        if isinstance(event, Spans) or (tells and (job.fed or isinstance(event, StepEnded))):
            post((next(numbers), event))

    run = run_here(job, batches, tell)
    job.model.cpu()  # the caller has no GPU in use, and gets none
    return (replace(run, model=nn.Sequential()), _values(job.model)) if run.first else (None, [])


def _values(model: nn.Module) -> list[Tensor]:
    """What training changes in a model."""
    return [*model.parameters(), *model.state_dict().values()]


def _mesh(mesh: Mesh | DeviceMesh | None, schedule: Schedule) -> Mesh:
    if mesh is None or isinstance(mesh, Mesh):
        return mesh or Mesh(pp=schedule.ranks)
    if isinstance(mesh, DeviceMesh):
        return from_device_mesh(mesh)
    raise ValueError(f"mesh is a pipelab.Mesh or a torch DeviceMesh, as in Mesh(dp=2, pp=4): got {mesh!r}")


def _refuse_mesh(mesh: Mesh, schedule: Schedule, link: Link | Network) -> None:
    if mesh.pp != schedule.ranks:
        raise ValueError(f"the mesh has pp={mesh.pp} and the schedule {schedule.ranks} ranks; make them equal")
    if not schedule.flush and (mesh.dp, mesh.tp) != (1, 1):
        raise ValueError(
            f"{schedule.name} updates its weights after each micro-batch, so nothing is summed over replicas or shards:"
            f" got dp={mesh.dp}, tp={mesh.tp}; leave both at 1, or take 1f1b"
        )
    if isinstance(link, Network) and len(link.host_of) != mesh.size:
        raise ValueError(f"the network names the hosts of {len(link.host_of)} ranks, and the mesh has {mesh.size}")


def _refuse_update(mesh: Mesh, clip: float | None, zero: bool, sequence_parallel: bool) -> None:
    if clip is not None and not clip > 0:
        raise ValueError(f"clip is the largest norm of the gradients, and positive: got {clip}; leave it out for none")
    if zero and mesh.dp == 1:
        raise ValueError("zero shares the optimizer's state among replicas; there is one: raise dp, or leave it out")
    if sequence_parallel and mesh.tp == 1:
        raise ValueError("sequence_parallel shares tokens among tensor shards; there is one: raise tp, or leave it out")


def _refuse_evaluation(evaluation: Evaluation | None, microbatches: int) -> None:
    for batch in evaluation.batches if evaluation is not None else ():
        try:
            split_batch(0, batch, microbatches)
        except ValueError as error:
            raise ValueError(f"evaluation, {error}") from error


def _refuse_machine(
    transport: str, device: torch.device, comm: str, mesh: Mesh, clock: str | None, link: Link | Network
) -> None:
    if transport not in CLOCKS:
        raise ValueError(f"transport {transport} is not there; it is one of {', '.join(CLOCKS)}")
    if comm not in COMMUNICATION:
        raise ValueError(f"comm is {' or '.join(map(repr, COMMUNICATION))}: got {comm!r}")
    if torch.is_autocast_enabled(device.type):
        raise ValueError("torch.autocast around train does not reach its ranks; give train autocast=torch.bfloat16")
    if transport == "nccl" and clock == "virtual":
        raise ValueError("transport nccl runs on the wall clock; use memory or gloo for virtual time")
    if transport == "nccl" and link != Link():
        raise ValueError("transport nccl has real links: leave latency and bandwidth out, or use memory or gloo")
    if transport == "nccl":
        here = int(os.environ.get("LOCAL_WORLD_SIZE", mesh.size)) if is_rank() else mesh.size
        gpus = torch.cuda.device_count()
        if device.type != "cuda":
            raise ValueError(f"transport nccl moves data between GPUs: got device {device}; use gloo, or device cuda")
        if gpus < here:
            raise ValueError(f"transport nccl needs a GPU a rank: {here} ranks and {gpus} GPUs on this host; use gloo")
