"""Why should every replica keep the optimizer's whole state? ZeRO-1: each keeps, and updates, one share of it.

The gradients of a bucket are reduced so that each replica gets the sum of its own share only (reduce-scatter); it
updates its share of the weights, and all gather all shares. That is as many bytes as the all-reduce of plain data
parallelism, and the optimizer's state takes 1/d of the memory (Rajbhandari et al. 2020, section 5.1). It suits
optimizers that work on each number by itself, as Adam does (`optimizer.check_parts`). A parameter without a gradient
counts as one whose gradient is zero: its weights decay, where plain data parallelism leaves them alone.
"""

from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional

from pipelab.action import GATHER, REDUCE, Action
from pipelab.collectives import ALL_GATHER, REDUCE_SCATTER, Group, Meeting, Started
from pipelab.data_parallel import Bucket, buckets


class Share:
    """One replica's share of a bucket: `own` is a parameter of its own, for the optimizer."""

    def __init__(self, bucket: Bucket, index: int, replicas: int) -> None:
        self.bucket, self.index, self.replicas = bucket, index, replicas
        self.size = sum(parameter.numel() for parameter in bucket.parameters)
        self.own = nn.Parameter(self.shares(torch.cat([p.detach().view(-1) for p in bucket.parameters]))[index].clone())

    def shares(self, flat: Tensor) -> Tensor:
        """A flat tensor as [replicas, share]; zeros fill the last."""
        return functional.pad(flat, (0, -len(flat) % self.replicas)).view(self.replicas, -1)

    def whole(self, shares: Tensor) -> list[Tensor]:
        """[replicas, share] as one tensor a parameter."""
        sizes = [parameter.numel() for parameter in self.bucket.parameters]
        parts = shares.flatten()[: self.size].split(sizes)
        return [part.view_as(parameter) for part, parameter in zip(parts, self.bucket.parameters, strict=True)]


class ShardedUpdate:
    """Like `data_parallel.GradientSum`, but each replica gets the sums of its `shares` alone; `gather` comes after the
    optimizer's step. Parameters of different `kind` never share a bucket."""

    def __init__(
        self,
        group: Group,
        parameters: Mapping[int, Iterable[nn.Parameter]],
        kind: Callable[[nn.Parameter], Hashable],
    ) -> None:
        self.group = group
        self.shares = [
            Share(bucket, group.index, group.size)
            for stage, own in parameters.items()
            for bucket in buckets(stage, own, kind=kind)
        ]
        self._under_way: list[tuple[Share, Started]] = []

    @property
    def under_way(self) -> int:
        """The bytes of what was begun and is not finished."""
        return sum(started.nbytes for _, started in self._under_way)

    @torch.no_grad()
    def start(self, stage: int) -> None:
        """Begin to sum the gradients of a stage; the rank goes on working."""
        for share in self.shares:
            if share.bucket.stage == stage:
                started = self.group.start(REDUCE_SCATTER, share.shares(share.bucket.flat()))
                self._under_way.append((share, started))

    @torch.no_grad()
    def finish(self) -> Iterator[tuple[Action, Meeting]]:
        """Wait for all that was begun: then each share has its gradient. Gives each bucket with when it went."""
        under_way, self._under_way = self._under_way, []
        for share, started in under_way:
            share.own.grad = self.group.finish(started)
            (meeting,) = self.group.taken()
            yield Action(share.bucket.stage, REDUCE, share.bucket.number), meeting

    @torch.no_grad()
    def gather(self) -> Iterator[tuple[Action, Meeting]]:
        """Give every replica the updated shares of all."""
        for share, started in [(share, self.group.start(ALL_GATHER, share.own)) for share in self.shares]:
            for parameter, value in zip(share.bucket.parameters, share.whole(self.group.finish(started)), strict=True):
                parameter.copy_(value)
            share.own.grad = None
            (meeting,) = self.group.taken()
            yield Action(share.bucket.stage, GATHER, share.bucket.number), meeting
