"""How good is the model by now? Forwards only, in evaluation mode, between the steps of a run or after it.

Read next: `inference`, which runs nothing else.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pipelab.loss import weighted_loss
from pipelab.stage import Stage


@dataclass(frozen=True)
class Evaluation:
    """What `train` evaluates on, and after which steps: all `batches`, after every so many.

    Raises ValueError for no batches, or a number of steps below 1.

    >>> Evaluation([], every=10)
    Traceback (most recent call last):
    ValueError: there is no batch to evaluate on; give at least one (inputs, targets)
    """

    batches: Sequence[tuple[Tensor, Tensor]]
    every: int = 1

    def __post_init__(self) -> None:
        if not self.batches:
            raise ValueError("there is no batch to evaluate on; give at least one (inputs, targets)")
        if not isinstance(self.every, int) or self.every < 1:
            raise ValueError(f"every is a number of steps, at least 1: got {self.every!r}")

    def is_due(self, step: int) -> bool:
        """Whether it comes after this step, counted from 0."""
        return (step + 1) % self.every == 0


class ForwardStage(Stage):
    """A stage that keeps nothing, for no backward will come."""

    @torch.no_grad()
    def forward(self, microbatch: int, x: Tensor, step: int, target: Tensor | None = None, total: int = 1) -> Tensor:
        """The output; on the stage with the loss, this micro-batch's share of it."""
        with self.autocast():
            y = self.layers(x)
            if self.loss is None or target is None:
                return y
            return weighted_loss(self.loss, y, target, total)


@contextmanager
def in_evaluation_mode(model: nn.Module) -> Iterator[None]:
    """No dropout within, and the model's own mode afterwards."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
