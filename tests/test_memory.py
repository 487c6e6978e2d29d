"""The meter counts what a rank keeps for the backward, to the byte, and each schedule keeps what theory says."""

import gc
import itertools

import pytest
import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import pipelab as pl
from pipelab import assembly
from pipelab.holdings import Memory
from pipelab.memory import ActivationMeter
from pipelab.models import Block, GPTConfig, build_model
from pipelab.randomness import Randomness
from pipelab.stage import Stage

CONFIG = GPTConfig(vocabulary=7, width=16, heads=2, layers=1, context=8)


def build(name: str, ranks: int, microbatches: int) -> pl.Schedule:
    return pl.build(name, ranks, microbatches, 2 if name == "interleaved" else None)


def train_blocks(schedule: pl.Schedule, steps: int = 1, on_step=None) -> pl.Run:
    """A model of nothing but equal blocks, two for each stage, on micro-batches of equal size."""
    torch.manual_seed(0)
    model = nn.Sequential(*(Block(CONFIG) for _ in range(2 * schedule.stages)))
    batch = torch.randn(2, 2 * schedule.microbatches, 8, 16)
    return pl.train(model, [tuple(batch)] * steps, schedule, loss=nn.functional.mse_loss, on_step=on_step)


def peaks_of_preset(schedule: pl.Schedule) -> tuple[int, ...]:
    tokens = torch.zeros(4 * schedule.microbatches, 16, dtype=torch.int64)
    return pl.train(build_model("tiny"), [(tokens, tokens)], schedule).memory.peaks


# ---- the meter


class Storages(TorchDispatchMode):
    """Counts, without the meter, the storages that operators gave and that are still there."""

    def __init__(self, *others: Tensor) -> None:
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

    def alive(self) -> int:
        gc.collect()
        return sum(nbytes for storage, nbytes in self._given.items() if not storage.expired())


@pytest.mark.parametrize("dropout", [0.0, 0.1])
@pytest.mark.parametrize("split", [False, True])
def test_the_meter_equals_an_independent_count_of_live_storages_on_transformer_blocks(split, dropout):
    torch.manual_seed(0)
    layers = nn.Sequential(*(Block(GPTConfig(7, 16, 2, 1, 8, dropout)) for _ in range(2)))
    meter = ActivationMeter([*layers.parameters(), *layers.buffers()])
    stage = Stage(layers, first=False, loss=None, split=split, randomness=Randomness(0), meter=meter)
    x, gradient = torch.randn(2, 8, 16), torch.randn(2, 8, 16)
    with stage.attached(), Storages(x, gradient, *layers.parameters()) as storages:
        output = stage.forward(0, x, step=0)
        held = meter.hold(output)  # as the worker does until it is sent
        assert meter.live == x.nbytes + storages.alive()
        del held, output
        assert meter.live == x.nbytes + storages.alive()
        returned = stage.backward_input(0, gradient)
        if not split:
            stage.backward_weight(0)
        grads = sum(p.grad.nbytes for p in layers.parameters() if p.grad is not None)
        waiting = gradient.nbytes if split and not dropout else 0  # the last Linear's own output gradient
        assert meter.live == storages.alive() - grads - returned.nbytes + waiting
        assert (meter.live > 0) == split
        if split:
            stage.backward_weight(0)
    assert meter.live == 0


def allocated_by(work) -> int:
    """Bytes that the CPU allocator gave out during the work and has not been given back, from torch's profiler."""
    cpu = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=cpu, profile_memory=True, acc_events=True) as profile:  # else 2.11 warns
        work()
    return sum(event.nbytes() for event in profile.profiler.kineto_results.events() if event.name() == "[memory]")


@pytest.mark.parametrize("split", [False, True])
def test_the_meter_equals_the_cpu_allocator_on_transformer_blocks(split):
    torch.manual_seed(0)
    layers = nn.Sequential(Block(CONFIG), Block(CONFIG))
    meter = ActivationMeter(layers.parameters())
    stage = Stage(layers, first=False, loss=None, split=split, randomness=Randomness(0), meter=meter)
    x = torch.randn(2, 8, 16)
    with stage.attached():
        stage.forward(0, x, step=0)  # the first run of a layer also looks at the generator
        one = meter.live
        allocated = allocated_by(lambda: stage.forward(1, x.clone(), step=0))
    assert allocated == one == meter.live / 2 > x.nbytes


def test_tensors_that_share_memory_count_once_until_the_last_is_dropped():
    meter = ActivationMeter()
    x = torch.zeros(100)
    whole, view = meter.hold(x), meter.hold(x[10:20])
    assert meter.live == meter.peak == 400
    del whole
    assert meter.live == 400
    del view
    assert (meter.live, meter.peak) == (0, 400)


def test_a_view_counts_all_of_the_memory_that_it_keeps_alive():
    meter = ActivationMeter()
    held = meter.hold(torch.zeros(100)[:1])
    assert held.tensor.numel() == 1
    assert meter.live == 400


