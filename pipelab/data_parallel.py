"""How do replicas stay equal? Their gradients are summed, stage by stage, while the pipeline still works on others.

A stage's gradients are complete after its last B or W, and not before: nothing is reduced per micro-batch. Then they go
in buckets, in a lane of their own. Each micro-batch's loss counts for its share of the whole step's targets, so the sum
over replicas needs no division. Gradients alone are summed: buffers, such as BatchNorm's running means, are those of
each replica's own micro-batches, and the run gives those of the first. (Wrappers that watch autograd's hooks, such as
DDP, see no weight gradient of a split backward, and their replicas drift apart without an error: PyTorch issue 144530.)
"""

from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn

from pipelab.action import REDUCE, Action
from pipelab.collectives import ALL_GATHER, ALL_REDUCE, Group, Meeting, Started

BUCKET_BYTES = 25 * 2**20
"""Gradients that are reduced together: large enough for the link's full speed, small enough to overlap."""


class Bucket(NamedTuple):
    """Parameters of one stage and one dtype whose gradients are reduced as one flat tensor."""

    stage: int
    number: int
    parameters: tuple[nn.Parameter, ...]

    def flat(self) -> Tensor:
        """Their gradients in a row; a missing one counts as zeros."""
        return torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).view(-1) for p in self.parameters])

    def spread(self, flat: Tensor) -> None:
        """Give each parameter its part of the sum; one that no replica has a gradient of keeps none."""
        sizes = [parameter.numel() for parameter in self.parameters]
        for parameter, part in zip(self.parameters, flat.split(sizes), strict=True):
            if parameter.grad is not None:
                parameter.grad.copy_(part.view_as(parameter))
            elif part.any():
                parameter.grad = part.view_as(parameter).clone()


def one_kind(parameter: nn.Parameter) -> Hashable:
    """Where nothing tells parameters apart."""
    return None


def buckets(
    stage: int,
    parameters: Iterable[nn.Parameter],
    nbytes: int = BUCKET_BYTES,
    kind: Callable[[nn.Parameter], Hashable] = one_kind,
) -> list[Bucket]:
    """Pack the parameters of a stage into buckets of about `nbytes`, in their order, each of one dtype and kind.

    >>> ones = [nn.Parameter(torch.ones(4)) for _ in range(5)]
    >>> [len(bucket.parameters) for bucket in buckets(0, ones, nbytes=32)]
    [2, 2, 1]
    """
    packed: list[list[nn.Parameter]] = []
    room: dict[Hashable, int] = defaultdict(int)
    last: dict[Hashable, list[nn.Parameter]] = {}
    for parameter in parameters:
        if not parameter.requires_grad:
            continue
        key = parameter.dtype, kind(parameter)
        if room[key] <= 0:
            last[key] = []
            packed.append(last[key])
            room[key] = nbytes
        last[key].append(parameter)
        room[key] -= parameter.nbytes
    return [Bucket(stage, number, tuple(members)) for number, members in enumerate(packed)]


class GradientSum:
    """Sums the gradients of one rank's stages over the replicas: `start` after a stage's last gradient, then `finish`.

    `group` is the rank's seat among its replicas, `parameters` those of each stage; parameters of different `kind`
    never share a bucket.
    """

    def __init__(
        self, group: Group, parameters: Mapping[int, Iterable[nn.Parameter]],
        kind: Callable[[nn.Parameter], Hashable] = one_kind,
    ) -> None:  # fmt: skip
        self.group = group
        self.buckets = [bucket for stage, own in parameters.items() for bucket in buckets(stage, own, kind=kind)]
        self._under_way: list[tuple[Bucket, Started]] = []

    @property
    def under_way(self) -> int:
        """The bytes of what was begun and is not finished."""
        return sum(started.nbytes for _, started in self._under_way)

    @torch.no_grad()
    def start(self, stage: int) -> None:
        """Begin to sum the gradients of a stage; the rank goes on working."""
        self._under_way += [(bucket, self._start(bucket)) for bucket in self.buckets if bucket.stage == stage]

    @torch.no_grad()
    def finish(self) -> Iterator[tuple[Action, Meeting]]:
        """Wait for all that was begun: then the gradients are the sums. Gives each bucket with when it went."""
        under_way, self._under_way = self._under_way, []
        for bucket, started in under_way:
            self._finish(bucket, self.group.finish(started))
            (meeting,) = self.group.taken()
            yield Action(bucket.stage, REDUCE, bucket.number), meeting

    def _start(self, bucket: Bucket) -> Started:
        return self.group.start(ALL_REDUCE, bucket.flat())

    def _finish(self, bucket: Bucket, total: Tensor) -> None:
        bucket.spread(total)


@torch.no_grad()
def first_that_differs(group: Group, parameters: Iterable[tuple[str, nn.Parameter]]) -> str | None:
    """The name of the first parameter whose bits are not the same on all replicas; None if all are equal.

    Every replica asks with the same parameters in the same order; what goes around is a hash of each.
    """
    named = list(parameters)
    if not named:
        return None
    hashes = torch.stack([_hash(parameter) for _, parameter in named])
    everybodys = group.finish(group.start(ALL_GATHER, hashes))
    group.taken()
    same = (everybodys == everybodys[0]).all(0).tolist()
    return next((name for (name, _), equal in zip(named, same, strict=True) if not equal), None)


def _hash(tensor: Tensor) -> Tensor:
    """A polynomial in its bytes, modulo 2**64: permuted or changed bits change it."""
    data = tensor.detach().contiguous().view(-1).view(torch.uint8).to(torch.int64)
    powers = torch.arange(1, len(data) + 1, device=data.device) * 6364136223846793005 + 1442695040888963407
    return ((data + 1) * powers).sum()
