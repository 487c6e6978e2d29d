"""How is a model cut into stages? Into contiguous slices, so that the heaviest stage is as light as possible.

A pipeline is as slow as its heaviest stage, so `cut` balances an estimate of the work. The slices share the
model's very layers (nothing is copied) and keep their names. Read `stage.py` next: it runs one slice for one
micro-batch.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from itertools import accumulate, pairwise

from torch import nn

from pipelab.counts import count

Parts = list[nn.Sequential]


def cut(model: nn.Sequential, stages: int, *, at: Sequence[int] | None = None) -> Parts:
    """Cut a model into `stages` contiguous slices that share its layers and keep their names.

    Without `at` the cuts are the best ones by `estimate_work` (see `balanced_boundaries`). `at` gives them
    by hand: the index of the first layer of each stage but the first. Running the slices one after the other
    is running the model.

    Raises ValueError if the model is not a plain nn.Sequential, has fewer layers than `stages`, or would
    start a stage with an in-place operation (only nested nn.Sequentials are looked into for that);
    AssertionError should a layer ever be lost or doubled.

    >>> model = nn.Sequential(nn.Embedding(10, 4), nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 10))
    >>> [list(dict(part.named_children())) for part in cut(model, 2)]
    [['0', '1', '2'], ['3']]
    >>> [list(dict(part.named_children())) for part in cut(model, 2, at=[1])]
    [['0'], ['1', '2', '3']]
    """
    _check_model(model)
    layers = list(model._modules.items())  # named_children would skip a layer that is listed twice
    if count("stages", stages) > len(layers):
        raise ValueError(
            f"a model of {len(layers)} layers cannot fill {stages} stages, as every stage needs a layer; "
            f"use at most {len(layers)} stages or a deeper model"
        )
    if at is None:
        boundaries = balanced_boundaries([estimate_work(layer) for layer in model], stages)
    else:
        boundaries = check_boundaries(at, stages, len(layers))
    parts = [nn.Sequential(OrderedDict(layers[i:j])) for i, j in pairwise((0, *boundaries, len(layers)))]
    for part in parts:
        part.training = model.training
    _check_complete(model, parts)
    _check_first_operations(parts)
    return parts


def estimate_work(layer: nn.Module) -> int:
    """Estimate a layer's work per token: the number of parameters that take part in matrix products.

    These are the parameters with two or more dimensions, because each of them is multiplied and added once
    per token in F, and once each in I and W. The table of an nn.Embedding is only looked up: a layer that
    has nothing but such tables costs 0, any other layer at least 1. The attention core has no parameters and
    is not counted.

    >>> estimate_work(nn.Linear(4, 10)), estimate_work(nn.Embedding(10, 4)), estimate_work(nn.ReLU())
    (40, 0, 1)
    """
    modules = list(layer.modules())
    lookups = {id(module.weight) for module in modules if isinstance(module, nn.Embedding | nn.EmbeddingBag)}
    work = sum(p.numel() for p in layer.parameters() if p.dim() >= 2 and id(p) not in lookups)
    return work if lookups else max(work, 1)


def balanced_boundaries(costs: Sequence[float], stages: int) -> tuple[int, ...]:
    """Where to cut layers of these costs: the index of the first layer of each stage but the first.

    The heaviest stage is as light as possible; among such cuts the second heaviest is, and so on; and where
    all are equal the earlier stages get the larger share. Exact, by dynamic programming over the stages from
    the last to the first: the best cut of a tail of the layers stays best whatever stands before it. Raises
    ValueError unless 1 <= stages <= number of costs.

    >>> balanced_boundaries([0, 6, 6, 6, 6, 6, 6, 6, 6, 4], 3)  # embedding, blocks, head: 3, 3 and 2 blocks
    (4, 7)
    >>> balanced_boundaries([0, 1, 1, 1, 1, 1, 1, 7], 3)  # the head alone is the heaviest; the rest is halved
    (4, 7)
    """
    layers = len(costs)
    if not 1 <= stages <= layers:
        raise ValueError(f"{layers} layers can be cut into 1 to {layers} stages: got {stages}")
    total: list[float] = list(accumulate(costs, initial=0))

    def preference(starts: tuple[int, ...]) -> tuple[list[float], list[float], list[int]]:
        loads = [total[j] - total[i] for i, j in pairwise((*starts, layers))]
        return sorted(loads, reverse=True), [-load for load in loads], [-start for start in starts]

    # By the start of a tail, its best cut; first the tails that are one stage, then one stage more at a time.
    best: dict[int, tuple[int, ...]] = {start: (start,) for start in range(stages - 1, layers)}
    for first in reversed(range(stages - 1)):
        best = {
            start: min(((start, *best[j]) for j in best if j > start), key=preference)
            for start in range(first, max(best))
        }
    return best[0][1:]


def _check_model(model: nn.Module) -> None:
    if not isinstance(model, nn.Sequential):
        raise ValueError(
            f"only an nn.Sequential can be cut, not {type(model).__name__}: list its layers in the order "
            f"they run, for example nn.Sequential(model.embedding, *model.blocks, model.head)"
        )
    if type(model).forward is not nn.Sequential.forward:
        raise ValueError(
            f"{type(model).__name__} has a forward of its own, which its slices would not run; "
            f"make what it does a layer of an nn.Sequential"
        )


def check_boundaries(at: Sequence[int], stages: int, layers: int) -> tuple[int, ...]:
    """The first layer of each stage but the first. Raises ValueError unless they are that many, and increase."""
    inside = all(isinstance(i, int) and 0 < i < layers for i in at)
    if len(at) != stages - 1 or not inside or any(i >= j for i, j in pairwise(at)):
        raise ValueError(
            f"at must hold {stages - 1} increasing layer indices from 1 to {layers - 1}, the first layer of "
            f"each of the {stages} stages but the first: got {list(at)}"
        )
    return tuple(at)


def _check_complete(model: nn.Sequential, parts: Parts) -> None:
    """Prove that the slices in a row are the model: the same layers under the same names, each once."""
    whole = [(name, id(layer)) for name, layer in model._modules.items()]
    joined = [(name, id(layer)) for part in parts for name, layer in part._modules.items()]
    # Raised by hand, because `python -O` drops assert statements.
    if whole != joined:
        raise AssertionError("the slices in a row are not the model they were cut from")
    if not all(len(part) for part in parts):
        raise AssertionError("a slice is empty")


def _check_first_operations(parts: Parts) -> None:
    for stage, part in enumerate(parts[1:], start=1):
        name, operation = next(_operations(part), ("", None))
        if getattr(operation, "inplace", False):
            raise ValueError(
                f"stage {stage} starts with layer {name}, {operation}, which would overwrite the activation "
                f"that the stage received; build it with inplace=False or cut elsewhere (at=...)"
            )


def _operations(part: nn.Sequential, prefix: str = "") -> Iterator[tuple[str, nn.Module]]:
    """The layers in the order they run, nested ones opened, those that only change the view left out."""
    for name, layer in part._modules.items():
        if isinstance(layer, nn.Sequential):
            yield from _operations(layer, f"{prefix}{name}.")
        elif layer is not None and not isinstance(layer, nn.Identity | nn.Flatten | nn.Unflatten):
            yield f"{prefix}{name}", layer
