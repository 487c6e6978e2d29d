"""How long does a step take in our runtime and in PyTorch's own, in the same processes, on the same work?

Both train copies of one model with one schedule among the same gloo processes, a step of one after a step of the other,
after their gradients were found equal. A row tells torch's step time over ours: above 1, ours is the quicker. A step is
what `train` does for the gradients: the batch is cut, the row is run and recorded on the wall clock, and all messages
have been taken. Torch gets shapes beforehand, keeps no outputs, and Python's collector rests for both.
"""

import copy
import inspect
import os
import time
from argparse import Namespace
from collections.abc import Callable, Iterator
from statistics import geometric_mean
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed import pipelining

from pipelab.bench import Bench, Row
from pipelab.collector import collector_at_rest
from pipelab.costs import middle
from pipelab.data import Batches, load_text
from pipelab.job import Job
from pipelab.launcher import launch
from pipelab.loss import cross_entropy
from pipelab.lower import lower
from pipelab.mesh import Mesh
from pipelab.models import build_model
from pipelab.optimizer import adamw
from pipelab.partition import cut
from pipelab.process_rank import ProcessRank
from pipelab.schedule import Schedule
from pipelab.schedules import build
from pipelab.world import World

SCHEDULES = {
    "gpipe": ("ScheduleGPipe", None),
    "1f1b": ("Schedule1F1B", None),
    "interleaved": ("ScheduleInterleaved1F1B", 2),
    "interleaved-zb": ("ScheduleInterleavedZeroBubble", 2),
    "zb-v": ("ScheduleZBVZeroBubble", None),
}
"""Of our names, the class of torch.distributed.pipelining that runs the same schedule, and the chunks of a rank."""
QUICK = ("gpipe", "1f1b", "interleaved", "interleaved-zb")
MICROBATCHES = 8
WORKS = {
    "tiny": "an MLP, two Linears of width 128 with ReLUs a stage, 8 rows a micro-batch",
    "lab": "a GPT, two blocks of the preset small a stage, 2 rows of 64 tokens a micro-batch",
}
"""tiny: actions of about 0.1 ms, as of the models that pipelines are taught with; lab: of two to four."""
FEWEST, MOST = 8, 400
"""Pairs of steps that are counted."""


def compare_runtimes(*, quick: bool = False, works: tuple[str, ...] = tuple(WORKS)) -> Iterator[Row]:
    """One row a schedule, number of ranks and work: the median, over pairs of steps, of torch's time over ours.

    Other programs on the machine disturb both steps of a pair alike, the more so the shorter they are.
    """
    names = QUICK if quick else tuple(SCHEDULES)
    for ranks in (2,) if quick else (2, 4):
        rows, *_ = launch(_rows, names, works, 2.0 if quick else 6.0, ranks=ranks, timeout=300, threads=1)
        yield from rows


def _rows(names: tuple[str, ...], works: tuple[str, ...], seconds: float) -> list[Row]:
    """One process: every case for so many seconds, in the order in which all processes take them."""
    world = World(int(os.environ["WORLD_SIZE"]), timeout=120)
    try:
        ranks = dist.get_world_size()
        return [
            {"schedule": name, "ranks": ranks, "work": work, "torch_over_ours": _ratio(name, work, seconds)}
            for name in names
            for work in works
        ]
    finally:
        world.close()


def _ratio(name: str, work: str, seconds: float) -> float:
    """Torch's step time over ours, each the time until the last rank has finished."""
    schedule = build(name, dist.get_world_size(), MICROBATCHES, SCHEDULES[name][1])
    case = _tiny(schedule.stages) if work == "tiny" else _lab(schedule.stages)
    job = _job(schedule, copy.deepcopy(case.model), case.loss)
    theirs = _Theirs(name, schedule, case)
    with ProcessRank(job) as ours:

        def our_step() -> None:
            ours._run(ours.split(0, (case.inputs, case.targets)))

        our_step()
        theirs.step()
        _compare(job.model, case.model)
        *_, warm = _in_turn(our_step, theirs.step, pairs=2)
        pairs = min(max(int(seconds / sum(warm)), FEWEST), MOST)
        return float(middle([torchs / mine for mine, torchs in _in_turn(our_step, theirs.step, pairs=pairs)]))


def _in_turn(*sides: Callable[[], None], pairs: int) -> list[list[float]]:
    """The seconds of a step of each side, again and again, until the last rank has finished: the same on all ranks."""
    slowest = torch.tensor([[_seconds(side) for side in sides] for _ in range(pairs)], dtype=torch.float64)
    dist.all_reduce(slowest, op=dist.ReduceOp.MAX)
    rows: list[list[float]] = slowest.tolist()
    return rows


class _Case(NamedTuple):
    """A model, the batch of a step, and one micro-batch of what goes from stage to stage and of what comes out."""

    model: Any
    loss: Any
    inputs: Any
    targets: Any
    inner: Any
    output: Any


