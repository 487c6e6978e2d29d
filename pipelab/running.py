"""How does a job run? A step for each batch: in this process, or in processes of this host that it starts."""

import itertools
import os
from collections.abc import Callable, Iterable
from dataclasses import replace

import torch
from torch import Tensor, nn

from pipelab.asynchronous import train_without_flush
from pipelab.data import Batches
from pipelab.feed import Feed, InOrder, OfStep, Spans, StepBegun, StepEnded, Tell, nobody
from pipelab.job import Job
from pipelab.launcher import launch, post
from pipelab.microbatches import split_batch
from pipelab.partition import cut
from pipelab.process_rank import ProcessRank
from pipelab.ranks import Ranks
from pipelab.resume import continued
from pipelab.run import Run
from pipelab.virtual_ranks import VirtualRanks

Batch = tuple[Tensor, Tensor]
Sent = list[Batch] | Batches
"""What the ranks are sent: the batches of a run, or how to draw them, from the job's first step on, all of one shape.
Only of `Batches` it is known that every rank draws the same."""
OnStep = Callable[[int, float], None]

NO_BATCH = "there is no batch to train on; give at least one (inputs, targets)"
SLOW_IMPORTS = ("pipelab.running", "torch._dynamo")  # the first optimizer of a process imports the second


def run_here(job: Job, batches: Iterable[Batch], tell: Tell = nobody) -> Run:
    """Run a job, a step for each batch, in this process, which plays all ranks or one of them."""
    batches = iter(batches)
    first = next(batches, None)
    if first is None:
        raise ValueError(NO_BATCH)
    machine: Callable[[Job, Tell], Ranks] = VirtualRanks if job.transport == "memory" else ProcessRank
    if not job.program.schedule.flush:
        return train_without_flush(job, [first, *batches], tell, machine)
    losses: list[float] = []
    evaluation, evaluations = job.evaluation, []
    with machine(job, tell) as ranks:
        ranks.warm_up(ranks.split(job.first, first))
        for step, batch in enumerate(itertools.chain([first], batches), job.first):
            microbatches = ranks.split(step, batch)
            tell(StepBegun(step))
            losses.append(ranks.step(microbatches))
            tell(StepEnded(step, losses[-1], microbatches.targets_in_all))
            if evaluation is not None and evaluation.is_due(step):
                found = [ranks.evaluate(ranks.split(step, batch)) for batch in evaluation.batches]
                evaluations.append((step, sum(found) / len(found)))
            if job.saving is not None and job.saving.due(step + 1):
                ranks.save(losses)
        if job.saving is not None:
            ranks.save(losses)
        return replace(ranks.measured(ranks.collect(), losses, state=ranks.state(losses)), evaluations=evaluations)


def run_launched(job: Job, batches: Sent, steps: int | None, on_step: OnStep | None, feed: Feed) -> Run:
    """Train in processes of this host, one a rank, and bring the trained model back into the caller's own."""
    cut(job.model, job.program.schedule.stages, at=job.at)  # refuses what does not fit before a process is started
    for step, batch in enumerate(batches if isinstance(batches, list) else itertools.islice(batches, 1), job.first):
        split_batch(step, batch, job.mesh.dp * job.program.schedule.microbatches)
    with InOrder(feed, job.mesh.size, job.first, flush=job.program.schedule.flush) as order:

        def on_post(rank: int, numbered: tuple[int, OfStep]) -> None:
            order.hear(rank, *numbered)
            if on_step is not None and isinstance(numbered[1], StepEnded):
                on_step(numbered[1].step, numbered[1].loss)

        (run, values), *_ = launch(
            _train_rank, job, batches, steps,
            ranks=job.mesh.size, timeout=job.timeout, on_post=on_post, preload=SLOW_IMPORTS,
        )  # fmt: skip
    with torch.no_grad():
        for ours, trained in zip(_values(job.model), values, strict=True):
            ours.copy_(trained)
    return replace(run, model=job.model)


def _train_rank(job: Job, batches: Sent, steps: int | None) -> tuple[Run | None, list[Tensor]]:
    """One rank of `run_launched`: what it tells is posted, with a number. Steps are told by the rank that computes the
    loss, and the first brings the run home, with the values of the model: were its classes, perhaps those of a notebook
    cell, to come too, cloudpickle would give the caller's own the methods of the rank, with the globals of that moment.
    """
    numbers, tells = itertools.count(), int(os.environ["RANK"]) == job.program.placement.rank_of[-1]

    def tell(event: OfStep) -> None:
        if isinstance(event, Spans) or (tells and (job.fed or isinstance(event, StepEnded))):
            post((next(numbers), event))

    own = batches if isinstance(batches, list) else itertools.islice(continued(batches, job.first), steps)
    run = run_here(job, own, tell)
    job.model.cpu()  # the caller has no GPU in use, and gets none
    return (replace(run, model=nn.Sequential()), _values(job.model)) if run.first else (None, [])


def _values(model: nn.Module) -> list[Tensor]:
    """What training changes in a model."""
    return [*model.parameters(), *model.state_dict().values()]
