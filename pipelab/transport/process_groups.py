"""Collectives of ranks that are processes, by torch.distributed: gloo between processors, NCCL between GPUs."""

from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from pipelab.collectives import ALL_GATHER, ALL_REDUCE
from pipelab.transport import Aborted

# torch 2.13 has new names for what torch 2.11 has under the old ones only
GATHER = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
SCATTER = getattr(dist, "reduce_scatter_single", None) or dist.reduce_scatter_tensor


class ProcessGroup:
    """The carrier of one rank in a process group of `size`. With `stamped` the ranks tell each other when they came:
    virtual time needs that, and it costs one more small collective."""

    def __init__(self, group: Any, size: int, timeout: float, *, stamped: bool) -> None:
        self.group, self.size, self.stamped = group, size, stamped
        self.timeout = timedelta(seconds=timeout)

    def start(self, kind: str, tensor: Tensor, now: float, *, largest: bool = False) -> "_Arriving":
        """See `Carrier.start`."""
        given = tensor.detach().clone(memory_format=torch.contiguous_format)
        operation = dist.ReduceOp.MAX if largest else dist.ReduceOp.SUM
        stamp = torch.tensor([now], dtype=torch.float64) if self.stamped else None
        try:
            if kind == ALL_REDUCE:
                result = given
                work = dist.all_reduce(result, operation, group=self.group, async_op=True)
            elif kind == ALL_GATHER:
                result = given.new_empty(self.size, *given.shape)
                work = GATHER(result.view(-1), given.view(-1), group=self.group, async_op=True)
            else:
                result = given.new_empty(given.shape[1:])
                work = SCATTER(result.view(-1), given.view(-1), operation, group=self.group, async_op=True)
            works = [work]
            if stamp is not None:
                works.append(dist.all_reduce(stamp, dist.ReduceOp.MAX, group=self.group, async_op=True))
        except RuntimeError as error:
            raise Aborted("another rank has gone") from error
        return _Arriving(result, stamp, now, works, self.timeout, given)


@dataclass(frozen=True)
class _Arriving:
    result: Tensor
    stamp: Tensor | None
    now: float
    works: list[Any]
    timeout: timedelta
    given: Tensor
    """Kept alive until all is there."""

    def wait(self) -> tuple[Tensor, float]:
        """See `Arriving.wait`. For no longer than the group was made for: told a timeout here, NCCL would have the host
        wait, and not the stream alone."""
        for work in self.works:
            try:
                work.wait()
            except RuntimeError as error:
                if "imed out" in str(error):
                    seconds = self.timeout.total_seconds()
                    raise TimeoutError(f"a collective did not end within {seconds:g} s; raise the timeout") from error
                raise Aborted("another rank has gone") from error
        return self.result, self.now if self.stamp is None else float(self.stamp)
