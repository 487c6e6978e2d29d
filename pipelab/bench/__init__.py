"""Speed, beside a peer's on the same work; figures are ratios within one run, for machines are noisy.

Each benchmark is a module with a `BENCH`.
"""

from argparse import Namespace
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

Row = dict[str, Any]


class Bench(NamedTuple):
    """A benchmark: what it tells, how each figure of a row is written, and what measures the rows for some options.

    `measure` gives them as they come, and how many there will be (None: it is not known); `summary` what follows from
    all of them, in lines.
    """

    title: str
    columns: Mapping[str, str]
    measure: Callable[[Namespace], tuple[Iterable[Row], int | None]]
    summary: Callable[[list[Row]], list[str]] = lambda rows: []
