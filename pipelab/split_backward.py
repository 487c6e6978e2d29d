"""How can a backward be split into I and W? Put off the weight product of each Linear until W asks for it.

I gives the gradient of the input, and of all other parameters (norms, embeddings, raw parameters); for each `nn.Linear`
it keeps the layer's input and output gradient, and W multiplies them. Together they cost what B costs. GPT-2's `Conv1D`
in Hugging Face's transformers is a Linear whose matrix is stored transposed, and is put off too; of a tensor shard
(`tensor_layers`) the product alone is, so that its collectives are in F and I, and none in W.
(Qi et al. 2024, section 4; the same two products that autograd's own backward makes.)
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from pipelab.memory import ActivationMeter, Held
from pipelab.tensor_layers import ColumnParallelLinear, RowParallelLinear

Waiting = list[tuple[Any, Held, Held]]
"""For one micro-batch: the linears whose weight gradient waits, each with its input and its output gradient."""


class _DeferredLinear(torch.autograd.Function):
    """A linear map whose backward gives the gradient of the input, and puts the rest into a list."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, linear: Any, put_off: Callable[..., None]
    ) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.linear, ctx.put_off = linear, put_off
        return functional.linear(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        (grad,) = grads
        ctx.put_off(ctx.linear, x.detach(), grad.detach())
        return (grad @ weight.to(grad.dtype) if ctx.needs_input_grad[0] else None), None, None, None, None


class DeferredWeights:
    """While attached, the Linears of a module leave their weight gradients to `pay`.

    >>> from pipelab.memory import ActivationMeter
    >>> model = nn.Linear(2, 1, bias=False)
    >>> with DeferredWeights(model, ActivationMeter()) as deferred:
    ...     deferred.waiting = waiting = []
    ...     model(torch.ones(3, 2)).sum().backward()
    >>> model.weight.grad is None
    True
    >>> pay(waiting); model.weight.grad
    tensor([[3., 3.]])
    """

    def __init__(self, module: nn.Module, meter: ActivationMeter) -> None:
        self.linears = [child for child in module.modules() if _deferrable(child)]
        self.meter = meter
        self.waiting: Waiting = []

    def __enter__(self) -> "DeferredWeights":
        for linear in self.linears:
            setattr(linear, _product(linear), partial(self._forward, linear))
        return self

    def __exit__(self, *exception: object) -> None:
        for linear in self.linears:
            delattr(linear, _product(linear))  # the class's own shows again

    def _forward(self, linear: Any, x: Tensor) -> Tensor:
        # Of a contiguous input PyTorch makes one matrix product whether the weight asks for a gradient or not.
        plain = x.requires_grad and x.is_contiguous() and torch.is_grad_enabled()
        if torch.is_autocast_enabled(x.device.type):
            x = x.to(torch.get_autocast_dtype(x.device.type))  # as it is saved, and multiplied again by W
        return self._native(linear, x) if plain and self.meter.sees_what_is_saved else self._saving(linear, x)

    def _native(self, linear: Any, x: Tensor) -> Tensor:
        """PyTorch's own node gives the input's gradient, for it is not told of the parameters: half the overhead."""
        waiting, meter = self.waiting, self.meter  # the list of the micro-batch whose forward this is
        kept, version = meter.hold(x.detach()), x._version
        bias = _bias(linear)
        bias = None if bias is None else bias.detach()
        y = functional.linear(x, _matrix(linear).detach(), bias)

        def put_off(grad: Tensor) -> None:
            if kept.tensor._version != version:
                raise RuntimeError(f"the input of {linear} was changed in place before its backward; change a copy")
            waiting.append((linear, kept, meter.hold(grad.detach())))

        y.register_hook(put_off)
        return y

    def _saving(self, linear: Any, x: Tensor) -> Tensor:
        """A node of our own, for an input without gradient, and where autograd must save x (to recompute it later)."""
        waiting, meter = self.waiting, self.meter

        def put_off(linear: Any, x: Tensor, grad: Tensor) -> None:
            waiting.append((linear, meter.hold(x), meter.hold(grad)))

        return _DeferredLinear.apply(x, _matrix(linear), _bias(linear), linear, put_off)


def pay(waiting: Waiting) -> None:
    """Compute the weight and bias gradients that wait, add them to `.grad`, and empty the list."""
    if not waiting:
        return  # a whole backward puts nothing off
    with torch.no_grad():
        sums: dict[Tensor, Tensor] = {}
        while waiting:
            linear, x, grad = waiting.pop(0)
            rows, columns = (tensor.reshape(-1, tensor.shape[-1]) for tensor in (grad.tensor, x.tensor))
            if linear.weight.requires_grad:
                _add(sums, linear.weight, columns.t() @ rows if _transposed(linear) else rows.t() @ columns)
            bias = _bias(linear)
            if bias is not None and bias.requires_grad:
                _add(sums, bias, rows.sum(0))
            del x, grad  # let go of the activations one layer at a time
        for parameter, gradient in sums.items():
            if parameter.grad is None:
                parameter.grad = gradient.to(parameter.dtype)
            else:
                parameter.grad.add_(gradient)


def _add(sums: dict[Tensor, Tensor], parameter: Tensor, gradient: Tensor) -> None:
    # A Linear used twice in one forward: autograd, too, sums the uses before it adds to .grad.
    sums[parameter] = sums[parameter] + gradient if parameter in sums else gradient


def _matrix(linear: Any) -> Tensor:
    """The weight as [outputs, inputs]."""
    return linear.weight.t() if _transposed(linear) else linear.weight


def _bias(linear: Any) -> Tensor | None:
    """What the product adds; a row-parallel Linear adds its bias later, once for all ranks."""
    return None if isinstance(linear, RowParallelLinear) else linear.bias


def _product(module: Any) -> str:
    """Which method is the product: that of a tensor shard stands among collectives, which stay where they are."""
    return "product" if isinstance(module, ColumnParallelLinear | RowParallelLinear) else "forward"


def _transposed(module: nn.Module) -> bool:
    """Whether this is the Conv1D of transformers, known by its name, for that package need not be there."""
    return type(module).__name__ == "Conv1D" and type(module).__module__ == "transformers.pytorch_utils"


def _deferrable(module: Any) -> bool:
    """A plain Linear that owns its weight, or a tensor shard of one; other subclasses, parametrised and hooked weights
    keep autograd's own backward."""
    product = _product(module)
    if not (type(module) is nn.Linear or _transposed(module) or product == "product") or product in vars(module):
        return False
    own = isinstance(module._parameters.get("weight"), nn.Parameter) and module.weight.requires_grad
    return own and not any(p._backward_hooks or p._post_accumulate_grad_hooks for p in module.parameters())
