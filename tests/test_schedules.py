"""The named schedules are legal for any counts, and the published ones; what makes no sense is refused."""

from dataclasses import replace
from fractions import Fraction
from itertools import product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelab.action import Action, Pair
from pipelab.costs import Costs
from pipelab.placement import Placement
from pipelab.schedule import Schedule, ScheduleError, stagger
from pipelab.schedules import GENERATORS, SCHEDULES, build, chunks_of, options_of
from pipelab.simulate import simulate
from pipelab.validate import validate

FIRST_FIVE = ["naive", "gpipe", "1f1b", "interleaved", "zb-h1"]
COUNTS = list(product(range(1, 9), range(1, 14)))


def chunk_counts(name):
    """The values of V to try: the default, and more where the schedule takes chunks."""
    return (None, 2, 3, 4) if chunks_of(name) == "any" else (None,)


@pytest.mark.parametrize("name", SCHEDULES)
def test_every_name_is_legal_for_any_ranks_microbatches_and_chunks(name):
    some = COUNTS[::3] if name == "zb-auto" else COUNTS  # a search for each; of every P and every M there are several
    for (P, M), V in product(some, chunk_counts(name)):
        schedule = validate(replace(build(name, ranks=P, microbatches=M, chunks=V)))  # a copy: not declared valid
        assert (schedule.name, schedule.ranks, schedule.microbatches) == (name, P, M)
        assert schedule.stages == P * (V or schedule.stages // P)


@pytest.mark.parametrize("ranks, microbatches", COUNTS)
def test_1f1b_is_interleaved_with_one_chunk(ranks, microbatches):
    assert build("1f1b", ranks, microbatches).rows == build("interleaved", ranks, microbatches, chunks=1).rows


def test_one_dial_turns_naive_into_1f1b_and_into_gpipe():
    def turned(warmup):
        word = [stagger(([(r, "F")] * 8, 0), ([(r, "B")] * 8, warmup(r))) for r in range(4)]
        return Schedule.from_words("dial", Placement.loop(4), 8, word.__getitem__).rows

    assert turned(lambda rank: 0) == build("naive", 4, 8).rows
    assert turned(lambda rank: 3 - rank) == build("1f1b", 4, 8).rows
    assert turned(lambda rank: 8) == build("gpipe", 4, 8).rows


@pytest.mark.parametrize(
    "costs",
    [
        (1, 1, 1, 0),
        (2, 3, 1, 0),
        (1, 1, 9, 0),
        (3, 0, 4, 0),
        (2, 2, 1, Fraction(1, 3)),
        (1, 2, 5, 1),
        (1, 1, 1, 7),
    ],
)
def test_zb_h1_is_never_longer_than_1f1b_and_holds_at_most_p_microbatches(costs):
    """For every work and hop; below M = P-1 too, where the published word has a negative count."""
    for P, M in COUNTS:
        zero_bubble, one_f_one_b = (simulate(build(name, P, M), Costs.uniform(*costs)) for name in ("zb-h1", "1f1b"))
        assert zero_bubble.makespan <= one_f_one_b.makespan
        assert zero_bubble.span <= one_f_one_b.span
        assert zero_bubble.peak_in_flight == (min(P, M),) * P


# The published figures, line by line: letters f b i w with the micro-batch; for interleaved a, b are the
# forwards of the first and the second chunk and A, B their backwards.
GOLDEN = {
    "naive": """
        f0 b0 f1 b1 f2 b2 f3 b3 f4 b4 f5 b5 f6 b6 f7 b7
        f0 b0 f1 b1 f2 b2 f3 b3 f4 b4 f5 b5 f6 b6 f7 b7
        f0 b0 f1 b1 f2 b2 f3 b3 f4 b4 f5 b5 f6 b6 f7 b7
        f0 b0 f1 b1 f2 b2 f3 b3 f4 b4 f5 b5 f6 b6 f7 b7""",
    "gpipe": """
        f0 f1 f2 f3 f4 f5 f6 f7 b0 b1 b2 b3 b4 b5 b6 b7
        f0 f1 f2 f3 f4 f5 f6 f7 b0 b1 b2 b3 b4 b5 b6 b7
        f0 f1 f2 f3 f4 f5 f6 f7 b0 b1 b2 b3 b4 b5 b6 b7
        f0 f1 f2 f3 f4 f5 f6 f7 b0 b1 b2 b3 b4 b5 b6 b7""",
    "1f1b": """
        f0 f1 f2 f3 b0 f4 b1 f5 b2 f6 b3 f7 b4 b5 b6 b7
        f0 f1 f2 b0 f3 b1 f4 b2 f5 b3 f6 b4 f7 b5 b6 b7
        f0 f1 b0 f2 b1 f3 b2 f4 b3 f5 b4 f6 b5 f7 b6 b7
        f0 b0 f1 b1 f2 b2 f3 b3 f4 b4 f5 b5 f6 b6 f7 b7""",
    "interleaved": """
        a0 a1 a2 a3 b0 b1 b2 b3 a4 a5 a6 B0 a7 B1 b4 B2 b5 B3 b6 A0 b7 A1 A2 A3 B4 B5 B6 B7 A4 A5 A6 A7
        a0 a1 a2 a3 b0 b1 b2 b3 a4 B0 a5 B1 a6 B2 a7 B3 b4 A0 b5 A1 b6 A2 b7 A3 B4 B5 B6 B7 A4 A5 A6 A7
        a0 a1 a2 a3 b0 b1 b2 B0 b3 B1 a4 B2 a5 B3 a6 A0 a7 A1 b4 A2 b5 A3 b6 B4 b7 B5 B6 B7 A4 A5 A6 A7
        a0 a1 a2 a3 b0 B0 b1 B1 b2 B2 b3 B3 a4 A0 a5 A1 a6 A2 a7 A3 b4 B4 b5 B5 b6 B6 b7 B7 A4 A5 A6 A7""",
    "zb-h1": """
        f0 f1 f2 f3 i0 w0 f4 i1 w1 f5 i2 w2 f6 i3 w3 f7 i4 w4 i5 w5 i6 w6 i7 w7
        f0 f1 f2 i0 f3 i1 w0 f4 i2 w1 f5 i3 w2 f6 i4 w3 f7 i5 w4 i6 w5 i7 w6 w7
        f0 f1 i0 f2 i1 f3 i2 w0 f4 i3 w1 f5 i4 w2 f6 i5 w3 f7 i6 w4 i7 w5 w6 w7
        f0 i0 f1 i1 f2 i2 f3 i3 w0 f4 i4 w1 f5 i5 w2 f6 i6 w3 f7 i7 w4 w5 w6 w7""",
}


@pytest.mark.parametrize("name", GOLDEN)
def test_four_ranks_and_eight_microbatches_are_the_published_figure(name):
    def letter(action):
        if name != "interleaved":
            return f"{action.kind.lower()}{action.microbatch}"
        return f"{'ab'[action.stage // 4] if action.kind == 'F' else 'AB'[action.stage // 4]}{action.microbatch}"

    schedule = build(name, 4, 8, chunks=2 if name == "interleaved" else None)
    drawn = [" ".join(map(letter, row)) for row in schedule.rows]
    assert drawn == [line.strip() for line in GOLDEN[name].strip().splitlines()]
    assert schedule.to_text().splitlines()[3].split()[0] == "3F0"


def test_the_words_of_zb_h1_are_the_published_ones_wherever_they_exist():
    for P, M in COUNTS:
        if M < P - 1:
            continue
        for rank, row in enumerate(build("zb-h1", P, M).rows):
            k = P - 1 - rank
            word = "F" * k + "FI" * rank + "FIW" * (M - P + 1) + "IW" * k + "W" * rank
            assert "".join(action.kind for action in row) == word


def test_uneven_rounds_are_even_as_can_be_with_the_larger_first():
    row = build("interleaved", ranks=2, microbatches=5, chunks=2).rows[0]
    forwards = "".join(str(action.stage) for action in row if action.kind == "F")
    assert forwards == "0002220022"  # rounds of 3 and 2


@pytest.mark.parametrize("count", [0, -1, 2.5, 4.0, "4", True, None])
def test_counts_that_are_no_counts_are_refused(count):
    with pytest.raises(ValueError, match="ranks must be a whole number of at least 1: got"):
        build("1f1b", ranks=count, microbatches=4)
    with pytest.raises(ValueError, match="microbatches must be a whole number of at least 1: got"):
        build("1f1b", ranks=4, microbatches=count)
    if count is not None:
        with pytest.raises(ValueError, match="chunks must be a whole number of at least 1: got"):
            build("interleaved", ranks=4, microbatches=4, chunks=count)


@pytest.mark.parametrize("name, hint", [("1fb1", "1f1b"), ("zbh1", "zb-h1"), ("interleave", "interleaved")])
def test_a_name_that_is_nearly_one_gets_a_hint(name, hint):
    with pytest.raises(ValueError, match=f"there is no schedule '{name}'; did you mean {hint}. the names are naive"):
        build(name, 4, 8)


@pytest.mark.parametrize("name", ["", "quantum", None, 7])
def test_unknown_names_are_refused_with_the_names_there_are(name):
    with pytest.raises(ValueError, match=r"there is no schedule .* the names are naive, gpipe"):
        build(name, 4, 8)


@pytest.mark.parametrize("name", FIRST_FIVE)
def test_options_that_a_schedule_does_not_take_are_refused(name):
    with pytest.raises(ValueError, match=f"{name} does not take the option 'memory_limit'; it takes"):
        build(name, 4, 8, memory_limit=3)
    if "chunks" not in options_of(name):
        assert build(name, 4, 8, chunks=1) == build(name, 4, 8)
        with pytest.raises(ValueError, match=f"{name} has one chunk a rank: got chunks=2; leave it out"):
            build(name, 4, 8, chunks=2)


def test_every_schedule_says_in_a_line_what_it_is():
    assert set(FIRST_FIVE) <= set(SCHEDULES)
    assert all(line.endswith(".") and len(line) < 120 for line in SCHEDULES.values())


def test_more_than_twenty_million_actions_are_refused_at_once():
    for ranks, microbatches, chunks in [(1000, 10_001, 1), (4, 10**12, 1), (10**12, 1, 1), (100, 1001, 100)]:
        with pytest.raises(ValueError, match="are more than 20 million actions; ask for fewer"):
            build("interleaved", ranks, microbatches, chunks=chunks)
    with pytest.raises(ValueError, match="are more than 20 million actions"):
        Schedule.from_text("0F0 0B0 0F99999999")
    with pytest.raises(ValueError, match="are more than 20 million actions"):
        Schedule.from_text("0F0 99999999F0")


actions = st.builds(Action, st.integers(0, 5), st.sampled_from("FBIW"), st.integers(0, 12))
elements = st.one_of(actions, st.builds(Pair, actions, actions))
rows = st.lists(st.lists(elements, min_size=1, max_size=8).map(tuple), min_size=1, max_size=4).map(tuple)


@given(rows)
def test_any_rows_survive_text_and_csv(rows):
    text = "\n".join(" ".join(map(str, row)) for row in rows)
    schedule = Schedule.from_text(text)
    assert schedule.rows == rows and schedule.to_text() == text
    assert Schedule.from_text(schedule.to_text()) == schedule
    assert Schedule.from_csv(schedule.to_csv()) == schedule


@settings(max_examples=60)
@given(st.sampled_from(sorted(SCHEDULES)), st.integers(1, 6), st.integers(1, 9), st.integers(1, 3))
def test_named_schedules_survive_text_and_csv(name, P, M, V):
    schedule = build(name, P, M, V if "chunks" in options_of(name) else None)
    plain = replace(schedule, flush=True, forward_only=False)  # rows say the order of the work, not what it is for
    assert Schedule.from_text(schedule.to_text(), name) == plain
    assert Schedule.from_csv(schedule.to_csv(), name) == plain


def test_text_may_hold_comments_and_blank_lines_and_csv_idle_slots():
    expected = (tuple(map(Action.parse, ("0F0", "0B0"))), tuple(map(Action.parse, ("1F0", "1B0"))))
    assert Schedule.from_text("# two ranks\n\n  0F0   0B0  # rank 0\n\t1F0 1B0\n").rows == expected
    assert Schedule.from_csv("0F0,,,0B0\n,1F0, 1B0,\n\n").rows == expected


@pytest.mark.parametrize(
    "text, placed",
    [
        ("0F0 0B0\n1F0 1B0", (0, 1)),
        ("0F0 1F0 1B0 0B0", (0, 0)),
        ("1F0 1B0\n0F0 0B0", (1, 0)),
        ("0F0 2F0 2B0 0B0\n1F0 1B0", (0, 1, 0)),
        ("0F0\n0B0", (0,)),  # a tie: the lowest rank
        ("1F0 0B0\n0F0 1B0", (0, 0)),  # two ties
        ("0F0\n0I0 0W0", (1,)),  # most actions, not the forward
        ("0F0+1F1\n1F0 1B0 1B1 0B0", (0, 1)),  # the halves of a pair vote each
        ("2F0 2B0\n0F0 0B0", (1, 0, 0)),  # stage 1 has no action: no vote is a tie as well
    ],
)
def test_a_stage_belongs_to_the_rank_with_most_of_its_actions_on_a_tie_to_the_lowest(text, placed):
    assert Schedule.from_text(text).placement.rank_of == placed


@pytest.mark.parametrize(
    "text, sentence",
    [
        ("", "there is no action in this text; write one line a rank"),
        ("# nothing\n", "there is no action in this text"),
        ("0F0 0X0", "rank 0, position 1: '0X0' is not an action; write stage, kind"),
        ("0F0\n1F0 1F", "rank 1, position 1: '1F' is not an action"),
        ("0F-1", "rank 0, position 0: '0F-1' is not an action"),
        ("0F0 0SEND_F0", "rank 0, position 1: 0SEND_F0 is a message; a schedule holds F, B, I and W only"),
        ("0F0 0B0 0U0", "rank 0, position 2: 0U0 is an update; a schedule holds F, B, I and W only"),
        ("0F0+1F0+2F0", "rank 0, position 0: '0F0.1F0.2F0' joins 3 actions; a pair joins two"),
        ("0F0+", "rank 0, position 0: '' is not an action"),
        ("٣F٣", "rank 0, position 0: .* is not an action"),  # digits, but not ASCII
    ],
)
def test_text_that_is_no_schedule_is_refused_with_its_place(text, sentence):
    with pytest.raises(ScheduleError, match=sentence) as refused:
        Schedule.from_text(text)
    assert len(refused.value.reasons) == 1


def test_all_words_that_cannot_be_read_are_told_and_marked():
    with pytest.raises(ScheduleError) as refused:
        Schedule.from_text("0F0 0X3 0b0\n1F0 hello 1B0")
    assert [reason.split(";")[0] for reason in refused.value.reasons] == [
        "rank 0, position 1: '0X3' is not an action",
        "rank 0, position 2: '0b0' is not an action",
        "rank 1, position 1: 'hello' is not an action",
    ]
    assert "there is no kind X" in str(refused.value) and "did you mean 0B0?" in str(refused.value)
    assert "              ^^^" in str(refused.value)


def test_with_one_stage_a_rank_a_word_may_be_letters_alone():
    def word(rank):
        k = 3 - rank
        return "F" * k + "FB" * (8 - k) + "B" * k

    assert Schedule.from_words("mine", Placement.loop(4), 8, word).rows == build("1f1b", 4, 8).rows
    listed = Schedule.from_words("mine", Placement.loop(4), 8, lambda rank: list(word(rank)))
    assert listed.rows == build("1f1b", 4, 8).rows
    spaced = Schedule.from_words("mine", Placement.loop(2), 2, lambda rank: "FF BB")
    assert spaced.rows == build("gpipe", 2, 2).rows


@pytest.mark.parametrize(
    ("placement", "word", "sentence"),
    [
        (Placement.loop(2), lambda rank: None, "rank 0: its word is None; give its letters, such as"),
        (
            Placement.loop(2),
            lambda rank: [(0, "F"), 3],
            r"rank 0, position 1: 3 is not a letter; write \(stage, kind\)",
        ),
        (Placement.loop(2), lambda rank: ["F", ("F", rank)], r"rank 0, position 1: \('F', 0\) is not a letter"),
        (Placement.loop(2), lambda rank: ["FB"], "rank 0, position 0: 0FB0 is not compute work"),
        (Placement.loop(2), lambda rank: ["FFBB", "FXBB"][rank], "rank 1, position 1: 1X0 is not compute work"),
        (Placement.loop(2, 2), lambda rank: "FB", "rank 0, position 0: 'F' does not say which stage, .* these: 0, 2"),
        (Placement.loop(1), lambda rank: [((0, "F"), "B")], "is not a letter"),
        (Placement.loop(1), lambda rank: [(0.5, "F")], r"\(0.5, 'F'\) is not a letter"),
        (Placement.loop(1), lambda rank: "FFFBBB", "rank 0, position 2: 0F2 names a micro-batch that is not there"),
    ],
)
def test_a_word_that_is_none_is_refused_with_its_place(placement, word, sentence):
    with pytest.raises(ScheduleError, match=sentence):
        validate(Schedule.from_words("mine", placement, 2, word))


def test_a_generator_of_ones_own_is_judged_like_any_other(monkeypatch):
    def forgetful(ranks: int, microbatches: int) -> Schedule:
        """Forgets the backwards of rank 0."""

        def word(rank):
            return [(rank, "F")] * microbatches + [(rank, "B")] * (microbatches if rank else 0)

        return Schedule.from_words("forgetful", Placement.loop(ranks), microbatches, word)

    monkeypatch.setitem(GENERATORS, "forgetful", forgetful)
    for judge in (validate, lambda schedule: simulate(schedule, Costs.uniform())):
        with pytest.raises(ScheduleError, match="the backward of 0F0 is missing"):
            judge(build("forgetful", 2, 2))


@pytest.mark.parametrize("word", ["0F99999999", "99999999F0", "99999999F0+0B0"])
def test_a_number_that_makes_too_many_actions_is_shown_where_it_stands(word):
    with pytest.raises(ScheduleError, match="more than 20 million actions") as refused:
        Schedule.from_text(f"1F0 0F0\n1B0 {word} 0B0")
    (reason,) = refused.value.reasons
    assert reason.startswith(f"rank 1, position 1: {word}: ")
    assert "^" * len(word) in str(refused.value)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Schedule.from_words("mine", 4, 8, lambda rank: "FB"), r"as Placement.loop\(4\): got 4"),
        (lambda: Schedule.from_rule("mine", None, 8, "BF"), r"as Placement.loop\(4\): got None"),
        (lambda: build("inference", 4, 8, groups="x"), "groups must be a whole number of at least 1: got 'x'"),
        (lambda: build("inference", 4, 8, groups=3), "try microbatches=9"),
    ],
)
def test_what_is_no_placement_and_no_count_is_refused(make, words):
    with pytest.raises(ValueError, match=words):
        make()
