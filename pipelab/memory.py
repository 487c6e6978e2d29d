"""What does a rank keep for the backward? Count it exactly: every storage that autograd or the pipeline holds.

Counted are tensors saved by autograd (parameters and buffers excluded), inputs and outputs of stages while they are
held, and what a deferred weight gradient waits with. Two tensors that share memory count once.
Read next: `holdings` (all that a rank holds, by cause), `memory_prediction` (the same before anything runs).
"""

from collections import defaultdict
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

from pipelab.action import Action
from pipelab.cuda_memory import Allocator


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

    def __init__(
        self, excluded: Iterable[Tensor] = (), identity: Callable[..., int] = torch.UntypedStorage.data_ptr
    ) -> None:
        self._identity = identity
        self._excluded = {0, *(identity(tensor.untyped_storage()) for tensor in excluded)}  # 0: without memory
        self._holders: dict[int, list[int]] = {}
        self._owners: dict[int, Action | None] = {}
        self._pack = self.save  # one object, to be recognised
        self.owner: Action | None = None
        """The action that is being executed: what is first held meanwhile is its own, until nobody holds it."""
        self.changes: defaultdict[Action | None, int] = defaultdict(int)
        """By how many bytes each owner has come to hold more, or less, since this was last emptied."""
        self.allocator: Allocator | None = None
        """That of the rank's GPU, if it has one."""
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
        key = self._identity(storage)
        if key in self._excluded:
            return tensor
        holder = self._holders.get(key)
        if holder is not None:
            holder[0] += 1
        else:
            size = storage.nbytes()
            self._holders[key] = [1, size]
            self._owners[key] = self.owner
            self.changes[self.owner] += size
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

    def changed(self) -> dict[Action | None, int]:
        """`changes` since the last call, without those that came to nothing."""
        changes = {owner: size for owner, size in self.changes.items() if size}
        self.changes.clear()
        return changes

    def unheld(self, tensor: Tensor) -> int:
        """The bytes of a tensor that the pipeline keeps without counting it here."""
        storage = tensor.untyped_storage()
        return 0 if self._identity(storage) in self._holders else storage.nbytes()

    def _remove(self, key: int) -> None:
        holder = self._holders[key]
        holder[0] -= 1
        if holder[0] == 0:
            self.live -= holder[1]
            self.changes[self._owners.pop(key)] -= holder[1]
            del self._holders[key]


def _saved(held: Held | Tensor) -> Tensor:
    return held.tensor if type(held) is Held else held  # type: ignore[return-value]
