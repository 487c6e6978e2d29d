"""How does a step look in Perfetto, or in Chrome's own viewer? As JSON in the trace-event format, which both read.

Ranks are processes and lanes are threads; an arrow leads from each message to the work that took it, and a counter
shows what each rank holds. Open the file at ui.perfetto.dev (it stays in your browser) or at chrome://tracing.
Source: "Trace Event Format" of the Chromium project.
"""

import json
from collections.abc import Iterator, Sequence
from typing import Any

from pipelab.action import RECV_B, RECV_F, RECV_T, Action, B, F, I, parts
from pipelab.lower import peer
from pipelab.show.memory import Curve, curves_of
from pipelab.trace import LANES, Number, Span, Trace, number
from pipelab.units import CLOCK_NAMES

Event = dict[str, Any]

TAKEN_BY = {RECV_F: (F,), RECV_B: (B, I), RECV_T: (F,)}
"""The work that takes what a receive brings."""


def perfetto_json(trace: Trace, memory: Sequence[Curve] | None = None) -> str:
    """The trace as one JSON object in the trace-event format, times in microseconds.

    A second of the trace is a second there; in simulated time, so is one unit of the costs. `memory` holds one curve
    of (time, bytes) a rank, as `Run.memory.curves`; without it the counters show the micro-batches in flight. Raises
    ValueError when `memory` has not one curve a rank.

    >>> from pipelab import Costs, build, simulate
    >>> written = json.loads(perfetto_json(simulate(build("1f1b", ranks=2, microbatches=2), Costs.uniform())))
    >>> next(event for event in written["traceEvents"] if event["ph"] == "X")
    {'ph': 'X', 'name': '0F0', 'cat': 'compute', 'pid': 1, 'tid': 1, 'ts': 0.0, 'dur': 1000000.0, 'args': {...}}
    """
    tracks = _tracks(trace)
    arrows = _arrows(trace, tracks)
    slices = (event for span in tracks for event in (_slice(span, tracks), *arrows.get(span, ())))
    events = [*_names(trace, tracks), *slices, *_counters(trace, memory)]
    about = {"schedule": trace.schedule, "clock": CLOCK_NAMES[trace.clock], "unit": _unit(trace)}
    return json.dumps({"traceEvents": events, "displayTimeUnit": "ms", "otherData": about})


Tracks = dict[Span, tuple[int, int, str]]
"""For each span its process, its thread and the thread's name."""


def _tracks(trace: Trace) -> Tracks:
    """A thread for each lane of a rank, and one more wherever two messages of a lane are under way at once.

    Processes count from 1, for 0 is the kernel's own; a rank's compute thread has the number of its process, which
    makes it the main thread, and no two threads share a number.
    """
    free: dict[tuple[int, str], list[Number]] = {}
    found: Tracks = {}
    for span in sorted(trace.spans, key=lambda span: (span.start, span.end)):
        ends = free.setdefault((span.rank, span.lane), [])
        turn = next((turn for turn, end in enumerate(ends) if end <= span.start), len(ends))
        ends[turn:] = [span.end, *ends[turn + 1 :]]
        thread = 1 + span.rank + trace.ranks * (LANES.index(span.lane) + len(LANES) * turn)
        found[span] = 1 + span.rank, thread, span.lane + (f" ({turn + 1})" if turn else "")
    return found


def _names(trace: Trace, tracks: Tracks) -> Iterator[Event]:
    """The names of processes and threads, and the order in which they are listed."""
    clock = f"simulated: 1 s is {_unit(trace)}" if trace.clock == "simulated" else CLOCK_NAMES[trace.clock]
    for rank in range(trace.ranks):
        yield _metadata("process_name", 1 + rank, 1 + rank, name=f"rank {rank} ({clock})")
        yield _metadata("process_sort_index", 1 + rank, 1 + rank, sort_index=rank)
    for process, thread, lane in sorted(set(tracks.values())):
        yield _metadata("thread_name", process, thread, name=lane)
        yield _metadata("thread_sort_index", process, thread, sort_index=thread)


def _slice(span: Span, tracks: Tracks) -> Event:
    process, thread, _ = tracks[span]
    start, end = _nanoseconds(span.start), _nanoseconds(span.end)
    place = {"cat": span.lane, "pid": process, "tid": thread, "ts": start / 1000, "dur": (end - start) / 1000}
    return {"ph": "X", "name": str(span.action), **place, "args": _about(span)}


def _about(span: Span) -> Event:
    """What a click on a bar tells; of a pair both actions, joined by a plus."""
    stages, kinds, microbatches = zip(*parts(span.action), strict=True)
    one = len(kinds) == 1
    return {
        "kind": "+".join(kinds),
        "stage": stages[0] if one else "+".join(map(str, stages)),
        "microbatch": microbatches[0] if one else "+".join(map(str, microbatches)),
        "waiting_for": None if span.waiting_for is None else str(span.waiting_for),
    }


def _arrows(trace: Trace, tracks: Tracks) -> dict[Span, list[Event]]:
    """The two ends of every message, each with the slice that it is bound to and has to follow.

    An arrow ends at the work that takes the message and not at the receive: that is a wait which begins before the
    message leaves, and Perfetto turns an arrow round that ends in what began before its start.
    """
    works = {action: span for row in trace.compute for span in row for action in parts(span.action)}
    stages = 1 + max((action.stage for action in works), default=0)
    ends: dict[Span, list[Event]] = {}
    messages = [(span, span.action) for span in tracks if span.lane == "send" and isinstance(span.action, Action)]
    for turn, (send, action) in enumerate(messages, start=1):
        stage, kind, microbatch = peer(action, stages)
        taker = next((works[a] for k in TAKEN_BY[kind] if (a := Action(stage, k, microbatch)) in works), None)
        if taker is None:
            continue  # a run that broke off
        same = {"name": str(action), "cat": "message", "id": turn}
        for phase, span in (({"ph": "s"}, send), ({"ph": "f", "bp": "e"}, taker)):
            process, thread, _ = tracks[span]
            when = {"pid": process, "tid": thread, "ts": _nanoseconds(span.start) / 1000}
            ends.setdefault(span, []).append({**phase, **same, **when})
    return ends


def _counters(trace: Trace, memory: Sequence[Curve] | None) -> Iterator[Event]:
    """The bytes of activations that each rank holds, or its micro-batches in flight, whenever they change."""
    name, unit = ("in flight", "micro-batches") if memory is None else ("activation memory", "bytes")
    for rank, curve in enumerate(curves_of(trace, memory)):
        for time, amount in curve:
            when = {"pid": 1 + rank, "tid": 1 + rank, "ts": _nanoseconds(time) / 1000}
            yield {"ph": "C", "name": name, **when, "args": {unit: number(amount)}}


def _metadata(name: str, process: int, thread: int, /, **value: str | int) -> Event:
    return {"ph": "M", "name": name, "pid": process, "tid": thread, "args": value}


def _nanoseconds(time: Number) -> int:
    """Whole, as Perfetto counts: then what ends where the next begins does so after rounding, too."""
    return round(time * 10**9)


def _unit(trace: Trace) -> str:
    return "1 unit of the costs" if trace.clock == "simulated" else "1 second"
