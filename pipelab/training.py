"""Train a model with a schedule, for real: threads of this process are the ranks, and virtual time is their clock.

Read next: `virtual_ranks`, then `reference` (what the numbers must equal).
"""

import itertools
from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

from pipelab.asynchronous import train_without_flush
from pipelab.costs import Link
from pipelab.loss import Loss, cross_entropy
from pipelab.lower import lower
from pipelab.mesh import Mesh
from pipelab.optimizer import Optimizer, adamw
from pipelab.run import Run
from pipelab.schedule import Schedule
from pipelab.trace import median_trace
from pipelab.validate import validate
from pipelab.virtual_ranks import VirtualRanks
from pipelab.worker import Record, memory_of, trace_of


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
    A schedule without a flush, such as pipedream, takes all batches at once; see `asynchronous`.
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
    if schedule.forward_only:
        raise ValueError(f"{schedule.name} has no backward, so nothing is learned; it is for pipelab.inference")
    mesh = mesh or Mesh(pp=schedule.ranks)
    _refuse_mesh(mesh, schedule)
    steps_of = iter(batches) if steps is None else itertools.islice(batches, steps)
    first = next(steps_of, None)
    if first is None:
        raise ValueError("there is no batch to train on; give at least one (inputs, targets)")
    if torch.device(device).type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"device {device}: torch sees no CUDA device here; use device='cpu'")
    model.to(device)
    if not schedule.flush:
        return train_without_flush(
            model, [first, *steps_of], schedule, mesh, loss=loss, optimizer=optimizer, seed=seed,
            device=torch.device(device), clock=clock, link=link, at=at, on_step=on_step, timeout=timeout,
        )  # fmt: skip
    ranks = VirtualRanks(model, lower(schedule), loss, optimizer, seed, torch.device(device), clock, link, at, timeout)
    losses, traces, memories = [], [], []
    with ranks:
        ranks.warm_up(ranks.split(0, first))
        for step, batch in enumerate(itertools.chain([first], steps_of)):
            records = ranks.step(ranks.split(step, batch))
            losses.append(_total_loss(records))
            traces.append(trace_of(schedule, clock, records))
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
        memory=memory_of(memories, traces.index(typical)),
        model=model,
    )


def _refuse_mesh(mesh: Mesh, schedule: Schedule) -> None:
    if mesh.pp != schedule.ranks:
        raise ValueError(f"the mesh has pp={mesh.pp} and the schedule {schedule.ranks} ranks; make them equal")
    if mesh.dp != 1 or mesh.tp != 1:
        raise ValueError(f"train runs pipelines only as yet: got dp={mesh.dp}, tp={mesh.tp}; leave both at 1")


def _total_loss(records: list[Record]) -> float:
    shares = {microbatch: share for record in records for microbatch, share in record.losses.items()}
    return sum(shares[microbatch] for microbatch in sorted(shares))
