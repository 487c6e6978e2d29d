"""What does one rank do with its slice of the model? Forward, backward, or the backward in two halves.

A stage keeps, per micro-batch, its input and the end of its autograd graph; the output itself is given away.
"""

from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge

from pipelab.action import B, I, W
from pipelab.checkpointing import Checkpointing
from pipelab.loss import Count, Loss, auxiliary_losses, count_targets, share_of, weighted_loss
from pipelab.memory import ActivationMeter, Held
from pipelab.randomness import Randomness
from pipelab.split_backward import DeferredWeights, Waiting, pay
from pipelab.watch import Watch


@dataclass
class _Kept:
    """What a stage keeps of one micro-batch between F and its backward."""

    input: Held | None
    end: GradientEdge | Tensor | None = None
    waiting: Waiting = field(default_factory=list)
    own_loss: Tensor | None = None


class Stage:
    """A contiguous slice of the model on one rank, run one micro-batch at a time.

    `layers` are named as in the uncut model; with a `lower_precision` they compute in it where that is safe. With
    `split`, `backward_input` and `backward_weight` replace `backward`; with `checkpointing`, `recompute` comes before
    it for some micro-batches. It runs within `attached()` then, so that the layers are given back as they were.
    """

    def __init__(
        self, layers: nn.Sequential, *, first: bool, loss: Loss | None, split: bool,
        randomness: Randomness, meter: ActivationMeter, watch: Watch | None = None,
        lower_precision: torch.dtype | None = None, checkpointing: Checkpointing | None = None,
    ) -> None:  # fmt: skip
        self.layers = layers
        self.lower_precision = lower_precision
        self.first = first
        self.loss = loss
        self.randomness = randomness
        self.meter = meter
        self.watch = watch
        self.count: Count = count_targets
        self.checkpointing = checkpointing
        self.deferred = DeferredWeights(layers, meter) if split else None
        self.own_losses: dict[int, Tensor] = {}
        """The auxiliary losses of this stage's layers, by micro-batch, until somebody takes them."""
        self._kept: dict[int, _Kept] = {}

    @contextmanager
    def attached(self) -> Iterator[None]:
        """The context in which the stage may run."""
        with self.deferred or nullcontext(), self.checkpointing.attached() if self.checkpointing else nullcontext():
            yield

    @property
    def parameters(self) -> list[nn.Parameter]:
        """Those of its layers, as they are now."""
        return list(self.layers.parameters())

    def autocast(self) -> AbstractContextManager[object]:
        """The context in which layers and loss run: PyTorch's autocast, where a lower precision is asked for."""
        if self.lower_precision is None:
            return nullcontext()
        device = next((parameter.device.type for parameter in self.layers.parameters()), "cpu")
        return torch.autocast(device, self.lower_precision)

    def forward(self, microbatch: int, x: Tensor, step: int, target: Tensor | None = None, total: int = 1) -> Tensor:
        """Run the layers on the input; gives the output, or, on the stage with the loss, this micro-batch's share."""
        x = x.detach()
        if not self.first:
            if not x.is_floating_point():
                raise TypeError(f"a stage was given {x.dtype}; only floating-point activations can cross a cut")
            x.requires_grad_()
        kept = self._kept[microbatch] = _Kept(self.meter.hold(x))
        if self.deferred is not None:
            self.deferred.waiting = kept.waiting
        with self.meter.watch(), self.autocast(), auxiliary_losses() as more:
            y = self._run_layers(x, step, microbatch)
            if self.loss is not None:
                assert target is not None
                y = weighted_loss(self.loss, y, target, total, self.count)
            if more:
                assert target is not None
                if getattr(self.layers, "sequence_parallel", False):
                    raise ValueError(
                        "an auxiliary loss is a mean over all tokens, and under sequence parallelism a rank has a part"
                        " of them; train without it"
                    )
                own_loss = torch.stack(more).sum() * share_of(target, total, self.count)
                if self.loss is not None:
                    y = y + own_loss
                else:
                    kept.own_loss, self.own_losses[microbatch] = own_loss, own_loss.detach()
        if y.requires_grad:
            # The edge alone keeps the graph, so that the output's memory is free once it has been sent.
            kept.end = y if self.loss is not None else get_gradient_edge(y)
        given = y.detach()
        if self.watch is not None:
            self.watch.forward(self, microbatch, step, x, given, target, total)
        return given

    def _run_layers(self, x: Tensor, step: int, microbatch: int) -> Tensor:
        checkpointing = self.checkpointing
        if checkpointing is None:
            return self._run(self.layers._modules, x, step, microbatch)  # named_children would skip one listed twice
        with checkpointing.forward_of(microbatch):
            for part in checkpointing.parts:
                run = partial(self._run, part, step=step, microbatch=microbatch)
                x = checkpointing.run(run, x) if part in checkpointing.recomputed else run(x)
        return x

    def _run(self, names: Iterable[str], x: Tensor, step: int, microbatch: int) -> Tensor:
        for name in names:
            x = self.randomness.run(name, self.layers._modules[name], x, step, microbatch)
            if not isinstance(x, Tensor):
                raise TypeError(f"layer {name} gives a {type(x).__name__}; a stage passes one tensor on")
        return x

    def recompute(self, microbatch: int) -> None:
        """R: rebuild the activations that F has not kept."""
        assert self.checkpointing is not None
        with self.autocast(), auxiliary_losses():  # those that count are of the first forward
            self.checkpointing.refill(microbatch)

    def backward_input(self, microbatch: int, gradient: Tensor | None) -> Tensor | None:
        """I: the gradient of the input (None on the first stage), from that of the output (None at the loss)."""
        kept = self._kept[microbatch]
        assert kept.input is not None
        x, end = kept.input.tensor, kept.end
        if self.deferred is not None:
            self.deferred.waiting = kept.waiting  # for layers that recompute their forward
        # In this very thread, on a GPU too: autograd has one thread a device for the backwards of all ranks, and tensor
        # shards wait for one another in the midst of theirs.
        with torch.autograd.set_multithreading_enabled(False):
            if kept.own_loss is not None:
                _backward_of_both(kept.own_loss, end, gradient)
            elif end is not None:
                torch.autograd.backward(end, gradient)
        kept.input = kept.end = kept.own_loss = None  # from here on only the products that were put off are needed
        given = None
        if x.requires_grad:
            given = torch.zeros_like(x) if x.grad is None else x.grad
        if self.watch is not None:
            self.watch.backward(self, microbatch, x, gradient, given)
        return given

    def backward_weight(self, microbatch: int) -> None:
        """W: add the weight gradients that I put off, and let go of the micro-batch."""
        pay(self._kept.pop(microbatch).waiting)

    def backward(self, microbatch: int, gradient: Tensor | None) -> Tensor | None:
        """B = I + W."""
        result = self.backward_input(microbatch, gradient)
        self.backward_weight(microbatch)
        return result

    def act(self, kind: str, microbatch: int, gradient: Tensor | None) -> Tensor | None:
        """What comes after F, by its letter; `gradient` is that of the output, for B and I."""
        if kind == B:
            return self.backward(microbatch, gradient)
        if kind == I:
            return self.backward_input(microbatch, gradient)
        (self.backward_weight if kind == W else self.recompute)(microbatch)
        return None


def _backward_of_both(own_loss: Tensor, end: Any, gradient: Tensor | None) -> None:
    """The backward of a stage whose layers have a loss of their own: one, from both ends."""
    if end is None:
        own_loss.backward()
    else:
        torch.autograd.backward([end, get_gradient_edge(own_loss)], [gradient, torch.ones_like(own_loss)])
