"""How long does a step take in our runtime and in PyTorch's own, in the same processes, on the same work?

Both train copies of one model with one schedule among the same gloo processes, a step of one after a step of the other,
after their gradients were found equal. A row tells torch's step time over ours: above 1, ours is the quicker.
"""

import copy
import os
import time
from collections.abc import Iterator
from typing import Any

from pipelab.costs import middle
from pipelab.schedule import Schedule

SCHEDULES = {
    "gpipe": ("ScheduleGPipe", None),
    "1f1b": ("Schedule1F1B", None),
    "interleaved": ("ScheduleInterleaved1F1B", 2),
    "interleaved-zb": ("ScheduleInterleavedZeroBubble", 2),
    "zb-v": ("ScheduleZBVZeroBubble", None),
}
"""Of our names, the class of torch.distributed.pipelining that runs the same schedule, and the chunks of a rank."""
QUICK = ("gpipe", "1f1b", "interleaved", "interleaved-zb")
WORKS = {"tiny": ("tiny", 4, 1), "lab": ("small", 4, 4)}
"""Of each work the preset, the rows of a micro-batch, and the blocks of a stage."""
MICROBATCHES = 8


def compare_runtimes(*, quick: bool = False) -> Iterator[dict[str, Any]]:
    """One row a schedule, number of ranks and work: the median of torch's step time over ours."""
    from pipelab.launcher import launch

    names = QUICK if quick else tuple(SCHEDULES)
    for ranks in (2,) if quick else (2, 4):
        rows, *_ = launch(_rows, names, 6 if quick else 20, ranks=ranks)
        yield from rows


def geometric_mean(ratios: list[float]) -> float:
    """
    >>> geometric_mean([2.0, 0.5])
    1.0
    """
    product = 1.0
    for ratio in ratios:
        product *= ratio
    return float(product ** (1 / len(ratios)))


def _rows(names: tuple[str, ...], steps: int) -> list[dict[str, Any]]:
    """One process: every case, in the order in which all processes take them."""
    import torch.distributed as dist

    from pipelab.world import World

    world = World(int(os.environ["WORLD_SIZE"]), timeout=120)
    try:
        return [
            {
                "schedule": name,
                "ranks": dist.get_world_size(),
                "work": work,
                "torch_over_ours": _ratio(name, work, steps),
            }
            for name in names
            for work in WORKS
        ]
    finally:
        world.close()


def _ratio(name: str, work: str, steps: int) -> float:
    """Torch's step time over ours, each the time until the last rank has finished."""
    import torch
    import torch.distributed as dist

    from pipelab.data import Batches, load_text
    from pipelab.models import build_model
    from pipelab.process_rank import ProcessRank
    from pipelab.schedules import build

    preset, rows, blocks = WORKS[work]
    schedule = build(name, dist.get_world_size(), MICROBATCHES, SCHEDULES[name][1])
    model = build_model(preset, layers=blocks * schedule.stages)
    length = model.config.context
    text = load_text("stdlib-docs")
    (batch,) = Batches(text=text, microbatches=MICROBATCHES, rows=rows, context=length, seed=0, steps=1)
    job = _job(schedule, copy.deepcopy(model))
    theirs = _Theirs(name, model, schedule, batch, rows)
    with ProcessRank(job) as ours:

        def our_step() -> None:
            ours._run(ours.split(0, batch))

        our_step()
        theirs.step()
        _compare(job.model, model)
        times: list[tuple[float, float]] = []
        for step in range(steps + 2):
            pair = [_seconds(each) for each in (our_step, theirs.step)]
            if step >= 2:
                times.append((pair[0], pair[1]))
    slowest = torch.tensor(times, dtype=torch.float64)
    dist.all_reduce(slowest, op=dist.ReduceOp.MAX)
    return float(middle([theirs / ours for ours, theirs in slowest.tolist()]))


def _job(schedule: Schedule, model: Any) -> Any:
    import torch

    from pipelab.costs import Link
    from pipelab.loss import cross_entropy
    from pipelab.lower import lower
    from pipelab.mesh import Mesh
    from pipelab.optimizer import adamw
    from pipelab.ranks import Job

    return Job(
        model=model, program=lower(schedule), mesh=Mesh(pp=schedule.ranks), loss=cross_entropy, optimizer=adamw, seed=0,
        device=torch.device("cpu"), transport="gloo", clock="wall", link=Link(), blocking=False, at=None, timeout=120,
    )  # fmt: skip


class _Theirs:
    """The stages of this rank in torch's runtime."""

    def __init__(self, name: str, model: Any, schedule: Schedule, batch: Any, rows: int) -> None:
        import torch
        import torch.distributed as dist
        from torch.distributed import pipelining

        from pipelab.loss import cross_entropy
        from pipelab.partition import cut

        own = schedule.placement.stages_on(dist.get_rank())
        inputs, targets = batch
        width = model.config.width
        inner = torch.zeros(rows, inputs.shape[1], width, requires_grad=True)
        last = schedule.stages - 1
        slices = cut(model, schedule.stages)
        self.parameters = [parameter for stage in own for parameter in slices[stage].parameters()]
        stages = [
            pipelining.PipelineStage(
                slices[stage], stage, schedule.stages, torch.device("cpu"),
                input_args=inner if stage else inputs[:rows],
                output_args=torch.zeros(rows, inputs.shape[1], model.config.vocabulary) if stage == last else inner,
            )
            for stage in own
        ]  # fmt: skip
        kind = getattr(pipelining, SCHEDULES[name][0])
        given = stages[0] if len(stages) == 1 else stages
        self._schedule = kind(given, MICROBATCHES, loss_fn=cross_entropy)
        self._arguments = [inputs] if 0 in own else []
        self._options = {"target": targets} if last in own else {}

    def step(self) -> None:
        for parameter in self.parameters:
            parameter.grad = None
        self._schedule.step(*self._arguments, **self._options)


def _compare(ours: Any, theirs: Any) -> None:
    """Raises RuntimeError when a gradient of this rank is not theirs to rounding."""
    import torch

    for (name, p), q in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        same = (p.grad is None) == (q.grad is None)
        if not same or (p.grad is not None and not torch.allclose(p.grad, q.grad, rtol=1e-3, atol=1e-6)):
            raise RuntimeError(f"the gradient of {name} is not torch's; the runtimes do different work")


def _seconds(work: Any) -> float:
    import torch.distributed as dist

    dist.barrier()
    begin = time.perf_counter()
    work()
    return time.perf_counter() - begin
