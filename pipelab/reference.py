"""What should the numbers be? Those of the uncut model under plain autograd: no stages, no workers, no pipeline."""

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from functools import partial

import torch
from torch import Tensor, nn
from torch.func import functional_call

from pipelab.clock import undisturbed
from pipelab.loss import Loss, auxiliary_losses, count_targets, cross_entropy, share_of, weighted_loss
from pipelab.optimizer import Optimizer, adamw
from pipelab.partition import cut
from pipelab.randomness import Randomness
from pipelab.state import State, names_of, put_back, remind


def train_uncut(
    model: nn.Sequential,
    batches: Iterable[tuple[Tensor, Tensor]],
    microbatches: int,
    *,
    loss: Loss = cross_entropy,
    optimizer: Optimizer = adamw,
    seed: int = 0,
    clip: float | None = None,
    rate: Callable[[int], float] = lambda step: 1.0,
    autocast: torch.dtype | None = None,
    start: State | None = None,
) -> list[float]:
    """Train on each batch, its micro-batches accumulated in the order 0..M-1; gives the loss of each step.

    `clip`, `rate` and `autocast` as in `train`: by torch's own `clip_grad_norm_`, `LambdaLR` and `autocast`. With
    `start` the batches are those that come after that state.

    As in a run, an operator uses one thread: another number of threads would add in another order.

    >>> model = nn.Sequential(nn.Linear(2, 3))
    >>> batch = torch.ones(4, 2), torch.zeros(4, dtype=torch.int64)
    >>> len(train_uncut(model, [batch], microbatches=2))
    1
    """
    randomness = Randomness(seed)
    update = optimizer(list(model.parameters()))
    begin = 0
    if start is not None:
        begin = start.step
        put_back(start, model)
        remind(update, {number: start.optimizer.get(names[0], {}) for number, names in names_of([model]).items()})
    learning = torch.optim.lr_scheduler.LambdaLR(update, lambda step: rate(begin + step))
    losses = []
    with undisturbed():
        for step, (inputs, targets) in enumerate(batches, begin):
            update.zero_grad()
            total = count_targets(targets)
            shares = []
            for microbatch in range(microbatches):
                y = torch.tensor_split(inputs, microbatches)[microbatch]
                with torch.autocast(y.device.type, autocast, enabled=autocast is not None), auxiliary_losses() as more:
                    for name, layer in model._modules.items():  # a layer listed twice runs twice
                        y = randomness.run(name, layer, y, step, microbatch)
                    target = torch.tensor_split(targets, microbatches)[microbatch]
                    share = weighted_loss(loss, y, target, total)
                    if more:
                        share = share + torch.stack(more).sum() * share_of(target, total)
                share.backward()
                shares.append(share.item())
            if clip is not None:
                nn.utils.clip_grad_norm_(model.parameters(), clip)
            update.step()
            learning.step()
            losses.append(sum(shares))
    return losses


def train_delayed(
    model: nn.Sequential,
    batches: Iterable[tuple[Tensor, Tensor]],
    microbatches: int,
    stages: int,
    *,
    loss: Loss = cross_entropy,
    optimizer: Optimizer = adamw,
    seed: int = 0,
    at: Sequence[int] | None = None,
) -> list[float]:
    """Train with the delayed updates of an asynchronous pipeline, micro-batch by micro-batch; gives each step's loss.

    Micro-batch n goes forward and backward through weights that on stage s have seen n - (stages-1-s) updates, at least
    none (Narayanan et al. 2019, section 3.3), and its gradient updates the latest weights.

    >>> model = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 3))
    >>> batch = torch.ones(4, 2), torch.zeros(4, dtype=torch.int64)
    >>> len(train_delayed(model, [batch], microbatches=2, stages=2))
    1
    """
    randomness, parts, number = Randomness(seed), cut(model, stages, at=at), 0
    updates = [optimizer(own) for part in parts if (own := list(part.parameters()))]
    versions = [deque([_copied(part)], maxlen=stages - stage) for stage, part in enumerate(parts)]
    losses = []
    with undisturbed():
        for inputs, targets in batches:
            shares = []
            for x, target in zip(*(torch.tensor_split(each, microbatches) for each in (inputs, targets)), strict=True):
                y, seen = x, [kept[0] for kept in versions]
                for part, weights in zip(parts, seen, strict=True):
                    for name, layer in part._modules.items():
                        old = {key: weights[parameter] for key, parameter in layer.named_parameters()}
                        y = randomness.run(name, partial(functional_call, layer, old), y, 0, number)
                own_loss = weighted_loss(loss, y, target, count_targets(target))
                own_loss.backward()
                for parameter, old_parameter in (pair for weights in seen for pair in weights.items()):
                    parameter.grad, old_parameter.grad = old_parameter.grad, None
                for update in updates:
                    update.step()
                for part, kept in zip(parts, versions, strict=True):
                    kept.append(_copied(part))
                shares.append(own_loss.item() * (count_targets(target) / max(count_targets(targets), 1)))
                number += 1
            losses.append(sum(shares))
    return losses


@torch.no_grad()
def generate_uncut(model: nn.Sequential, prompts: Tensor, tokens: int) -> tuple[Tensor, Tensor]:
    """The most likely new tokens [N, tokens] and their logits [N, tokens, vocabulary]; all is read anew for each token.

    >>> from pipelab.models import build_model
    >>> new, logits = generate_uncut(build_model("tiny"), torch.zeros(2, 3, dtype=torch.int64), tokens=4)
    >>> new.shape, logits.shape
    (torch.Size([2, 4]), torch.Size([2, 4, 256]))
    """
    read, scores = prompts, []
    with undisturbed():
        for _ in range(tokens):
            scores.append(model(read)[:, -1])
            read = torch.cat([read, scores[-1].argmax(-1, keepdim=True)], dim=1)
    return read[:, prompts.shape[1] :], torch.stack(scores, dim=1)


def _copied(part: nn.Sequential) -> dict[nn.Parameter, Tensor]:
    """The parameters, each with a copy that is a leaf of its own."""
    return {p: nn.Parameter(p.detach().clone(), p.requires_grad) for p in part.parameters()}
