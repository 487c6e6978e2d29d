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
