"""What should the numbers be? Those of the uncut model under plain autograd: no stages, no workers, no pipeline."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from pipelab.clock import undisturbed
from pipelab.loss import Loss, count_targets, cross_entropy, weighted_loss
from pipelab.optimizer import Optimizer, adamw
from pipelab.randomness import Randomness


def train_uncut(
    model: nn.Sequential,
    batches: Iterable[tuple[Tensor, Tensor]],
    microbatches: int,
    *,
    loss: Loss = cross_entropy,
    optimizer: Optimizer = adamw,
    seed: int = 0,
) -> list[float]:
    """Train on each batch, its micro-batches accumulated in the order 0..M-1; gives the loss of each step.

    As in a run, an operator uses one thread: another number of threads would add in another order.

    >>> model = nn.Sequential(nn.Linear(2, 3))
    >>> batch = torch.ones(4, 2), torch.zeros(4, dtype=torch.int64)
    >>> len(train_uncut(model, [batch], microbatches=2))
    1
    """
    randomness = Randomness(seed)
    update = optimizer(list(model.parameters()))
    losses = []
    with undisturbed():
        for step, (inputs, targets) in enumerate(batches):
            update.zero_grad()
            total = count_targets(targets)
            shares = []
            for microbatch in range(microbatches):
                y = torch.tensor_split(inputs, microbatches)[microbatch]
                for name, layer in model.named_children():
                    y = randomness.run(name, layer, y, step, microbatch)
                share = weighted_loss(loss, y, torch.tensor_split(targets, microbatches)[microbatch], total)
                share.backward()
                shares.append(share.item())
            update.step()
            losses.append(sum(shares))
    return losses
