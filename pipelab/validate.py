"""Can this schedule run? Complete, placed, ordered and free of deadlock; if not, why not, in sentences.

Read next: `formulas` (what theory says of it) or `simulate` (how long it takes).
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import islice
from operator import itemgetter
from typing import Any, NamedTuple

from pipelab import wait_for
from pipelab.action import COMPUTE, Action, B, Element, F, I, Pair, W, parts
from pipelab.dependencies import carried_over, dataflow, gives, needs
from pipelab.engine import Stuck, play
from pipelab.schedule import MOST_REASONS, Finding, Schedule, ScheduleError


def validate(schedule: Schedule) -> Schedule:
    """Return the schedule if every rank can run its row to the end; otherwise raise ScheduleError with the reasons.

    Each stage and micro-batch needs one F and either one B or one I and one W, on the rank that holds the stage,
    after what it depends on. A schedule without any backward is one of inference, and needs the F alone. Any order of
    micro-batches is legal.

    >>> validate(Schedule.from_text("0B0 0F0"))
    Traceback (most recent call last):
    pipelab.schedule.ScheduleError: rank 0, position 0: 0B0 is out of order: it needs 0F0, which comes at position 1 ...
    """
    if not complete(schedule):
        checks = (_misplaced, _incomplete)
    elif not _can_run(schedule):
        checks = (_out_of_order, _deadlocked)
    else:
        return schedule
    found = next(filter(None, (list(islice(check(schedule), MOST_REASONS + 1)) for check in checks)))
    raise ScheduleError.at(schedule.rows, found)


def complete(schedule: Schedule) -> bool:
    """Whether every action that the schedule needs is there once, on the rank of its stage; order is not looked at.

    It counts whole rows at a time, and so tells in a fraction of the time what the sentences of `validate` explain.

    >>> complete(Schedule.from_text("0F0 0B0")), complete(Schedule.from_text("0F0 0I0"))
    (True, False)
    """
    if 2 * sum(map(len, schedule.rows)) < schedule.stages * schedule.microbatches:
        return False  # far too few (a pair holds two): a slip of the finger may name a stage in the millions
    backwards = 0 if schedule.forward_only else schedule.microbatches
    return len(schedule.rows) == schedule.ranks and all(
        _row_is_complete(row, schedule.placement.stages_on(rank), schedule.microbatches, backwards)
        for rank, row in enumerate(schedule.rows)
    )


def _row_is_complete(row: Sequence[Element], stages: Sequence[int], microbatches: int, backwards: int) -> bool:
    pairs = Pair in set(map(type, row))
    actions = [action for element in row for action in parts(element)] if pairs else row
    if len(set(actions)) != len(actions):
        return False  # something is doubled
    numbers = set(map(itemgetter(2), actions))
    if not numbers <= set(range(microbatches)):
        return False
    counts = Counter(map(itemgetter(0, 1), actions))
    for stage in stages:
        forwards, whole, inputs, weights = (counts.pop((stage, kind), 0) for kind in (F, B, I, W))
        if forwards != microbatches or whole + inputs != backwards or inputs != weights:
            return False
        if whole and inputs and not _split_whole(actions, stage):
            return False
    return not counts  # nothing left over: no other stage, no other kind


def _split_whole(actions: Sequence[Any], stage: int) -> bool:
    """For a stage that mixes B with I and W: whether each micro-batch has the one or the other two."""
    have = {kind: {m for s, k, m in actions if (s, k) == (stage, kind)} for kind in (B, I, W)}
    return have[I] == have[W] and not have[B] & have[I]


def _misplaced(schedule: Schedule) -> Iterator[Finding]:
    if len(schedule.rows) != schedule.ranks:
        yield f"there are {len(schedule.rows)} rows for {schedule.ranks} ranks; give one row a rank", None, None
    for rank, position, action in schedule.actions():
        where = f"rank {rank}, position {position}: {action}"
        if not 0 <= action.stage < schedule.stages:
            last = schedule.stages - 1
            yield f"{where} names a stage that is not there; the stages are 0..{last}; leave it out", rank, position
        elif not 0 <= action.microbatch < schedule.microbatches:
            last = schedule.microbatches - 1
            yield f"{where} names a micro-batch that is not there; they are 0..{last}; leave it out", rank, position
        elif schedule.forward_only and action.kind != F:
            yield f"{where} is no forward, and this schedule is of forwards only; leave it out", rank, position
        elif action.kind not in (F, B, I, W):
            remedy = f"write {action.kind.upper()}" if action.kind.upper() in COMPUTE else "leave it out"
            yield f"{where} is not compute work; a schedule holds F, B, I and W only; {remedy}", rank, position
        elif schedule.placement.rank_of[action.stage] != rank:
            owner = schedule.placement.rank_of[action.stage]
            yield f"{where} is misplaced: rank {owner} holds stage {action.stage}; move it there", rank, position


def _incomplete(schedule: Schedule) -> Iterator[Finding]:
    places: dict[Action, list[tuple[int, int]]] = {}
    whole = [{F}] if schedule.forward_only else [{F, B}, {F, I, W}]
    for rank, position, action in schedule.actions():
        places.setdefault(action, []).append((rank, position))
    for action, ((rank, position), *again) in places.items():
        if again:
            times = f"it appears {1 + len(again)} times; keep one of them"
            yield f"rank {rank}, position {position}: {action} is doubled: {times}", rank, position
    for stage, rank in enumerate(schedule.placement.rank_of):
        for microbatch in range(schedule.microbatches):
            have = {kind for kind in (F, B, I, W) if (stage, kind, microbatch) in places}
            if have not in whole:
                present = [places[Action(stage, kind, microbatch)][0] for kind in (W, I, B, F) if kind in have]
                place = present[0][1] if present else None
                yield f"rank {rank}: {_verdict(stage, microbatch, have)}", rank, place


def _verdict(stage: int, microbatch: int, have: set[str]) -> str:
    """What is wrong with the kinds that one stage has for one micro-batch."""
    names = {kind: str(Action(stage, kind, microbatch)) for kind in (F, B, I, W)}
    if F not in have:
        return f"{names[F]} is missing: stage {stage} never runs micro-batch {microbatch} forward; add it"
    if not have & {B, I, W}:
        return f"the backward of {names[F]} is missing: add {names[B]}, or {names[I]} and {names[W]}"
    if B in have:
        extra = " and ".join(names[kind] for kind in (I, W) if kind in have)
        return f"{names[B]} is doubled by {extra}: a full backward is I and W in one; keep one form"
    if I in have:
        return f"{names[W]} is missing: {names[I]} is only half of a backward; add {names[W]} after it"
    return f"{names[I]} is missing: {names[W]} is only half of a backward; add {names[I]} before it"


def _out_of_order(schedule: Schedule) -> Iterator[Finding]:
    written = _written(schedule)
    for rank, position, action in schedule.actions():
        for need in needs(action, schedule.stages, schedule.groups):
            other, later, giver = written[need]
            if other == rank and later >= position:
                remedy = "move it behind that" if later > position else "take the pair apart"
                yield (
                    f"rank {rank}, position {position}: {action} is out of order: it needs {giver}, "
                    f"which comes at position {later} of the same rank; {remedy}",
                    rank,
                    position,
                )


def _deadlocked(schedule: Schedule) -> Iterator[Finding]:
    circle = cycle(waits(schedule))
    for wait in circle:
        remedy = f"; {_way_out(schedule, circle)}" if wait is circle[-1] else ""
        yield f"deadlock: rank {wait.rank}, position {wait.position}: {wait}{remedy}", wait.rank, wait.position


def refusal(so_far: Schedule, rank: int, action: Action) -> str | None:
    """Why `action` cannot come next on `rank` after the rows so far; None if it can.

    It can when its stage is on that rank, it is not there yet, and all that it needs is. Rows that grow so can always
    be run, and every schedule that can run can grow so.

    >>> from pipelab import Placement
    >>> empty = Schedule("mine", Placement.loop(2), 1, ((), ()))
    >>> refusal(empty, 1, Action.parse("1F0"))
    'rank 1, position 0: 1F0 needs 0F0, which is not placed yet; place it on rank 0 first'
    """
    rows = (*so_far.rows[:rank], (*so_far.rows[rank], action), *so_far.rows[rank + 1 :])
    for sentence, _, _ in _misplaced(replace(so_far, rows=rows)):
        return sentence
    stage, kind, microbatch = action
    where = f"rank {rank}, position {len(so_far.rows[rank])}"
    placed = {known for _, _, known in so_far.actions()}
    have = {known.kind for known in placed if (known.stage, known.microbatch) == (stage, microbatch)}
    if kind in have:
        return f"{where}: {action} is doubled: it is there already"
    if B in have | {kind} and have & {I, W, B}:
        return f"{where}: {_verdict(stage, microbatch, have | {F, kind})}"
    given = {gives(known, so_far.stages, so_far.groups) for known in placed}
    for need in needs(action, so_far.stages, so_far.groups):
        if need not in given:
            owner = so_far.placement.rank_of[need.stage]
            either = f" (or {need._replace(kind=B)})" if need.kind == I and need.stage != stage else ""
            return f"{where}: {action} needs {need}{either}, which is not placed yet; place it on rank {owner} first"
    return None


class Wait(NamedTuple):
    """A rank stands at `position` before `element`, which needs `giver`; that is at position `at` of rank `on`."""

    rank: int
    position: int
    element: Element
    giver: Action
    on: int
    at: int

    def __str__(self) -> str:
        return f"{self.element} waits for {self.giver}, which comes later on rank {self.on}, at position {self.at}"


def waits(schedule: Schedule) -> tuple[Wait, ...]:
    """Where the ranks of a complete schedule stand when none can go on: one wait a rank, none if all get to their end.

    Raises ScheduleError for a schedule that is not complete.

    >>> [str(wait) for wait in waits(Schedule.from_text("0B0 0F0"))]
    ['0B0 waits for 0F0, which comes later on rank 0, at position 1']
    """
    if not complete(schedule):
        validate(schedule)
    try:
        _play(schedule)
    except Stuck as stuck:
        written = _written(schedule)
        found = ((rank, position, *written[need]) for rank, (position, need) in stuck.waiting.items())
        return tuple(Wait(rank, at, schedule.rows[rank][at], giver, on, later) for rank, at, on, later, giver in found)
    return ()


def cycle(found: Sequence[Wait]) -> tuple[Wait, ...]:
    """Of these waits those in a circle: each waits for the next, the last for the first."""
    of_rank = {wait.rank: wait for wait in found}
    return tuple(of_rank[rank] for rank in wait_for.cycle({wait.rank: (wait.on,) for wait in found}))


MOST_TRIED = 20_000
"""Of so many actions a move is tried before it is recommended."""


def _way_out(schedule: Schedule, circle: Sequence[Wait]) -> str:
    """A move of one action that makes the schedule legal, if there is one among those that break the circle."""
    if sum(map(len, schedule.rows)) <= MOST_TRIED:
        for before, here in zip(circle, (*circle[1:], circle[0]), strict=True):
            if _can_run(_moved(schedule, here.rank, before.at, here.position)):
                row = schedule.rows[here.rank]
                return f"on rank {here.rank}, put {row[before.at]} before {here.element}"
    return "on one of these ranks, put what another waits for before what waits"


def _moved(schedule: Schedule, rank: int, later: int, place: int) -> Schedule:
    row = list(schedule.rows[rank])
    row.insert(place, row.pop(later))
    return replace(schedule, rows=(*schedule.rows[:rank], tuple(row), *schedule.rows[rank + 1 :]))


def _can_run(schedule: Schedule) -> bool:
    try:
        _play(schedule)
    except Stuck:
        return False
    return True


def _play(schedule: Schedule) -> None:
    """Play a complete schedule without time: only the order matters. Raises Stuck."""
    stages, groups = schedule.stages, schedule.groups
    inputs = {value: [(need, 0) for need in needed] for value, needed in dataflow(stages, groups).items()}
    play(schedule.rows, inputs, dict.fromkeys(inputs, 0), schedule.microbatches, carried_over(stages, groups))


def _written(schedule: Schedule) -> dict[Action, tuple[int, int, Action]]:
    """For each value, the rank, the position and the action that gives it (B where it stands for I)."""
    return {
        gives(action, schedule.stages, schedule.groups): (rank, position, action)
        for rank, position, action in schedule.actions()
    }
