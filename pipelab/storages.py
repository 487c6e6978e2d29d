"""What memory is in use? Every storage that an operator gives counts, until nobody has it.

So it is for real tensors, whose peak is tracked, and for fake ones, whose peak is predicted. Read next: `footprint`.
"""

import weakref
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

ROOMY = {
    torch.ops.aten.mse_loss.default,
    torch.ops.aten.smooth_l1_loss.default,
    torch.ops.aten.soft_margin_loss.default,
    torch.ops.aten.binary_cross_entropy.default,
}
"""Losses whose one number lies where PyTorch has put those of all elements before; a fake tensor does not tell."""


class LiveStorages(TorchDispatchMode):
    """Counts the storages that operators give, from then until nobody has them: now (`live`) and at most (`peak`).

    >>> with LiveStorages() as storages:
    ...     x = torch.ones(1000).exp()
    >>> storages.live, storages.peak
    (4000, 8000)
    """

    def __init__(self, excluded: Iterable[Tensor] = (), tile: int = 1) -> None:
        super().__init__()
        self._sizes = {tensor.untyped_storage()._cdata: 0 for tensor in excluded}
        self._tile = tile
        self.live = self.peak = 0

    def __torch_dispatch__(self, operator: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run the operator, and count what is new in its results."""
        result = operator(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor):
                storage = tensor.untyped_storage()
                if storage._cdata not in self._sizes:
                    taken = max(storage.nbytes(), args[0].nbytes if operator in ROOMY else 0)
                    self._sizes[storage._cdata] = size = self.rounded(taken)
                    self.live += size
                    self.peak = max(self.peak, self.live)
                    weakref.finalize(storage, self._gone, storage._cdata).atexit = False
        return result

    def rounded(self, size: int) -> int:
        """What the allocator takes for so many bytes."""
        return -(-size // self._tile) * self._tile

    def _gone(self, identity: int) -> None:
        self.live -= self._sizes.pop(identity)


class LettingGo:
    """Parts the peak of `storages` at the moment when one of them is gone: `peak` is that before, `size` what went."""

    def __init__(self, storages: LiveStorages, *ends: tuple[weakref.ref[Any], int]) -> None:
        self.storages = storages
        self.peak = self.size = 0
        self._finalizers = [
            weakref.finalize(storage(), self._gone, size) for storage, size in ends if storage() is not None
        ]

    def _gone(self, size: int) -> None:
        self.peak, self.storages.peak, self.size = self.storages.peak, 0, size

    def over(self) -> None:
        """What is gone later is another action's."""
        for finalizer in self._finalizers:
            finalizer.detach()
