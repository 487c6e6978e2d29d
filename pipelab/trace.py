"""What happened when? Spans on a common clock, the three bubbles and the micro-batches in flight.

A trace comes from the simulator, from a run in virtual time or from a run in wall-clock time; `.clock` says which.
"""

import json
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from math import inf
from typing import NamedTuple

from pipelab.action import WORK, Action, B, Element, F, I, Pair, W, parse_element, parts
from pipelab.outline import BUBBLES as BUBBLES
from pipelab.outline import Figures, Outline, longest, makespan
from pipelab.outline import Number as Number
from pipelab.outline import ratio as ratio

LANES = ("compute", "send", "recv", "collective", "memory")
CLOCKS = ("simulated", "virtual", "wall")


class Span(NamedTuple):
    """One action (or pair) on one rank from `start` to `end`; `waiting_for` is what it last waited for, if it waited.

    In the send lane a span is a message in flight (departure to arrival), in the recv lane the receiver's wait, in the
    memory lane an update of the weights; virtual time stands still meanwhile, so that work may begin before its end. In
    the collective lane one that goes on in the midst of an action bears its name, and a REDUCE goes on beside the work.
    """

    rank: int
    lane: str
    action: Element
    start: Number
    end: Number
    waiting_for: Action | None = None


@dataclass(frozen=True, init=False, repr=False, eq=False)
class Trace:
    """The spans of one step of a schedule on P ranks. Times are in the unit of the costs, or in seconds.

    *busy* is F, B, I, W and R only; *ideal* is the busy time of the busiest rank. The simulator gives times in whole
    `ticks`, so many to one unit: only who asks for `.spans` gets them all as fractions.

    >>> from pipelab import Costs, build, simulate
    >>> trace = simulate(build("1f1b", ranks=4, microbatches=8), Costs.uniform())
    >>> trace.makespan, trace.bubble("step"), trace.peak_in_flight
    (33, Fraction(3, 11), (4, 3, 2, 1))
    """

    schedule: str
    clock: str
    chunks: tuple[int, ...]
    counted: tuple[Span, ...]
    ticks: int

    def __init__(
        self, schedule: str, clock: str, chunks: tuple[int, ...], spans: tuple[Span, ...], ticks: int = 1
    ) -> None:
        values = {"schedule": schedule, "clock": clock, "chunks": chunks, "counted": spans, "ticks": ticks}
        for name, value in values.items():
            object.__setattr__(self, name, value)  # the class is frozen

    @property
    def ranks(self) -> int:
        """Number of ranks, P."""
        return len(self.chunks)

    @cached_property
    def spans(self) -> tuple[Span, ...]:
        """All spans, in time."""
        return tuple(in_time(self.counted, self.ticks))

    @cached_property
    def compute(self) -> tuple[tuple[Span, ...], ...]:
        """The compute spans of each rank in the order of execution."""
        return self._rows if self.ticks == 1 else _by_rank(self.spans, self.ranks)

    @cached_property
    def _rows(self) -> tuple[tuple[Span, ...], ...]:
        return _by_rank(self.counted, self.ranks)

    def _time(self, count: Number) -> Number:
        return plain(count if self.ticks == 1 else ratio(count, self.ticks))

    @cached_property
    def busy(self) -> tuple[Number, ...]:
        """Busy time of each rank."""
        return tuple(
            self._time(sum(end - start for _, _, _, start, end, _ in row) - inside)
            for row, inside in zip(self._rows, self._inside, strict=True)
        )

    @cached_property
    def _inside(self) -> list[Number]:
        """For each rank the time in collectives that it waited for in the midst of its actions: they bear its name."""
        inside: list[Number] = [0] * self.ranks
        for rank, lane, element, start, end, _ in self.counted:
            if lane == "collective" and parts(element)[0].kind in WORK:
                inside[rank] += end - start
        return inside

    def waits_inside(self) -> Iterator[tuple[tuple[int, str], float]]:
        """For each action in whose midst there were collectives, (stage, kind) and how long they took together."""
        of: dict[tuple[int, Element], float] = {}
        for rank, lane, element, start, end, _ in self.counted:
            if lane == "collective" and parts(element)[0].kind in WORK:
                of[rank, element] = of.get((rank, element), 0.0) + float(end - start)
        yield from ((parts(element)[0][:2], wait) for (_, element), wait in of.items())

    @cached_property
    def _edges(self) -> list[tuple[Number, Number]]:
        """The first start and the last end of each rank that works."""
        return [(row[0].start, row[-1].end) for row in self._rows if row]

    @property
    def makespan(self) -> Number:
        """From the first start to the last end of any compute action."""
        return self._time(makespan(self._edges))

    @property
    def duration(self) -> Number:
        """From the first start of any compute action to the end of all compute and of all collectives."""
        return self._time(makespan(self._edges, self._over))

    @property
    def _over(self) -> Number:
        return max((span.end for span in self.counted if span.lane == "collective"), default=-inf)

    @property
    def span(self) -> Number:
        """The longest time from a rank's own first start to its own last end (the zero-bubble papers' cost)."""
        return self._time(longest(self._edges))

    @property
    def outline(self) -> Outline:
        """Of a trace that has the spans of one rank alone: what the figures of the whole step need of it."""
        start, end = self._edges[0] if self._edges else (inf, -inf)
        return Outline(sum(self.busy), start, end, self._over)

    @cached_property
    def figures(self) -> Figures:
        """What the step comes to."""
        return Figures(self.busy, self.makespan, self.span, self.duration)

    def bubble(self, kind: str) -> Number:
        """The idle share, by one of three definitions that are never to be mixed.

        `step`: 1 - busy / (P x makespan). `span`: 1 - ideal / span. `overhead`: makespan / ideal - 1.
        Raises ValueError for another word.

        >>> from pipelab import Costs, build, simulate
        >>> trace = simulate(build("gpipe", ranks=4, microbatches=8), Costs.uniform())
        >>> [str(trace.bubble(kind)) for kind in ("step", "span", "overhead")]
        ['3/11', '3/11', '3/8']
        """
        return self.figures.bubble(kind)

    def bubbles(self) -> dict[str, Number]:
        """All three bubbles by name."""
        return {kind: self.bubble(kind) for kind in BUBBLES}

    @property
    def peak_in_flight(self) -> tuple[Number, ...]:
        """Most micro-batches each rank holds at once, from the start of F to the end of B or W; a chunk counts 1/V.

        Where no backward follows, as in inference, nothing is held after the end of F.
        """
        return self._peaks((B, W))

    @property
    def peak_until_input(self) -> tuple[Number, ...]:
        """As `peak_in_flight`, but released at the end of B or I (the papers' M_B convention)."""
        return self._peaks((B, I))

    def _peaks(self, releases: tuple[str, ...]) -> tuple[Number, ...]:
        most = (max((held for _, held in in_flight(row, releases)), default=0) for row in self._rows)
        return tuple(plain(Fraction(held, max(chunks, 1))) for held, chunks in zip(most, self.chunks, strict=True))

    def __eq__(self, other: object) -> bool:
        """Whether all is the same in time, whatever the ticks."""
        return isinstance(other, Trace) and self._in_time() == other._in_time()

    def __hash__(self) -> int:
        return hash(self._in_time())

    def _in_time(self) -> tuple[str, str, tuple[int, ...], tuple[Span, ...]]:
        return self.schedule, self.clock, self.chunks, self.spans

    def __repr__(self) -> str:
        makespan = f"{float(self.makespan):g}"
        return f"<Trace of {self.schedule}: {self.ranks} ranks, {self.clock} time, makespan {makespan}>"

    def to_json(self) -> str:
        """The trace as one JSON object; fractions become floats.

        >>> from pipelab import Costs, build, simulate
        >>> trace = simulate(build("gpipe", ranks=2, microbatches=2), Costs.uniform())
        >>> Trace.from_json(trace.to_json()) == trace
        True
        """
        spans = [
            [s.rank, s.lane, str(s.action), number(s.start), number(s.end), s.waiting_for and str(s.waiting_for)]
            for s in self.spans
        ]
        return json.dumps({"schedule": self.schedule, "clock": self.clock, "chunks": self.chunks, "spans": spans})

    @classmethod
    def from_json(cls, text: str) -> "Trace":
        """Read what `to_json` wrote. Raises ValueError with one sentence when the text is something else."""
        try:
            data = json.loads(text)
            spans = tuple(
                Span(rank, lane, parse_element(action), start, end, Action.parse(waited) if waited else None)
                for rank, lane, action, start, end, waited in data["spans"]
            )
            unknown = {span.lane for span in spans} - set(LANES) | {data["clock"]} - set(CLOCKS)
            if unknown:
                raise ValueError(f"unknown lane or clock: {', '.join(map(str, unknown))}")
            return cls(data["schedule"], data["clock"], tuple(data["chunks"]), spans)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise ValueError(f"this is not a pipelab trace ({error}); write one with Trace.to_json()") from None


