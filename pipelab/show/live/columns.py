"""How does a trace reach the screen? As one block of bytes: a short header, then a column of numbers a property.

A front end reads the columns as typed arrays, without parsing: 50,000 bars are two megabytes. The block is
`<uint32 length><header as JSON><columns>`, little-endian, every column at a multiple of eight bytes.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from pipelab.action import COMPUTE, MESSAGES, B, F, W, parts
from pipelab.collector import collector_at_rest
from pipelab.dependencies import GIVES, NEEDS
from pipelab.lower import CARRIES, RECEIVED_FROM
from pipelab.show.memory import Curve, curves_of
from pipelab.show.palette import CAUSES, CHANGES, DARK, LIGHT, LOOKS, OTHER, RANK_DASHES
from pipelab.show.palette import LANES as LANE_LOOKS
from pipelab.trace import LANES, Number, Span, Trace, number
from pipelab.units import CLOCK_NAMES, Unit, chunk_of, figures_text, finding, pipelines, time_unit

COLUMNS = {
    "start": "<f8",
    "end": "<f8",
    "stage": "<i4",
    "microbatch": "<i4",
    "waitStage": "<i4",  # -1: it did not wait
    "waitMicrobatch": "<i4",
    "rank": "<u2",
    "kind": "<u1",  # a place in the header's kinds
    "waitKind": "<u1",
    "lane": "<u1",  # a place in LANES
    "part": "<u1",  # 0 a whole bar, 1 and 2 the halves of a pair
}

RULE = {
    "needs": {kind: list(map(list, wanted)) for kind, wanted in NEEDS.items()},
    "gives": dict(GIVES),
    "carries": dict(CARRIES),
    "feeds": {send: [-step, receive] for receive, (step, send) in RECEIVED_FROM.items()},
    "holds": [F],
    "releases": [B, W],
}
"""What a front end must know of dataflow, as data, so that it is not written a second time in another language."""

STYLE = {
    "kinds": {kind: seen._asdict() for kind, seen in {**LOOKS, **CHANGES, **CAUSES}.items()},
    "beside": {lane: seen._asdict() for lane, seen in LANE_LOOKS.items()},
    "other": OTHER._asdict(),
    "light": LIGHT._asdict(),
    "dark": DARK._asdict(),
    "dashes": list(RANK_DASHES),
    "lanes": list(LANES),
}
"""The colours, hatches and letters of `palette`, as data."""


class TimeAxis(NamedTuple):
    """How times of a trace become numbers on the axis: less `origin`, in `unit`; a whole count has `ticks` to one."""

    unit: Unit
    origin: Number = 0
    ticks: int = 1

    def of(self, time: Number) -> float:
        """A time on this axis.

        >>> TimeAxis(Unit("ms", 1000), origin=2).of(2.25)
        250.0
        """
        return float(time - self.origin) / self.ticks * self.unit.scale


def trace_block(
    trace: Trace, memory: Sequence[Curve] | None = None, limit: "Number | Sequence[Number] | None" = None
) -> bytes:
    """A whole trace as one block. `memory` and `limit` are as `Timeline` takes them.

    >>> from pipelab import Costs, build, simulate
    >>> header, columns = read_block(trace_block(simulate(build("1f1b", ranks=2, microbatches=2), Costs.uniform())))
    >>> header["title"], columns["end"][:4].tolist()
    ('1f1b: 33.3 % of the step is idle', [1.0, 2.0, 6.0, 9.0])
    """
    unit = time_unit([trace])
    first = min((span.start for span in trace.counted if span.lane == "compute"), default=0)
    axis = TimeAxis(unit, first, trace.ticks)
    header: dict[str, Any] = shape(trace.schedule, trace.clock, trace.chunks, unit, limit)
    header |= {"title": finding(trace), "figures": figures_text(trace, unit), "length": unit.of(trace.makespan)}
    kinds = (action.kind for row in trace.compute for span in row for action in parts(span.action))
    header["forwardsOnly"] = all(kind == F for kind in kinds)
    header["chunk"] = by_stage(chunk_of(trace))
    if any(sides := pipelines(trace)):
        header["sides"] = sides
    return block_of(header, trace.counted, axis, None if memory is None else curves_of(trace, memory))


def block_of(
    header: Mapping[str, Any], spans: Sequence[Span], axis: TimeAxis, memory: Sequence[Curve] | None = None
) -> bytes:
    """Spans as one block, with points of memory by rank. What follows in a trace that grows is again such a block: its
    header needs no more than `step` and how many bars went before (`first`).

    >>> from pipelab import Action
    >>> spans = [Span(0, "compute", Action(0, "F", 0), 0, 5)]
    >>> block = block_of({"first": 7}, spans, TimeAxis(Unit("", 1)))
    >>> read_block(block)[0]["first"], len(block) < 700
    (7, True)
    """
    said = dict(header)
    with collector_at_rest():
        columns = _columns(spans, axis, said)
        if memory is not None:
            said["curves"] = [len(curve) for curve in memory]
            in_time = TimeAxis(axis.unit, float(axis.origin) / axis.ticks)
            points = [(in_time.of(time), number(amount)) for curve in memory for time, amount in curve]
            columns["curves"] = np.array(points, "<f8").reshape(-1)
        return _block(said, columns)


def shape(
    schedule: str, clock: str, chunks: Sequence[int], unit: Unit, limit: "Number | Sequence[Number] | None" = None
) -> dict[str, Any]:
    """What the header says of a trace of which nothing has happened yet."""
    return {
        "first": 0,
        "step": 0,
        "schedule": schedule,
        "clock": CLOCK_NAMES.get(clock, clock),
        "unit": unit.name,
        "ranks": len(chunks),
        "chunks": list(chunks),
        "title": schedule,
        "figures": "",
        "length": 0,
        "limits": None if limit is None else limits_of(limit, len(chunks)),
    }


def read_block(block: bytes) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """The header and the columns of a block, as a front end sees them."""
    length = int.from_bytes(block[:4], "little")
    header = json.loads(block[4 : 4 + length])
    columns, place = {}, 4 + length
    for name, kind, count in header["columns"]:
        place = -(-place // 8) * 8
        columns[name] = np.frombuffer(block, kind, count, place)
        place += columns[name].nbytes
    return header, columns


def _columns(spans: Sequence[Span], axis: TimeAxis, header: dict[str, Any]) -> dict[str, np.ndarray]:
    """The columns of these spans; a pair makes two bars. Adds to the header the kinds that are named by number."""
    kinds: dict[str, int] = {kind: place for place, kind in enumerate((*COMPUTE, *MESSAGES))}
    lanes = {lane: place for place, lane in enumerate(LANES)}
    bars = []
    for rank, lane, element, start, end, waited in spans:
        together = parts(element)
        wait_stage, wait_kind, wait_microbatch = waited if waited is not None else (-1, F, 0)
        for turn, (stage, kind, microbatch) in enumerate(together, start=len(together) > 1):
            bars.append(
                (start, end, stage, microbatch, wait_stage, wait_microbatch, rank,
                 kinds.setdefault(kind, len(kinds)), kinds.setdefault(wait_kind, len(kinds)), lanes[lane], turn)
            )  # fmt: skip
    header["kinds"] = list(kinds)
    values = zip(*bars, strict=True) if bars else [()] * len(COLUMNS)
    columns = {name: np.array(column, kind) for (name, kind), column in zip(COLUMNS.items(), values, strict=True)}
    for name in ("start", "end"):
        columns[name] = (columns[name] - float(axis.origin)) / axis.ticks * axis.unit.scale
    return columns


def _block(header: dict[str, Any], columns: Mapping[str, np.ndarray]) -> bytes:
    header["columns"] = [[name, column.dtype.str, len(column)] for name, column in columns.items()]
    words = json.dumps(header).encode()
    words += b" " * (-(4 + len(words)) % 8)
    pieces = [len(words).to_bytes(4, "little"), words]
    for column in columns.values():
        pieces += [column.tobytes(), b"\0" * (-column.nbytes % 8)]
    return b"".join(pieces)


def by_stage(chunks: Mapping[int, int]) -> list[int]:
    """The chunk of each stage, from stage 0 on.

    >>> by_stage({2: 1})
    [0, 0, 1]
    """
    return [chunks.get(stage, 0) for stage in range(1 + max(chunks, default=-1))]


def limits_of(limit: "Number | Sequence[Number]", ranks: int) -> list[int | float]:
    """One limit a rank. Raises ValueError for another number of limits.

    >>> limits_of(4, ranks=2)
    [4, 4]
    """
    limits = list(limit) if isinstance(limit, Sequence) else [limit] * ranks
    if len(limits) != ranks:
        raise ValueError(f"limit is one number, or one a rank, {ranks} in all: got {len(limits)}")
    return [number(value) for value in limits]
