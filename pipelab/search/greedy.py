"""What does a rank do next? List scheduling: whenever a rank is free, a few rules pick one of its letters.

A `Dial` holds the rules: how deep the warm-up goes, what goes first when both directions are ready, and how long a
rank may wait for a message rather than fill the time with a W. This is the idea of the zero-bubble papers' heuristic
(Qi et al. 2024, section 3.1: warm-up, then one F and one I in turn, and W where it fits or where memory demands it),
told as rules of each rank. Since no rank waits but for a message that is on its way, it cannot deadlock.

Read next: `dials`.
"""

from heapq import heappop, heappush
from typing import NamedTuple

from pipelab.action import F, I, W
from pipelab.search.problem import Letters, Problem
from pipelab.trace import Number

NEVER = float("inf")
OLDEST, STRICT = "oldest", "strict"


class Dial(NamedTuple):
    """The rules of all ranks: `warmup[r]` bounds the micro-batches between F and I on rank r.

    `first` says what goes first when an F and an I are ready: F, I, the one that came first ("oldest"), or F until
    the warm-up is full and I when it is, whatever is ready ("strict"). A rank waits for a message rather than delay
    it by a W as long as it can still end its work by `target` (-1: never, infinity: always).
    """

    warmup: tuple[int, ...]
    first: str
    target: Number


class Played(NamedTuple):
    """The letters of every rank and when each rank ends."""

    rows: Letters
    ends: list[Number]


class _Rank:
    """What a rank knows at a decision: its counts, what has arrived or is on its way, and how long it may still wait.

    `down` and `up` are the arrivals of activations and gradients, by micro-batch.
    """

    __slots__ = ("down", "f", "free", "i", "limit", "row", "spare", "up", "w", "wake", "warmup")

    def __init__(self, limit: int, warmup: int, spare: Number) -> None:
        self.f = self.i = self.w = 0
        self.down: list[Number] = []
        self.up: list[Number] = []
        self.row: list[str] = []
        self.free: Number = 0
        self.wake: Number = NEVER
        self.limit, self.warmup, self.spare = limit, warmup, spare


def dispatch(problem: Problem, dial: Dial) -> Played:
    """Run the rules from the first forward to the last weight gradient. Gives rows within the limits.

    >>> from pipelab.placement import Placement
    >>> problem = Problem.of(Placement.loop(2), 3)
    >>> dispatch(problem, Dial(warmup=(2, 1), first="I", target=-1)).rows
    [['F', 'F', 'I', 'W', 'I', 'F', 'W', 'I', 'W'], ['F', 'I', 'F', 'I', 'W', 'W', 'F', 'I', 'W']]
    """
    ranks = _ranks(problem, dial)
    events: list[tuple[Number, int]] = [(0, 0)]  # when a rank may have something to decide
    last = problem.ranks - 1
    strict, oldest, f_first = dial.first == STRICT, dial.first == OLDEST, dial.first == F
    while events:
        now, r = heappop(events)
        rank = ranks[r]
        if now != rank.wake:
            continue  # overtaken by an earlier message
        kind, until = _choose(problem, rank, now, problem.W[r], strict, oldest, f_first)
        rank.wake = until
        if kind is None:
            if until < NEVER:
                heappush(events, (until, r))
            continue
        if rank.f:
            rank.spare -= now - rank.free
        rank.row.append(kind)
        if kind == F:
            rank.free = now + problem.F[r]
            rank.f += 1
            if r < last:
                _send(ranks[r + 1].down, rank.free + problem.hop_down[r], ranks[r + 1], now, events, r + 1)
            else:
                rank.up.append(rank.free)
        elif kind == I:
            rank.free = now + problem.I[r]
            rank.i += 1
            if r:
                _send(ranks[r - 1].up, rank.free + problem.hop_up[r - 1], ranks[r - 1], now, events, r - 1)
        else:
            rank.free = now + problem.W[r]
            rank.w += 1
        rank.wake = rank.free
        heappush(events, (rank.free, r))
    return Played([rank.row for rank in ranks], [rank.free for rank in ranks])


def _ranks(problem: Problem, dial: Dial) -> list[_Rank]:
    """All ranks before the first action; micro-batches wait at rank 0 from the start."""
    warmup = list(dial.warmup)
    if dial.first == STRICT:  # a rank that insists on an F while the one before insists on an I would wait for ever
        places = [max(1, min(depth, limit // problem.one)) for depth, limit in zip(warmup, problem.limits, strict=True)]
        warmup = [min(places[: rank + 1]) for rank in range(problem.ranks)]
    ends = zip(problem.offset, problem.start, problem.work, strict=True)
    spare = [dial.target + offset - start - work for offset, start, work in ends]
    ranks = [_Rank(*known) for known in zip(problem.limits, warmup, spare, strict=True)]
    ranks[0].down = [0] * problem.microbatches
    ranks[0].wake = 0
    return ranks


def _send(
    arrivals: list[Number], arrival: Number, to: _Rank, now: Number, events: list[tuple[Number, int]], r: int
) -> None:
    """Tell a rank when something will arrive, and wake it then if it would sleep longer."""
    arrivals.append(arrival)
    when = max(arrival, to.free)
    if to.free <= now and when < to.wake:
        to.wake = when
        heappush(events, (when, r))


def _choose(
    problem: Problem, rank: _Rank, now: Number, w_time: Number, strict: bool, oldest: bool, f_first: bool
) -> tuple[str | None, Number]:
    """The letter to start now, or None and when to look again."""
    f, i, w = rank.f, rank.i, rank.w
    next_i = rank.up[i] if i < len(rank.up) else NEVER
    next_f = rank.down[f] if f < len(rank.down) and f - i < rank.warmup else NEVER
    if strict and f < problem.microbatches:
        if f - i < rank.warmup:
            next_i = NEVER
        else:
            next_f = NEVER
    full = (f - i + 1) * problem.one + (i - w) * problem.weight > rank.limit
    if next_i <= now:
        if next_f > now or full or not (f_first or (oldest and next_f < next_i)):
            return I, now
        return F, now
    if next_f <= now and not full:
        return F, now
    message = next_i if full else min(next_i, next_f)
    if w < i:
        blocks = full and next_f <= now  # a forward is here, and only a W makes room for it
        if blocks or now + w_time <= message or message - now > rank.spare:
            return W, now
        message = min(message, next_f)
    return None, message
