"""What does a rank keep for the backward? Count it exactly: every storage that autograd or the pipeline holds.

Counted are tensors saved by autograd (parameters and buffers excluded), inputs and outputs of stages while they are
held, and what a deferred weight gradient waits with. Two tensors that share memory count once.
"""

from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor


class Held:
    """A tensor that is counted for as long as this object lives."""

    __slots__ = ("_key", "_meter", "tensor")

    def __init__(self, meter: "ActivationMeter", tensor: Tensor, key: int) -> None:
        self.tensor = tensor
        self._meter = meter
        self._key = key

    def __del__(self) -> None:
        if self._key:
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
        self._excluded = {0, *(tensor.untyped_storage().data_ptr() for tensor in excluded)}  # 0: without memory
        self._holders: dict[int, list[int]] = {}
        self._pack = self.save  # one object, to be recognised
        self.live = 0
        self.peak = 0
        self.counting = True
        """Set it to False only while nothing is held: then nothing is counted, and nothing costs time."""

    def watch(self) -> AbstractContextManager[object]:
        """A context in which everything that autograd saves is counted until autograd lets go of it."""
        if not self.counting:
            return nullcontext()
        return torch.autograd.graph.saved_tensors_hooks(self._pack, _saved)

    @property
    def sees_what_is_saved(self) -> bool:
        """Whether nobody else's hooks take what autograd saves now, as a recomputation's do, to drop it."""
        hooks = torch._C._autograd._top_saved_tensors_default_hooks(False)
        return hooks is None or hooks[0] is self._pack

    def hold(self, tensor: Tensor) -> Held:
        """Count a tensor that the pipeline itself keeps, until the returned object is dropped."""
        held = self.save(tensor) if self.counting else tensor
        return held if isinstance(held, Held) else Held(self, tensor, 0)

    def save(self, tensor: Tensor) -> Held | Tensor:
        """Count a tensor that autograd saves: some twenty times a block, so parameters go straight through."""
        storage = tensor.untyped_storage()
        key = storage.data_ptr()
        if key in self._excluded:
            return tensor
        holder = self._holders.get(key)
        if holder is not None:
            holder[0] += 1
        else:
            size = storage.nbytes()
            self._holders[key] = [1, size]
            self.live += size
            if self.live > self.peak:
                self.peak = self.live
        return Held(self, tensor, key)

    def weights_moved(self, gone: Iterable[int], come: Iterable[int]) -> None:
        """Weights have new addresses: from here on count what lies at `gone`, and leave out what lies at `come`."""
        self._excluded = (self._excluded - set(gone)) | set(come)

    def restart_peak(self) -> int:
        """The peak since the last restart; the next one begins at what is held now."""
        peak, self.peak = self.peak, self.live
        return peak

    def _remove(self, key: int) -> None:
        holder = self._holders[key]
        holder[0] -= 1
        if holder[0] == 0:
            self.live -= holder[1]
            del self._holders[key]


def _saved(held: Held | Tensor) -> Tensor:
    return held.tensor if type(held) is Held else held  # type: ignore[return-value]


@dataclass(frozen=True)
class Memory:
    """Activation bytes of each rank: the peak, and the curve as (time, bytes) steps on the trace's clock."""

    peaks: tuple[int, ...]
    curves: tuple[tuple[tuple[float, int], ...], ...]
