"""How good is the prediction of memory? For each schedule and mesh: the predicted and the tracked peak of every rank.

Tracked is the most bytes of storages that were there at once, counted operator by operator in real steps, temporary
ones included, and the optimizer's step too: the ranks are virtual, and every one has a count of its own.
"""

from collections.abc import Callable, Iterator
from functools import partial
from typing import TYPE_CHECKING, Any

from pipelab.mesh import Mesh
from pipelab.schedule import Schedule
from pipelab.schedules import build

if TYPE_CHECKING:
    from torch import Tensor, nn

SCHEDULES = {"gpipe": None, "1f1b": None, "interleaved": 2, "zb-h1": None, "zb-v": None}
"""Five schedules, with their chunks."""
MESHES = (Mesh(pp=4),)
POLICIES = ("none",)
MICROBATCHES, ROWS = 8, 4


def compare_memory(model: str = "tiny") -> Iterator[dict[str, Any]]:
    """One row for each schedule, mesh, policy of checkpointing and rank, in bytes."""
    import torch

    from pipelab.memory_prediction import predict_memory
    from pipelab.models import build_model

    for mesh in MESHES:
        for policy in POLICIES:
            for name, chunks in SCHEDULES.items():
                schedule = build(name, mesh.pp, MICROBATCHES, chunks)
                net = build_model(model)
                tokens = torch.randint(256, (MICROBATCHES * ROWS, net.config.context))
                predicted = predict_memory(net, schedule, (tokens, tokens), mesh)
                tracked = track_memory(net, schedule, (tokens, tokens), mesh)
                for rank, (ours, there) in enumerate(zip(predicted.totals, tracked, strict=True)):
                    yield {
                        "schedule": name, "mesh": [mesh.dp, mesh.pp, mesh.tp], "checkpointing": policy, "rank": rank,
                        "predicted": ours, "tracked": there, "error": ours / there - 1,
                    }  # fmt: skip


def track_memory(
    model: "nn.Sequential", schedule: Schedule, batch: "tuple[Tensor, Tensor]", mesh: Mesh, **options: Any
) -> list[int]:
    """The most bytes that each rank has in use at once, in two real steps."""
    import torch

    from pipelab.loss import cross_entropy
    from pipelab.lower import lower
    from pipelab.optimizer import adamw
    from pipelab.ranks import Job
    from pipelab.virtual_ranks import VirtualRanks

    job = Job(
        model=model, program=lower(schedule), mesh=mesh, device=torch.device("cpu"), clock="virtual",
        **{"loss": cross_entropy, "optimizer": adamw, **options},
    )  # fmt: skip
    with VirtualRanks(job) as ranks:
        ranks.mailboxes.send = partial(_send_a_copy, ranks.mailboxes.send)  # type: ignore[method-assign]
        rows = [_Tracked(*pair) for pair in zip(ranks.workers, ranks.optimizers, strict=True)]
        for step in range(2):
            ranks.step(ranks.split(step, batch))
    return [row.peak for row in rows]


class _Tracked:
    """Counts the storages of one rank, in its row and in its optimizer's step."""

    def __init__(self, worker: Any, optimizer: Any) -> None:
        self.worker, self.optimizer = worker, optimizer
        self.peak = 0
        worker.run = partial(self._count, worker.run)
        optimizer.step = partial(self._count, optimizer.step)

    def _count(self, work: Callable[..., Any], *arguments: Any) -> Any:
        from pipelab.footprint import LiveStorages

        layers = [stage.layers for stage in self.worker.stages.values()]
        there = [tensor for own in layers for tensor in (*own.parameters(), *own.buffers())]
        there += [parameter.grad for parameter in self.worker.parameters if parameter.grad is not None]
        there += [v for kept in self.optimizer.state.values() for v in kept.values() if hasattr(v, "untyped_storage")]
        with LiveStorages(there) as storages:
            result = work(*arguments)
        self.peak = max(self.peak, sum(tensor.nbytes for tensor in there) + storages.peak)
        return result


def _send_a_copy(send: Callable[..., None], step: Any, message: Any) -> None:
    """As between processes: what is sent is gone from the sender."""
    from torch.utils._python_dispatch import _disable_current_modes

    with _disable_current_modes():
        send(step, message._replace(tensor=message.tensor.clone()))
