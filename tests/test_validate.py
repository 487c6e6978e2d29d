"""What validate accepts can run, what it refuses cannot, and it says why: against an independent check."""

import re
from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelab.action import Action, Pair
from pipelab.grid import grid
from pipelab.placement import Placement
from pipelab.schedule import Schedule, ScheduleError
from pipelab.schedules import build
from pipelab.validate import MOST_REASONS, cycle, validate, waits

THOROUGH = settings(max_examples=150)
A_PLACE = re.compile(r"rank (\d+), position (\d+): ")
AN_ACTION = re.compile(r"\b\d+[FBIW]\d+\b")


def flat(element):
    return list(element) if isinstance(element, Pair) else [element]


def is_legal(schedule):
    """Complete, in place, and able to run to the end: by trying every rank again and again."""
    rows, owner, last = schedule.rows, schedule.placement.rank_of, schedule.stages - 1
    work = [(rank, action) for rank, row in enumerate(rows) for element in row for action in flat(element)]
    wanted = [["B", "F"], ["F", "I", "W"]]
    for stage in range(schedule.stages):
        for microbatch in range(schedule.microbatches):
            kinds = sorted(a.kind for _, a in work if (a.stage, a.microbatch) == (stage, microbatch))
            if kinds not in wanted:
                return False
    if any(owner[action.stage : action.stage + 1] != (rank,) for rank, action in work):
        return False
    if any(not 0 <= action.microbatch < schedule.microbatches for _, action in work):
        return False
    have, at, moved = set(), [0] * len(rows), True
    while moved:
        moved = False
        for rank, row in enumerate(rows):
            if at[rank] < len(row) and all(runnable(action, have, last) for action in flat(row[at[rank]])):
                have |= {("gradient" if a.kind in "BI" else a.kind, a.stage, a.microbatch) for a in flat(row[at[rank]])}
                at[rank] += 1
                moved = True
    return all(position == len(row) for position, row in zip(at, rows, strict=True))


def runnable(action, have, last):
    stage, kind, microbatch = action
    if kind == "F":
        return stage == 0 or ("F", stage - 1, microbatch) in have
    if kind == "W":
        return ("gradient", stage, microbatch) in have
    above = stage == last or ("gradient", stage + 1, microbatch) in have
    return ("F", stage, microbatch) in have and above


@st.composite
def legal_schedules(draw, most_pairs=0):
    """Any placement and any legal order: ready actions are taken at random until none is left."""
    ranks, stages, microbatches = draw(st.integers(1, 3)), draw(st.integers(1, 4)), draw(st.integers(1, 3))
    owner = tuple(draw(st.integers(0, ranks - 1)) for _ in range(stages))
    todo = []
    for stage in range(stages):
        for microbatch in range(microbatches):
            kinds = draw(st.sampled_from(["FB", "FIW"]))  # may mix within a stage
            todo += [Action(stage, kind, microbatch) for kind in kinds]
    rows, have = [[] for _ in range(ranks)], set()
    while todo:
        action = draw(st.sampled_from([action for action in todo if runnable(action, have, stages - 1)]))
        todo.remove(action)
        rows[owner[action.stage]].append(action)
        have.add(("gradient" if action.kind in "BI" else action.kind, action.stage, action.microbatch))
    for _ in range(most_pairs):
        row = rows[draw(st.integers(0, ranks - 1))]
        here = draw(st.integers(0, max(0, len(row) - 2)))
        if len(row) > 1 and not any(isinstance(element, Pair) for element in row[here : here + 2]):
            row[here : here + 2] = [Pair(*row[here : here + 2])]
    return Schedule("random", Placement(ranks, owner), microbatches, tuple(map(tuple, rows)))


