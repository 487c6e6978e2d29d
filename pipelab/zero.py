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

from pipelab.action import GATHER, Action
from pipelab.collectives import ALL_GATHER, REDUCE_SCATTER, Group, Meeting, Started
from pipelab.data_parallel import Bucket, GradientSum


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


class ShardedUpdate(GradientSum):
    """Like `GradientSum`, but each replica gets the sums of its `shares` alone, one a bucket; `gather` comes after the
    optimizer's step."""

    def __init__(
        self, group: Group, parameters: Mapping[int, Iterable[nn.Parameter]], kind: Callable[[nn.Parameter], Hashable]
    ) -> None:
        super().__init__(group, parameters, kind)
        self._share_of = {bucket: Share(bucket, group.index, group.size) for bucket in self.buckets}
        self.shares = list(self._share_of.values())

    def _start(self, bucket: Bucket) -> Started:
        return self.group.start(REDUCE_SCATTER, self._share_of[bucket].shares(bucket.flat()))

    def _finish(self, bucket: Bucket, total: Tensor) -> None:
        self._share_of[bucket].own.grad = total

    @torch.no_grad()
    def gather(self) -> Iterator[tuple[Action, Meeting]]:
        """Give every replica the updated shares of all."""
        for share, started in [(share, self.group.start(ALL_GATHER, share.own)) for share in self.shares]:
            for parameter, value in zip(share.bucket.parameters, share.whole(self.group.finish(started)), strict=True):
                parameter.copy_(value)
            share.own.grad = None
            (meeting,) = self.group.taken()
            yield Action(share.bucket.stage, GATHER, share.bucket.number), meeting
