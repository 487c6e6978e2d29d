"""PyTorch's own pipeline runtime loads our CSV and trains with it, on gloo, to the gradients of plain autograd.

The runtime that reads a CSV is private. Where it is gone, these tests fail and name the version.
"""

import importlib
import os
import time
from datetime import timedelta
from pathlib import Path

import pytest
import torch
from torch import Tensor, distributed, multiprocessing, nn
from torch.nn import functional

from pipelab.bench.runtime import torch_stage
from pipelab.schedules import build, chunks_of

SECONDS = 600
BLOCKS, WIDTH, ROWS = 8, 6, 2
"""The model, in linear blocks that 2 or 4 ranks and 1 or 2 chunks divide, and the rows of a micro-batch."""

CASES = {
    2: [
        ("naive", 3),
        ("gpipe", 3),
        ("1f1b", 5),
        ("interleaved", 4),
        ("looped-bfs", 3),
        ("interleaved-zb", 4),
        ("zb-h1", 5),
        ("zb-h2", 5),
        ("zb-v", 5),
        ("zb-v", 2),
        ("v-half", 5),
        ("v-min", 5),
        ("1f1b-v", 5),
        ("dualpipe-v", 6),
        ("dualpipe-v", 3),
        ("zb-auto", 5),
    ],
    4: [("zb-v", 8), ("v-half", 9), ("v-min", 6), ("dualpipe-v", 9)],
}


def private_runtime():
    pipelining = importlib.import_module("torch.distributed.pipelining.schedules")
    runtime = getattr(pipelining, "_PipelineScheduleRuntime", None)
    if not hasattr(runtime, "_load_csv"):
        pytest.fail(f"torch {torch.__version__} has no _PipelineScheduleRuntime._load_csv; it was in torch 2.13")
    return runtime


def model() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(*(nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Tanh()) for _ in range(BLOCKS))).double()


def batch(microbatches: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    inputs, targets = torch.randn(2, ROWS * microbatches, WIDTH, generator=generator, dtype=torch.float64)
    return inputs, targets


def train_one_step(rank: int, ranks: int, name: str, microbatches: int, csv: Path) -> None:
    """One rank of torch's runtime; raises AssertionError where a gradient is not plain autograd's."""
    schedule = build(name, ranks, microbatches, 2 if chunks_of(name) == "any" else None)
    if rank == 0:
        csv.write_text(schedule.to_csv())
    distributed.barrier()
    ours, plain = model(), model()
    inputs, targets = batch(microbatches)
    functional.mse_loss(plain(inputs), targets).backward()

    depth = BLOCKS // schedule.stages
    inner = inputs[:ROWS].clone().requires_grad_()  # what goes from stage to stage has a gradient, the input has none
    slices = {stage: ours[depth * stage : depth * (stage + 1)] for stage in schedule.placement.stages_on(rank)}
    stages = [
        torch_stage()(
            module,
            stage,
            schedule.stages,
            torch.device("cpu"),
            input_args=inner if stage else inputs[:ROWS],
            output_args=inner,
        )
        for stage, module in slices.items()
    ]
    runtime = private_runtime()(stages, microbatches, loss_fn=functional.mse_loss)
    runtime._load_csv(str(csv), format="compute_only")
    first, last = 0 in slices, schedule.stages - 1 in slices
    runtime.step(*([inputs] if first else []), **({"target": targets} if last else {}))

    for stage, module in slices.items():
        reference = plain[depth * stage : depth * (stage + 1)]
        for parameter, expected in zip(module.parameters(), reference.parameters(), strict=True):
            assert torch.allclose(parameter.grad, expected.grad, rtol=1e-9, atol=1e-15), (name, microbatches, stage)


def one_process(rank: int, ranks: int, folder: Path) -> None:
    torch.set_num_threads(1)
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=ranks, timeout=timedelta(seconds=SECONDS / 2)
    )
    for number, (name, microbatches) in enumerate(CASES[ranks]):
        train_one_step(rank, ranks, name, microbatches, folder / f"{number}-{name}.csv")
    distributed.destroy_process_group()


@pytest.mark.parametrize("ranks", CASES)
def test_torchs_runtime_trains_with_our_csv_to_the_gradients_of_plain_autograd(ranks, tmp_path):
    private_runtime()
    processes = multiprocessing.spawn(one_process, args=(ranks, tmp_path), nprocs=ranks, join=False)
    try:
        deadline = time.monotonic() + SECONDS
        while not processes.join(timeout=1):  # raises what a process raised
            assert time.monotonic() < deadline, f"no end after {SECONDS} s"
    finally:
        for process in processes.processes:
            if process.is_alive():
                process.kill()
    assert len(list(tmp_path.glob("*.csv"))) == len(CASES[ranks])
