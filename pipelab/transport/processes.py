"""Ranks as processes: a message is bytes that gloo carries, into a buffer that the receiver posted ahead.

Every channel (a direction of an edge, activations or gradients) has a process group of its own, so that nothing waits
behind a message of another kind. Gloo wants a receiver to know the size beforehand: the first message of its shape is
announced by a short one, and from the next step on both sides know. And gloo tells that a message has been taken only
to those who wait: a rank waits for an old message of a channel before it sends one more than `window` there, and for
the rest at the end of the step. Read next: `nccl`, what GPUs do differently.
"""

import math
from collections import defaultdict, deque
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import torch
from torch import Tensor

from pipelab.action import Action
from pipelab.dependencies import gives
from pipelab.lower import CARRIES, Program
from pipelab.message_order import AHEAD, Channel, channels, window
from pipelab.transport import Aborted, Layout, Message
from pipelab.world import World

HEADER = 16
"""Bytes before the tensor: when it arrives, and room that keeps every dtype aligned."""
MOST_DIMS = 8
DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.complex64, torch.complex128)


Times = dict[tuple[str, Action], tuple[float, float]]
"""What a transport measured: for a lane ("send" or "recv") and a message, by its send: its start and its end, by
`time.perf_counter`."""


class Slot:
    """A buffer for one message of a layout, used again and again."""

    def __init__(self, layout: Layout) -> None:
        self.layout = layout
        self.bytes = torch.empty(HEADER + math.prod(layout.shape) * layout.dtype.itemsize, dtype=torch.uint8)
        self.arrival = self.bytes[:8].view(torch.float64).numpy()
        self.tensor = self.bytes[HEADER:].view(layout.dtype).view(layout.shape)
        self.nbytes = self.bytes.nbytes


class Line:
    """One end of a channel: its group, the other end, what its sender has under way, or its receiver has posted."""

    def __init__(self, group: Any, peer: int, sends: Sequence[Action], name: Channel) -> None:
        self.group = group
        self.peer = peer
        self.sends = sends
        self.name = name
        self.coming: deque[Action] = deque()
        self.posted: dict[Action, tuple[Any, Any]] = {}
        self.under_way: deque[tuple[Any, Slot, Action]] = deque()


