"""How does a rank execute its program? An interpreter: one small method for each kind of step.

The same program was simulated before; here each step moves real tensors and takes real time, on the clock it is given.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from pipelab.action import Action, B, Element, F, I, U, W, parts
from pipelab.clock import Clock
from pipelab.costs import Link
from pipelab.dependencies import T, gives, needs
from pipelab.flight_recorder import FlightRecorder
from pipelab.holdings import Counted, Holdings, Memory, Moment
from pipelab.loss import count_targets
from pipelab.lower import CARRIES, RECEIVED_FROM, Program
from pipelab.memory import ActivationMeter, Held
from pipelab.schedule import Schedule
from pipelab.stage import Stage
from pipelab.trace import Span, Trace
from pipelab.transport import Message, Transport
from pipelab.watch import Finding
from pipelab.weight_versions import Update, UpdatingStage


@dataclass(frozen=True)
class Microbatches:
    """The micro-batches of one step: inputs, targets, and over how many targets the loss of each is a mean.

    That is the number of the whole step's targets, or, where each micro-batch updates the weights, of its own.
    `on_loss` is told the loss of each micro-batch that has updated the weights, on the rank that knows it.
    """

    step: int
    inputs: Sequence[Tensor]
    targets: Sequence[Tensor]
    totals: Sequence[int]
    on_loss: Callable[[int, float], None] | None = None

    @property
    def targets_in_all(self) -> int:
        """Number of targets (tokens) of all micro-batches."""
        return sum(map(count_targets, self.targets))

    def to(self, device: torch.device) -> "Microbatches":
        """The same on a device."""
        inputs, targets = ([tensor.to(device) for tensor in tensors] for tensors in (self.inputs, self.targets))
        return replace(self, inputs=inputs, targets=targets)


@dataclass
class Record:
    """What one rank did in one step; `counted`, `parameters` (by stage), `optimizer` and `buffers` are what it held."""

    spans: list[Span] = field(default_factory=list)
    curve: list[tuple[float, int]] = field(default_factory=list)
    losses: dict[int, float] = field(default_factory=dict)
    updates: list[Update] = field(default_factory=list)
    norms: dict[Action, float] = field(default_factory=dict)
    findings: list[Finding] = field(default_factory=list)
    counted: Counted = field(default_factory=Counted)
    parameters: dict[int, int] = field(default_factory=dict)
    optimizer: int = 0
    buffers: int = 0

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
        self.parameters = [parameter for stage in stages.values() for parameter in stage.layers.parameters()]
        self.parameter_bytes = {stage: own.parameter_bytes for stage, own in stages.items()}
        self.recorder = FlightRecorder()
        self.recording = True
        self.record = Record()
        self.at: Element | None = None
        self._values: dict[Action, tuple[Tensor, Action, Held | None]] = {}
        self._counted: dict[tuple[torch.Size, ...], Counted] = {}
        self._sent = {(s.stage, CARRIES[s.kind]) for e in program.rows[rank] for s in parts(e) if s.kind in CARRIES}
        self._needed = {
            action: need
            for element in program.schedule.rows[rank]
            for action in parts(element)
            for need in needs(action, program.schedule.stages, program.schedule.groups)
            if need.stage != action.stage or need.kind == T
        }  # of another stage: one value, or none at the model's ends
        self._compute: dict[str, Callable[[Action, Microbatches, Record], Tensor | None]] = {
            F: self._forward,
            B: self._backward,
            I: self._backward_input,
            W: self._backward_weight,
        }

    def run(self, batch: Microbatches) -> Record:
        """Execute the row once, for one step's micro-batches; `record` grows meanwhile, and is kept if it breaks off.

        What is held depends on shapes alone, and counting it costs up to a fifth of a small forward: bytes are counted
        in the first step of these shapes (the warm-up, as a rule), and noted again in the later ones.
        """
        self.record = record = Record(parameters=self.parameter_bytes)
        try:
            self._execute(batch, record)
        finally:
            record.spans, record.curve = self.clock.settle(record.spans, record.curve)
        for stage in self.stages.values():
            self._watched(stage, record)
            if isinstance(stage, UpdatingStage):
                record.optimizer += stage.versions.state_bytes
        assert not self._values, f"rank {self.rank} still holds {list(self._values)}"
        return record

    def _execute(self, batch: Microbatches, record: Record) -> None:
        shapes = tuple(tensor.shape for tensor in batch.inputs)
        known = self._counted.get(shapes)
        self.meter.counting = known is None
        record.counted = counted = known or Counted()
        moments = iter(known.moments if known else ())
        waited: Action | None = None
        for step in self.program.rows[self.rank]:
            self.at = step
            if isinstance(step, Action) and step.kind in RECEIVED_FROM:
                waited = self._receive(step, record) or waited
            elif isinstance(step, Action) and step.kind in CARRIES:
                self._send(step, record)
            elif isinstance(step, Action) and step.kind == U:
                self._update(step, batch, record)
            else:
                span: Any = self._work(step, batch, record, waited)
                moment = next(moments, None) or self._count(counted)
                if self.recording:
                    record.curve += ((span.start, moment.peak), (span.end, moment.live))
                waited = None
        self.at = None
        record.buffers = self.transport.buffers
        if self.recording:
            self._counted[shapes] = counted

    def _count(self, counted: Counted) -> Moment:
        """What is held now that an action has ended."""
        staying = [t for v, (t, _, held) in self._values.items() if held is None and v[:2] not in self._sent]
        moment = Moment(
            peak=self.meter.restart_peak(),
            live=self.meter.live,
            changes=self.meter.changed(),
            gradients=sum(s.gradient_bytes for s in self.stages.values()),
            staying=sum(map(self.meter.unheld, staying)),
            device=None if self.meter.allocator is None else self.meter.allocator.read(),
        )
        counted.moments.append(moment)
        return moment

    def _work(self, element: Element, batch: Microbatches, record: Record, waited: Action | None) -> Span:
        """Compute; gives its span."""
        self.recorder.running(element)
        outputs, start, end = self.clock.run(lambda: [self._perform(a, batch, record) for a in parts(element)])
        for action, output in zip(parts(element), outputs, strict=True):
            given = gives(action, self.program.schedule.stages, self.program.schedule.groups)
            if output is not None and self._is_needed(given):
                stays = action.kind == F and given[:2] not in self._sent
                self._values[given] = output, action, self.meter.hold(output) if stays else None
        del outputs
        span = Span(self.rank, "compute", element, start, end, waited)
        self._note(record, span)
        return span

    def _perform(self, action: Action, batch: Microbatches, record: Record) -> Tensor | None:
        self.meter.owner = action
        return self._compute[action.kind](action, batch, record)

    def _is_needed(self, given: Action) -> bool:
        """What the last stage makes goes nowhere, but for the tokens of generation into a round still to come."""
        if given.kind == T:
            return given.microbatch < self.program.schedule.microbatches
        return given.kind != F or given.stage < self.program.schedule.stages - 1

    def _note(self, record: Record, span: Span) -> None:
        if self.recording:
            record.spans.append(span)

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
        if self.meter.counting:
            record.counted.sent[step] = tensor.nbytes
        self._note(record, Span(self.rank, "send", step, departure, arrival))
        held_up_by = self.transport.held_up_by(step)
        if held_up_by is not None:
            receive = self.program.peer(held_up_by)
            self.recorder.waiting(step, receive, (self.program.placement.rank_of[receive.stage],))
        self.transport.send(step, Message(tensor, arrival, giver))
        if self.blocking:
            self.clock.wait_until(arrival)

    def _update(self, step: Action, batch: Microbatches, record: Record) -> None:
        """Let a stage step its optimizer, in a lane of its own: a synchronous step is timed without its update, too."""
        stage = self.stages[step.stage]
        assert isinstance(stage, UpdatingStage)
        self.recorder.running(step)
        (staleness, held), start, end = self.clock.aside(lambda: stage.update(step.microbatch))
        record.updates.append(Update(step.stage, step.microbatch, staleness, held))
        self._note(record, Span(self.rank, "memory", step, start, end))
        if batch.on_loss is not None and stage.loss is not None:
            batch.on_loss(step.microbatch, record.losses[step.microbatch])

    def _forward(self, action: Action, batch: Microbatches, record: Record) -> Tensor | None:
        stage, microbatch = self.stages[action.stage], action.microbatch
        given = self._from_others(action)
        x = batch.inputs[microbatch].clone() if given is None else given  # not a view that keeps the whole batch
        if stage.loss is None:
            return stage.forward(microbatch, x, batch.step)
        target = batch.targets[microbatch].clone()
        record.losses[microbatch] = stage.forward(microbatch, x, batch.step, target, batch.totals[microbatch]).item()
        return None

    def _backward(self, action: Action, batch: Microbatches, record: Record) -> Tensor | None:
        return self.stages[action.stage].backward(action.microbatch, self._from_others(action))

    def _backward_input(self, action: Action, batch: Microbatches, record: Record) -> Tensor | None:
        return self.stages[action.stage].backward_input(action.microbatch, self._from_others(action))

    def _backward_weight(self, action: Action, batch: Microbatches, record: Record) -> None:
        self.stages[action.stage].backward_weight(action.microbatch)

    def _watched(self, stage: Stage, record: Record) -> None:
        if (watch := stage.watch) is not None:
            watch.weights(stage.layers)
            record.norms |= {Action(watch.stage, kind, m): norm for (kind, m), norm in watch.norms.items()}
            record.findings += [watch.first] if watch.first is not None else []

    def _from_others(self, action: Action) -> Tensor | None:
        """What it needs of another stage, if anything; nobody else needs that, so it is let go of here."""
        need = self._needed.get(action)
        return None if need is None else self._values.pop(need)[0]


def trace_of(schedule: Schedule, clock: str, records: Sequence[Record]) -> Trace:
    """The trace of one execution, from what every rank did."""
    spans = tuple(span for record in records for span in record.spans)
    return Trace(schedule.name, clock, schedule.placement.chunks_per_rank(), spans)


def memory_of(steps: Sequence[Sequence[Record]], typical: int) -> Memory:
    """The peak of every rank over all steps, and the curves and the causes of a typical one."""
    peaks = tuple(max(records[rank].peak for records in steps) for rank in range(len(steps[0])))
    curves = tuple(tuple(record.curve) for record in steps[typical])
    held = tuple(
        _holdings(record, max(records[rank].buffers for records in steps), steps[-1][rank].optimizer)
        for rank, record in enumerate(steps[typical])
    )
    return Memory(peaks, curves, held)


def _holdings(record: Record, buffers: int, optimizer: int) -> Holdings:
    updates = [span for span in record.spans if span.lane == "memory"]
    return Holdings(
        spans=tuple(record.spans),
        counted=record.counted,
        parameters=record.parameters,
        versions=tuple((span.end, one.stage, one.held) for span, one in zip(updates, record.updates, strict=True)),
        optimizer=optimizer,
        buffers=buffers,
    )


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
    return Microbatches(step, inputs_of, targets_of, [count_targets(targets)] * microbatches)
