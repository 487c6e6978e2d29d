"""How can a backward be split into I and W? Put off the weight product of each Linear until W asks for it.

I gives the gradient of the input, and of all other parameters (norms, embeddings, raw parameters); for each `nn.Linear`
it keeps the layer's input and output gradient, and W multiplies them. Together they cost what B costs.
(Qi et al. 2024, section 4; the same two products that autograd's own backward makes.)
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from pipelab.memory import Held

Waiting = list[tuple[nn.Linear, Held, Held]]
"""For one micro-batch: the linears whose weight gradient waits, each with its input and its output gradient."""


class _DeferredLinear(torch.autograd.Function):
    """A linear map whose backward gives the gradient of the input, and puts the rest into a list."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, linear: nn.Linear, put_off: Callable[..., None]
    ) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.linear, ctx.put_off = linear, put_off
        return functional.linear(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        (grad,) = grads
        ctx.put_off(ctx.linear, x.detach(), grad.detach())
        return (grad @ weight if ctx.needs_input_grad[0] else None), None, None, None, None


class DeferredWeights:
    """While attached, the Linears of a module leave their weight gradients to `pay`.

    >>> from pipelab.memory import ActivationMeter
    >>> model = nn.Linear(2, 1, bias=False)
    >>> with DeferredWeights(model, ActivationMeter().hold) as deferred:
    ...     deferred.waiting = waiting = []
    ...     model(torch.ones(3, 2)).sum().backward()
    >>> model.weight.grad is None
    True
    >>> pay(waiting); model.weight.grad
    tensor([[3., 3.]])
    """

    def __init__(self, module: nn.Module, hold: Callable[[Tensor], Held]) -> None:
        self.linears = [child for child in module.modules() if isinstance(child, nn.Linear) and _deferrable(child)]
        self.hold = hold
        self.waiting: Waiting = []

    def __enter__(self) -> "DeferredWeights":
        for linear in self.linears:
            linear.forward = partial(self._forward, linear)  # type: ignore[method-assign]
        return self

    def __exit__(self, *exception: object) -> None:
        for linear in self.linears:
            del linear.forward  # the class's own forward shows again

    def _forward(self, linear: nn.Linear, x: Tensor) -> Tensor:
        waiting = self.waiting  # the list of the micro-batch whose forward this is

        def put_off(linear: nn.Linear, x: Tensor, grad: Tensor) -> None:
            waiting.append((linear, self.hold(x), self.hold(grad)))

        return _DeferredLinear.apply(x, linear.weight, linear.bias, linear, put_off)


@torch.no_grad()
def pay(waiting: Waiting) -> None:
    """Compute the weight and bias gradients that wait, add them to `.grad`, and empty the list."""
    sums: dict[Tensor, Tensor] = {}
    while waiting:
        linear, x, grad = waiting.pop(0)
        rows, columns = (tensor.reshape(-1, tensor.shape[-1]) for tensor in (grad.tensor, x.tensor))
        if linear.weight.requires_grad:
            _add(sums, linear.weight, rows.t() @ columns)
        if linear.bias is not None and linear.bias.requires_grad:
            _add(sums, linear.bias, rows.sum(0))
        del x, grad  # let go of the activations one layer at a time
    for parameter, gradient in sums.items():
        if parameter.grad is None:
            parameter.grad = gradient
        else:
            parameter.grad += gradient


def _add(sums: dict[Tensor, Tensor], parameter: Tensor, gradient: Tensor) -> None:
    # A Linear used twice in one forward: autograd, too, sums the uses before it adds to .grad.
    sums[parameter] = sums[parameter] + gradient if parameter in sums else gradient


def _deferrable(module: nn.Linear) -> bool:
    """A plain Linear that owns its weight; subclasses, parametrised and hooked weights keep autograd's own backward."""
    if type(module) is not nn.Linear or "forward" in vars(module):
        return False
    own = isinstance(module._parameters.get("weight"), nn.Parameter) and module.weight.requires_grad
    return own and not any(p._backward_hooks or p._post_accumulate_grad_hooks for p in module.parameters())
