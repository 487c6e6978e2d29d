"""What does a GPU's allocator say? Bytes in use, at most and now, and bytes that it has taken from the device.

*Allocated* is what tensors take, each rounded up to 512 bytes. *Reserved* is what PyTorch has taken from the device, in
segments of 2 MiB for small tensors and of 20 MiB or more for large ones, and keeps for the next tensor: so it only
grows, and what lies between the two is free for this process and for no other. Where the free pieces are too small for
the next tensor, memory is *fragmented*: a run may end with "out of memory" while less is allocated than the device has.
A process takes a further half GiB or so, for CUDA itself, that neither counts. (PyTorch, "CUDA semantics", section
"Memory management".)

The counters follow the host, which is ahead of the GPU: they say what is in use when an action has been issued. For
peaks that is right, as memory is given out when work is issued. Virtual ranks that share a GPU share its counters.
"""

from typing import NamedTuple

import torch

COUNTERS = (("allocated", "current"), ("allocated", "peak"), ("reserved", "current"))
"""PyTorch's names of what a reading says."""


class Reading(NamedTuple):
    """Bytes of the device when an action has been issued: in use now, at most since the last reading, and reserved."""

    allocated: int
    peak: int
    reserved: int


class Allocator:
    """The allocator of one GPU."""

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def read(self) -> Reading:
        """What is in use and reserved; the next peak begins at what is in use now."""
        told = torch.cuda.memory_stats(self.device)  # one look: others who share the GPU may look between two
        torch.cuda.reset_peak_memory_stats(self.device)
        return Reading(*(told[f"{name}_bytes.all.{when}"] for name, when in COUNTERS))
