"""How is a run changed while it goes on? It stops between two steps, and goes on with another schedule or mesh."""

from typing import Any

from pipelab.mesh import Mesh
from pipelab.run import Run
from pipelab.schedule import Schedule
from pipelab.schedules import resized
from pipelab.training import train

NEEDS_SEVERAL = {"zero": "dp", "sequence_parallel": "tp"}
"""Arguments of `train` that say something where an axis is longer than 1; elsewhere a run goes on without."""


def reshape(run: Run, *, schedule: Schedule | None = None, mesh: Mesh | None = None, **changes: Any) -> Run:
    """Go on with a run under another schedule or mesh: same model, optimizer state, step number and data cursor.

    All else stays as it was given to `train` for the run (batches, loss, optimizer, seed, transport, ...), except
    `steps` and `at`; `changes` are arguments of `train` that replace them. Without a schedule the run's own is built
    anew for the mesh, with as many micro-batches in a step; without a mesh its replicas and tensor shards stay. Gives
    a new Run; its losses go on where those of `run` ended, and equal those of a run that was never changed: bit for bit
    in float64 where the order of additions is the same, else to rounding.

    Raises ValueError, or what `train` raises, before any work when something does not fit.

    >>> import torch, pipelab as pl
    >>> model = torch.nn.Sequential(*(torch.nn.Linear(4, 4) for _ in range(4)))
    >>> batch = torch.ones(6, 4), torch.zeros(6, dtype=torch.int64)
    >>> run = pl.train(model, [batch] * 5, pl.build("1f1b", ranks=4, microbatches=3), steps=2)
    >>> more = reshape(run, schedule=pl.build("zb-v", ranks=2, microbatches=3))
    >>> len(run.losses), len(more.losses), len(more.state.losses), more.losses[0] < run.losses[-1]
    (2, 3, 5, True)
    """
    if not run.arguments:
        raise ValueError("only the process that called train can reshape its run; save it, and resume from the folder")
    if schedule is None:
        schedule = _as_before(run, mesh or run.mesh)
    mesh = mesh or Mesh(dp=run.mesh.dp, pp=schedule.ranks, tp=run.mesh.tp)
    alone = {name: False for name, axis in NEEDS_SEVERAL.items() if getattr(mesh, axis) == 1}
    return train(run.model, **{**run.arguments, **alone, "schedule": schedule, "mesh": mesh, "resume": run, **changes})


def _as_before(run: Run, mesh: Mesh) -> Schedule:
    """The run's schedule for as many micro-batches in a step on this mesh."""
    schedule, in_a_step = run.schedule, run.mesh.dp * run.schedule.microbatches
    microbatches, left = divmod(in_a_step, mesh.dp)
    if left:
        raise ValueError(f"{in_a_step} micro-batches are not shared evenly by dp={mesh.dp}; give schedule=")
    if (mesh.pp, microbatches) == (schedule.ranks, schedule.microbatches):
        return schedule
    built = resized(schedule, mesh.pp, microbatches)
    if built is None:
        raise ValueError(
            f"{schedule.name} is not a schedule by name alone, so it cannot be built for the mesh; give schedule="
        )
    return built