@st.composite
def mutated_schedules(draw):
    """A named schedule with one to three actions dropped, doubled, swapped or moved to any place."""
    name = draw(st.sampled_from(["naive", "gpipe", "1f1b", "interleaved", "zb-h1"]))
    chunks = draw(st.integers(1, 2)) if name == "interleaved" else None
    schedule = build(name, draw(st.integers(1, 4)), draw(st.integers(1, 5)), chunks)
    rows = [list(row) for row in schedule.rows]
    for _ in range(draw(st.integers(1, 3))):
        row = draw(st.sampled_from([row for row in rows if row]))
        here = draw(st.integers(0, len(row) - 1))
        change = draw(st.sampled_from(["drop", "double", "swap", "swap", "move", "rename", "neighbours"]))
        if change == "swap":
            there = draw(st.integers(0, len(row) - 1))
            row[here], row[there] = row[there], row[here]
        elif change == "neighbours":
            row[here : here + 2] = reversed(row[here : here + 2])
        elif change == "rename":
            row[here] = row[here]._replace(kind=draw(st.sampled_from("FBIW")))
        else:
            action = row[here] if change == "double" else row.pop(here)
            if change != "drop":
                other = draw(st.sampled_from(rows))
                other.insert(draw(st.integers(0, len(other))), action)
        if not any(rows):
            break
    return replace(schedule, rows=tuple(map(tuple, rows)))


def assert_explained(schedule, error):
    """Each reason is a sentence with a rank and an action; each place that it names holds that action."""
    assert error.reasons and len(error.reasons) <= MOST_REASONS + 1
    for reason in error.reasons:
        if reason.startswith("..."):
            continue
        assert re.search(r"\brank \d+", reason) and AN_ACTION.search(reason), reason
        for rank, position in A_PLACE.findall(reason):
            named = reason.split(f"position {position}: ")[1].split()[0]
            assert str(schedule.rows[int(rank)][int(position)]).find(named) >= 0, reason
        if reason.startswith("deadlock"):
            assert_on_a_cycle(schedule, error.reasons)
    assert all(reason in str(error) for reason in error.reasons)
    assert len(str(error).splitlines()) <= 40


def assert_on_a_cycle(schedule, reasons):
    """Each rank of the cycle waits for an action that the next has not passed, the last for the first."""
    pattern = (
        r"deadlock: rank (\d+), position (\d+): (\S+) waits for (\S+), "
        r"which comes later on rank (\d+), at position (\d+)(?:; on .*)?"
    )
    waits = [re.fullmatch(pattern, reason).groups() for reason in reasons]
    for wait, after in zip(waits, waits[1:] + waits[:1], strict=True):
        rank, position, waiting, needed, other, later = wait
        assert str(schedule.rows[int(rank)][int(position)]) == waiting
        assert needed in map(str, flat(schedule.rows[int(other)][int(later)]))
        assert other == after[0] and int(later) >= int(after[1])  # equal where both are halves of one pair
        assert not runnable_pair(waiting, {needed})


def runnable_pair(waiting, missing):
    """Could these actions run if nothing but `missing` were absent? By naming all that they could need."""
    actions = [Action.parse(word) for word in waiting.split("+")]
    absent = {("gradient" if a.kind in "BI" else a.kind, a.stage, a.microbatch) for a in map(Action.parse, missing)}
    have = {(kind, s, m) for kind in ("F", "gradient") for s in range(9) for m in range(20)} - absent
    return all(runnable(action, have, 8) for action in actions)


@THOROUGH
@given(legal_schedules())
def test_every_legal_order_on_any_placement_is_accepted(schedule):
    assert is_legal(schedule)
    assert validate(schedule) is schedule


@THOROUGH
@given(st.one_of(mutated_schedules(), legal_schedules(most_pairs=3)))
def test_a_mutant_is_refused_with_reasons_or_is_legal(schedule):
    try:
        validate(schedule)
    except ScheduleError as error:
        assert not is_legal(schedule)
        assert_explained(schedule, error)
    else:
        assert is_legal(schedule)


def test_swapping_any_two_neighbours_of_1f1b_gives_legal_and_illegal_schedules():
    schedule, verdicts = build("1f1b", 4, 6), []
    for rank, row in enumerate(schedule.rows):
        for here in range(len(row) - 1):
            swapped = (*row[:here], row[here + 1], row[here], *row[here + 2 :])
            mutant = replace(schedule, rows=(*schedule.rows[:rank], swapped, *schedule.rows[rank + 1 :]))
            verdicts.append(is_legal(mutant))
            if verdicts[-1]:
                validate(mutant)
            else:
                with pytest.raises(ScheduleError):
                    validate(mutant)
    assert (verdicts.count(True), verdicts.count(False)) == (38, 6)


