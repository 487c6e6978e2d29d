"""How does what many ranks hold become one whole, and parts for other ranks again? By name, axis after axis.

Stages have different names, so along pp it is enough to put them side by side; tensor shards are joined along the dim
in which each was cut; replicas are equal and the first one tells, but for ZeRO-1, whose shares of the optimizer's
tensors are put in a row and told apart again. Read first: `state`, `tensor_parallel`, `zero`.
"""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from pipelab.mesh import Mesh
from pipelab.state import Entries, State, copied, names_of, remind, values_of
from pipelab.tensor_parallel import cut_state, join_state, shard_dims
from pipelab.weight_update import WeightUpdate
from pipelab.zero import Share


class Shared(NamedTuple):
    """What the optimizer of one replica remembers of its share of a bucket: of parameters of these names and shapes."""

    parameters: tuple[tuple[tuple[str, ...], torch.Size], ...]
    entry: dict[str, Any]


@dataclass
class Part:
    """What one rank holds of a state: its values, and for each parameter what its optimizer remembers.

    `dims` says along which dim a parameter is cut. Replicas but the first give nothing but `shared`.
    """

    at: tuple[int, int, int]
    kind: str | None = None
    model: dict[str, Tensor] = field(default_factory=dict)
    dims: dict[str, int] = field(default_factory=dict)
    optimizer: Entries = field(default_factory=dict)
    shared: list[Shared] = field(default_factory=list)


def part_of(at: tuple[int, int, int], layers: Sequence[nn.Sequential], update: WeightUpdate) -> Part:
    """Copy what the rank at these (dp, pp, tp) holds: the layers of its stages, and what its optimizer remembers."""
    part, names = Part(at), names_of(layers)
    remembered = {} if update.optimizer is None else update.optimizer.state
    for share in update.shares:
        own = tuple((tuple(names[id(p)]), p.shape) for p in share.bucket.parameters)
        part.shared.append(Shared(own, copied(remembered.get(share.own, {}))))
    if at[0] > 0:
        return part
    part.kind = None if update.optimizer is None else type(update.optimizer).__name__
    for stage in layers:
        part.model |= copied(values_of(stage))
        part.dims |= shard_dims(stage)
    for parameter, entry in remembered.items():
        part.optimizer |= {name: copied(entry) for name in names.get(id(parameter), ())}
    return part


def join(parts: Sequence[Part], mesh: Mesh) -> Part:
    """The parts of all ranks as one."""
    held = {part.at: part for part in parts}
    whole = Part((0, 0, 0))
    for pp in range(mesh.pp):
        for tp in range(mesh.tp):
            held[0, pp, tp].optimizer |= _unshared([held[dp, pp, tp].shared for dp in range(mesh.dp)])
        shards = [held[0, pp, tp] for tp in range(mesh.tp)]
        dims = shards[0].dims
        whole.kind = whole.kind or shards[0].kind
        whole.model |= join_state([shard.model for shard in shards], dims)
        for name, entry in shards[0].optimizer.items():
            tensors = _alike(entry, shards[0].model[name])
            if name in dims:
                of_shards = [{kind: shard.optimizer[name][kind] for kind in tensors} for shard in shards]
                joined = join_state(of_shards, dict.fromkeys(tensors, dims[name]))
                entry = {kind: value for kind, value in entry.items() if not _has_many(value)} | joined
            whole.optimizer[name] = entry
    return whole


def take_up(state: State, layers: Sequence[nn.Sequential], update: WeightUpdate, tp: tuple[int, int]) -> None:
    """Let the optimizer of a rank, just made, remember its part of the state; `tp` is its shard and their number."""
    if update.optimizer is None:
        return
    dims = {name: dim for stage in layers for name, dim in shard_dims(stage).items()}
    names = names_of(layers)
    known: dict[int, dict[str, Any]] = {}
    for number, own in names.items():
        entry = state.optimizer.get(own[0])
        if entry is not None:
            cut = dict.fromkeys(_alike(entry, state.model[own[0]]), dims[own[0]]) if own[0] in dims else {}
            known[number] = entry | cut_state({kind: entry[kind] for kind in cut}, cut, *tp)
    for share in update.shares:
        entries = [known.get(id(parameter), {}) for parameter in share.bucket.parameters]
        known[id(share.own)] = dict(_shared(share, entries))
    remind(update.optimizer, known)


def _alike(entry: Mapping[str, Any], parameter: Tensor) -> list[str]:
    """What an optimizer has for each number of a parameter, such as its mean; not what it has once, such as a step."""
    return [kind for kind, value in entry.items() if isinstance(value, Tensor) and value.shape == parameter.shape]


def _has_many(value: Any) -> bool:
    """Of a cut parameter, what has many numbers and not its shape (a mean of rows, say) cannot be joined: left out,
    so that it is missed by whoever would go on without it."""
    return isinstance(value, Tensor) and value.numel() > 1


def _unshared(replicas: Sequence[Sequence[Shared]]) -> Entries:
    """The shares of all replicas as entries of their parameters."""
    entries: Entries = defaultdict(dict)
    for shares in zip(*replicas, strict=True):
        parameters, entry = shares[0]
        sizes = [shape.numel() for _, shape in parameters]
        for kind, value in entry.items():
            values = [value] * len(sizes)
            if isinstance(value, Tensor) and value.dim() == 1:
                flat = torch.cat([share.entry[kind] for share in shares])[: sum(sizes)]
                pairs = zip(flat.split(sizes), parameters, strict=True)
                values = [part.view(shape) for part, (_, shape) in pairs]
            for (names, _), own in zip(parameters, values, strict=True):
                for name in names:
                    entries[name] |= copied({kind: own})
    return dict(entries)


def _shared(share: Share, entries: Sequence[dict[str, Any]]) -> Iterator[tuple[str, Any]]:
    """A replica's share of what is remembered of the parameters of a bucket; nothing is remembered as zeros."""
    for kind, value in next((entry for entry in entries if entry), {}).items():
        if isinstance(value, Tensor) and value.dim() > 0:
            whole = zip(entries, share.bucket.parameters, strict=True)
            flat = torch.cat([entry.get(kind, torch.zeros(p.shape, dtype=value.dtype)).flatten() for entry, p in whole])
            value = share.shares(flat)[share.index]
        yield kind, value
