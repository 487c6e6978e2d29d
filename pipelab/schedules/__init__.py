"""The named schedules: a dict from the name that people use to the function that writes the rows.

Read in this order: `naive`, `gpipe`, `one_f_one_b`, `interleaved`, `zero_bubble`, `zb_auto`.
"""

import difflib
import inspect
import operator
from collections.abc import Callable
from typing import Any

from pipelab.schedule import Schedule, refuse_too_many
from pipelab.schedules.gpipe import gpipe
from pipelab.schedules.interleaved import interleaved
from pipelab.schedules.naive import naive
from pipelab.schedules.one_f_one_b import one_f_one_b
from pipelab.schedules.zb_auto import zb_auto
from pipelab.schedules.zero_bubble import zb_h1

GENERATORS: dict[str, Callable[..., Schedule]] = {
    "naive": naive,
    "gpipe": gpipe,
    "1f1b": one_f_one_b,
    "interleaved": interleaved,
    "zb-h1": zb_h1,
    "zb-auto": zb_auto,
}

SCHEDULES: dict[str, str] = {
    name: (inspect.getdoc(generator) or "").splitlines()[0] for name, generator in GENERATORS.items()
}
"""Every schedule name with a one-line description."""


def build(name: str, ranks: int, microbatches: int, chunks: int | None = None, **options: Any) -> Schedule:
    """The named schedule for P `ranks`, M `microbatches` and V `chunks` a rank; any P >= 1 and M >= 1.

    Raises ValueError for an unknown name, a count below 1, or an option that this schedule does not take.

    >>> print(build("1f1b", ranks=2, microbatches=2))
    0F0 0F1 0B0 0B1
    1F0 1B0 1F1 1B1
    """
    if name not in GENERATORS:
        close = difflib.get_close_matches(str(name), GENERATORS, n=1)
        hint = f"did you mean {close[0]}? the names are" if close else "the names are"
        raise ValueError(f"there is no schedule {name!r}; {hint} {', '.join(GENERATORS)}")
    takes = options_of(name)
    ranks, microbatches = _count("ranks", ranks), _count("microbatches", microbatches)
    chunks = 1 if chunks is None else _count("chunks", chunks)
    for option in options:
        if option not in takes:
            raise ValueError(f"{name} does not take the option {option!r}; it takes {_listed(takes)}")
    refuse_too_many(ranks * chunks, microbatches)
    if "chunks" in takes:
        options["chunks"] = chunks
    elif chunks != 1:
        raise ValueError(f"{name} has one chunk a rank: got chunks={chunks}; leave it out, or take interleaved")
    return GENERATORS[name](ranks, microbatches, **options)


def options_of(name: str) -> tuple[str, ...]:
    """The options that a schedule takes beyond ranks and microbatches.

    >>> options_of("interleaved")
    ('chunks',)
    """
    return tuple(inspect.signature(GENERATORS[name]).parameters)[2:]


def _count(what: str, value: int) -> int:
    try:
        number = operator.index(value)
    except TypeError:
        number = 0
    if number < 1 or isinstance(value, bool):
        raise ValueError(f"{what} must be a whole number of at least 1: got {value!r}")
    return number


def _listed(takes: tuple[str, ...]) -> str:
    return ", ".join(takes) if takes else "none"
