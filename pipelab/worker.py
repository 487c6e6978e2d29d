"""How does a rank execute its program? An interpreter: one small method for each kind of step.

The same program was simulated before; here each step moves real tensors and takes real time, on the clock it is given.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from pipelab.action import Action, B, Element, F, I, U, W, parts
from pipelab.clock import Clock
from pipelab.costs import Link
from pipelab.dependencies import T, gives, needs
from pipelab.flight_recorder import FlightRecorder
from pipelab.lower import CARRIES, RECEIVED_FROM, Program
from pipelab.memory import ActivationMeter, Held, Memory
from pipelab.schedule import Schedule
from pipelab.stage import Stage
from pipelab.trace import Span, Trace
from pipelab.transport import Message, Transport
from pipelab.weight_versions import Update, UpdatingStage


@dataclass(frozen=True)
class Microbatches:
    """The micro-batches of one step: inputs, targets, and over how many targets the loss of each is a mean.

    That is the number of the whole step's targets, or, where each micro-batch updates the weights, of its own.
    `on_loss` is told the loss of each micro-batch that has updated the weights.
    """

    step: int
    inputs: Sequence[Tensor]
    targets: Sequence[Tensor]
    totals: Sequence[int]
    on_loss: Callable[[int, float], None] | None = None


@dataclass
class Record:
    """What one rank did in one step."""

    spans: list[Span] = field(default_factory=list)
    curve: list[tuple[float, int]] = field(default_factory=list)
    losses: dict[int, float] = field(default_factory=dict)
    updates: list[Update] = field(default_factory=list)

    @property
    def peak(self) -> int:
        """Most activation bytes held at any moment of the step."""
        return max((held for _, held in self.curve), default=0)


class Worker:
    """One rank: its row of the program, its stages, and the values that it made or received and still holds."""

    def __init__(
        self, rank: int, program: Program, stages: Mapping[int, Stage], *,
        transport: Transport, clock: Clock, meter: ActivationMeter, link: Link, recorder: FlightRecorder | None = None,
    ) -> None:  # fmt: skip
        self.rank = rank
        self.program = program
        self.stages = stages
        self.transport = transport
        self.clock = clock
        self.meter = meter
        self.link = link
        self.recorder = recorder or FlightRecorder()
        self.at: Element | None = None
        self._values: dict[Action, tuple[Tensor, Action, Held | None]] = {}
        self._sent = {(s.stage, CARRIES[s.kind]) for e in program.rows[rank] for s in parts(e) if s.kind in CARRIES}
        self._compute: dict[str, Callable[[Action, Microbatches, Record], Tensor | None]] = {
            F: self._forward,
            B: self._backward,
            I: self._backward_input,
            W: self._backward_weight,
        }

    def run(self, batch: Microbatches) -> Record:
        """Execute the row once, for one step's micro-batches."""
        record = Record()
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
                self._work(step, batch, record, waited)
                waited = None
        self.at = None
        assert not self._values, f"rank {self.rank} still holds {list(self._values)}"
        return record

    def _work(self, element: Element, batch: Microbatches, record: Record, waited: Action | None) -> None:
        self.recorder.running(element)
        self.meter.restart_peak()
        outputs, start, end = self.clock.run(
            lambda: [self._compute[action.kind](action, batch, record) for action in parts(element)]
        )
        for action, output in zip(parts(element), outputs, strict=True):
            given = gives(action, self.program.schedule.stages, self.program.schedule.groups)
            if output is not None and self._is_needed(given):
                stays = action.kind == F and given[:2] not in self._sent
                self._values[given] = output, action, self.meter.hold(output) if stays else None
        del outputs
        record.spans.append(Span(self.rank, "compute", element, start, end, waited))
        record.curve += [(start, self.meter.restart_peak()), (end, self.meter.live)]

    def _is_needed(self, given: Action) -> bool:
        """What the last stage makes goes nowhere, but for the tokens of generation into a round still to come."""
        if given.kind == T:
            return given.microbatch < self.program.schedule.microbatches
        return given.kind != F or given.stage < self.program.schedule.stages - 1

    def _receive(self, step: Action, record: Record) -> Action | None:
        send = self.program.peer(step)
        self.recorder.waiting(step, send, (self.program.placement.rank_of[send.stage],))
        began = self.clock.now
        tensor, arrival, giver = self.transport.receive(send)
        self.clock.wait_until(arrival)
        ended = self.clock.now
        self._values[Action(send.stage, CARRIES[send.kind], send.microbatch)] = tensor, giver, None
        waited = giver if arrival > began else None
        record.spans.append(Span(self.rank, "recv", step, began, ended, waited))
        return waited

    def _send(self, step: Action, record: Record) -> None:
        tensor, giver, _ = self._values.pop(Action(step.stage, CARRIES[step.kind], step.microbatch))
        tensor = tensor.contiguous()
        departure = self.clock.now
        arrival = departure + self.link.seconds(tensor.nbytes)
        record.spans.append(Span(self.rank, "send", step, departure, arrival))
        self.transport.send(step, Message(tensor, arrival, giver))

    def _update(self, step: Action, batch: Microbatches, record: Record) -> None:
        """Let a stage step its optimizer, off the timeline: so is the update of a synchronous step, which ends it."""
        stage, began = self.stages[step.stage], self.clock.now
        assert isinstance(stage, UpdatingStage)
        staleness, seconds = self.clock.aside(lambda: stage.update(step.microbatch))
        record.updates.append(Update(step.stage, step.microbatch, staleness, seconds))
        record.spans.append(Span(self.rank, "memory", step, began, self.clock.now))
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

    def _from_others(self, action: Action) -> Tensor | None:
        """What the dataflow rule says that it needs of another stage, if anything; it is let go of here.

        Only one action needs what crosses from stage to stage, so nobody will ask for it again.
        """
        schedule = self.program.schedule
        needed = needs(action, schedule.stages, schedule.groups)
        values = [self._values.pop(need)[0] for need in needed if need.stage != action.stage or need.kind == T]
        return values[0] if values else None


def trace_of(schedule: Schedule, clock: str, records: Sequence[Record]) -> Trace:
    """The trace of one execution, from what every rank did."""
    spans = tuple(span for record in records for span in record.spans)
    return Trace(schedule.name, clock, schedule.placement.chunks_per_rank(), spans)


def memory_of(steps: Sequence[Sequence[Record]], typical: int) -> Memory:
    """The peak of every rank over all steps, and the curves of a typical one."""
    peaks = tuple(max(records[rank].peak for records in steps) for rank in range(len(steps[0])))
    return Memory(peaks, tuple(tuple(record.curve) for record in steps[typical]))


def split_batch(step: int, batch: tuple[Tensor, Tensor], microbatches: int, total: int) -> Microbatches:
    """Cut a batch (inputs, targets) along its first dimension into M micro-batches, as even as it goes.

    Raises ValueError when the batch has fewer rows than micro-batches.
    """
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
    return Microbatches(
        step,
        torch.tensor_split(inputs, microbatches),
        torch.tensor_split(targets, microbatches),
        [total] * microbatches,
    )