@pytest.mark.parametrize(
    "text, sentences",
    [
        ("0F0\n1F0 1B0", ["rank 0: the backward of 0F0 is missing: add 0B0, or 0I0 and 0W0"]),
        ("0F0 0B0\n1B0", ["rank 1: 1F0 is missing: stage 1 never runs micro-batch 0 forward"]),
        ("0F0 0I0", ["rank 0: 0W0 is missing: 0I0 is only half of a backward"]),
        ("0F0 0W0", ["rank 0: 0I0 is missing: 0W0 is only half of a backward"]),
        (
            "0F0 0B0 0I0 0W0",
            ["rank 0: 0B0 is doubled by 0I0 and 0W0: a full backward is I and W in one; keep one form"],
        ),
        ("0F0 0I0 0B0", ["rank 0: 0B0 is doubled by 0I0"]),
        ("0F0 0B0 0B0", ["rank 0, position 1: 0B0 is doubled: it appears 2 times"]),
        ("0F0+0F0 0B0", ["rank 0, position 0: 0F0 is doubled: it appears 2 times"]),
        (
            "0F0 0B0 0F1 0B1 1F0\n1B0 1F1 1B1",
            ["rank 0, position 4: 1F0 is misplaced: rank 1 holds stage 1; move it"],
        ),
        ("0B0 0F0", ["rank 0, position 0: 0B0 is out of order: it needs 0F0, which comes at position 1"]),
        ("0F0 0W0 0I0", ["rank 0, position 1: 0W0 is out of order: it needs 0I0, which comes at position 2"]),
        (
            "0F0 1F0 0B0 1B0",
            ["rank 0, position 2: 0B0 is out of order: it needs 1B0, which comes at position 3"],
        ),
        ("0F0+0B0", ["rank 0, position 0: 0B0 is out of order: it needs 0F0, which comes at position 0"]),
        (
            "0F0 0B0 0F1 0B1\n1F0 1F1 1B0 1B1",
            [
                "deadlock: rank 0, position 1: 0B0 waits for 1B0, which comes later on rank 1, at position 2",
                "deadlock: rank 1, position 1: 1F1 waits for 0F1, which comes later on rank 0, at position 2",
            ],
        ),
        (
            "0F0 0B0+0F1 0B1\n1F0+1F1 1B0 1B1",
            [
                "deadlock: rank 0, position 1: 0B0+0F1 waits for 1B0, which comes later on rank 1",
                "deadlock: rank 1, position 0: 1F0+1F1 waits for 0F1, which comes later on rank 0",
            ],
        ),
    ],
)
def test_each_kind_of_mistake_has_its_sentence(text, sentences):
    with pytest.raises(ScheduleError) as refused:
        validate(Schedule.from_text(text))
    assert len(refused.value.reasons) == len(sentences)
    for reason, sentence in zip(refused.value.reasons, sentences, strict=True):
        assert reason.startswith(sentence)
    assert isinstance(refused.value, ValueError)


