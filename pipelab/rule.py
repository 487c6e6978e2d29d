"""What should a free rank do next? A rule of thumb in place of rows: "I before F before W, at most 4 in flight".

List scheduling: time runs, and whenever a rank is free and something may start there, the rule picks it; so a rank
never waits while it could work, unless the rule says so. What may start is asked of `dependencies`. As on paper, a rule
chooses letters (stage and kind), and micro-batches follow by counting. Read next: `score`.
"""

from collections.abc import Callable, Sequence
from fractions import Fraction
from heapq import heapify, heappop, heappush
from typing import NamedTuple

from pipelab.action import Action, B, F, I, W
from pipelab.costs import Costs
from pipelab.dependencies import Value
from pipelab.placement import Placement
from pipelab.schedule import Finding, Letter, ScheduleError
from pipelab.search.problem import limit_per_rank
from pipelab.simulate import arrivals
from pipelab.trace import Number, number, plain

DOES = {F: (F,), B: (I, W), I: (I,), W: (W,)}
"""The work that each kind does: B = I + W."""


class Moment(NamedTuple):
    """When a rank asks its rule: the rank, the time, the micro-batches it holds, and its last action (or None)."""

    rank: int
    time: Number
    in_flight: Number
    last: Action | None


Rule = Callable[[tuple[Action, ...], Moment], Action | None]
"""`rule(ready, moment)` gives one of the `ready` actions, or None to wait until something else arrives.

`ready` holds the next micro-batch of each stage and kind that may start now, F before B before I before W; where
both I and B are there, the choice decides whether this backward is split.
"""


def first_of(order: str) -> Rule:
    """The rule that takes the first kind in `order`; of one kind the oldest micro-batch.

    Raises ValueError for an order that is not one of F and B, or of F, I and W.

    >>> first_of("BF")((Action(0, "F", 3), Action(0, "B", 1)), Moment(rank=0, time=5, in_flight=2, last=None))
    Action(stage=0, kind='B', microbatch=1)
    """
    if sorted(order) not in (["B", "F"], ["F", "I", "W"]):
        raise ValueError(f"a rule's order names F and B, or F, I and W, each once, as in 'BF' or 'IFW': got {order!r}")
    turn = {kind: place for place, kind in enumerate(order)}

    def rule(ready: tuple[Action, ...], moment: Moment) -> Action | None:
        wanted = [action for action in ready if action.kind in turn]
        return min(wanted, key=lambda action: (turn[action.kind], action.microbatch), default=None)

    return rule


def word_by_rule(
    placement: Placement,
    microbatches: int,
    order: str | Rule,
    in_flight: Number | Sequence[Number] | None,
    costs: Costs | None,
) -> list[list[Letter]]:
    """The letters of each rank under a rule; the arguments are those of `Schedule.from_rule`.

    >>> words = word_by_rule(Placement.loop(2), 2, "IFW", in_flight=1, costs=None)
    >>> ["".join(kind for _, kind in word) for word in words]
    ['FIWFIW', 'FIWFIW']
    """
    rule = first_of(order) if isinstance(order, str) else order
    if not callable(rule):
        raise ValueError(f"order is a text such as 'IFW', or a function (ready, moment): got {order!r}")
    most = microbatches if in_flight is None else in_flight
    limits = limit_per_rank(placement.ranks, microbatches, most, what="in_flight")
    shop = _Shop(placement, microbatches, limits, costs or Costs.uniform())
    return shop.run(rule)


