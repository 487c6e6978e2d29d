"""Which layers are cut among the tensor ranks, and how? By a plan for each type of layer, as data.

A rank's layers have the names of the whole model's, and so have their parameters; only some are smaller. Attention is
cut by heads: each rank computes some of them from end to end, so between `qkv` and `projection` nobody needs anybody.

Dropout behind a sum draws the same mask on every rank, as `randomness` keys it by layer and micro-batch, and as in the
uncut model. Between two cut matrices it would repeat one mask on all ranks, so no plan may have it there. With
sequence parallelism the ranks have different tokens and need different masks (`Randomness(seed, part=index)`): then a
model with dropout no longer draws what the uncut one draws.
"""

import copy
import math
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from functools import partial, singledispatch
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from pipelab.collectives import Group
from pipelab.loss import Loss, cross_entropy
from pipelab.models import Attention, Block, Embedding, Head
from pipelab.tensor_layers import (
    ColumnParallelLinear,
    RowParallelLinear,
    VocabularyParallelEmbedding,
    VocabularyParallelHead,
    bounds,
    vocabulary_cross_entropy,
)

CUT = ColumnParallelLinear | RowParallelLinear | VocabularyParallelEmbedding


class Plan(NamedTuple):
    """Which modules of a layer are cut and as what, and how many of what else the ranks must share evenly."""

    cuts: Mapping[str, type[Any]]
    even: Mapping[str, int] = {}


@singledispatch
def plan(layer: nn.Module) -> Plan | None:
    """How a layer of this type is cut; None: not at all, then every rank computes the whole of it.

    Parts of it that have a plan of their own need no mention. What is not cut must see whole features, and works token
    by token if sequence parallelism is to be right. A layer of yours is taught by registering its type:

    >>> class MLP(nn.Module):
    ...     def __init__(self) -> None:
    ...         super().__init__()
    ...         self.up, self.down = nn.Linear(4, 16), nn.Linear(16, 4)
    ...     def forward(self, x: Tensor) -> Tensor:
    ...         return self.down(torch.relu(self.up(x)))
    >>> @plan.register
    ... def _(layer: MLP) -> Plan:
    ...     return Plan({"up": ColumnParallelLinear, "down": RowParallelLinear})
    >>> check_tensor_shards(nn.Sequential(MLP(), MLP()), 3)
    Traceback (most recent call last):
    ValueError: tp=3 does not divide the 16 outputs of 0.up; choose tp from 1, 2, 4, 8, 16
    """
    return None


@plan.register
def _(layer: Embedding) -> Plan:
    return Plan({"token": VocabularyParallelEmbedding})


@plan.register
def _(layer: Attention) -> Plan:
    heads = layer.qkv.out_features // (3 * layer.head_width)
    return Plan({"qkv": ColumnParallelLinear, "projection": RowParallelLinear}, {"heads": heads})


@plan.register
def _(layer: Block) -> Plan:  # its attention has a plan of its own
    return Plan({"mlp.up": ColumnParallelLinear, "mlp.down": RowParallelLinear})


@plan.register
def _(layer: Head) -> Plan:
    return Plan({"vocabulary": VocabularyParallelHead})


class TensorShards(nn.Sequential):
    """The layers of a stage as one tensor rank has them."""

    sequence_parallel = False


def shard(layers: nn.Sequential, group: Group, *, sequence_parallel: bool = False) -> TensorShards:
    """This rank's share of the layers: a copy under the same names, some of whose parameters are cut.

    Layers without a plan stay whole. Without sequence parallelism the layers take and give what the uncut ones do;
    with it, what is [R, T, D] between them is [R, T/t, D] on each rank. Raises ValueError as `check_tensor_shards`
    does, but knows nothing of the other stages.
    """
    _refuse_uneven(layers, group.size)
    dims = shard_dims(layers)
    whole = dict(layers.named_parameters(remove_duplicate=False))
    own = {id(whole[name]): _own(whole[name], dim, group) for name, dim in dims.items()}
    for name, parameter in whole.items():
        if id(parameter) in own and name not in dims:
            raise ValueError(f"parameter {name} is that of a cut module, too; give it one of its own, or a plan")
    shards = TensorShards(OrderedDict(copy.deepcopy(layers, own)._modules))
    shards.training, shards.sequence_parallel = layers.training, sequence_parallel
    for path, cut in _cuts(layers).items():
        parent, _, name = path.rpartition(".")
        module = shards.get_submodule(path)
        if not isinstance(module, CUT):  # it is one already where a layer is listed twice
            setattr(shards.get_submodule(parent), name, cut(module, group, sequence_parallel))
    for module in shards.modules():
        if sequence_parallel and isinstance(module, Embedding):
            module.places = partial(_own_places, module, group)  # type: ignore[method-assign]
    return shards


def shard_dims(layers: nn.Sequential) -> dict[str, int]:
    """Along which dim each parameter that is cut is cut, for whole layers as for shards; the others are on every rank.

    >>> from pipelab.models import build_model
    >>> shard_dims(build_model("tiny")[1:2])
    {'1.mlp.up.weight': 0, '1.mlp.up.bias': 0, '1.mlp.down.weight': 1, '1.attention.qkv.weight': 0, \
'1.attention.qkv.bias': 0, '1.attention.projection.weight': 1}
    """
    return {
        f"{path}.{name}": dim
        for path, cut in _cuts(layers).items()
        for name, dim in cut.dims.items()
        if layers.get_submodule(path)._parameters.get(name) is not None
    }


def partial_gradients(shards: nn.Sequential) -> tuple[str, ...]:
    """The whole parameters whose gradient on this rank is of its own tokens only, under sequence parallelism.

    They are to be summed over the tensor ranks before the step: once, not for each micro-batch.
    """
    if not getattr(shards, "sequence_parallel", False):
        return ()
    dims = shard_dims(shards)
    return tuple(name for name, _ in shards.named_parameters() if name not in dims)


