"""What does a rank keep for the backward? Count it exactly: every storage that autograd or the pipeline holds.

Counted are tensors saved by autograd (parameters and buffers excluded), inputs and outputs of stages while they are
held, and what a deferred weight gradient waits with. Two tensors that share memory count once.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor


class Held:
    """A tensor that is counted for as long as this object lives."""

    __slots__ = ("_key", "_meter", "tensor")

    def __init__(self, meter: "ActivationMeter", tensor: Tensor) -> None:
        self.tensor = tensor
        self._meter = meter
        self._key = meter._add(tensor)

    def __del__(self) -> None:
        self._meter._remove(self._key)


class ActivationMeter:
    """Counts the bytes of activations that one rank holds, now (`live`) and at most (`peak`).

    >>> meter = ActivationMeter()
    >>> x = torch.zeros(1000, requires_grad=True)
    >>> with meter.watch():
    ...     y = x.exp()
    >>> meter.live
    4000
    >>> y.sum().backward()
    >>> meter.live, meter.peak
    (0, 4000)
    """

    def __init__(self, excluded: Iterable[Tensor] = ()) -> None:
        self._excluded = {tensor.untyped_storage().data_ptr() for tensor in excluded}
        self._holders: dict[int, list[int]] = {}
        self.live = 0
        self.peak = 0

    def watch(self) -> torch.autograd.graph.saved_tensors_hooks:
        """A context in which everything that autograd saves is counted until autograd lets go of it."""
        return torch.autograd.graph.saved_tensors_hooks(self.hold, lambda held: held.tensor)

    def hold(self, tensor: Tensor) -> Held:
        """Count a tensor that the pipeline itself keeps, until the returned object is dropped."""
        return Held(self, tensor)

    def weights_moved(self, gone: Iterable[int], come: Iterable[int]) -> None:
        """Weights have new addresses: from here on count what lies at `gone`, and leave out what lies at `come`."""
        self._excluded = (self._excluded - set(gone)) | set(come)

    def restart_peak(self) -> int:
        """The peak since the last restart; the next one begins at what is held now."""
        peak, self.peak = self.peak, self.live
        return peak

    def _add(self, tensor: Tensor) -> int:
        storage = tensor.untyped_storage()
        key = storage.data_ptr()
        if key == 0 or key in self._excluded:
            return 0
        holder = self._holders.setdefault(key, [0, storage.nbytes()])
        holder[0] += 1
        if holder[0] == 1:
            self.live += holder[1]
            self.peak = max(self.peak, self.live)
        return key

    def _remove(self, key: int) -> None:
        if key == 0:
            return
        holder = self._holders[key]
        holder[0] -= 1
        if holder[0] == 0:
            self.live -= holder[1]
            del self._holders[key]


@dataclass(frozen=True)
class Memory:
    """Activation bytes of each rank: the peak, and the curve as (time, bytes) steps on the trace's clock."""

    peaks: tuple[int, ...]
    curves: tuple[tuple[tuple[float, int], ...], ...]
