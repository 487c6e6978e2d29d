"""How does a rank execute its program? An interpreter: one small method for each kind of step.

The same program was simulated before; here each step moves real tensors and takes real time, on the clock it is given.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pipelab.action import REDUCE, Action, Element, F, U, parts
from pipelab.clock import Clock
from pipelab.collectives import Group, Volume, add_traffic, traffic_of
from pipelab.costs import Link, Network
from pipelab.data_parallel import GradientSum
from pipelab.dependencies import T, gives, taken
from pipelab.flight_recorder import FlightRecorder
from pipelab.holdings import Counted, Moment
from pipelab.lower import CARRIES, Program
from pipelab.memory import ActivationMeter, Held
from pipelab.microbatches import Microbatches
from pipelab.record import Record, parameter_bytes
from pipelab.stage import Stage
from pipelab.trace import Span
from pipelab.transport import Message, Transport
from pipelab.weight_versions import Update, UpdatingStage


class _Task(NamedTuple):
    """One action of computing, and what its row tells of it beforehand."""

    action: Action
    need: Action | None
    """The value of another stage that it takes, if any."""
    gives: Action | None
    """The name of the value that it makes for another stage, if any."""
    stays: bool
    """Whether that is an activation which no message takes away."""


class _Message(NamedTuple):
    """A send or a receive, and what the program tells of it beforehand."""

    step: Action
    peer: Action
    rank: int
    """The global rank at the other end."""
    value: Action
    link: Link


@dataclass(slots=True)
class _Progress:
    """How far a rank is in a step; `known` has for each element what is held, where that has been counted before.

    `sent` counts the bytes of each message.
    """

    batch: Microbatches
    record: Record
    known: Iterator[Moment] | None
    sent: list[tuple[str, int]] = field(default_factory=list)
    waited: Action | None = None


class Worker:
    """One rank: its row of the program, its stages, and the values that it made or received and still holds.

    `members` are the global ranks of its pipeline; `tp` is its seat among tensor shards, and `sums` sums its gradients
    over replicas, where there are any.
    """

    def __init__(
        self, rank: int, program: Program, stages: Mapping[int, Stage], *,
        transport: Transport, clock: Clock, meter: ActivationMeter, link: Link | Network, members: Sequence[int],
        blocking: bool = False, tp: Group | None = None, sums: GradientSum | None = None,
    ) -> None:  # fmt: skip
        self.rank = rank
        self.members = members
        self.tp = tp
        self.sums = sums
        self.program = program
        self.stages = stages
        self.transport = transport
        self.clock = clock
        self.meter = meter
        self.link = link
        self.blocking = blocking
        self.recorder = FlightRecorder()
        self.recording = True
        self.record = Record()
        self.at: Element | None = None
        self._values: dict[Action, tuple[Tensor, Action, Held | None]] = {}
        self._counted: dict[tuple[torch.Size, ...], Counted] = {}
        self._sent = {(s.stage, CARRIES[s.kind]) for e in program.rows[rank] for s in parts(e) if s.kind in CARRIES}
        self._row = [(step, *self._planned(step)) for step in program.rows[rank]]
        self._parameter_bytes = parameter_bytes({stage: own.layers for stage, own in stages.items()}, sums)

    def run(self, batch: Microbatches) -> Record:
        """Execute the row once, for one step's micro-batches; `record` grows meanwhile, and is kept if it breaks off.

        What is held depends on shapes alone, and counting it costs up to a fifth of a small forward: bytes are counted
        in the first step of these shapes (the warm-up, as a rule), and noted again in the later ones.
        """
        self.record = record = Record(parameters=self._parameter_bytes)
        try:
            self._execute(batch, record)
            self._finish_sums(record)
        except BaseException:
            record.spans, record.curve = self.clock.reached(record.spans, record.curve)
            raise
        record.spans, record.curve = self.clock.settle(record.spans, record.curve)
        for stage in self.stages.values():
            self._watched(stage, record)
            if isinstance(stage, UpdatingStage):
                record.optimizer += stage.versions.state_bytes
        assert not self._values, f"rank {self.rank} still holds {list(self._values)}"
        return record

    def _planned(self, step: Element) -> tuple[Callable[[Any, _Progress], None], Any]:
        """Which method executes a step of the row, and what it is given: all that can be looked up beforehand."""
        if isinstance(step, Action) and (send := self.program.send_of(step)) is not None:
            peer = self.program.peer(step)
            value = Action(send.stage, CARRIES[send.kind], send.microbatch)
            other = self._global_rank_of(peer)
            message = _Message(step, peer, other, value, self.link.among((self.global_rank, other)))
            return (self._send if send == step else self._receive), message
        if isinstance(step, Action) and step.kind == U:
            return self._update, step
        if isinstance(step, Action) and step.kind == REDUCE:
            return self._reduce, step
        return self._work, (step, [self._task(action) for action in parts(step)])

    def _task(self, action: Action) -> _Task:
        schedule = self.program.schedule
        given = gives(action, schedule.stages, schedule.groups)
        stays = action.kind == F and given[:2] not in self._sent
        need = taken(action, schedule.stages, schedule.groups)
        return _Task(action, need, given if self._is_needed(given) else None, stays)

    def _is_needed(self, given: Action) -> bool:
        """What the last stage makes goes nowhere, but for the tokens of generation into a round still to come."""
        if given.kind == T:
            return given.microbatch < self.program.schedule.microbatches
        return given.kind != F or given.stage < self.program.schedule.stages - 1

    def _execute(self, batch: Microbatches, record: Record) -> None:
        shapes = tuple(tensor.shape for tensor in batch.inputs)
        known = self._counted.get(shapes)
        now = _Progress(batch, record, None if known is None else iter(known.moments))
        self.meter.counting = known is None
        record.counted = Counted(sent={} if known is None else known.sent)
        for step, perform, plan in self._row:
            self.at = step
            perform(plan, now)
        self.at = None
        for kind, nbytes in now.sent:
            add_traffic(record.traffic, {("pp", kind): Volume(1, nbytes)})
        record.buffers = self.transport.buffers
        if self.recording:
            self._counted[shapes] = record.counted

    def _work(self, plan: tuple[Element, list[_Task]], now: _Progress) -> None:
        """Compute; notes the span, and what is held meanwhile and afterwards."""
        element, tasks = plan
        record = now.record
        self.recorder.queueing(element)
        outputs, start, end = self.clock.run(lambda: self._perform_all(element, tasks, now))
        for task, output in zip(tasks, outputs, strict=True):
            if output is not None and task.gives is not None:
                self._values[task.gives] = output, task.action, self.meter.hold(output) if task.stays else None
        del outputs
        moment = self._count() if now.known is None else next(now.known)
        if self.meter.allocator is not None:  # asked in every step: in the first the optimizer has no states yet
            moment = moment._replace(device=self.meter.allocator.read())
        record.counted.moments.append(moment)
        if self.recording:
            record.spans.append(Span(self.rank, "compute", element, start, end, now.waited))
            record.curve += ((start, moment.peak), (end, moment.live))
        if self.tp is not None:
            self._note_meetings(self.tp, element, record)
        now.waited = None

    def _perform_all(self, element: Element, tasks: list[_Task], now: _Progress) -> list[Tensor | None]:
        """Once it is this rank's turn."""
        self.recorder.running(element)
        if self.tp is not None:
            self.tp.recorder, self.tp.at = self.recorder, element
        outputs = []
        for task in tasks:
            self.meter.owner = task.action
            if task.action.kind == F:
                outputs.append(self._forward(task, now.batch, now.record))
            else:
                stage, kind, microbatch = task.action
                outputs.append(self.stages[stage].act(kind, now.batch.first + microbatch, self._from_others(task)))
        return outputs

    def _count(self) -> Moment:
        """What is held now that an action has ended."""
        staying = [t for value, (t, _, held) in self._values.items() if held is None and value[:2] not in self._sent]
        grads = {id(p): p.grad.nbytes for s in self.stages.values() for p in s.parameters if p.grad is not None}
        return Moment(
            peak=self.meter.restart_peak(),
            live=self.meter.live,
            changes=self.meter.changed(),
            gradients=sum(grads.values()),
            staying=sum(map(self.meter.unheld, staying)),
            reducing=0 if self.sums is None else self.sums.under_way,
        )

    def _note_meetings(self, tp: Group, element: Element, record: Record) -> None:
        """The collectives in the midst of an action are named after it."""
        meetings = tp.taken()
        add_traffic(record.traffic, traffic_of(meetings))
        if self.recording:
            record.spans += (Span(self.rank, "collective", element, meeting.start, meeting.end) for meeting in meetings)

    def _receive(self, message: _Message, now: _Progress) -> None:
        step, send, sender, value, _ = message
        self.recorder.waiting(step, send, (sender,))
        began = self.clock.now
        start = self.clock.placed(began) if self.recording else began
        tensor, arrival, giver = self.transport.receive(send)
        self.clock.wait_until(arrival)
        self._values[value] = tensor, giver, None
        waited = giver if arrival > began else None
        now.waited = waited or now.waited
        if self.recording:
            end = self.clock.placed(self.clock.now)
            now.record.spans.append(Span(self.rank, "recv", step, start, end, waited))

    def _send(self, message: _Message, now: _Progress) -> None:
        step = message.step
        tensor, giver, _ = self._values.pop(message.value)
        departure = self.clock.now
        flight = message.link.seconds(tensor.nbytes)
        arrival = departure + flight
        now.sent.append((step.kind, tensor.nbytes))
        if now.known is None:
            now.record.counted.sent[step] = tensor.nbytes
        if self.recording:
            start, end = self.clock.placed(departure), self.clock.placed(departure, flight)
            now.record.spans.append(Span(self.rank, "send", step, start, end))
        held_up_by = self.transport.held_up_by(step)
        if held_up_by is not None:
            receive = self.program.peer(held_up_by)
            self.recorder.waiting(step, receive, (self._global_rank_of(receive),))
        self.transport.send(step, Message(tensor, arrival, giver))
        if self.blocking:
            self.clock.wait_until(arrival)

    def _update(self, step: Action, now: _Progress) -> None:
        """Let a stage step its optimizer, in a lane of its own: a synchronous step is timed without its update, too."""
        stage, batch, record = self.stages[step.stage], now.batch, now.record
        assert isinstance(stage, UpdatingStage)
        self.recorder.queueing(step)

        def update() -> tuple[int, int]:
            self.recorder.running(step)
            return stage.update(step.microbatch)

        (staleness, held), start, end = self.clock.aside(update)
        record.updates.append(Update(step.stage, step.microbatch, staleness, held))
        if self.recording:
            record.spans.append(Span(self.rank, "memory", step, start, end))
        if batch.on_loss is not None and stage.loss is not None:
            batch.on_loss(step.microbatch, record.losses[step.microbatch])

    def _reduce(self, step: Action, now: _Progress) -> None:
        """Begin to sum a stage's gradients over the replicas; the rank goes on."""
        assert self.sums is not None
        self.recorder.running(step)
        self.sums.start(step.stage)

    def _finish_sums(self, record: Record) -> None:
        if self.sums is None:
            return
        self.recorder.meeting("the sum over replicas", [m for m in self.sums.group.members if m != self.global_rank])
        for action, meeting in self.sums.finish():
            add_traffic(record.traffic, traffic_of([meeting]))
            record.spans.append(Span(self.rank, "collective", action, meeting.start, meeting.end))

    def _forward(self, task: _Task, batch: Microbatches, record: Record) -> Tensor | None:
        stage, microbatch = self.stages[task.action.stage], task.action.microbatch
        given = self._from_others(task)
        x = batch.inputs[microbatch].clone() if given is None else given  # not a view that keeps the whole batch
        number, target, total = batch.first + microbatch, None, 1
        if batch.totals:  # nothing is trained without targets
            target, total = batch.targets[microbatch], batch.totals[microbatch]
        if stage.loss is not None and target is not None:
            target = target.clone()
        y = stage.forward(number, x, batch.step, target, total)
        if stage.own_losses:
            record.own_losses[task.action.stage, number] = stage.own_losses.pop(number).item()
        if stage.loss is None:
            return y
        record.losses[number] = y.item()
        return None

    def _watched(self, stage: Stage, record: Record) -> None:
        if (watch := stage.watch) is not None:
            watch.weights(stage.layers)
            record.norms |= {Action(watch.stage, kind, m): norm for (kind, m), norm in watch.norms.items()}
            record.findings += [watch.first] if watch.first is not None else []

    @property
    def global_rank(self) -> int:
        """Which of all processes, or of all ranks that they play."""
        return self.members[self.rank]

    def _global_rank_of(self, message: Action) -> int:
        return self.members[self.program.placement.rank_of[message.stage]]

    def _from_others(self, task: _Task) -> Tensor | None:
        """What it needs of another stage, if anything; nobody else needs that, so it is let go of here."""
        return None if task.need is None else self._values.pop(task.need)[0]