class Processes:
    """The transport of one rank among processes on CPUs; nobody waits longer than `timeout` seconds.

    `groups` has a process group for each channel (see `make_groups`). With `blocking` a send returns when the receiver
    has taken it.
    """

    ahead = AHEAD["tag"]

    def __init__(
        self, program: Program, rank: int, groups: dict[Channel, Any], *,
        device: torch.device, timeout: float, blocking: bool,
    ) -> None:  # fmt: skip
        self.rank = rank
        self.device = device
        self.timeout = timedelta(seconds=timeout)
        self.blocking = blocking
        schedule = program.schedule
        self.width = schedule.microbatches
        self.givers = {gives(a, schedule.stages, schedule.groups): a for _, _, a in schedule.actions()}
        self.window = window(program)
        self.incoming: list[Line] = []
        self.outgoing: list[Line] = []
        self.line_of: dict[Action, Line] = {}
        for key, traffic in channels(program).items():
            if rank in key[:2]:
                other = key.sender if rank == key.receiver else key.receiver
                line = Line(groups[key], int(other > rank), traffic.received, key)
                self.line_of.update(dict.fromkeys(traffic.sent, line))
                (self.incoming if rank == key.receiver else self.outgoing).append(line)
        self.layouts: dict[tuple[int, str, torch.Size], Layout] = {}
        self.shapes: list[torch.Size] = []
        self.known: set[torch.Size] = set()
        self.buffers = 0
        self._free: dict[Layout, list[Any]] = defaultdict(list)
        self._announcements: list[tuple[Any, Tensor, Action]] = []

    def begin(self, inputs: Sequence[Tensor]) -> None:
        """Get ready for a step with these micro-batches: post the first receives of those whose layouts are known."""
        shapes = [tensor.shape for tensor in inputs]
        self.known.update(self.shapes)
        if shapes != self.shapes:
            self._free.clear()  # buffers of other shapes are not kept for ever
            self.buffers = 0
        self.shapes = shapes
        for line in self.incoming:
            line.coming = deque(line.sends)
            self._post_ahead(line)

    def held_up_by(self, step: Action) -> Action | None:
        """The send that must have been taken before this one can go: the oldest, where the channel is full."""
        under_way = self.line_of[step].under_way
        return under_way[0][2] if len(under_way) >= self.window else None

    def send(self, step: Action, message: Message) -> None:
        """Copy the tensor into a buffer and let it go; the buffer is used again when it has been taken."""
        line = self.line_of[step]
        while len(line.under_way) >= self.window:
            self._reap(line)
        layout = Layout.of(message.tensor)
        announced = self._expected(step)
        if announced is None:
            self._announce(line, step, layout)
        elif announced != layout:
            raise ValueError(
                f"{step} carries {layout.dtype} {layout.shape}, and before, from inputs of the same shape,"
                f" {announced.dtype} {announced.shape}; a stage's output may depend on its input's shape only"
            )
        self._hand_over(line, step, message, layout, wait=self.blocking and announced is not None)

    def receive(self, step: Action) -> Message:
        """Wait for the message of the send `step`. Raises Aborted, or TimeoutError naming the send."""
        line = self.line_of[step]
        if step not in line.posted:
            line.coming.remove(step)
            self._post(line, step, self._expected(step) or self._announced(line, step))
        slot, work = line.posted.pop(step)
        self._post_ahead(line)  # while this one is still under way
        tensor, arrival = self._collect(line, step, slot, work)
        self._free[slot.layout].append(slot)
        return Message(tensor, arrival, self.givers[Action(step.stage, CARRIES[step.kind], step.microbatch)])

    def finish(self) -> Times:
        """Wait until every message of the step has been taken; gives nothing, for gloo does not tell when that was."""
        for line in self.outgoing:
            while line.under_way:
                self._reap(line)
        while self._announcements:
            work, _, send = self._announcements.pop()
            self._wait(work, send, self.line_of[send])
        return {}

    def _post_ahead(self, line: Line) -> None:
        while line.coming and len(line.posted) < self.ahead:
            layout = self._expected(line.coming[0])
            if layout is None:
                return
            self._post(line, line.coming.popleft(), layout)

    def _post(self, line: Line, send: Action, layout: Layout) -> None:
        slot = self._take(layout)
        line.posted[send] = slot, self._start(line, send, slot)

    def _hand_over(self, line: Line, step: Action, message: Message, layout: Layout, wait: bool) -> None:
        """Gloo's way to send: from a buffer."""
        slot = self._take(layout)
        slot.tensor.copy_(message.tensor)
        slot.arrival[0] = message.arrival
        work = self._issue(line.group.send, slot.bytes, line, 2 * self._number(step))
        line.under_way.append((work, slot, step))
        if wait:
            self._reap(line)

    def _start(self, line: Line, send: Action, slot: Any) -> Any:
        """Gloo's way to post a receive."""
        return self._issue(line.group.recv, slot.bytes, line, 2 * self._number(send))

    def _collect(self, line: Line, send: Action, slot: Any, work: Any) -> tuple[Tensor, float]:
        """Gloo's way to wait for what was posted: the tensor, in memory of its own, and when it arrived."""
        self._wait(work, send, line)
        return slot.tensor.to(self.device, copy=True), float(slot.arrival[0])

    def _expected(self, send: Action) -> Layout | None:
        """The layout of a message whose micro-batch had the same shape in an earlier step; both sides know the same."""
        shape = self.shapes[send.microbatch]
        return self.layouts.get((send.stage, send.kind, shape)) if shape in self.known else None

    def _announce(self, line: Line, send: Action, layout: Layout) -> None:
        if layout.dtype not in DTYPES or len(layout.shape) > MOST_DIMS:
            raise ValueError(f"{send} carries {layout.dtype} {layout.shape}; floating-point tensors of up to 8 dims go")
        words = [DTYPES.index(layout.dtype), len(layout.shape), *layout.shape]
        header = torch.tensor(words + [0] * (2 + MOST_DIMS - len(words)))
        work = self._issue(line.group.send, header, line, 2 * self._number(send) + 1)
        self._announcements.append((work, header, send))
        self._learn(send, layout)

    def _announced(self, line: Line, send: Action) -> Layout:
        header = torch.empty(2 + MOST_DIMS, dtype=torch.int64)
        self._wait(self._issue(line.group.recv, header, line, 2 * self._number(send) + 1), send, line)
        dtype, dims, *shape = header.tolist()
        return self._learn(send, Layout(tuple(shape[:dims]), DTYPES[dtype]))

    def _learn(self, send: Action, layout: Layout) -> Layout:
        self.layouts[send.stage, send.kind, self.shapes[send.microbatch]] = layout
        return layout

    def _take(self, layout: Layout) -> Any:
        free = self._free[layout]
        if free:
            return free.pop()
        slot = self._new_slot(layout)
        self.buffers += slot.nbytes
        return slot

    def _new_slot(self, layout: Layout) -> Any:
        return Slot(layout)

    def _reap(self, line: Line) -> None:
        """Wait until the oldest message of a channel has been taken, and have its buffer back."""
        work, slot, send = line.under_way[0]
        self._wait(work, send, line)
        line.under_way.popleft()
        self._free[slot.layout].append(slot)

    def _number(self, send: Action) -> int:
        return send.stage * self.width + send.microbatch

    def _issue(self, operation: Any, tensor: Tensor, line: Line, tag: int) -> Any:
        try:
            return operation([tensor], line.peer, tag)
        except RuntimeError as error:
            raise _gone(line, self.rank) from error

    def _wait(self, work: Any, send: Action, line: Line) -> None:
        try:
            work.wait(self.timeout)
        except RuntimeError as error:
            if "imed out" in str(error):
                seconds = self.timeout.total_seconds()
                what = "did not come" if self.rank == line.name.receiver else "was not taken"
                raise TimeoutError(f"{send} {what} within {seconds:g} s; raise the timeout for slow stages") from error
            raise _gone(line, self.rank) from error


def make_groups(program: Program, pipelines: Sequence[Sequence[int]], world: World) -> dict[Channel, Any]:
    """A group for every channel of every pipeline (its global ranks), made and tried out by all in this one order.

    Gives those of the pipeline that this rank belongs to.
    """
    own = {}
    for members in pipelines:
        for key in channels(program):
            sender, receiver = members[key.sender], members[key.receiver]
            group = world.pair((sender, receiver))
            if group is not None:
                own[key] = group
                _try_out(group, world.rank == sender, int(receiver > sender))
    return own


def _try_out(group: Any, sends: bool, receiver: int) -> None:
    """One byte along the channel, so that no connection is made in the middle of a step."""
    byte = torch.zeros(1, dtype=torch.uint8)
    if sends:
        group.send([byte], receiver, 0).wait()
    else:
        group.recv([byte], 1 - receiver, 0).wait()


def _gone(line: Line, rank: int) -> Aborted:
    other = line.name.sender if rank == line.name.receiver else line.name.receiver
    return Aborted(f"rank {other} has gone")
