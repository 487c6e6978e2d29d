"""How did the papers search? Micro-batch by micro-batch: all forwards down the ranks, then all gradients back up.

After a warm-up, each wave gives every rank one F and then one I, with W where they fit before a message or where
memory demands them (the heuristic of ZB-1p and ZB-2p: Qi et al. 2024, section 3.1). A rank may leave a gap open,
rather than delay its message by a W, as long as it has idled less than the rank that idled most. Three habits,
each on or off, make eight schedules.

More memory can make a wave longer. So that it never makes the schedule longer, waves are sent within smaller limits
too: all levels of one shape (`waves_within`), or all lists (`waves_below`). A wave tells which limits it needs to go
the same way, so none is sent twice; and only those are sent that may be the shortest. Read next: `ladder`.
"""

from collections import deque
from collections.abc import Iterator
from dataclasses import replace
from itertools import product, takewhile
from typing import NamedTuple

from pipelab.action import F, I, W
from pipelab.search.bound import ROUNDING, bound
from pipelab.search.greedy import NEVER, Played
from pipelab.search.problem import Limits, Problem
from pipelab.trace import Number


class Habits(NamedTuple):
    """What a wave may do: wait for the first gradient, hold an F back for an I downstream, fill affordable gaps."""

    pause: bool
    hold_back: bool
    fill: bool


def waves(problem: Problem, shorter_than: Number = NEVER) -> Iterator[Played]:
    """The published heuristic with each set of habits, where that fits into the memory and is shorter.

    >>> from pipelab.placement import Placement
    >>> ["".join(row) for row in next(waves(Problem.of(Placement.loop(2), 3, memory_limit=3))).rows]
    ['FFFIWIWIW', 'FIFIFIWWW']
    """
    for habits in HABITS:
        wave = _Wave(problem, habits, shorter_than)
        if wave.run():
            yield Played(wave.rows, wave.clock)


def waves_within(problem: Problem, less: Limits, shorter_than: Number) -> Iterator[Played]:
    """The waves of all limits of one shape within the problem's own: each shorter than those before.

    The shape is one level for all ranks, `less` so much on each, but room for one micro-batch everywhere. The next
    level to try is the first that denies the last wave a limit it needs.

    >>> from pipelab.costs import Costs
    >>> from pipelab.placement import Placement
    >>> problem = Problem.of(Placement.loop(3), 3, Costs.per_stage([3, 1, 2], [0, 0, 0], [4, 1, 4]))
    >>> min(problem.length(played.ends) for played in waves(problem))
    22
    >>> [problem.length(played.ends) for played in waves_within(problem, (0, 0, 0), shorter_than=100)]
    [22, 21]
    """
    one, most = problem.one, problem.microbatches * problem.one
    tight = [limit + low for limit, low in zip(problem.limits, less, strict=True) if limit < most]
    for habits in HABITS:
        level = min(tight, default=most + max(less))
        while level >= one:
            within = replace(problem, limits=tuple(max(one, min(most, level - low)) for low in less))
            if bound(within) >= shorter_than:
                break
            wave = _Wave(within, habits, shorter_than)
            if wave.run():
                yield Played(wave.rows, wave.clock)
                shorter_than = min(shorter_than, problem.length(wave.clock))
            level = max(need + low if need > one else 0 for need, low in zip(wave.needed, less, strict=True)) - 1


def waves_below(problem: Problem, shorter_than: Number, letters: Number = NEVER) -> Iterator[Played]:
    """The waves of all lists of limits up to the problem's own, its own first: each shorter than those before.

    A wave stands for all lists that grant it the limits it needs, and for all habits that it was not asked about. The
    others are parted by the first habit or rank that differs, so that each is met once. There can be very many: none is
    begun after so many `letters` have been played.

    >>> from pipelab.costs import Costs
    >>> from pipelab.placement import Placement
    >>> problem = Problem.of(Placement.loop(3), 3, Costs.per_stage([3, 1, 2], [0, 0, 0], [4, 1, 4]), [3, 2, 3])
    >>> [problem.length(played.ends) for played in waves_below(problem, shorter_than=100)]
    [22, 21]
    """
    most = problem.microbatches * problem.one
    own, least = tuple(min(most, limit) for limit in problem.limits), (problem.one,) * problem.ranks
    ahead = deque([(own, least, HABITS[0], frozenset(Habits._fields))])
    while ahead and letters > 0:
        limits, least, habits, free = ahead.popleft()
        within = replace(problem, limits=limits)
        if bound(within) >= shorter_than:
            continue
        wave = _Wave(within, habits, shorter_than)
        if wave.run():
            yield Played(wave.rows, wave.clock)
            shorter_than = min(shorter_than, problem.length(wave.clock))
        letters -= sum(map(len, wave.rows))
        for habit in sorted(free & wave.asked):  # in the same order in every process
            free -= {habit}
            ahead.appendleft((limits, least, habits._replace(**{habit: False}), free))
        for rank, need in enumerate(wave.needed):
            if need > least[rank]:
                ahead.append(((*limits[:rank], need - 1, *limits[rank + 1 :]), least, habits, free))
                least = (*least[:rank], need, *least[rank + 1 :])