class _Shop:
    """The ranks at work: what each has done, holds, and when it is free; and when each value was ready."""

    def __init__(self, placement: Placement, microbatches: int, limits: list[Fraction], costs: Costs) -> None:
        self.microbatches = microbatches
        self.stages = [placement.stages_on(rank) for rank in range(placement.ranks)]
        self.places = [limit * len(own) for limit, own in zip(limits, self.stages, strict=True)]
        self.limits = limits
        self.durations = costs.durations(placement)
        self.inputs = arrivals(placement, costs)
        self.ends: dict[Value, list[Number]] = {value: [] for value in self.inputs}
        self.wakes: dict[Value, set[tuple[int, Number]]] = {value: set() for value in self.inputs}
        for (stage, _), needed in self.inputs.items():
            for source, latency in needed:
                self.wakes[source].add((placement.rank_of[stage], latency))
        self.rows: list[list[Action]] = [[] for _ in self.stages]
        self.held = [0] * placement.ranks
        self.free: list[Number] = [0] * placement.ranks

    def run(self, rule: Rule) -> list[list[Letter]]:
        """Until nothing moves. Raises ScheduleError when that is before the end."""
        asks: list[tuple[Number, int]] = [(0, rank) for rank in range(len(self.rows))]
        heapify(asks)
        while asks:
            now, rank = heappop(asks)
            ready = self._ready(rank, now) if now >= self.free[rank] else ()
            chosen = rule(ready, self._moment(rank, now)) if ready else None
            if chosen is not None:
                self._refuse_other(rank, ready, chosen)
                self._start(rank, now, chosen, asks)
        if any(len(self.ends[stage, W]) < self.microbatches for own in self.stages for stage in own):
            raise self._stuck()
        return [[(action.stage, action.kind) for action in row] for row in self.rows]

    def _moment(self, rank: int, now: Number) -> Moment:
        last = self.rows[rank][-1] if self.rows[rank] else None
        return Moment(rank, now, self._in_flight(rank), last)

    def _in_flight(self, rank: int) -> Number:
        return plain(Fraction(self.held[rank], max(len(self.stages[rank]), 1)))

    def _ready(self, rank: int, now: Number) -> tuple[Action, ...]:
        """What may start now: the next of each letter, if its inputs are there and, for an F, there is room."""
        kinds = (F, B, I, W) if self.held[rank] < self.places[rank] else (B, I, W)
        return tuple(self._arrived(rank, kinds, now))

    def _arrived(self, rank: int, kinds: Sequence[str], now: Number) -> list[Action]:
        found = []
        for kind in kinds:
            for stage in self.stages[rank]:
                done = {len(self.ends[stage, part]) for part in DOES[kind]}
                microbatch = max(done)
                if len(done) > 1 or microbatch == self.microbatches:
                    continue  # a B needs its I and its W to be the same micro-batch's
                sources = ((self.ends[source], latency) for source, latency in self.inputs[stage, kind])
                if all(len(ends) > microbatch and ends[microbatch] + latency <= now for ends, latency in sources):
                    found.append(Action(stage, kind, microbatch))
        return found

    def _start(self, rank: int, now: Number, action: Action, asks: list[tuple[Number, int]]) -> None:
        end = now + self.durations[action.stage, action.kind]
        self.free[rank] = end
        self.rows[rank].append(action)
        self.held[rank] += (action.kind == F) - (action.kind in (B, W))
        heappush(asks, (end, rank))
        for part in DOES[action.kind]:
            self.ends[action.stage, part].append(end)
            for other, latency in self.wakes[action.stage, part]:
                heappush(asks, (end + latency, other))

    def _refuse_other(self, rank: int, ready: tuple[Action, ...], chosen: Action) -> None:
        if chosen not in ready:
            position, rows = len(self.rows[rank]), [list[object](row) for row in self.rows]
            rows[rank].append(chosen)
            reason = (
                f"rank {rank}, position {position}: the rule gave {chosen}, which may not start now;"
                f" return one of {_listed(ready)}, or None to wait"
            )
            raise ScheduleError.at(rows, [(reason, rank, position)])

    def _stuck(self) -> ScheduleError:
        """Where nothing moves any more: the ranks whose limit, or whose rule, holds back what could start."""
        found: list[Finding] = []
        rows: list[list[Action]] = [list(row) for row in self.rows]
        never_more = max(self.free, default=0) + max((t for w in self.wakes.values() for _, t in w), default=0)
        for rank, row in enumerate(rows):
            ready, forwards = self._ready(rank, never_more), self._arrived(rank, (F,), never_more)
            if not ready and not forwards:
                continue
            where = f"rank {rank}, position {len(row)}"
            if ready:
                reason = f"it waits for ever: {_listed(ready)} may start, and nothing else will; return one of them"
            else:
                more = number(Fraction(self.held[rank] + 1, len(self.stages[rank])))
                held, most = number(self._in_flight(rank)), number(self.limits[rank])
                reason = (
                    f"{forwards[0]} has no room: the rank holds {held} of the {most} micro-batches in_flight allows,"
                    f" and none can be finished first; allow {more} or more"
                )
            found.append((f"{where}: the rule is stuck: {reason}", rank, len(row)))
            row.append((ready or forwards)[0])
        return ScheduleError.at(rows, found)


def _listed(actions: Sequence[Action]) -> str:
    return ", ".join(map(str, actions))
