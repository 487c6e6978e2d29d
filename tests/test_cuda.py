"""On a GPU: the numbers of plain PyTorch, timelines of events, memory by the meter. Skipped where there is none."""

import copy
import os
import socket

import pytest
import torch
from torch import distributed

import pipelab as pl
from pipelab.cuda_clock import Stamps
from pipelab.memory_prediction import predict_memory
from pipelab.models import build_model
from pipelab.reference import train_uncut

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA device here")
MICROBATCHES = 4
CASES = [("gpipe", None), ("1f1b", None), ("interleaved", 2), ("zb-h1", None), ("zb-v", None)]


def batches(steps=2):
    tokens = torch.randint(256, (steps, 2 * MICROBATCHES, 16), generator=torch.Generator().manual_seed(0))
    return [(batch.cuda(), batch.cuda()) for batch in tokens]


@pytest.mark.parametrize(("name", "chunks"), CASES)
def test_training_on_the_gpu_equals_the_uncut_model(name, chunks):
    model = build_model("tiny", dtype=torch.float64)
    uncut = copy.deepcopy(model).cuda()
    run = pl.train(model, batches(), pl.build(name, 3, MICROBATCHES, chunks), device="cuda")
    losses = train_uncut(uncut, batches(), MICROBATCHES)
    assert run.losses == pytest.approx(losses, rel=1e-10)
    for (parameter, ours), theirs in zip(run.parameters().items(), uncut.parameters(), strict=True):
        assert torch.allclose(ours, theirs.detach(), rtol=1e-9, atol=1e-12), parameter


@pytest.mark.parametrize("axes", [{"dp": 2}, {"tp": 2}])
def test_replicas_and_shards_on_the_gpu_bring_their_values_home_to_a_model_on_the_cpu(axes):
    model, mesh = build_model("tiny", dtype=torch.float64), pl.Mesh(pp=2, **axes)
    uncut = copy.deepcopy(model).cuda()
    schedule = pl.build("1f1b", 2, MICROBATCHES // mesh.dp)
    run = pl.train(model, batches(), schedule, mesh, device="cuda")
    assert run.losses == pytest.approx(train_uncut(uncut, batches(), MICROBATCHES), rel=1e-10)
    for ours, theirs in zip(model.parameters(), uncut.parameters(), strict=True):
        assert ours.device.type == ours.grad.device.type == "cpu"
        assert torch.allclose(ours, theirs.detach().cpu(), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("clock", ["virtual", "wall"])
def test_a_timeline_on_the_gpu_keeps_the_order_of_the_dependencies(clock):
    schedule = pl.build("zb-h1", 3, MICROBATCHES)
    run = pl.train(build_model("tiny"), batches(), schedule, device="cuda", clock=clock)
    ended = {}
    for span in run.trace.spans:
        if span.lane == "compute":
            assert span.start < span.end
            ended[span.action] = span
    error = 1e-4 if clock == "wall" else 1e-9
    for stage in range(1, 3):
        for microbatch in range(MICROBATCHES):
            before, after = (ended[pl.Action(s, "F", microbatch)] for s in (stage - 1, stage))
            assert after.start >= before.end - error


def test_the_meter_sees_the_published_peaks_on_the_gpu():
    peaks = {}
    for name in ("gpipe", "1f1b"):
        model = build_model("tiny", layers=8)
        peaks[name] = pl.train(model, batches(), pl.build(name, 4, MICROBATCHES), device="cuda").memory.peaks
    assert peaks["1f1b"][1] / peaks["gpipe"][1] == pytest.approx(3 / 4, rel=0.05)


def test_the_allocator_is_read_after_every_action_and_predicted():
    model, schedule = build_model("tiny", layers=8), pl.build("1f1b", 4, MICROBATCHES)
    held = predict_memory(model, schedule, next(iter(batches())), device="cuda")
    memory = pl.train(model, batches(), schedule, device="cuda").memory
    assert [len(readings) for readings in memory.readings] == [len(row) for row in schedule.rows]
    for readings in memory.readings:
        for _, reading in readings:
            assert 0 < reading.allocated <= reading.peak <= reading.reserved
    peaks = [memory.peaks_by_cause(rank) for rank in range(4)]
    always = sum(held["parameters"] + held["optimizer"] for held in peaks)
    assert always < memory.readings[0][0][1].allocated < held.everywhere + 2**26  # cuBLAS keeps a workspace


def test_stamps_agree_with_the_host():
    stamps = Stamps(size=8)
    stamps.anchor()
    torch.cuda.synchronize()
    moment = stamps.take()
    stamps.settle()
    stamps.anchor()
    again = stamps.take()
    stamps.settle()
    assert moment.seconds < again.seconds and stamps.error < 1e-3


def test_a_world_of_one_rank_talks_over_nccl():
    if not distributed.is_nccl_available():
        pytest.skip("this torch has no NCCL")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(free.getsockname()[1]))
    distributed.init_process_group("nccl", rank=0, world_size=1, device_id=torch.device("cuda", 0))
    try:
        ones = torch.ones(4, device="cuda")
        distributed.all_reduce(ones)
        assert ones.tolist() == [1.0] * 4
    finally:
        distributed.destroy_process_group()