def loss_of(shards: nn.Sequential, loss: Loss) -> Loss:
    """The loss for the last stage. Of `loss.cross_entropy` each rank computes its share, and the logits stay where they
    are; any other loss is given the gathered logits, on every rank."""
    head = next((module for module in shards[-1].modules() if isinstance(module, VocabularyParallelHead)), None)
    if head is None or loss is not cross_entropy:
        return loss
    head.gathers = False
    first, vocabulary = head.bounds[head.group.index][0], head.bounds[-1][1]
    return partial(vocabulary_cross_entropy, group=head.group, first=first, vocabulary=vocabulary)


def cut_state(state: Mapping[str, Tensor], dims: Mapping[str, int], index: int, ranks: int) -> dict[str, Tensor]:
    """What tensor rank `index` of `ranks` has of whole tensors: views of them.

    >>> state = {"weight": torch.arange(4), "norm": torch.ones(2)}
    >>> parts = [cut_state(state, {"weight": 0}, index, 2) for index in range(2)]
    >>> parts[1]
    {'weight': tensor([2, 3]), 'norm': tensor([1., 1.])}
    >>> join_state(parts, {"weight": 0})["weight"]
    tensor([0, 1, 2, 3])
    """
    return {
        name: tensor.tensor_split(ranks, dims[name])[index] if name in dims else tensor
        for name, tensor in state.items()
    }


def join_state(parts: Sequence[Mapping[str, Tensor]], dims: Mapping[str, int]) -> dict[str, Tensor]:
    """The whole tensors, from what all tensor ranks have, in their order; what is not cut is taken from the first."""
    return {
        name: torch.cat([part[name] for part in parts], dims[name]) if name in dims else tensor
        for name, tensor in parts[0].items()
    }


def check_tensor_shards(model: nn.Sequential, tp: int, *, sequence_parallel: bool = False) -> None:
    """Raise ValueError, with the remedy, for a model that `tp` tensor ranks cannot share.

    >>> from pipelab.models import build_model
    >>> check_tensor_shards(build_model("tiny"), 4)
    Traceback (most recent call last):
    ValueError: tp=4 does not divide the 2 heads of 1.attention; choose tp from 1, 2
    """
    if tp == 1:
        return
    if not _cuts(model):
        types = ", ".join(dict.fromkeys(type(layer).__name__ for layer in model))
        raise ValueError(
            f"no layer of this model ({types}) has a plan for tensor parallelism, so all {tp} ranks would compute the"
            " same; register one (pipelab.tensor_parallel.plan), or leave tp at 1"
        )
    _refuse_uneven(model, tp)
    if not sequence_parallel:
        return
    for name, layer in model.named_children():
        if plan(layer) is None:
            raise ValueError(
                f"layer {name} ({type(layer).__name__}) has no plan that says that it works token by token; register"
                " one (pipelab.tensor_parallel.plan), or train without sequence parallelism"
            )
    ends = [set((plan(layer) or Plan({})).cuts.values()) for layer in (model[0], model[-1])]
    if VocabularyParallelEmbedding not in ends[0] or VocabularyParallelHead not in ends[1]:
        raise ValueError(
            "sequence parallelism begins at a vocabulary-parallel embedding and ends at such a head, and this model's"
            " first or last layer has none; train without it"
        )


def _refuse_uneven(layers: nn.Sequential, tp: int) -> None:
    for path in _cuts(layers):
        if type(layers.get_submodule(path)) not in (nn.Linear, nn.Embedding):
            kind = type(layers.get_submodule(path)).__name__
            raise ValueError(
                f"{path} is a {kind}, and only a plain nn.Linear or nn.Embedding can be cut; use one of those"
            )
    for name, dim in shard_dims(layers).items():
        if (size := layers.get_parameter(name).shape[dim]) < tp:
            raise ValueError(f"tp={tp} is more than the {size} parts that {name} can be cut into; choose a smaller tp")
    counts = dict(_counts(layers))
    fits = math.gcd(*counts.values())
    for what, count in counts.items():
        if count % tp:
            fitting = ", ".join(str(t) for t in range(1, fits + 1) if fits % t == 0)
            raise ValueError(f"tp={tp} does not divide the {count} {what}; choose tp from {fitting}")


def _counts(layers: nn.Sequential) -> Iterator[tuple[str, int]]:
    """What the ranks must share evenly, in words, and how many of it there are."""
    for path, module in layers.named_modules():
        own = plan(module)
        yield from ((f"{what} of {path}", count) for what, count in (own.even.items() if own else ()))
    for path, cut in _cuts(layers).items():
        if cut.even:
            what = {"in_features": "inputs", "out_features": "outputs"}[cut.even]
            yield f"{what} of {path}", getattr(layers.get_submodule(path), cut.even)


def _cuts(layers: nn.Sequential) -> dict[str, type[Any]]:
    """As what each module is cut, by its path; a layer that is listed twice is cut in both places."""
    return {
        f"{path}.{inner}": cut
        for path, module in layers.named_modules(remove_duplicate=False)
        for inner, cut in (plan(module) or Plan({})).cuts.items()
    }


def _own(whole: nn.Parameter, dim: int, group: Group) -> nn.Parameter:
    first, end = bounds(whole.shape[dim], group.index, group.size)
    return nn.Parameter(whole.detach().narrow(dim, first, end - first).clone(), whole.requires_grad)


def _own_places(embedding: Embedding, group: Group, length: int) -> Tensor:
    """Each rank adds the places of its own tokens."""
    each = length // group.size
    return embedding.position.weight[group.index * each : (group.index + 1) * each]