def test_a_schedule_that_names_what_is_not_there_is_refused():
    def refused(rows, ranks=1, stages=1, microbatches=1):
        rows = tuple(tuple(map(Action.parse, row.split())) for row in rows)
        with pytest.raises(ScheduleError) as error:
            validate(Schedule("hand-made", Placement.loop(ranks, stages // ranks), microbatches, rows))
        return error.value.reasons

    assert refused(["0F0 0B0 1F0"]) == [
        "rank 0, position 2: 1F0 names a stage that is not there; the stages are 0..0; leave it out"
    ]
    assert refused(["0F0 0B1"]) == [
        "rank 0, position 1: 0B1 names a micro-batch that is not there; they are 0..0; leave it out"
    ]
    assert refused(["0F0 0B0 0SEND_F0"]) == [
        "rank 0, position 2: 0SEND_F0 is not compute work; a schedule holds F, B, I and W only; leave it out"
    ]
    assert refused(["0F0 0B0", ""]) == ["there are 2 rows for 1 ranks; give one row a rank"]


def test_a_deadlock_across_four_ranks_names_a_cycle_and_not_the_ranks_that_only_wait():
    schedule = Schedule.from_text(
        "0F0 0F1 0B0 0B1\n1F0 1F1 1B0 1B1\n2F0 2B0 2F1 2B1\n3F0 3F1 3B0 3B1"
    )  # ranks 2 and 3 wait for each other; 0 and 1 wait for them
    with pytest.raises(ScheduleError) as refused:
        validate(schedule)
    assert_on_a_cycle(schedule, refused.value.reasons)
    assert sorted(int(A_PLACE.search(reason)[1]) for reason in refused.value.reasons) == [2, 3]


def test_long_lists_of_reasons_are_cut():
    schedule = replace(build("gpipe", 4, 64), rows=((),) * 4)
    with pytest.raises(ScheduleError) as refused:
        validate(schedule)
    assert len(refused.value.reasons) == MOST_REASONS + 1
    assert refused.value.reasons[-1] == "... and more of this kind"


def test_the_grid_puts_a_caret_under_the_place_and_shows_what_is_around_it():
    rows = build("1f1b", 20, 30).rows
    drawn = grid(rows, {19: 25, 3: 2}).splitlines()
    assert drawn[-1] == "(7 more ranks not shown)" and len(drawn) == 13 + 2 + 1
    for rank, word in ((19, "19B12"), (3, "3F2")):
        (line,) = (number for number, text in enumerate(drawn) if text.startswith(f"rank {rank}:"))
        column = drawn[line + 1].index("^")
        assert drawn[line][column:].split()[0] == word and drawn[line + 1].strip() == "^" * len(word)
    assert "rank 19: ... " in "\n".join(drawn) and all(len(line) < 110 for line in drawn)


def carets(error):
    """What stands above the carets."""
    lines = str(error).splitlines()
    under = [(row, line) for row, line in pairwise(lines) if line and not line.strip(" ^")]
    return [row[line.index("^") : len(line)] for row, line in under]


@pytest.mark.parametrize(
    ("text", "marked"),
    [
        ("0F0 0X3 0B0\n1F0 oops", ["0X3", "oops"]),
        ("0F0 0SEND_F0", ["0SEND_F0"]),
        ("0F0 0B0 0F1 0B1 1F0\n1B0 1F1 1B1", ["1F0"]),
        ("0F0 0B0 0B0", ["0B0"]),
        ("0F0 0I0 0F1 0B1", ["0I0"]),
        ("0F0 0F1 0B1", ["0F0"]),
        ("0F0 0B0\n1B0", ["1B0"]),
        ("0B0 0F0", ["0B0"]),
        ("0F0 0B0 0F1 0B1\n1F0 1F1 1B0 1B1", ["0B0", "1F1"]),
        (" ".join(f"0F{m} 0B{m}" for m in range(99)) + " 0W3", ["0W3"]),
    ],
)
def test_the_caret_is_under_the_action_that_is_at_fault(text, marked):
    with pytest.raises(ScheduleError) as refused:
        validate(Schedule.from_text(text))
    assert carets(refused.value) == marked


def test_a_deadlock_names_a_move_that_makes_the_schedule_legal():
    with pytest.raises(ScheduleError, match="on rank 1, put 1B0 before 1F1"):
        validate(Schedule.from_text("0F0 0B0 0F1 0B1\n1F0 1F1 1B0 1B1"))
    validate(Schedule.from_text("0F0 0B0 0F1 0B1\n1F0 1B0 1F1 1B1"))


@THOROUGH
@given(mutated_schedules())
def test_where_ranks_wait_for_one_another_the_cycle_is_closed(schedule):
    try:
        found = waits(schedule)
    except ScheduleError:
        return  # something is missing: nothing can be played
    assert bool(found) == (not is_legal(schedule))
    circle = cycle(found) if found else ()
    for wait, after in zip(circle, circle[1:] + circle[:1], strict=True):
        assert wait.on == after.rank and wait.at >= after.position


def test_a_large_schedule_is_judged_in_time_proportional_to_its_actions():
    schedule = build("1f1b", 16, 1000)
    row = schedule.rows[0]
    assert validate(schedule) is schedule
    with pytest.raises(ScheduleError, match=r"deadlock|out of order"):
        validate(replace(schedule, rows=((*row[1000:], *row[:1000]), *schedule.rows[1:])))


def test_a_slip_of_the_finger_in_a_stage_number_is_told_at_once_not_after_gigabytes():
    rows = [f"{rank}F0 {rank}B0" for rank in range(16)]
    rows[15] += " 9999999F0"
    with pytest.raises(ScheduleError, match="16F0 is missing"):
        validate(Schedule.from_text("\n".join(rows)))


def test_a_small_letter_in_a_word_is_told_which_one_to_write():
    with pytest.raises(ScheduleError, match=r"rank 0, position 1: 0b0 is not compute work; .*; write B"):
        validate(Schedule.from_words("small", Placement.loop(1), 1, lambda rank: "Fb"))
