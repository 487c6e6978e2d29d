"""Can this schedule run? Complete, placed, ordered and free of deadlock; if not, why not, in sentences.

Read next: `formulas` (what theory says of it) or `simulate` (how long it takes).
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import islice
from operator import itemgetter
from typing import Any

from pipelab.action import Action, B, Element, F, I, Pair, W, parts
from pipelab.dependencies import GIVES, dataflow, needs
from pipelab.engine import Stuck, play
from pipelab.schedule import Schedule, ScheduleError

MOST_REASONS = 12


def validate(schedule: Schedule) -> Schedule:
    """Return the schedule if every rank can run its row to the end; otherwise raise ScheduleError with the reasons.

    Each stage and micro-batch needs one F and either one B or one I and one W, on the rank that holds the stage,
    after what it depends on. Any order of micro-batches is legal.

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
    raise _error(schedule, found)


def complete(schedule: Schedule) -> bool:
    """Whether every action that the schedule needs is there once, on the rank of its stage; order is not looked at.

    It counts whole rows at a time, and so tells in a fraction of the time what the sentences of `validate` explain.

    >>> complete(Schedule.from_text("0F0 0B0")), complete(Schedule.from_text("0F0 0I0"))
    (True, False)
    """
    return len(schedule.rows) == schedule.ranks and all(
        _row_is_complete(row, schedule.placement.stages_on(rank), schedule.microbatches)
        for rank, row in enumerate(schedule.rows)
    )


def _row_is_complete(row: Sequence[Element], stages: Sequence[int], microbatches: int) -> bool:
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
        if forwards != microbatches or whole + inputs != microbatches or inputs != weights:
            return False
        if whole and inputs and not _split_whole(actions, stage):
            return False
    return not counts  # nothing left over: no other stage, no other kind


def _split_whole(actions: Sequence[Any], stage: int) -> bool:
    """For a stage that mixes B with I and W: whether each micro-batch has the one or the other two."""
    have = {kind: {m for s, k, m in actions if (s, k) == (stage, kind)} for kind in (B, I, W)}
    return have[I] == have[W] and not have[B] & have[I]


Finding = tuple[str, int | None, int | None]
"""A sentence, and the rank and position to mark in the grid (None where the action is absent)."""


def _misplaced(schedule: Schedule) -> Iterator[Finding]:
    if len(schedule.rows) != schedule.ranks:
        yield f"there are {len(schedule.rows)} rows for {schedule.ranks} ranks; give one row a rank", None, None
    for rank, position, action in schedule.actions():
        where = f"rank {rank}, position {position}: {action}"
        if not 0 <= action.stage < schedule.stages:
            yield f"{where} names a stage that is not there; the stages are 0..{schedule.stages - 1}", rank, position
        elif not 0 <= action.microbatch < schedule.microbatches:
            last = schedule.microbatches - 1
            yield f"{where} names a micro-batch that is not there; they are 0..{last}", rank, position
        elif action.kind not in (F, B, I, W):
            yield f"{where} is not compute work; a schedule holds F, B, I and W only", rank, position
        elif schedule.placement.rank_of[action.stage] != rank:
            owner = schedule.placement.rank_of[action.stage]
            yield f"{where} is misplaced: rank {owner} holds stage {action.stage}; move it there", rank, position


def _incomplete(schedule: Schedule) -> Iterator[Finding]:
    count = Counter(action for _, _, action in schedule.actions())
    for rank, position, action in schedule.actions():
        if count[action] > 1:
            yield (
                f"rank {rank}, position {position}: {action} is doubled: it appears {count[action]} times",
                rank,
                position,
            )
            count[action] = 1
    for stage, rank in enumerate(schedule.placement.rank_of):
        for microbatch in range(schedule.microbatches):
            have = {kind for kind in (F, B, I, W) if (stage, kind, microbatch) in count}
            sentence = _verdict(stage, microbatch, have)
            if sentence:
                yield f"rank {rank}: {sentence}", None, None


