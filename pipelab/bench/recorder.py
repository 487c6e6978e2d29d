"""What does recording cost? Steps with and without spans, bytes and the flight recorder, one after the other.

The seconds are processor time of the process, all ranks together, so that other programs do not disturb them much.
The activation meter works in the first step of a shape alone, which is not among these; its row tells what it would
cost in every step. The last row is the live feed with a listener; its threads are among what is counted.
"""

import time
from collections.abc import Callable, Iterator
from typing import Any

from pipelab.costs import middle

RANKS, MICROBATCHES = 4, 8
SCHEDULES = ("1f1b", "zb-h1")


def compare_recording(steps: int = 20, model: str = "small", device: str = "cpu") -> Iterator[dict[str, Any]]:
    """One row a schedule and recorder: the median of a recorded step's time over that of an unrecorded one."""
    for name in SCHEDULES:
        for what, switch in SWITCHES.items():
            yield {"schedule": name, "what": what, "on_over_off": _ratio(name, switch, steps, model, device)}


def _ratio(name: str, switch: Callable[[Any, Any, bool], None], steps: int, preset: str, device: str) -> float:
    import torch

    from pipelab.costs import Link
    from pipelab.data import Batches, load_text
    from pipelab.feed import Feed, Started, StepBegun
    from pipelab.live import Live
    from pipelab.loss import cross_entropy
    from pipelab.lower import lower
    from pipelab.mesh import Mesh
    from pipelab.models import build_model
    from pipelab.optimizer import adamw
    from pipelab.ranks import Job
    from pipelab.schedules import build
    from pipelab.virtual_ranks import VirtualRanks

    model = build_model(preset)
    text, length = load_text("stdlib-docs"), model.config.context
    batches = Batches(text=text, microbatches=MICROBATCHES, rows=2, context=length, seed=0, steps=1)
    job = Job(
        model=model, program=lower(build(name, RANKS, MICROBATCHES)), mesh=Mesh(pp=RANKS), loss=cross_entropy,
        optimizer=adamw, seed=0, device=torch.device(device), transport="memory", clock="virtual", link=Link(),
        blocking=False, at=None, timeout=120, fed=True,
    )  # fmt: skip
    with Feed(Live()) as feed, VirtualRanks(job, feed.put) as ranks:
        feed.put(Started(job.program.schedule, job.mesh, job.clock, job.transport))
        ranks.reporter, reporter = None, ranks.reporter
        batch = ranks.split(0, next(iter(batches)))
        ranks.warm_up(batch)

        def seconds(on: bool) -> float:
            switch(ranks, reporter, on)
            begin = time.process_time()
            feed.put(StepBegun(0))
            ranks.step(batch)
            return time.process_time() - begin

        pairs = [(seconds(step % 2 == 0), seconds(step % 2 == 1)) for step in range(steps)]
    # every other pair begins with the unrecorded step, so that neither side has the warmer caches
    return float(middle([first / second if step % 2 == 0 else second / first
                         for step, (first, second) in enumerate(pairs)]))  # fmt: skip


def _spans(ranks: Any, _: Any, on: bool) -> None:
    from pipelab.flight_recorder import FlightRecorder

    for worker in ranks.workers:
        worker.recording = on
        worker.recorder = FlightRecorder() if on else _Silent()


def _meter(ranks: Any, _: Any, on: bool) -> None:
    for worker in ranks.workers:
        known = worker.__dict__.setdefault("_known", dict(worker._counted))
        worker._counted = {} if on else dict(known)


def _feed(ranks: Any, reporter: Any, on: bool) -> None:
    ranks.reporter = reporter if on else None


SWITCHES = {"spans": _spans, "meter": _meter, "feed": _feed}
"""What is recorded, and how it is turned on and off."""


class _Silent:
    """A flight recorder that is off."""

    def running(self, *_: object) -> None: ...

    def waiting(self, *_: object) -> None: ...
