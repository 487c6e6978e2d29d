"""What does a trained model say? Forwards only, through the same pipeline and the same worker.

Read next: `generation`, where each forward waits for the one before.
"""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from pipelab.costs import Link
from pipelab.evaluation import ForwardStage, in_evaluation_mode
from pipelab.job import Job, usable_device
from pipelab.loss import Loss, cross_entropy
from pipelab.lower import lower
from pipelab.mesh import Mesh
from pipelab.run import Run
from pipelab.running import run_here
from pipelab.schedule import Schedule
from pipelab.validate import validate


def evaluate(
    model: nn.Sequential,
    batches: Iterable[tuple[Tensor, Tensor]],
    schedule: Schedule,
    *,
    loss: Loss = cross_entropy,
    device: str | torch.device = "cpu",
    clock: str = "virtual",
    link: Link = Link(),  # noqa: B008 (a frozen value)
    at: list[int] | None = None,
    timeout: float = 600.0,
) -> Run:
    """The loss of each batch (inputs, targets), in evaluation mode, with nothing learned; timed as a training run is.

    `schedule` has forwards only, as `build("inference", ...)` makes them. Raises ScheduleError or ValueError before any
    work when something does not fit.

    >>> from pipelab import build
    >>> model = nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 3))
    >>> batch = torch.ones(6, 4), torch.zeros(6, dtype=torch.int64)
    >>> run = evaluate(model, [batch], build("inference", ranks=2, microbatches=3))
    >>> len(run.losses), run.trace.peak_in_flight
    (1, (1, 1))
    """
    validate(schedule)
    if not schedule.forward_only or schedule.groups:
        raise ValueError(
            f"evaluation takes forwards only, and {schedule.name} is not of that kind; "
            f'take build("inference", ranks={schedule.ranks}, microbatches={schedule.microbatches})'
        )
    batches = list(batches)
    if not batches:
        raise ValueError("there is no batch to evaluate; give at least one (inputs, targets)")
    job = Job(
        model=model, program=lower(schedule), mesh=Mesh(pp=schedule.ranks), device=usable_device(device), clock=clock,
        loss=loss, link=link, at=at, timeout=timeout, make_stage=ForwardStage,
    )  # fmt: skip
    with in_evaluation_mode(model):
        return run_here(job, batches)
