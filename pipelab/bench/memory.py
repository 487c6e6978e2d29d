"""How good is the prediction of memory? For each schedule and mesh: the predicted and the tracked peak of every rank.

Tracked is the most bytes of storages that were there at once, counted operator by operator in real steps, temporary
ones included, and the optimizer's step too: the ranks are virtual, and every one has a count of its own.
"""

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import _disable_current_modes

from pipelab.bench import Bench, Row
from pipelab.checkpointing import policies_of
from pipelab.job import Job
from pipelab.loss import cross_entropy
from pipelab.lower import lower
from pipelab.memory_prediction import predict_memory
from pipelab.mesh import Mesh
from pipelab.models import build_model
from pipelab.optimizer import adamw
from pipelab.schedule import Schedule
from pipelab.schedules import build
from pipelab.storages import LiveStorages
from pipelab.virtual_ranks import VirtualRanks

SCHEDULES = {"gpipe": None, "1f1b": None, "interleaved": 2, "zb-h1": None, "zb-v": None}
"""Five schedules, with their chunks."""
MESHES = {
    "pp 4": (Mesh(pp=4), False),
    "dp 2, pp 2": (Mesh(dp=2, pp=2), False),
    "dp 2, pp 2, ZeRO-1": (Mesh(dp=2, pp=2), True),
    "pp 2, tp 2": (Mesh(pp=2, tp=2), False),
}
"""By name the mesh, and whether replicas share the optimizer's states."""
POLICIES = ("none", "selective", "full")
MICROBATCHES, ROWS = 8, 4


def compare_memory(model: str = "tiny") -> Iterator[Row]:
    """One row for each mesh, policy of checkpointing, schedule and rank of a pipeline, in bytes."""
    for called, (mesh, zero) in MESHES.items():
        for policy in POLICIES:
            for name, chunks in SCHEDULES.items():
                schedule = build(name, mesh.pp, MICROBATCHES, chunks)
                net = build_model(model)
                tokens = torch.randint(256, (mesh.dp * MICROBATCHES * ROWS, net.config.context))
                predicted = predict_memory(
                    net, schedule, (tokens, tokens), mesh, zero=zero, checkpointing=policy
                ).totals
                tracked = track_memory(net, schedule, (tokens, tokens), mesh, checkpointing=policy, zero=zero)
                for rank, member in enumerate(mesh.group("pp", 0)):
                    yield {
                        "schedule": name, "mesh": called, "checkpointing": policy, "rank": rank,
                        "predicted": predicted[rank], "tracked": tracked[member],
                        "error": predicted[rank] / tracked[member] - 1,
                    }  # fmt: skip


def track_memory(
    model: nn.Sequential,
    schedule: Schedule,
    batch: tuple[Tensor, Tensor],
    mesh: Mesh,
    *,
    checkpointing: str = "none",
    **options: Any,
) -> list[int]:
    """The most bytes that each rank has in use at once, in two real steps."""
    by_stage = policies_of(model, schedule.stages, checkpointing)
    job = Job(
        model=model, program=lower(schedule, mesh, checkpointing=by_stage), checkpointing=by_stage,
        mesh=mesh, device=torch.device("cpu"), clock="virtual",
        **{"loss": cross_entropy, "optimizer": adamw, **options},
    )  # fmt: skip
    with VirtualRanks(job) as ranks:
        for mailboxes in ranks.mailboxes.values():
            mailboxes.send = partial(_send_a_copy, mailboxes.send)  # type: ignore[method-assign]
            mailboxes.receive = partial(_receive_to_count, mailboxes.receive)  # type: ignore[method-assign]
        for worker in ranks.workers:
            for group in (worker.tp, None if worker.sums is None else worker.sums.group):
                if group is not None:
                    group.carrier = _OwnAlone(group.carrier)
        rows = [_Tracked(*pair) for pair in zip(ranks.workers, ranks.updates, strict=True)]
        for step in range(2):
            ranks.step(ranks.split(step, batch))
    return [row.peak for row in rows]


class _Tracked:
    """Counts the storages of one rank, in its row and in its optimizer's step."""

    def __init__(self, worker: Any, update: Any) -> None:
        self.worker, self.update = worker, update
        self.peak = 0
        worker.run = partial(self._count, worker.run)
        self.states: Mapping[Any, Mapping[str, Any]] = {}
        if update.optimizer is not None:  # layers without parameters need none
            self.states = update.optimizer.state
            update.optimizer.step = partial(self._count, update.optimizer.step)

    def _count(self, work: Callable[..., Any], *arguments: Any) -> Any:
        layers = [stage.layers for stage in self.worker.stages.values()]
        weights = [*(p for own in layers for p in own.parameters()), *self.update.stepped]  # and shares, with ZeRO-1
        there = [*weights, *(buffer for own in layers for buffer in own.buffers())]
        there += [weight.grad for weight in weights if weight.grad is not None]
        there += [v for kept in self.states.values() for v in kept.values() if hasattr(v, "untyped_storage")]
        with LiveStorages(there) as storages:
            result = work(*arguments)
        held = {tensor.untyped_storage().data_ptr(): tensor.nbytes for tensor in there}
        self.peak = max(self.peak, sum(held.values()) + storages.peak)
        return result


class _OwnAlone:
    """As between processes: of a collective a rank has what it gives and what it gets. A thread sees what the others
    gave, too, which counts for those, and is there the longer the later they come for their part."""

    def __init__(self, carrier: Any) -> None:
        self.carrier = carrier

    def start(self, *arguments: Any, **options: Any) -> "_Unseen":
        """See `Carrier.start`."""
        return _Unseen(self.carrier.start(*arguments, **options))


class _Unseen(NamedTuple):
    arriving: Any

    def wait(self) -> tuple[Tensor, float]:
        """See `Arriving.wait`."""
        with _disable_current_modes():
            result, all_came = self.arriving.wait()
        return result.clone(), all_came


def _receive_to_count(receive: Callable[..., Any], step: Any) -> Any:
    """What is received is the receiver's, also where none of its operators ever gives it."""
    message = receive(step)
    return message._replace(tensor=message.tensor.detach())  # an operator, which the count sees


def _send_a_copy(send: Callable[..., None], step: Any, message: Any) -> None:
    """As between processes: what is sent is gone from the sender."""
    with _disable_current_modes():
        send(step, message._replace(tensor=message.tensor.clone()))


BENCH = Bench(
    "peak bytes of each rank in use at once: predicted from shapes, and tracked operator by operator",
    {"schedule": "{}", "mesh": "{}", "checkpointing": "{}", "rank": "{}", "predicted": "{:,}", "tracked": "{:,}",
     "error": "{:+.2%}"},
    lambda _: (compare_memory(), None),
)  # fmt: skip
