"""How does a rank execute its program? An interpreter: one small method for each kind of step.

The same program was simulated before; here each step moves real tensors and takes real time, on the clock it is given.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from pipelab.action import Action, B, Element, F, I, W, parts
from pipelab.clock import Clock
from pipelab.costs import Link
from pipelab.dependencies import GIVES, Value, sources
from pipelab.flight_recorder import FlightRecorder
from pipelab.loss import count_targets
from pipelab.lower import CARRIES, RECEIVED_FROM, Program
from pipelab.memory import ActivationMeter, Held
from pipelab.stage import Stage
from pipelab.trace import Span
from pipelab.transport import Message, Transport
from pipelab.watch import Finding


@dataclass(frozen=True)
class Microbatches:
    """The micro-batches of one step: inputs, targets, and the number of targets of the whole step."""

    step: int
    inputs: Sequence[Tensor]
    targets: Sequence[Tensor]
    total: int

    def to(self, device: torch.device) -> "Microbatches":
        """The same on a device."""
        inputs, targets = ([tensor.to(device) for tensor in tensors] for tensors in (self.inputs, self.targets))
        return Microbatches(self.step, inputs, targets, self.total)


@dataclass
class Record:
    """What one rank did in one step."""

    spans: list[Span] = field(default_factory=list)
    curve: list[tuple[float, int]] = field(default_factory=list)
    losses: dict[int, float] = field(default_factory=dict)
    norms: dict[Action, float] = field(default_factory=dict)
    findings: list[Finding] = field(default_factory=list)

    @property
    def peak(self) -> int:
        """Most activation bytes held at any moment of the step."""
        return max((held for _, held in self.curve), default=0)


class Worker:
    """One rank: its row of the program, its stages, and the values that it made or received and still holds."""

    def __init__(
        self, rank: int, program: Program, stages: Mapping[int, Stage], *,
        transport: Transport, clock: Clock, meter: ActivationMeter, link: Link, blocking: bool = False,
    ) -> None:  # fmt: skip
        self.rank = rank
        self.program = program
        self.stages = stages
        self.transport = transport
        self.clock = clock
        self.meter = meter
        self.link = link
        self.blocking = blocking
        self.recorder = FlightRecorder()
        self.recording = True
        self.at: Element | None = None
        self._values: dict[Action, tuple[Tensor, Action, Held | None]] = {}
        self._bytes: dict[tuple[torch.Size, ...], list[tuple[int, int]]] = {}
        self._sent = {(s.stage, CARRIES[s.kind]) for e in program.rows[rank] for s in parts(e) if s.kind in CARRIES}
        count = program.schedule.stages
        self._needed = {
            (stage, kind): [source for source in sources(stage, kind, count) if source[0] != stage]
            for stage in stages for kind in (F, B, I, W)
        }  # fmt: skip
        self._compute: dict[str, Callable[[Action, Microbatches, Record], Tensor | None]] = {
            F: self._forward,
            B: self._backward,
            I: self._backward_input,
            W: self._backward_weight,
        }

    def run(self, batch: Microbatches) -> Record:
        """Execute the row once, for one step's micro-batches.

        What is held depends on shapes alone, and counting it costs up to a fifth of a small forward: bytes are counted
        in the first step of these shapes (the warm-up, as a rule), and noted again in the later ones.
        """
        record = Record()
        shapes = tuple(tensor.shape for tensor in batch.inputs)
        self.meter.counting = shapes not in self._bytes
        held: list[tuple[int, int]] = []
        waited: Action | None = None
        for step in self.program.rows[self.rank]:
            self.at = step
            if isinstance(step, Action) and step.kind in RECEIVED_FROM:
                waited = self._receive(step, record) or waited
            elif isinstance(step, Action) and step.kind in CARRIES:
                self._send(step, record)
            else:
                held.append(self._work(step, batch, record, waited))
                waited = None
        self.at = None
        if self.recording:
            record.curve = self._curve(record.spans, self._bytes.setdefault(shapes, held))
        record.spans, record.curve = self.clock.settle(record.spans, record.curve)
        for stage in self.stages.values():
            self._watched(stage, record)
        assert not self._values, f"rank {self.rank} still holds {list(self._values)}"
        return record

    def _work(self, element: Element, batch: Microbatches, record: Record, waited: Action | None) -> tuple[int, int]:
        """Compute; gives the most bytes held meanwhile, and those held afterwards."""
        self.recorder.running(element)
        self.meter.restart_peak()
        outputs, start, end = self.clock.run(
            lambda: [self._compute[action.kind](action, batch, record) for action in parts(element)]
        )
        for action, output in zip(parts(element), outputs, strict=True):
            if output is not None:
                given = Action(action.stage, GIVES.get(action.kind, action.kind), action.microbatch)
                stays = action.kind == F and (action.stage, F) not in self._sent
                self._values[given] = output, action, self.meter.hold(output) if stays else None
        del outputs
        self._note(record, Span(self.rank, "compute", element, start, end, waited))
        return self.meter.restart_peak(), self.meter.live

    def _note(self, record: Record, span: Span) -> None:
        if self.recording:
            record.spans.append(span)

    @staticmethod
    def _curve(spans: list[Span], held: list[tuple[int, int]]) -> list[tuple[Any, int]]:
        work = (span for span in spans if span.lane == "compute")
        return [
            step
            for span, (peak, live) in zip(work, held, strict=True)
            for step in ((span.start, peak), (span.end, live))
        ]

    def _receive(self, step: Action, record: Record) -> Action | None:
        send = self.program.peer(step)
        self.recorder.waiting(step, send, (self.program.placement.rank_of[send.stage],))
        began = self.clock.now
        tensor, arrival, giver = self.transport.receive(send)
        self.clock.wait_until(arrival)
        ended = self.clock.now
        self._values[Action(send.stage, CARRIES[send.kind], send.microbatch)] = tensor, giver, None
        waited = giver if arrival > began else None
        self._note(record, Span(self.rank, "recv", step, began, ended, waited))
        return waited

    def _send(self, step: Action, record: Record) -> None:
        tensor, giver, _ = self._values.pop(Action(step.stage, CARRIES[step.kind], step.microbatch))
        departure = self.clock.now
        arrival = departure + self.link.seconds(tensor.nbytes)
        self._note(record, Span(self.rank, "send", step, departure, arrival))
        held_up_by = self.transport.held_up_by(step)
        if held_up_by is not None:
            receive = self.program.peer(held_up_by)
            self.recorder.waiting(step, receive, (self.program.placement.rank_of[receive.stage],))
        self.transport.send(step, Message(tensor, arrival, giver))
        if self.blocking:
            self.clock.wait_until(arrival)

    def _input(self, action: Action, source: Value) -> Tensor:
        """The value that another stage gave for this action; it is this action's alone, so it is let go here."""
        return self._values.pop(Action(*source, action.microbatch))[0]

    def _forward(self, action: Action, batch: Microbatches, record: Record) -> Tensor | None:
        stage, microbatch = self.stages[action.stage], action.microbatch
        before = [self._input(action, source) for source in self._others(action)]
        x = before[0] if before else batch.inputs[microbatch].clone()  # not a view that keeps the whole batch
        if stage.loss is None:
            return stage.forward(microbatch, x, batch.step)
        target = batch.targets[microbatch].clone()
        record.losses[microbatch] = stage.forward(microbatch, x, batch.step, target, batch.total).item()
        return None

    def _backward(self, action: Action, batch: Microbatches, record: Record) -> Tensor | None:
        return self.stages[action.stage].backward(action.microbatch, self._gradient(action))

    def _backward_input(self, action: Action, batch: Microbatches, record: Record) -> Tensor | None:
        return self.stages[action.stage].backward_input(action.microbatch, self._gradient(action))

    def _backward_weight(self, action: Action, batch: Microbatches, record: Record) -> None:
        self.stages[action.stage].backward_weight(action.microbatch)

    def _watched(self, stage: Stage, record: Record) -> None:
        if (watch := stage.watch) is not None:
            watch.weights(stage.layers)
            record.norms |= {Action(watch.stage, kind, m): norm for (kind, m), norm in watch.norms.items()}
            record.findings += [watch.first] if watch.first is not None else []

    def _gradient(self, action: Action) -> Tensor | None:
        gradients = [self._input(action, source) for source in self._others(action)]
        return gradients[0] if gradients else None

    def _others(self, action: Action) -> list[Value]:
        """What the dataflow rule says that it needs of other stages: one value, or none at the model's ends."""
        return self._needed[action.stage, action.kind]


def split_batch(step: int, batch: tuple[Tensor, Tensor], microbatches: int) -> Microbatches:
    """Cut a batch (inputs, targets) along its first dimension into M micro-batches, as even as it goes.

    Raises ValueError when it is no such pair, or has fewer rows than micro-batches.
    """
    if not (isinstance(batch, tuple | list) and len(batch) == 2 and all(isinstance(t, Tensor) for t in batch)):
        raise ValueError(f"step {step}: a batch is a pair of tensors (inputs, targets): got {type(batch).__name__}")
    inputs, targets = batch
    if len(inputs) != len(targets):
        raise ValueError(
            f"step {step}: {len(inputs)} inputs come with {len(targets)} targets; give one target an input"
        )
    if len(inputs) < microbatches:
        raise ValueError(
            f"step {step}: a batch of {len(inputs)} rows cannot be cut into {microbatches} micro-batches;"
            " give larger batches or ask for fewer micro-batches"
        )
    inputs_of, targets_of = (torch.tensor_split(tensor, microbatches) for tensor in (inputs, targets))
    return Microbatches(step, inputs_of, targets_of, count_targets(targets))
