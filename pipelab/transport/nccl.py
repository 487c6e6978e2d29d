"""Ranks with a GPU each: what NCCL does differently from gloo, and nothing else.

NCCL has no tags: on one communicator messages are matched, and carried, in the order of issue. So every channel has a
communicator of its own, bound to the device and tried out before the first step by all ranks in one order, and a stream
of its own. The host never waits for a message: the stream that computes waits for an event. Only the layout of a
message that is new goes over gloo. (NCCL user guide, "Point-to-point communication"; torch.distributed, `new_group`.)

Not run on several GPUs yet.
"""

import math
import os
import time
from collections import deque
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from pipelab.action import Action
from pipelab.cuda_clock import Moment, Stamps
from pipelab.lower import Program
from pipelab.message_order import AHEAD, Channel, channels
from pipelab.transport import Layout, Message
from pipelab.transport.processes import Line, Processes, Times
from pipelab.world import World

os.environ.setdefault("CUDA_DEVICE_MAX_CONNECTIONS", "32")
"""Queues to the GPU, before CUDA starts: with 8, streams share them, and one's work waits behind another's message."""

LOOK = 20e-6
"""Seconds between two looks at an event that is waited for with a deadline."""


class CudaSlot:
    """A buffer on the GPU for one message of a layout; `free` is when the computing stream has copied it."""

    def __init__(self, layout: Layout, device: torch.device) -> None:
        self.layout = layout
        self.tensor = torch.empty(math.prod(layout.shape), dtype=layout.dtype, device=device)
        self.nbytes = self.tensor.nbytes
        self.free = torch.cuda.Event()
        self.free.record()


class Nccl(Processes):
    """The transport of one rank on its GPU; `carriers` are the communicators, by channel, `stamps` the GPU's clock."""

    ahead = AHEAD["issue order"]

    def __init__(
        self, program: Program, rank: int, groups: dict[Channel, Any], *, carriers: dict[Channel, Any], stamps: Stamps,
        device: torch.device, timeout: float, blocking: bool,
    ) -> None:  # fmt: skip
        super().__init__(program, rank, groups, device=device, timeout=timeout, blocking=blocking)
        self.carriers = carriers
        self.stamps = stamps
        self.streams = {key: torch.cuda.Stream(device) for key in carriers}
        self._alive: deque[tuple[torch.cuda.Event, Tensor]] = deque()  # what is being sent, until it has been
        self._moments: dict[tuple[str, Action], tuple[Moment, Moment]] = {}

    def begin(self, inputs: Sequence[Tensor]) -> None:
        """As over gloo."""
        self._moments = {}
        super().begin(inputs)

    def finish(self) -> Times:
        """Wait, looking again and again, until all is sent and computed; gives the times that the GPU stamped."""
        super().finish()  # the announcements
        end = torch.cuda.Event()
        end.record()
        deadline = time.monotonic() + self.timeout.total_seconds()
        while not (end.query() and self._reaped()):
            if time.monotonic() > deadline:
                raise TimeoutError(f"messages of rank {self.rank} were not taken within {self.timeout}")
            time.sleep(LOOK)
        self.stamps.settle()
        return {key: (begun.seconds, ended.seconds) for key, (begun, ended) in self._moments.items()}

    def _hand_over(self, line: Line, step: Action, message: Message, layout: Layout, wait: bool) -> None:
        self._reaped()
        compute, stream = torch.cuda.current_stream(self.device), self.streams[line.name]
        tensor = message.tensor.contiguous()
        stream.wait_stream(compute)  # which has yet to compute it
        with torch.cuda.stream(stream):
            begun = self.stamps.take(stream)
            self._issue(self.carriers[line.name].send, tensor, line, 0).wait()  # the stream waits, not the host
            self._moments["send", step] = begun, self.stamps.take(stream)
            sent = torch.cuda.Event()
            sent.record(stream)
        self._alive.append((sent, tensor))
        if wait:
            compute.wait_event(sent)

    def _start(self, line: Line, send: Action, slot: CudaSlot) -> torch.cuda.Event:
        stream = self.streams[line.name]
        stream.wait_event(slot.free)
        with torch.cuda.stream(stream):
            self._issue(self.carriers[line.name].recv, slot.tensor, line, 0).wait()
            there = torch.cuda.Event()
            there.record(stream)
        return there

    def _collect(self, line: Line, send: Action, slot: CudaSlot, work: torch.cuda.Event) -> tuple[Tensor, float]:
        compute = torch.cuda.current_stream(self.device)
        begun = self.stamps.take(compute)
        compute.wait_event(work)
        self._moments["recv", send] = begun, self.stamps.take(compute)
        tensor = slot.tensor.view(slot.layout.shape).clone()
        slot.free.record(compute)
        return tensor, 0.0  # the host goes on at once

    def _new_slot(self, layout: Layout) -> CudaSlot:
        return CudaSlot(layout, self.device)

    def _reaped(self) -> bool:
        """Let go of what has been sent; whether that is all."""
        while self._alive and self._alive[0][0].query():
            self._alive.popleft()
        return not self._alive


def make_carriers(
    program: Program, pipelines: Sequence[Sequence[int]], world: World, device: torch.device
) -> dict[Channel, Any]:
    """A communicator for every channel of every pipeline, made and tried out by all ranks in this one order."""
    own = {}
    for members in pipelines:
        for key in channels(program):
            ends = members[key.sender], members[key.receiver]
            carrier = world.group(sorted(ends), backend="nccl", device_id=device)
            if world.rank in ends:
                own[key] = carrier
                byte = torch.zeros(1, device=device)
                move = carrier.send if world.rank == ends[0] else carrier.recv
                move([byte], int(ends[1] > ends[0]) if world.rank == ends[0] else int(ends[0] > ends[1]), 0).wait()
                torch.cuda.current_stream(device).synchronize()
            world.everybody(None)
    return own
