"""How does a schedule grow under one's hands? Action by action; what cannot come next is refused, with the reason."""

from collections import deque
from collections.abc import Iterator
from dataclasses import replace
from itertools import chain
from typing import NamedTuple

from pipelab.action import COMPUTE, Action, B, Element, F, I, W
from pipelab.costs import Costs
from pipelab.engine import play
from pipelab.placement import Placement
from pipelab.schedule import Schedule
from pipelab.schedules import GENERATORS, build_like, chunks_of
from pipelab.score import score
from pipelab.simulate import arrivals, simulate
from pipelab.trace import Number, Trace
from pipelab.validate import complete, refusal


class Choice(NamedTuple):
    """An action that could come next on a rank, and why not, if it cannot ("" if it can)."""

    rank: int
    action: Action
    why_not: str


class Draft:
    """A schedule that is being built: `place` actions on ranks, `undo`, and ask what may come next.

    >>> draft = Draft(Placement.loop(2), microbatches=1)
    >>> draft.place(0, "F")
    '0F0'
    >>> draft.place(0, "B")
    Traceback (most recent call last):
    ValueError: rank 0, position 1: 0B0 needs 1I0 (or 1B0), which is not placed yet; place it on rank 1 first
    """

    def __init__(self, placement: Placement, microbatches: int, costs: Costs | None = None) -> None:
        empty: tuple[tuple[Element, ...], ...] = ((),) * placement.ranks
        self.costs = costs or Costs.uniform()
        self.schedule = Schedule("my schedule", placement, microbatches, empty)
        self.placed: list[int] = []

    def place(self, rank: int, word: str) -> str:
        """Put an action at the end of a rank's row; a letter means the next micro-batch of that kind that may run.

        Returns the action as text. Raises ValueError with the reason why it cannot come next.
        """
        action = self._next(rank, word) if word in COMPUTE else Action.parse(word)
        why_not = refusal(self.schedule, rank, action)
        if why_not:
            raise ValueError(why_not)
        self._set_row(rank, (*self.schedule.rows[rank], action))
        self.placed.append(rank)
        return str(action)

    def undo(self) -> str:
        """Take the last action back, if there is one, and say which."""
        if not self.placed:
            return "nothing to take back"
        rank = self.placed.pop()
        *left, last = self.schedule.rows[rank]
        self._set_row(rank, tuple(left))
        return f"took {last} back"

    def choices(self, split: bool) -> list[Choice]:
        """On every rank the next micro-batch of each stage and kind; whole backwards, or I and W if `split`."""
        kinds = (F, I, W) if split else (F, B)
        found = []
        for rank in range(self.schedule.ranks):
            for kind in kinds:
                for stage in self.schedule.placement.stages_on(rank):
                    microbatch = self._count(stage, kind)
                    if microbatch < self.schedule.microbatches:
                        action = Action(stage, kind, microbatch)
                        found.append(Choice(rank, action, refusal(self.schedule, rank, action) or ""))
        return found

    def read(self, text: str) -> str:
        """Take rows from a text, one line a rank, and say how many actions. Raises ValueError for what is refused."""
        lines = [line.split("#")[0].split() for line in text.splitlines()]
        lines = [line for line in lines if line]
        if len(lines) > self.schedule.ranks:
            raise ValueError(f"there are {len(lines)} lines for {self.schedule.ranks} ranks; give one line a rank")
        rows = [[Action.parse(word) for word in line] for line in lines]
        grown = Draft(self.schedule.placement, self.schedule.microbatches, self.costs)
        left = {rank: deque(row) for rank, row in enumerate(rows) if row}
        while left:
            why_not = {rank: refusal(grown.schedule, rank, row[0]) for rank, row in left.items()}
            rank = next((rank for rank, reason in why_not.items() if reason is None), None)
            if rank is None:
                raise ValueError(next(iter(why_not.values())))
            grown.place(rank, str(left[rank].popleft()))
            left = {rank: row for rank, row in left.items() if row}
        self.schedule, self.placed = grown.schedule, grown.placed
        return f"read {len(self.placed)} actions"

    def trace(self) -> Trace:
        """The actions so far, in simulated time."""
        placement = self.schedule.placement
        durations = self.costs.durations(placement)
        rows = play(self.schedule.rows, arrivals(placement, self.costs), durations, self.schedule.microbatches)
        return Trace(self.schedule.name, "simulated", placement.chunks_per_rank(), tuple(chain(*rows)))

    def verdict(self) -> str:
        """How good it is beside the shortest published schedule, or how much is missing."""
        if not complete(self.schedule):
            return f"placed: {sum(map(len, self.schedule.rows))}; when all is there, it is scored"
        best = min(self._published(), key=self._length)
        return str(score(self.schedule, target=best, costs=self.costs))

    def _length(self, schedule: Schedule) -> tuple[Number, Number]:
        trace = simulate(schedule, self.costs)
        return trace.makespan, max(trace.peak_in_flight)

    def _published(self) -> Iterator[Schedule]:
        """Every named schedule that trains with a flush, as this one does, and has these stages on these ranks; those
        made for so many chunks before those for any number."""
        ours = self.schedule
        for name in sorted(GENERATORS, key=lambda name: chunks_of(name) == "any"):
            made = build_like(ours, name, costs=self.costs)
            if made.placement == ours.placement and made.flush and not made.forward_only:
                yield made

    def _count(self, stage: int, kind: str) -> int:
        """The next micro-batch of a kind; a B counts as its I and its W."""
        same = {B: (B, I, W), I: (I, B), W: (W, B)}.get(kind, (kind,))
        done = {m for _, _, (s, k, m) in self.schedule.actions() if s == stage and k in same}
        return next(m for m in range(len(done) + 1) if m not in done)

    def _next(self, rank: int, kind: str) -> Action:
        """Of the stages of this rank the first whose next action of this kind may run, else the first."""
        actions = [Action(stage, kind, self._count(stage, kind)) for stage in self.schedule.placement.stages_on(rank)]
        allowed = (action for action in actions if refusal(self.schedule, rank, action) is None)
        return next(allowed, actions[0])

    def _set_row(self, rank: int, row: tuple[Element, ...]) -> None:
        rows = self.schedule.rows
        self.schedule = replace(self.schedule, rows=(*rows[:rank], row, *rows[rank + 1 :]))