def in_time(spans: Iterable[Span], ticks: int) -> Iterator[Span]:
    """Spans that are counted in ticks, so many to one unit of time, in time: exact, and ints where they come out even.

    >>> list(in_time([Span(0, "compute", Action(0, "F", 0), 0, 5), Span(0, "compute", Action(0, "B", 0), 5, 6)], 2))[1]
    Span(rank=0, lane='compute', action=Action(stage=0, kind='B', microbatch=0), start=Fraction(5, 2), end=3, ...)
    """
    if ticks == 1:
        yield from spans
        return
    tick: Number = 0
    time: Number = 0
    for rank, lane, action, start, end, waited in spans:
        began = time if start == tick else plain(ratio(start, ticks))  # most start when the one before ends
        tick, time = end, plain(ratio(end, ticks))
        yield Span(rank, lane, action, began, time, waited)


def in_flight(row: Sequence[Span], releases: Collection[str] = (B, W)) -> Iterator[tuple[Number, int]]:
    """Each (time, forwards still held) of a rank: one more when an F starts, one less when one of `releases` ends.

    In a row without any backward the F itself ends it.

    >>> list(in_flight([Span(0, "compute", Action(0, "F", 0), 0, 1), Span(0, "compute", Action(0, "B", 0), 1, 3)]))
    [(0, 1), (3, 0)]
    """
    if all(span[2][1] == F for span in row):
        releases = (F,)
    held = 0
    for _, _, element, start, end, _ in row:
        if element.__class__ is Pair:
            (_, one, _), (_, other, _) = element
            held += (one == F) + (other == F)
            yield start, held
            held -= (one in releases) + (other in releases)
            yield end, held
        else:
            if element[1] == F:
                held += 1
                yield start, held
            if element[1] in releases:
                held -= 1
                yield end, held


def _by_rank(spans: Iterable[Span], ranks: int) -> tuple[tuple[Span, ...], ...]:
    rows: list[list[Span]] = [[] for _ in range(ranks)]
    for span in spans:
        if span[1] == "compute":
            rows[span[0]].append(span)
    return tuple(map(tuple, rows))


def median_trace(traces: Iterable[Trace]) -> Trace:
    """The trace whose makespan is the (lower) median: one real step that stands for several."""
    ordered = sorted(traces, key=lambda trace: trace.makespan)
    return ordered[(len(ordered) - 1) // 2]


def plain(value: Number) -> Number:
    """An int where a Fraction comes out even."""
    return value.numerator if isinstance(value, Fraction) and value.denominator == 1 else value


def number(value: Number) -> int | float:
    """As JSON prints it: an int where exact, else a float.

    >>> number(Fraction(6, 2)), number(Fraction(1, 4))
    (3, 0.25)
    """
    value = plain(value)
    return float(value) if isinstance(value, Fraction) else value
