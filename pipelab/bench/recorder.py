"""What does recording cost? Steps with and without spans, bytes and the flight recorder, one after the other.

The seconds are processor time of the process, all ranks together, so that other programs do not disturb them much; the
quartiles of the pairs tell how much they do.
The activation meter works in the first step of a shape alone, which is not among these; its row tells what it would
cost in every step. The last rows are the live feed, with a listener that keeps the state and with the notebook's
timeline, which also draws; their threads are among what is counted. Where there is no anywidget, as on a machine of
GPUs, nobody draws, and the last row is left out.
"""

import itertools
import time
from collections.abc import Callable, Iterator, Mapping
from importlib.util import find_spec
from statistics import quantiles
from typing import Any

import torch

from pipelab.bench import Bench, Row
from pipelab.data import Batches, load_text
from pipelab.feed import Feed, Listener, Started, StepBegun
from pipelab.job import Job
from pipelab.live import Live
from pipelab.loss import cross_entropy
from pipelab.lower import lower
from pipelab.mesh import Mesh
from pipelab.models import build_model
from pipelab.optimizer import adamw
from pipelab.schedules import build
from pipelab.virtual_ranks import VirtualRanks

RANKS, MICROBATCHES = 4, 8
SCHEDULES = ("1f1b", "zb-h1")


def compare_recording(steps: int = 40, model: str = "small", device: str = "cpu") -> Iterator[Row]:
    """One row a schedule and recorder: a recorded step's time over that of an unrecorded one, the median and between
    which two values half of the pairs lie."""
    for name in SCHEDULES:
        for what, (switch, listener) in switches().items():
            low, median, high = quantiles(_ratios(name, switch, listener(), steps, model, device))
            yield {"schedule": name, "what": what, "on_over_off": median, "quartiles": [low, high]}


def _ratios(name: str, switch: "Switch", listener: Listener, steps: int, preset: str, device: str) -> list[float]:
    model = build_model(preset)
    text, length = load_text("stdlib-docs"), model.config.context
    batches = Batches(text=text, microbatches=MICROBATCHES, rows=2, context=length, seed=0, steps=1)
    job = Job(
        model=model, program=lower(build(name, RANKS, MICROBATCHES)), mesh=Mesh(pp=RANKS), loss=cross_entropy,
        optimizer=adamw, device=torch.device(device), clock="virtual", timeout=120, fed=True,
    )  # fmt: skip
    count = itertools.count()
    with Feed(listener) as feed, VirtualRanks(job, feed.put) as ranks:
        feed.put(Started(job.program.schedule, job.mesh, job.clock, job.transport))
        ranks.reporter, reporter = None, ranks.reporter
        batch = ranks.split(0, next(iter(batches)))
        ranks.warm_up(batch)

        def seconds(on: bool) -> float:
            switch(ranks, reporter, on)
            begin = time.process_time()
            feed.put(StepBegun(next(count)))
            ranks.step(batch)
            return time.process_time() - begin

        pairs = [(seconds(step % 2 == 0), seconds(step % 2 == 1)) for step in range(steps)]
    # every other pair begins with the unrecorded step, so that neither side has the warmer caches
    return [a / b if step % 2 == 0 else b / a for step, (a, b) in enumerate(pairs)]


def _spans(ranks: Any, _: Any, on: bool) -> None:
    for worker in ranks.workers:
        own = worker.__dict__.setdefault("_own", worker.recorder)
        worker.recording, worker.recorder = on, own if on else _Silent()


def _meter(ranks: Any, _: Any, on: bool) -> None:
    for worker in ranks.workers:
        known = worker.__dict__.setdefault("_known", dict(worker._counted))
        worker._counted = {} if on else dict(known)


def _feed(ranks: Any, reporter: Any, on: bool) -> None:
    ranks.reporter = reporter if on else None


def _watch() -> Listener:
    from pipelab.show.live.watched import Watch

    return Watch()


Switch = Callable[[Any, Any, bool], None]
SWITCHES: dict[str, tuple[Switch, Callable[[], Listener]]] = {
    "spans": (_spans, Live),
    "meter": (_meter, Live),
    "feed": (_feed, Live),
    "watch": (_feed, _watch),
}
"""What is recorded, how it is turned on and off, and who listens."""


def switches() -> Mapping[str, tuple[Switch, Callable[[], Listener]]]:
    """Those of which the listener can be had here."""
    return {what: how for what, how in SWITCHES.items() if what != "watch" or find_spec("anywidget")}


class _Silent:
    """A flight recorder that is off."""

    def queueing(self, *_: object) -> None: ...

    def running(self, *_: object) -> None: ...

    def waiting(self, *_: object) -> None: ...


BENCH = Bench(
    "processor time of a recorded step over an unrecorded one, in turn (median, and quartiles of the pairs)",
    {"schedule": "{}", "what": "{}", "on_over_off": "{:.4f}", "quartiles": "{0[0]:.4f} to {0[1]:.4f}"},
    lambda _: (compare_recording(), len(switches()) * len(SCHEDULES)),
)
