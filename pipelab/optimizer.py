"""How are the parameters updated? By any torch optimizer; every rank has one of its own, for its own stages."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

Optimizer = Callable[[list[nn.Parameter]], torch.optim.Optimizer]
"""Makes the optimizer of one rank from its parameters."""


def adamw(parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    """AdamW with a learning rate of 1e-3, the default of a run.

    >>> adamw([nn.Parameter(torch.zeros(2))]).defaults["lr"]
    0.001
    """
    return torch.optim.AdamW(parameters, lr=1e-3)


def check_parts(optimizer: Optimizer, *, flat: bool, device: torch.device) -> None:
    """Raise ValueError unless an optimizer does to the parts of a parameter what it does to the whole.

    Tensor shards are such parts, and with `flat`, as in ZeRO-1, they have one dim only. It takes two steps to see.

    >>> check_parts(adamw, flat=True, device=torch.device("cpu"))
    >>> check_parts(torch.optim.Adafactor, flat=False, device=torch.device("cpu"))
    Traceback (most recent call last):
    ValueError: Adafactor treats parts of a parameter otherwise than the whole, so tensor shards would learn something \
else; take one that works on each number by itself, such as AdamW, or leave tp at 1
    """
    values = torch.linspace(-1, 2, 24, dtype=torch.float64, device=device).view(4, 6)
    parts = (values.flatten() if flat else values).chunk(2)
    whole, cut = (_stepped(optimizer, tensors) for tensors in ([values], parts))
    if torch.allclose(whole, cut, rtol=1e-9, atol=1e-12):
        return
    kind = type(optimizer([nn.Parameter(values.clone())])).__name__
    who, remedy = ("shares of ZeRO-1, which are flat,", "zero out") if flat else ("tensor shards", "tp at 1")
    raise ValueError(
        f"{kind} treats parts of a parameter otherwise than the whole, so {who} would learn something else;"
        f" take one that works on each number by itself, such as AdamW, or leave {remedy}"
    )


def _stepped(optimizer: Optimizer, values: Sequence[Tensor]) -> Tensor:
    """The values after two steps, in a row; gradients that are small here and large there."""
    parameters = [nn.Parameter(value.clone()) for value in values]
    made = apart_from_gpus(optimizer(parameters))
    for _ in range(2):
        for parameter in parameters:
            parameter.grad = parameter.detach() ** 3
        made.step()
    return torch.cat([parameter.detach().flatten() for parameter in parameters])


def apart_from_gpus(made: torch.optim.Optimizer) -> torch.optim.Optimizer:
    """An optimizer that is only tried out, without its question whether a GPU is capturing a graph.

    PyTorch asks before every step, also of parameters on the CPU, and that would start CUDA where only ranks should.

    >>> apart_from_gpus(adamw([nn.Parameter(torch.zeros(2))])).step()
    """
    made._accelerator_graph_capture_health_check = lambda: None  # type: ignore[method-assign]
    return made


def state_bytes(optimizer: torch.optim.Optimizer) -> int:
    """What an optimizer keeps by now; most have nothing before their first step.

    >>> parameter = nn.Parameter(torch.zeros(2))
    >>> parameter.grad = torch.zeros(2)
    >>> (optimizer := adamw([parameter])).step()
    >>> state_bytes(optimizer)  # two moments of 8 bytes, and a counter of steps
    20
    """
    values = [value for state in optimizer.state.values() for value in state.values()]
    return sum(value.nbytes for value in values if isinstance(value, torch.Tensor))