def test_parameters_and_buffers_are_no_activations():
    layer = nn.BatchNorm1d(8)
    meter = ActivationMeter([*layer.parameters(), *layer.buffers()])
    held = [meter.hold(tensor) for tensor in (layer.weight, layer.weight.detach()[2:4], layer.running_mean)]
    assert len(held) == 3
    assert meter.live == 0


def test_tensors_without_memory_cost_nothing():
    meter = ActivationMeter()
    held = [meter.hold(torch.zeros(0)), meter.hold(torch.zeros(5, device="meta"))]
    assert len(held) == 2
    assert meter.live == 0


def test_the_peak_restarts_at_what_is_held_now():
    meter = ActivationMeter()
    kept = meter.hold(torch.zeros(10))
    passing = meter.hold(torch.zeros(90))
    del passing
    assert (meter.restart_peak(), meter.peak, meter.live) == (400, 40, 40)
    del kept
    assert meter.peak == 40


# ---- the schedules


@pytest.fixture
def meters(monkeypatch):
    """The meters of the ranks of a test's run."""
    made = []

    class Seen(ActivationMeter):
        def __init__(self, *arguments) -> None:
            super().__init__(*arguments)
            made.append(self)

    monkeypatch.setattr(assembly, "ActivationMeter", Seen)
    return made


@pytest.mark.parametrize("name", ["naive", "gpipe", "1f1b", "interleaved", "zb-h1"])
def test_after_every_step_no_activation_is_held(name, meters):
    live = []
    train_blocks(build(name, 3, 4), 3, on_step=lambda step, loss: live.append([meter.live for meter in meters]))
    assert live == [[0, 0, 0]] * 3


def in_flight(name: str, ranks: int, rank: int, microbatches: int) -> int:
    """Micro-batches that a rank holds at most, by the literature."""
    return {
        "naive": 1,
        "gpipe": microbatches,
        "1f1b": min(ranks - rank, microbatches),
        "zb-h1": min(ranks, microbatches),
    }[name]


@pytest.mark.parametrize(
    ("name", "microbatches"), list(itertools.product(["naive", "gpipe", "1f1b", "zb-h1"], [1, 3, 8]))
)
def test_measured_peaks_are_the_published_numbers_of_micro_batches_within_5_percent(name, microbatches):
    # In units of the same rank's own peak with a single micro-batch. That one contains the gradient which has just
    # arrived, and with M micro-batches in flight there is still only one such: hence never above, and up to 3 % below.
    unit, peaks = peaks_of_preset(build(name, 4, 1)), peaks_of_preset(build(name, 4, microbatches))
    measured = [peak / one for peak, one in zip(peaks, unit, strict=True)]
    expected = [in_flight(name, 4, rank, microbatches) for rank in range(4)]
    assert measured == pytest.approx(expected, rel=0.05)
    assert all(ours <= published for ours, published in zip(measured, expected, strict=True))


@pytest.mark.parametrize(("ranks", "microbatches", "chunks"), [(4, 3, 2), (4, 8, 2), (2, 6, 3), (2, 5, 2)])
def test_measured_peaks_of_interleaved_are_its_simulated_peaks_within_5_percent(ranks, microbatches, chunks):
    # Of equal stages: the simulation counts every chunk as 1/V of a micro-batch.
    schedule = pl.build("interleaved", ranks, microbatches, chunks)
    unit = train_blocks(pl.build("interleaved", ranks, 1, chunks)).memory.peaks
    measured = [peak / one for peak, one in zip(train_blocks(schedule).memory.peaks, unit, strict=True)]
    simulated = pl.simulate(schedule, pl.Costs.uniform()).peak_in_flight
    assert measured == pytest.approx([float(peak) for peak in simulated], rel=0.05)


@pytest.mark.parametrize("name", ["naive", "gpipe", "1f1b", "interleaved", "zb-h1"])
def test_the_curve_lies_on_the_clock_of_the_trace_and_its_top_is_the_peak(name):
    run = train_blocks(build(name, 3, 5))
    for rank, curve in enumerate(run.memory.curves):
        edges = [time for span in run.trace.compute[rank] for time in (span.start, span.end)]
        assert [time for time, _ in curve] == edges == sorted(edges)
        assert max(held for _, held in curve) == run.memory.peaks[rank]


def test_the_peaks_are_over_all_steps_and_the_curve_is_of_the_step_shown():
    torch.manual_seed(0)
    model = nn.Sequential(*(nn.Sequential(nn.Linear(16, 16), nn.Tanh()) for _ in range(2)))
    batches = [tuple(torch.randn(2, rows, 16)) for rows in (8, 32, 16)]
    schedule = pl.build("gpipe", 2, 4)
    memory: dict[int, Memory] = {}
    for rows, batch in zip((8, 32, 16), batches, strict=True):
        memory[rows] = pl.train(model, [batch], schedule, loss=nn.functional.mse_loss).memory
    run = pl.train(model, batches, schedule, loss=nn.functional.mse_loss)
    rows = (8, 32, 16)[run.traces.index(run.trace)]
    assert run.memory.peaks == memory[32].peaks > memory[8].peaks
    assert [[held for _, held in curve] for curve in run.memory.curves] == [
        [held for _, held in curve] for curve in memory[rows].curves
    ]
