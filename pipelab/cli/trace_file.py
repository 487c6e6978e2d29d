"""A trace in a file: what `pipelab train --trace` writes and `pipelab export --trace` reads."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from pipelab.cli.parser import CommandError
from pipelab.cli.shape import read_text
from pipelab.schedule import Schedule
from pipelab.show.memory import Curve
from pipelab.trace import Trace, number


class TraceFile(NamedTuple):
    """A trace, and the activation memory of each rank as (time, bytes), where it was written, too."""

    trace: Trace
    memory: Sequence[Curve] | None


def trace_text(trace: Trace, memory: Sequence[Curve] | None) -> str:
    """`Trace.to_json`, and under "memory" the curve of (time, bytes) of each rank, where there is one a rank."""
    written = json.loads(trace.to_json())
    if memory is not None and len(memory) == trace.ranks:
        written["memory"] = [[[number(time), amount] for time, amount in curve] for curve in memory]
    return json.dumps(written) + "\n"


def read_trace(path: Path) -> TraceFile:
    """The trace and the memory curves, if the file has them. Raises CommandError that names the file."""
    text = read_text("--trace", path)
    try:
        trace = Trace.from_json(text)
        curves = json.loads(text).get("memory")
        memory = None if curves is None else [[(time + 0, amount + 0) for time, amount in curve] for curve in curves]
    except (TypeError, ValueError) as error:
        raise CommandError(f"--trace {path}: {error}; `pipelab train --trace FILE` writes one") from None
    if memory is not None and len(memory) != trace.ranks:
        raise CommandError(f"--trace {path} has {len(memory)} memory curves for {trace.ranks} ranks")
    return TraceFile(trace, memory)


def rows_of(trace: Trace) -> Schedule:
    """The schedule that was executed: its compute actions in their order, without what is recomputed."""
    rows = ([str(span.action) for span in row if span.action[1] != "R"] for row in trace.compute)
    return Schedule.from_text("\n".join(map(" ".join, rows)), name=trace.schedule)