HABITS = tuple(Habits(*habits) for habits in product((True, False), repeat=3))


class _Wave:
    """The state of all ranks: letters, clock, memory held and time idled, and when each F and I ended."""

    def __init__(self, problem: Problem, habits: Habits, shorter_than: Number) -> None:
        P = problem.ranks
        self.problem, self.limits, self.habits = problem, problem.limits, habits
        self.rows: list[list[str]] = [[] for _ in range(P)]
        self.clock: list[Number] = [0] * P
        self.held = [0] * P
        self.idle: list[Number] = [0] * P
        self.most_idle: Number = 0
        self.forwards: list[list[Number]] = [[] for _ in range(P)]
        self.gradients: list[list[Number]] = [[] for _ in range(P)]
        self.weights = [0] * P
        self.needed = [problem.one] * P
        """Within these limits, or any between them and its own, it would have gone the same way so far."""
        self.asked: set[str] = set()
        """And with any other habits, but for these."""
        if isinstance(shorter_than, float):
            shorter_than *= 1 + ROUNDING
        ends = zip(problem.offset, problem.start, problem.work, strict=True)
        self.spare = [shorter_than + offset - start - work for offset, start, work in ends]
        """How long each rank may idle."""
        self.late = False

    def run(self) -> bool:
        """Play the warm-up and all waves; False where a rank lacks memory, time, or its forward when its turn comes."""
        ranks = range(self.problem.ranks)
        for rank in ranks:
            self._forward(rank)
        for rank, depth in enumerate(self._warmup()):
            for _ in range(depth):
                self._forward(rank)
        for rank in reversed(ranks):
            self._gradient(rank)
        for microbatch in range(1, self.problem.microbatches):
            if self.late or not (self._down() and self._up(microbatch)):
                return False
        for rank in ranks:
            self._weights_left(rank)
        return not self.late

    def _down(self) -> bool:
        """One more forward on the last ranks, up to the first that would rather wait."""
        takers = list(takewhile(self._wants, reversed(range(self.problem.ranks))))
        for rank in reversed(takers):
            if not self._make_room(rank):
                return False
            if rank:
                arrival = self.forwards[rank - 1][len(self.forwards[rank])] + self.problem.hop_down[rank - 1]
                self._fill_until(rank, arrival)
            self._forward(rank)
        return True

    def _up(self, microbatch: int) -> bool:
        """The gradient of one micro-batch on all ranks, from the last to the first."""
        problem = self.problem
        for rank in reversed(range(problem.ranks)):
            if len(self.forwards[rank]) <= microbatch:
                return False
            if rank < problem.ranks - 1:
                self._fill_until(rank, self.gradients[rank + 1][microbatch] + problem.hop_up[rank])
            if rank == 0 and len(self.forwards[0]) == problem.microbatches:
                self._weights_left(rank)
            self._gradient(rank)
        return True

    def _forward(self, rank: int) -> None:
        own = self.forwards[rank]
        arrival = self.forwards[rank - 1][len(own)] + self.problem.hop_down[rank - 1] if rank else 0
        own.append(self._do(rank, F, arrival, self.problem.F[rank], self.problem.one))
        if self.held[rank] > self.needed[rank]:
            self.needed[rank] = self.held[rank]

    def _gradient(self, rank: int) -> None:
        own = self.gradients[rank]
        last = rank == self.problem.ranks - 1
        arrival = 0 if last else self.gradients[rank + 1][len(own)] + self.problem.hop_up[rank]
        own.append(self._do(rank, I, arrival, self.problem.I[rank], self.problem.weight - self.problem.one))

    def _weight(self, rank: int) -> None:
        self.weights[rank] += 1
        self._do(rank, W, 0, self.problem.W[rank], -self.problem.weight)

    def _do(self, rank: int, kind: str, arrival: Number, took: Number, memory: int) -> Number:
        start = self.clock[rank]
        if arrival > start:
            if self.rows[rank]:
                idle = self.idle[rank] = self.idle[rank] + (arrival - start)
                self.most_idle = max(self.most_idle, idle)
                self.late = self.late or idle >= self.spare[rank]
            start = arrival
        self.clock[rank] = start + took
        self.held[rank] += memory
        self.rows[rank].append(kind)
        return self.clock[rank]

    def _warmup(self) -> list[int]:
        """How many more forwards each rank does until the first gradient is back, one fewer than the rank before."""
        problem, more = self.problem, [0] * self.problem.ranks
        back = self.clock[-1] + problem.I[-1]
        for rank in reversed(range(problem.ranks - 1)):
            back += problem.hop_up[rank]
            room = (self.limits[rank] - self.held[rank]) // problem.one
            clock, f = self.clock[rank], problem.F[rank]
            while more[rank] < min(room, problem.microbatches - 1):
                late, early = clock >= back, clock + f > back
                if early if late != early and self._has("pause") else late:
                    break
                more[rank] += 1
                clock += f
            back = max(back, clock) + problem.I[rank]
        counted = list(more)
        for rank in range(1, problem.ranks):
            if more[rank] >= more[rank - 1] and more[rank] < problem.microbatches - 1:
                more[rank] = max(0, more[rank - 1] - 1)
            more[rank] = min(more[rank], more[rank - 1])
        for rank, (took, free) in enumerate(zip(more, counted, strict=True)):
            tight = self.habits.pause and free < problem.microbatches - 1
            self.needed[rank] = max(self.needed[rank], self.held[rank] + (took if tight else free) * problem.one)
        return more

    def _wants(self, rank: int) -> bool:
        """Should a rank do one more forward now, or first let the next rank return a gradient?"""
        problem, done = self.problem, len(self.forwards[rank])
        if done >= problem.microbatches:
            return False
        if rank == problem.ranks - 1 or done < len(self.forwards[rank + 1]) + 2 or not self._has("hold_back"):
            return True
        clock = self.clock[rank]
        after = self.clock[rank + 1] + problem.F[rank + 1] + problem.I[rank + 1] + problem.hop_up[rank]
        if clock >= after:
            return False
        fits = self._room_by(rank, after - clock - problem.F[rank])
        return fits or after - clock > self.most_idle - self.idle[rank]

    def _room_by(self, rank: int, time: Number) -> bool:
        """Is there time for the W that make room for one more forward, or for all that are pending?"""
        took, pending = self.problem.W[rank], len(self.gradients[rank]) - self.weights[rank]
        if time < 0 or pending * took <= time:
            return time >= 0
        most = time // took  # so many W, and no more
        needed = self.held[rank] + self.problem.one - int(most) * self.problem.weight
        if needed > self.limits[rank]:
            return False
        self.needed[rank] = max(self.needed[rank], needed)
        return True

    def _make_room(self, rank: int) -> bool:
        while self.held[rank] + self.problem.one > self.limits[rank]:
            if self.weights[rank] >= len(self.gradients[rank]):
                return False
            self._weight(rank)
        return True

    def _fill_until(self, rank: int, arrival: Number) -> None:
        """W while they fit before a message; one that does not fit when the rank has idled enough, or by habit."""
        took = self.problem.W[rank]
        while self.weights[rank] < len(self.gradients[rank]) and self.clock[rank] + took <= arrival:
            self._weight(rank)
        gap = arrival - self.clock[rank]
        pending = self.weights[rank] < len(self.gradients[rank])
        if pending and gap > 0 and (gap > self.most_idle - self.idle[rank] or self._has("fill")):
            self._weight(rank)

    def _has(self, habit: str) -> bool:
        self.asked.add(habit)
        return bool(getattr(self.habits, habit))

    def _weights_left(self, rank: int) -> None:
        while self.weights[rank] < len(self.gradients[rank]):
            self._weight(rank)
