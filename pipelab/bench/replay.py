"""How far is a run's bubble from the one that the simulator replays with the run's own median times?

The distance is the honesty of virtual time: what is left is the spread of single actions around their medians.
"""

from collections.abc import Iterator

from pipelab.bench import Bench, Row
from pipelab.data import Batches, load_text
from pipelab.models import build_model
from pipelab.schedules import build
from pipelab.training import train

SCHEDULES = (("naive", None), ("gpipe", None), ("1f1b", None), ("interleaved", 2), ("zb-h1", None))
SHAPES = tuple((ranks, microbatches) for ranks in (2, 4, 8) for microbatches in (8, 16))


def compare_with_replay(steps: int = 5) -> Iterator[Row]:
    """One row a run of the preset `small`: the step bubble measured (median of the steps) and replayed."""
    text = load_text("stdlib-docs")
    for name, chunks in SCHEDULES:
        for ranks, microbatches in SHAPES:
            model = build_model("small")
            batches = Batches(
                text=text, microbatches=microbatches, rows=2, context=model.config.context, seed=0, steps=steps
            )
            bubbles = train(model, batches, build(name, ranks, microbatches, chunks)).bubbles()
            measured, replayed = (figures["step"] for how in ("measured", "replayed") if (figures := bubbles[how]))
            yield {
                "schedule": name, "ranks": ranks, "microbatches": microbatches,
                "measured": measured, "replayed": replayed, "difference": measured - replayed,
            }  # fmt: skip


BENCH = Bench(
    "step bubble in virtual time (median of the steps), and replayed with the run's median times",
    {"schedule": "{}", "ranks": "{}", "microbatches": "{}",
     "measured": "{:.4f}", "replayed": "{:.4f}", "difference": "{:+.4f}"},
    lambda options: (compare_with_replay(options.steps), len(SCHEDULES) * len(SHAPES)),
)  # fmt: skip
