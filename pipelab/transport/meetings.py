"""Collectives of ranks that are threads: each brings its tensor, and waits until all the others have brought theirs."""

from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from functools import reduce

import torch
from torch import Tensor

from pipelab.collectives import ALL_GATHER, ALL_REDUCE
from pipelab.transport.memory import Shared


@dataclass
class _Place:
    """One collective: what each member has brought, and how many have taken the whole with them."""

    brought: dict[int, tuple[Tensor, float]] = field(default_factory=dict)
    gone: int = 0


class Meetings(Shared):
    """The meeting places of all groups of a run; nobody waits longer than `timeout` seconds."""

    def __init__(self, timeout: float) -> None:
        super().__init__(timeout)
        self._places: dict[Hashable, _Place] = {}

    def bring(self, key: Hashable, index: int, tensor: Tensor, now: float) -> None:
        """Leave a copy of a tensor for the others."""
        copy = tensor.detach().clone(memory_format=torch.contiguous_format)
        with self._changed:
            self._places.setdefault(key, _Place()).brought[index] = copy, now
            self._changed.notify_all()

    def fetch(self, key: Hashable, size: int) -> list[tuple[Tensor, float]]:
        """What all have brought, in their order; it is not to be changed. Raises Aborted, or TimeoutError."""
        with self._changed:
            place = self._places[key]
            self._wait(
                lambda: len(place.brought) == size,
                lambda: (
                    f"members {sorted(set(range(size)) - set(place.brought))} of {key} did not come within"
                    f" {self.timeout:g} s"
                ),
            )
            place.gone += 1
            if place.gone == size:
                del self._places[key]
        return [place.brought[index] for index in range(size)]


class Seat:
    """The carrier of one member of one group: it counts the group's collectives, so that all meet at the same one."""

    def __init__(self, meetings: Meetings, name: Hashable, index: int, size: int) -> None:
        self.meetings, self.name, self.index, self.size = meetings, name, index, size
        self._number = 0

    def start(self, kind: str, tensor: Tensor, now: float, *, largest: bool = False) -> "_Arriving":
        """See `Carrier.start`."""
        self._number += 1
        key = self.name, self._number
        self.meetings.bring(key, self.index, tensor, now)
        return _Arriving(self, key, kind, torch.maximum if largest else torch.add)


@dataclass(frozen=True)
class _Arriving:
    seat: Seat
    key: Hashable
    kind: str
    join: Callable[[Tensor, Tensor], Tensor]

    def wait(self) -> tuple[Tensor, float]:
        """See `Arriving.wait`. Every member computes for itself, in the order of the members: all get the same bits."""
        brought = self.seat.meetings.fetch(self.key, self.seat.size)
        tensors, times = zip(*brought, strict=True)
        with torch.no_grad():
            if self.kind == ALL_GATHER:
                result = torch.stack(tensors)
            elif self.kind == ALL_REDUCE:
                result = reduce(self.join, tensors)
            else:
                result = reduce(self.join, [tensor[self.seat.index] for tensor in tensors])
        return result, max(times)
