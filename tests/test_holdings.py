"""What a rank holds, by cause, is what is there: to the byte, counted a second time without the meter."""

import itertools

import pytest
import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves

import pipelab as pl
from pipelab import assembly, virtual_ranks
from pipelab.cuda_memory import Allocator, Reading
from pipelab.holdings import ACTIVATIONS, CAUSES, COMMUNICATION, DEFERRED, GRADIENTS, OPTIMIZER, PARAMETERS, RECOMPUTE
from pipelab.models import build_model
from pipelab.transport.memory import Mailboxes
from pipelab.worker import Worker

SCHEDULES = [("gpipe", 1), ("1f1b", 1), ("zb-h1", 1), ("interleaved", 2), ("zb-v", 2), ("dualpipe-v", 2)]
TOKENS = torch.arange(8 * 16).reshape(8, 16) % 256


def tokens(rows):
    return TOKENS[:rows], TOKENS[:rows] + 1


def trained(name, chunks=1, batch=None, steps=1, **options):
    model = options.pop("model", None) or build_model("tiny", layers=6)
    schedule = pl.build(name, 2, 4, chunks if name == "interleaved" else None)
    return pl.train(model, [batch or tokens(8)] * steps, schedule, **options)


# ---- a second count


class Alive(TorchDispatchMode):
    """The storages that operators of this thread gave and that are still there."""

    def __init__(self, others) -> None:
        super().__init__()
        self._others = {tensor.untyped_storage().data_ptr() for tensor in others}
        self._given: dict[StorageWeakRef, int] = {}

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        result = operator(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            storage = tensor.untyped_storage() if isinstance(tensor, Tensor) else None
            if storage is not None and storage.data_ptr() not in self._others:
                self._given[StorageWeakRef(storage)] = storage.nbytes()
        return result

    def bytes(self) -> int:
        return sum(size for storage, size in self._given.items() if not storage.expired())


class Copies(Mailboxes):
    """Messages are copies, as between processes: what was sent is gone from the sender."""

    def send(self, step, message):
        with _disable_current_modes():
            super().send(step, message._replace(tensor=message.tensor.clone()))


@pytest.fixture
def compared(monkeypatch):
    """At the end of every action of a run: its name, what is accounted for, and what is there."""
    rows = []

    class Compared(Worker):
        def _execute(self, batch, record):
            weights = [weight for stage in self.stages.values() for weight in stage.layers.parameters()]
            self.there = Alive([*weights, *batch.inputs, *batch.targets])
            with self.there:
                super()._execute(batch, record)

        def _count(self):
            moment = super()._count()
            leaving = [t for v, (t, _, held) in self._values.items() if held is None and v[:2] in self._sent]
            losses = [kept.end for stage in self.stages.values() for kept in stage._kept.values()]
            accounted = moment.live + moment.gradients + moment.staying + sum(map(self.meter.unheld, leaving))
            accounted += sum(end.nbytes for end in losses if isinstance(end, Tensor))  # each micro-batch's own loss
            rows.append((str(self.at), accounted, self.there.bytes()))
            return moment

    monkeypatch.setattr(assembly, "Worker", Compared)
    monkeypatch.setattr(virtual_ranks, "Mailboxes", Copies)
    return rows


@pytest.mark.parametrize(("name", "chunks"), SCHEDULES)
def test_after_every_action_the_accounted_bytes_are_the_live_storages(compared, name, chunks):
    trained(name, chunks)
    assert len(compared) == sum(map(len, pl.build(name, 2, 4, chunks if name == "interleaved" else None).rows))
    assert [(at, accounted) for at, accounted, _ in compared] == [(at, there) for at, _, there in compared]


def test_so_they_are_with_dropout_and_layers_that_save_their_outputs(compared):
    torch.manual_seed(0)
    layers = [nn.Sequential(nn.Linear(16, 16), nn.Tanh(), nn.Dropout(0.5)) for _ in range(4)]
    batch = torch.randn(2, 8, 16)
    trained("zb-h1", batch=tuple(batch), model=nn.Sequential(*layers), loss=nn.functional.mse_loss)
    assert compared and all(accounted == there for _, accounted, there in compared)


# ---- the causes


@pytest.mark.parametrize(("name", "chunks"), SCHEDULES)
def test_causes_begin_and_end_with_what_is_held_all_the_time(name, chunks):
    run = trained(name, chunks, steps=2)
    model = run.model
    for rank in range(2):
        causes = run.memory.by_cause(rank)
        assert tuple(causes) == CAUSES
        ends = {cause: curve[-1][1] for cause, curve in causes.items()}
        assert ends[ACTIVATIONS] == ends[DEFERRED] == ends[RECOMPUTE] == ends[COMMUNICATION] == 0
        assert all(held >= 0 for curve in causes.values() for _, held in curve)
        assert ends[GRADIENTS] == ends[PARAMETERS] == max(held for _, held in causes[GRADIENTS])
    both = [sum(run.memory.peaks_by_cause(rank)[cause] for rank in range(2)) for cause in (PARAMETERS, OPTIMIZER)]
    size = sum(p.nbytes for p in model.parameters())
    assert both == [size, 2 * size + 4 * len(list(model.parameters()))]  # AdamW: two moments, and a counter of steps


@pytest.mark.parametrize(("name", "chunks"), SCHEDULES)
def test_activations_and_deferred_inputs_together_are_the_measured_curve(name, chunks):
    run = trained(name, chunks)
    for rank in range(2):
        of_microbatches = run.memory.by_microbatch(rank)
        own = run.schedule.placement.stages_on(rank)
        assert set(of_microbatches) == set(itertools.product(own, range(4)))
        for time, live in run.memory.curves[rank][1::2]:  # the ends of actions
            starts = {span.start for span in run.trace.compute[rank]} | {-1.0}
            if time in starts:
                continue  # the next action has begun
            held = sum(at(curve, time) for curve in of_microbatches.values())
            assert held == live
        assert max(at(run.memory.total(rank), time) for time, _ in run.memory.total(rank)) == run.memory.totals[rank]


def at(curve, time):
    return max(((when, held) for when, held in curve if when <= time), default=(0, 0))[1]


def test_only_a_split_backward_defers_and_then_less_than_the_activations():
    assert trained("1f1b").memory.peaks_by_cause(0)[DEFERRED] == 0
    held = trained("zb-h1").memory
    moved = {key: max(size for _, size in curve) for key, curve in held.by_microbatch(1).items()}
    assert 0 < held.peaks_by_cause(1)[DEFERRED] < sum(moved.values())


def test_messages_between_virtual_ranks_count_while_they_are_under_way():
    run = trained("gpipe", link=pl.costs.Link(latency=1.0))
    size = 2 * 16 * 32 * 4
    for rank in range(2):
        peak = run.memory.peaks_by_cause(rank)[COMMUNICATION]
        assert peak == 4 * size, "rank 0 has sent all four before the first arrives, and so has rank 1"


def test_without_a_flush_the_versions_of_the_weights_are_parameters():
    run = trained("pipedream", steps=2)
    assert run.versions is not None
    for rank in range(2):
        held = run.memory.peaks_by_cause(rank)
        assert held[PARAMETERS] == run.versions.peaks[rank]
        assert 2 * run.versions.weights[rank] < held[OPTIMIZER] < 2.1 * run.versions.weights[rank]


def test_over_processes_the_causes_are_the_same_and_messages_are_buffers():
    ours, theirs = trained("zb-h1", steps=2).memory, trained("zb-h1", steps=2, transport="gloo").memory
    for rank in range(2):
        here, there = ours.peaks_by_cause(rank), theirs.peaks_by_cause(rank)
        assert {**here, COMMUNICATION: 0} == {**there, COMMUNICATION: 0}
        assert there[COMMUNICATION] % (2 * 16 * 32 * 4 + 16) == 0 < there[COMMUNICATION]


def test_a_reading_is_one_look_at_the_counters_and_the_next_peak_begins_there(monkeypatch):
    counters = {"allocated_bytes": {"all": {"current": 3, "peak": 5}}, "reserved_bytes": {"all": {"current": 8}}}
    looks = []
    monkeypatch.setattr(
        torch.cuda.memory, "memory_stats_as_nested_dict", lambda device: looks.append(device) or counters
    )
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", looks.append)
    gpu = torch.device("cuda", 0)
    assert Allocator(gpu).read() == Reading(allocated=3, peak=5, reserved=8)
    assert looks == [gpu, gpu]


def test_an_allocator_is_asked_after_every_action_of_every_step(monkeypatch):
    class Counter:
        """In place of a GPU's allocator: says how often it was asked before."""

        def __init__(self):
            self.asked = 0

        def read(self):
            self.asked += 1
            return Reading(self.asked, self.asked, self.asked)

    class Meter(assembly.ActivationMeter):
        def __init__(self, *arguments):
            super().__init__(*arguments)
            self.allocator = Counter()

    monkeypatch.setattr(assembly, "ActivationMeter", Meter)
    readings = trained("1f1b", steps=1).memory.readings
    for rank in readings:  # eight actions in the warm-up, eight in the step
        assert [reading.allocated for _, reading in rank] == list(range(9, 17))
