"""What is one step's batch to a rank? Micro-batches, and over how many targets the loss of each is a mean."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from pipelab.loss import count_targets


@dataclass(frozen=True)
class Microbatches:
    """The micro-batches of one step: inputs, targets, and over how many targets the loss of each is a mean.

    That is the number of the whole step's targets, or, where each micro-batch updates the weights, of its own.
    `on_loss` is told the loss of each micro-batch that has updated the weights, on the rank that knows it. `first` is
    the number of the first micro-batch in the step: a replica has its share of them.
    """

    step: int
    inputs: Sequence[Tensor]
    targets: Sequence[Tensor]
    totals: Sequence[int]
    on_loss: Callable[[int, float], None] | None = None
    first: int = 0

    @property
    def targets_in_all(self) -> int:
        """Number of targets (tokens) of all micro-batches."""
        return sum(map(count_targets, self.targets))

    def to(self, device: torch.device) -> "Microbatches":
        """The same on a device."""
        inputs, targets = ([tensor.to(device) for tensor in tensors] for tensors in (self.inputs, self.targets))
        return replace(self, inputs=inputs, targets=targets)

    def of_replica(self, replica: int, replicas: int) -> "Microbatches":
        """One replica's even share of them: the first replica has the first."""
        if replicas == 1:
            return self
        each = len(self.inputs) // replicas
        own = slice(replica * each, (replica + 1) * each)
        return replace(
            self, inputs=self.inputs[own], targets=self.targets[own], totals=self.totals[own], first=replica * each
        )


def split_batch(step: int, batch: tuple[Tensor, Tensor], microbatches: int) -> Microbatches:
    """Cut a batch into M micro-batches, and count its targets. Raises ValueError as `cut_batch` does."""
    return Microbatches(step, *cut_batch(step, batch, microbatches), [count_targets(batch[1])] * microbatches)


def cut_batch(
    step: int, batch: tuple[Tensor, Tensor], microbatches: int
) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """Cut a batch (inputs, targets) along its first dimension into M parts, as even as it goes.

    Raises ValueError when it is no such pair, or has fewer rows than micro-batches.
    """
    if not (isinstance(batch, tuple | list) and len(batch) == 2 and all(isinstance(t, Tensor) for t in batch)):
        raise ValueError(f"step {step}: a batch is a pair of tensors (inputs, targets): got {type(batch).__name__}")
    inputs, targets = batch
    if len(inputs) != len(targets):
        raise ValueError(
            f"step {step}: {len(inputs)} inputs come with {len(targets)} targets; give one target an input"
        )
    if len(inputs) < microbatches:
        raise ValueError(
            f"step {step}: a batch of {len(inputs)} rows cannot be cut into {microbatches} micro-batches;"
            " give larger batches or ask for fewer micro-batches"
        )
    return torch.tensor_split(inputs, microbatches), torch.tensor_split(targets, microbatches)
