"""The named schedules: a dict from the name that people use to the function that writes the rows.

Read in this order: `naive`, `gpipe`, `one_f_one_b`, `looped_bfs`, `interleaved`, `zero_bubble`, `zb_v`, `v_shape`,
`dualpipe_v`, `zb_auto`, `pipedream`, `inference`.
"""

import difflib
import inspect
from collections.abc import Callable
from typing import Any

from pipelab.collector import collector_at_rest
from pipelab.counts import count
from pipelab.schedule import Schedule, refuse_too_many
from pipelab.schedules.dualpipe_v import dualpipe_v
from pipelab.schedules.gpipe import gpipe
from pipelab.schedules.inference import inference
from pipelab.schedules.interleaved import interleaved
from pipelab.schedules.looped_bfs import looped_bfs
from pipelab.schedules.naive import naive
from pipelab.schedules.one_f_one_b import one_f_one_b
from pipelab.schedules.pipedream import pipedream
from pipelab.schedules.v_shape import one_f_one_b_v, v_half, v_min
from pipelab.schedules.zb_auto import zb_auto
from pipelab.schedules.zb_v import zb_v
from pipelab.schedules.zero_bubble import interleaved_zb, zb_h1, zb_h2

GENERATORS: dict[str, Callable[..., Schedule]] = {
    "naive": naive,
    "gpipe": gpipe,
    "1f1b": one_f_one_b,
    "interleaved": interleaved,
    "looped-bfs": looped_bfs,
    "interleaved-zb": interleaved_zb,
    "zb-h1": zb_h1,
    "zb-h2": zb_h2,
    "zb-v": zb_v,
    "v-half": v_half,
    "v-min": v_min,
    "1f1b-v": one_f_one_b_v,
    "dualpipe-v": dualpipe_v,
    "zb-auto": zb_auto,
    "pipedream": pipedream,
    "inference": inference,
}

SCHEDULES: dict[str, str] = {
    name: (inspect.getdoc(generator) or "").splitlines()[0] for name, generator in GENERATORS.items()
}
"""Every schedule name with a one-line description."""


def build(name: str, ranks: int, microbatches: int, chunks: int | None = None, **options: Any) -> Schedule:
    """The named schedule for P `ranks`, M `microbatches` and V `chunks` a rank; any P >= 1 and M >= 1.

    `chunks` is 1 unless said otherwise; schedules of a V shape have two, always.
    Raises ValueError for an unknown name, a count below 1, or an option that this schedule does not take.

    >>> print(build("1f1b", ranks=2, microbatches=2))
    0F0 0F1 0B0 0B1
    1F0 1B0 1F1 1B1
    """
    takes = options_of(name)
    ranks, microbatches = count("ranks", ranks), count("microbatches", microbatches)
    chunks = None if chunks is None else count("chunks", chunks)
    for option in options:
        if option not in takes:
            raise ValueError(f"{name} does not take the option {option!r}; it takes {', '.join(takes) or 'none'}")
    fixed = chunks_of(name)
    if isinstance(fixed, str):
        options["chunks"] = fixed = chunks or 1
    elif chunks not in (None, fixed):
        words, remedy = (
            ("two chunks", "leave it out") if fixed == 2 else ("one chunk", "leave it out, or take interleaved")
        )
        raise ValueError(f"{name} has {words} a rank: got chunks={chunks}; {remedy}")
    refuse_too_many(ranks * fixed, microbatches, kinds_of(name))
    with collector_at_rest():
        return GENERATORS[name](ranks, microbatches, **options)


def build_like(schedule: Schedule, name: str, **offered: Any) -> Schedule:
    """The named schedule in the shape of another: its ranks and micro-batches, its chunks where the name takes any.

    Of the options `offered` it is given those that it takes. Raises ValueError for an unknown name.

    >>> build_like(build("looped-bfs", ranks=2, microbatches=4, chunks=3), "interleaved")
    <Schedule interleaved: 2 ranks, 6 stages, 4 micro-batches>
    """
    options = {option: value for option, value in offered.items() if option in options_of(name)}
    return build(name, schedule.ranks, schedule.microbatches, _chunks_like(schedule, name), **options)


def resized(schedule: Schedule, ranks: int, microbatches: int) -> Schedule | None:
    """The same schedule for another shape; None for rows that are not those of its name.

    >>> resized(build("interleaved", 2, 4, chunks=2), ranks=2, microbatches=2) == build("interleaved", 2, 2, chunks=2)
    True
    """
    name = schedule.name
    if name not in GENERATORS or build_like(schedule, name) != schedule:
        return None
    return build(name, ranks, microbatches, _chunks_like(schedule, name))


def _chunks_like(schedule: Schedule, name: str) -> int | None:
    return max(schedule.stages // schedule.ranks, 1) if chunks_of(name) == "any" else None


def chunks_of(name: str) -> int | str:
    """How many stages a rank holds: 1, 2, or "any" where the number is an option.

    >>> chunks_of("1f1b"), chunks_of("interleaved"), chunks_of("zb-v")
    (1, 'any', 2)
    """
    return "any" if "chunks" in options_of(name) else GENERATORS[name](1, 1).stages


def kinds_of(name: str) -> int:
    """How many actions a stage has for a micro-batch: 2 with whole backwards (F and B), 3 with split ones, 1 with none.

    >>> kinds_of("1f1b"), kinds_of("zb-h1"), kinds_of("inference")
    (2, 3, 1)
    """
    smallest = GENERATORS[name](1, 1)
    return sum(1 for _ in smallest.actions()) // smallest.stages


def options_of(name: str) -> tuple[str, ...]:
    """The options that a schedule takes beyond ranks and microbatches. Raises ValueError for an unknown name.

    >>> options_of("interleaved")
    ('chunks',)
    """
    if name not in GENERATORS:
        close = difflib.get_close_matches(str(name), GENERATORS, n=1)
        hint = f"did you mean {close[0]}? the names are" if close else "the names are"
        raise ValueError(f"there is no schedule {name!r}; {hint} {', '.join(GENERATORS)}")
    return tuple(inspect.signature(GENERATORS[name]).parameters)[2:]
