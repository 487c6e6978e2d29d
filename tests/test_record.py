"""What a run keeps of its steps: figures of all, spans of the last; nothing else grows with their number."""

import gc
import os
import sys
from itertools import accumulate
from random import Random
from statistics import median

import pytest
import torch
from torch import Tensor, nn

import pipelab as pl
from pipelab import ranks
from pipelab.feed import Event, Spans, StepEnded
from pipelab.launcher import launch
from pipelab.record import KEPT, Record
from pipelab.trace import Span, median_trace

SCHEDULE = pl.build("1f1b", ranks=2, microbatches=2)


def model() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 3)).double()


def batches(steps: int) -> list[tuple[Tensor, Tensor]]:
    """The first is the largest: the peak is of a step whose spans are gone."""
    rows = [16, *(4 + 4 * (step % 2) for step in range(1, steps))]
    return [(torch.ones(n, 3, dtype=torch.float64), torch.zeros(n, dtype=torch.int64)) for n in rows]


def kept() -> tuple[int, int, int]:
    """How many records, spans in them, and traces there are in this process."""
    gc.collect()
    objects = gc.get_objects()
    records = [each for each in objects if isinstance(each, Record)]
    return len(records), sum(len(each.spans) for each in records), sum(isinstance(each, pl.Trace) for each in objects)


class Counts:
    """A rate of learning that counts, in every process that is a rank, what is there before an update."""

    def __init__(self) -> None:
        self.found: dict[int, tuple[int, int, int]] = {}

    def __call__(self, step: int) -> float:
        if step in (9, 19, 39):
            self.found[step] = kept()
        return 1.0


def counted(transport: str) -> tuple[dict[int, tuple[int, int, int]], int]:
    before, ranks.KEPT = ranks.KEPT, 5
    try:
        counts = Counts()
        run = pl.train(model(), batches(40), SCHEDULE, transport=transport, rate=counts)
        return counts.found, len(run.traces)
    finally:
        ranks.KEPT = before


@pytest.mark.parametrize("transport", ["memory", "gloo"])
def test_a_run_of_forty_steps_holds_what_one_of_ten_holds(transport):
    found, traces = counted(transport) if transport == "memory" else launch(counted, transport, ranks=2)[0]
    assert found[9] == found[19] == found[39]
    assert traces == 5


def test_medians_losses_and_peaks_are_of_all_steps_though_the_last_alone_keep_their_spans(monkeypatch):
    monkeypatch.setattr(ranks, "KEPT", 3)
    heard: list[Event] = []
    run = pl.train(model(), batches(12), SCHEDULE, feed=heard.append)
    spans: list[list[Span]] = [[] for _ in range(12)]
    for event in sorted((event for event in heard if isinstance(event, Spans)), key=lambda event: event.rank):
        spans[event.step] += event.spans
    every = [pl.Trace("1f1b", "virtual", (1, 1), tuple(each)) for each in spans]
    assert run.losses == [event.loss for event in heard if isinstance(event, StepEnded)]
    assert run.figures == {(0, 0): [trace.figures for trace in every]}
    assert run.step_seconds == median(trace.duration for trace in every)
    for kind, bubble in run.bubbles()["measured"].items():
        assert bubble == median(trace.bubble(kind) for trace in every)
    assert run.traces == every[-3:] and run.trace == median_trace(every[-3:])
    assert len(run.traffic) == len(run.norms) == 3
    assert run.memory.peaks == pl.train(model(), batches(1), SCHEDULE).memory.peaks
    assert max(held for _, held in run.memory.curves[0]) < run.memory.peaks[0]


def measured(steps_kept: int) -> dict[str, object]:
    """Within a rank: a run whose work takes seconds by a lot that is the same again."""
    from types import SimpleNamespace

    from pipelab import clock

    times = accumulate(Random(int(os.environ["RANK"])).choices(range(1, 100), k=10**5))
    fine = SimpleNamespace(resolution=1e-9)
    clock.time = SimpleNamespace(thread_time=lambda: next(times) / 64, get_clock_info=lambda name: fine)
    ranks.KEPT = steps_kept
    run = pl.train(model(), batches(8), SCHEDULE, pl.Mesh(pp=2, dp=2), transport="gloo", clip=1.0)
    traces = {key: each[-3:] for key, each in run.replicas.items()}
    bubbles = run.bubbles()["measured"]
    return {
        "losses": run.losses, "norms": run.gradient_norms, "figures": run.figures, "seconds": run.step_seconds,
        "bubbles": bubbles, "peaks": run.memory.peaks, "last": traces, "sent": run.sent(),
    }  # fmt: skip


def both() -> tuple[dict[str, object], dict[str, object]]:
    return measured(100), measured(3)


def test_over_processes_nothing_that_is_told_of_all_steps_depends_on_how_many_keep_their_spans():
    import cloudpickle

    cloudpickle.register_pickle_by_value(sys.modules[__name__])
    try:
        whole, last = launch(both, ranks=4)[0]
    finally:
        cloudpickle.unregister_pickle_by_value(sys.modules[__name__])
    assert whole == last
    assert len(whole["losses"]) == len(whole["norms"]) == len(whole["figures"][1, 0]) == 8


def test_a_run_of_as_many_steps_as_are_kept_has_a_trace_of_each():
    run = pl.train(model(), batches(KEPT), SCHEDULE)
    assert len(run.traces) == len(run.losses) == KEPT