def _verdict(stage: int, microbatch: int, have: set[str]) -> str | None:
    """What is wrong with the kinds that one stage has for one micro-batch, if anything."""
    if have in ({F, B}, {F, I, W}):
        return None
    names = {kind: str(Action(stage, kind, microbatch)) for kind in (F, B, I, W)}
    if F not in have:
        return f"{names[F]} is missing: stage {stage} never runs micro-batch {microbatch} forward"
    if not have & {B, I, W}:
        return f"the backward of {names[F]} is missing: add {names[B]}, or {names[I]} and {names[W]}"
    if B in have:
        extra = " and ".join(names[kind] for kind in (I, W) if kind in have)
        return f"{names[B]} is doubled by {extra}: a full backward is I and W in one; keep one form"
    present, absent = (I, W) if I in have else (W, I)
    return f"{names[absent]} is missing: {names[present]} is only half of a backward"


def _out_of_order(schedule: Schedule) -> Iterator[Finding]:
    written = _written(schedule)
    for rank, position, action in schedule.actions():
        for need in needs(action, schedule.stages):
            other, later, giver = written[need]
            if other == rank and later >= position:
                yield (
                    f"rank {rank}, position {position}: {action} is out of order: it needs {giver}, "
                    f"which comes at position {later} of the same rank",
                    rank,
                    position,
                )


def _deadlocked(schedule: Schedule) -> Iterator[Finding]:
    try:
        _play(schedule)
    except Stuck as stuck:
        written = _written(schedule)
        for rank, position, need in _cycle(schedule, stuck):
            other, later, giver = written[need]
            yield (
                f"deadlock: rank {rank}, position {position}: {schedule.rows[rank][position]} waits for {giver}, "
                f"which comes later on rank {other}, at position {later}",
                rank,
                position,
            )


def _can_run(schedule: Schedule) -> bool:
    try:
        _play(schedule)
    except Stuck:
        return False
    return True


def _play(schedule: Schedule) -> None:
    """Play a complete schedule without time: only the order matters. Raises Stuck."""
    inputs = {value: [(need, 0) for need in needed] for value, needed in dataflow(schedule.stages).items()}
    play(schedule.rows, inputs, dict.fromkeys(inputs, 0), schedule.microbatches)


def _cycle(schedule: Schedule, stuck: Stuck) -> list[tuple[int, int, Action]]:
    """Follow who waits for whom until a rank comes up again: the cycle is from there on."""
    rank = next(iter(stuck.waiting))
    path: list[int] = []
    while rank not in path:
        path.append(rank)
        rank = schedule.placement.rank_of[stuck.waiting[rank][1].stage]
    return [(rank, *stuck.waiting[rank]) for rank in path[path.index(rank) :]]


def _written(schedule: Schedule) -> dict[Action, tuple[int, int, Action]]:
    """For each value, the rank, the position and the action that gives it (B where it stands for I)."""
    return {
        Action(action.stage, GIVES.get(action.kind, action.kind), action.microbatch): (rank, position, action)
        for rank, position, action in schedule.actions()
    }


def _error(schedule: Schedule, found: list[Finding]) -> ScheduleError:
    reasons = [sentence for sentence, _, _ in found]
    if len(reasons) > MOST_REASONS:
        reasons[MOST_REASONS:] = ["... and more of this kind"]
    first_on_rank = reversed(found[:MOST_REASONS])  # the later entry of a dict wins
    marks = {rank: position for _, rank, position in first_on_rank if rank is not None and position is not None}
    return ScheduleError(reasons, grid(schedule, marks))


def grid(schedule: Schedule, marks: dict[int, int], around: int = 6, most_rows: int = 16) -> str:
    """The rows near the marked places, ranks down and actions across, with `>...<` around each mark.

    >>> print(grid(Schedule.from_text("0F0 0B0"), {0: 1}))
    rank 0:  0F0 >0B0<
    """
    centre = min(marks.values(), default=0)
    first, last = max(0, centre - around), centre + around + 1
    ranks = sorted(sorted(range(len(schedule.rows)), key=lambda rank: rank not in marks)[:most_rows])
    window = {rank: [str(element) for element in schedule.rows[rank][first:last]] for rank in ranks}
    width = max((len(word) for words in window.values() for word in words), default=1)
    lines = []
    for rank, words in window.items():
        cells = [
            f">{word:<{width}}<" if marks.get(rank) == first + column else f" {word:<{width}} "
            for column, word in enumerate(words)
        ]
        before, after = ("..." if first else ""), ("..." if len(schedule.rows[rank]) > last else "")
        lines.append(f"rank {rank}: {before}{''.join(cells).rstrip()}{after}")
    if len(schedule.rows) > len(ranks):
        lines.append(f"({len(schedule.rows) - len(ranks)} more ranks not shown)")
    return "\n".join(lines)