def _tiny(stages: int) -> _Case:
    width, rows = 128, 8
    torch.manual_seed(0)
    layers = [nn.Sequential(nn.Linear(width, width), nn.ReLU()) for _ in range(2 * stages)]
    inputs, targets = torch.randn(2, rows * MICROBATCHES, width)
    inner = torch.zeros(rows, width, requires_grad=True)
    return _Case(nn.Sequential(*layers), nn.functional.mse_loss, inputs, targets, inner, inner)


def _lab(stages: int) -> _Case:
    rows = 2
    model = build_model("small", layers=2 * stages)
    sizes = model.config
    ((inputs, targets),) = Batches(
        text=load_text("stdlib-docs"), microbatches=MICROBATCHES, rows=rows, context=sizes.context, seed=0, steps=1
    )
    inner = torch.zeros(rows, sizes.context, sizes.width, requires_grad=True)
    output = torch.zeros(rows, sizes.context, sizes.vocabulary)
    return _Case(model, cross_entropy, inputs, targets, inner, output)


def _job(schedule: Schedule, model: Any, loss: Any) -> Any:
    return Job(
        model=model, program=lower(schedule), mesh=Mesh(pp=schedule.ranks), loss=loss, optimizer=adamw,
        device=torch.device("cpu"), transport="gloo", clock="wall", timeout=120,
    )  # fmt: skip


def torch_stage() -> Any:
    """PyTorch's stage. Before its first step torch 2.11 sends to all neighbours, in a V to the rank itself, too, which
    gloo cannot and nobody needs."""
    import torch.distributed as dist
    from torch.distributed import pipelining

    class Stage(pipelining.PipelineStage):
        def _get_init_p2p_neighbors_ops(self) -> list[dist.P2POp]:
            return [op for op in super()._get_init_p2p_neighbors_ops() if op.group_peer != self.group_rank]

    return Stage


class _Theirs:
    """The stages of this rank in torch's runtime."""

    def __init__(self, name: str, schedule: Schedule, case: _Case) -> None:
        own = schedule.placement.stages_on(dist.get_rank())
        last = schedule.stages - 1
        slices = cut(case.model, schedule.stages)
        self.parameters = [parameter for stage in own for parameter in slices[stage].parameters()]
        stages = [
            torch_stage()(
                slices[stage], stage, schedule.stages, torch.device("cpu"),
                input_args=case.inner if stage else case.inputs[: len(case.inner)],
                output_args=case.output if stage == last else case.inner,
            )
            for stage in own
        ]  # fmt: skip
        kind = getattr(pipelining, SCHEDULES[name][0])
        self._schedule = kind(stages[0] if len(stages) == 1 else stages, MICROBATCHES, loss_fn=case.loss)
        self._arguments = [case.inputs] if 0 in own else []
        self._options: dict[str, Any] = {"target": case.targets, "losses": []} if last in own else {}
        if "return_outputs" in inspect.signature(kind.step).parameters:  # else it always keeps them
            self._options["return_outputs"] = False

    def step(self) -> None:
        for parameter in self.parameters:
            parameter.grad = None
        self._schedule.step(*self._arguments, **self._options)


def _compare(ours: Any, theirs: Any) -> None:
    """Raises RuntimeError when a gradient of this rank is not theirs to rounding."""
    for (name, p), q in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        same = (p.grad is None) == (q.grad is None)
        if not same or (p.grad is not None and not torch.allclose(p.grad, q.grad, rtol=1e-3, atol=1e-6)):
            raise RuntimeError(f"the gradient of {name} is not torch's; the runtimes do different work")


def _seconds(work: Any) -> float:
    dist.barrier()
    with collector_at_rest():
        begin = time.perf_counter()
        work()
        return time.perf_counter() - begin


def _measure(options: Namespace) -> tuple[Iterator[Row], int]:
    cases = len(QUICK) if options.quick else 2 * len(SCHEDULES)
    return compare_runtimes(quick=options.quick), len(WORKS) * cases


def _summary(rows: list[Row]) -> list[str]:
    """The geometric means, and what was run."""
    chosen = {
        "tiny": [row for row in rows if row["work"] == "tiny"],
        "lab": [row for row in rows if row["work"] == "lab"],
        "zero bubble": [row for row in rows if row["schedule"] in ("interleaved-zb", "zb-v")],
    }
    means = {what: geometric_mean(row["torch_over_ours"] for row in some) for what, some in chosen.items() if some}
    return [
        *(f"geometric mean, {what}: {mean:.2f}" for what, mean in means.items()),
        *(f"{name}: {work}, {MICROBATCHES} micro-batches" for name, work in WORKS.items()),
    ]


BENCH = Bench(
    "step time of torch.distributed.pipelining over ours, same processes, in turn (wall clock, median)",
    {"schedule": "{}", "ranks": "{}", "work": "{}", "torch_over_ours": "{:.2f}"},
    _measure,
    _summary,
)
