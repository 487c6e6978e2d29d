"""How are the parameters updated? By any torch optimizer; every rank has one of its own, for its own stages."""

from collections.abc import Callable

import torch
from torch import nn

Optimizer = Callable[[list[nn.Parameter]], torch.optim.Optimizer]
"""Makes the optimizer of one rank from its parameters."""


def adamw(parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    """AdamW with a learning rate of 1e-3, the default of a run.

    >>> adamw([nn.Parameter(torch.zeros(2))]).defaults["lr"]
    0.001
    """
    return torch.optim.AdamW(parameters, lr=1e-3)


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
