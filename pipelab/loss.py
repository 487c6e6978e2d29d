"""How is the loss of a step shared among its micro-batches? By targets, once, where the loss is computed.

A micro-batch with n of the step's N targets adds mean-loss x n/N. So uneven micro-batches and ignored targets are
exact, and no gradient is ever divided. A layer in the middle may have a loss of its own (`auxiliary`).
"""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from torch import Tensor
from torch.nn import functional

Loss = Callable[[Tensor, Tensor], Tensor]
"""(output, target) -> mean over the targets, as PyTorch's own loss functions give it."""

Count = Callable[[Tensor], int]
"""How many targets there are in a tensor of them."""

IGNORED = -100
"""The class index that `torch.nn.functional.cross_entropy` leaves out."""


def cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Mean cross-entropy in nats: logits [..., classes], targets [...] of class indices; -100 is left out.

    >>> import torch
    >>> round(cross_entropy(torch.zeros(2, 3, 256), torch.zeros(2, 3, dtype=torch.int64)).item(), 4)
    5.5452
    """
    return functional.cross_entropy(logits.flatten(0, -2), targets.flatten(), ignore_index=IGNORED)


def count_targets(targets: Tensor) -> int:
    """How many targets the mean of a loss runs over: class indices other than -100, or all numbers of a tensor.

    >>> import torch
    >>> count_targets(torch.tensor([3, -100, 5])), count_targets(torch.zeros(2, 3))
    (2, 6)
    """
    return targets.numel() if targets.is_floating_point() else int((targets != IGNORED).sum())


def weighted_loss(loss: Loss, output: Tensor, target: Tensor, total: int, count: Count = count_targets) -> Tensor:
    """The share of one micro-batch in the loss of a step with `total` targets; zero where it has no target."""
    share = share_of(target, total, count)
    return loss(output, target) * share if share else output.sum() * 0


def share_of(target: Tensor, total: int, count: Count = count_targets) -> float:
    """The share of a micro-batch with these targets in a step with `total` of them."""
    return count(target) / max(total, 1)


class _Collected(threading.local):
    losses: list[Tensor] | None = None


_COLLECTED = _Collected()


def auxiliary(loss: Tensor) -> None:
    """Called by a layer in its forward: add a mean over the micro-batch's tokens to what is minimised, on any stage.

    Such as the load balance of experts. It has the same share in the step as the micro-batch's other loss; where
    nothing is trained, nothing happens.

    >>> import torch
    >>> class Even(torch.nn.Module):
    ...     def forward(self, x: Tensor) -> Tensor:
    ...         auxiliary(0.01 * x.square().mean())
    ...         return x
    >>> with auxiliary_losses() as losses:
    ...     y = Even()(torch.ones(2, 3))
    >>> losses
    [tensor(0.0100)]
    """
    if _COLLECTED.losses is not None:
        _COLLECTED.losses.append(loss)


@contextmanager
def auxiliary_losses() -> Iterator[list[Tensor]]:
    """Within it the auxiliary losses of this thread's layers are collected."""
    outer, _COLLECTED.losses = _COLLECTED.losses, []
    try:
        yield _COLLECTED.losses
    finally:
        _COLLECTED.losses = outer
