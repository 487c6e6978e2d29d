"""A score says what is so: legality, time and memory beside a target, and a bound that nothing goes below."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_validate import legal_schedules

import pipelab as pl
from pipelab.search.bound import bound
from pipelab.search.problem import Problem

THOROUGH = settings(max_examples=150)
NAMES = ["naive", "gpipe", "1f1b", "zb-h1", "zb-h2", "zb-v", "v-half", "v-min", "1f1b-v", "interleaved", "dualpipe-v"]


@THOROUGH
@given(legal_schedules(most_pairs=2), st.tuples(*[st.integers(0, 3)] * 4))
def test_no_legal_schedule_is_shorter_than_its_lower_bound(schedule, times):
    costs = pl.Costs.uniform(*times)
    try:
        score = pl.score(schedule, costs=costs)
    except pl.ScheduleError:  # a pair may not be legal
        return
    for mark in score.marks[:2]:
        assert mark.bound is not None and mark.value >= mark.bound, mark


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("hop", [0, 0.3, 2])
def test_no_published_schedule_is_shorter_than_its_lower_bound(name, hop):
    for P, M in ((1, 3), (2, 2), (3, 5), (4, 8), (4, 16)):
        score = pl.score(pl.build(name, P, M), costs=pl.Costs.uniform(F=2, I=3, W=1, hop=hop))
        assert all(mark.value >= mark.bound for mark in score.marks[:2])


def test_zb_v_is_as_short_as_any_order_on_its_placement():
    schedule = pl.build("zb-v", 4, 8)
    makespan, span = pl.score(schedule).marks[:2]
    assert makespan.value == makespan.bound and span.value == span.bound


def test_less_memory_makes_the_bound_longer_on_any_placement():
    def least(placement, limit):
        problem = Problem.of(placement, 8, memory_limit=limit, objective="step")
        return problem.in_units(bound(problem))

    assert [least(pl.Placement.vee(4), limit) for limit in (1, 2, 4)] == [41.5, 27.5, 25.5]
    assert [least(pl.Placement(3, (1, 0, 0, 1)), limit) for limit in (1, 2)] == [25.5, 24.5], "rank 2 has none"


def test_a_schedule_beats_reaches_or_misses_another():
    h1, one = pl.build("zb-h1", 4, 8), pl.build("1f1b", 4, 8)
    assert pl.score(h1).grade == "legal" and pl.score(h1).reached
    assert pl.score(h1, "1f1b").grade == "beaten"
    assert pl.score(h1, one).grade == "beaten"
    assert pl.score(h1, h1).grade == "reached"
    assert pl.score(one, h1).grade == "not reached" and not pl.score(one, h1).reached
    assert pl.score(pl.build("zb-h2", 4, 8), "zb-h1").grade == "not reached", "shorter, but with more memory"
    assert pl.score(pl.build("interleaved", 4, 8, 2), "interleaved").grade == "reached", "with as many chunks"
    assert pl.score(h1, "zb-auto", costs=pl.Costs.uniform(hop=1)).legal


def test_numbers_are_a_target_too():
    h1 = pl.build("zb-h1", 4, 8)
    assert pl.score(h1, {"makespan": 27, "peak_in_flight": 4}).grade == "reached"
    assert pl.score(h1, {"makespan": 26}).grade == "not reached"
    assert pl.score(h1, {"span": 30}).grade == "beaten"
    assert pl.score(pl.build("1f1b", 4, 8), {"peak_in_flight": [4, 3, 2, 1]}).grade == "reached"
    assert pl.score(pl.build("1f1b", 4, 8), {"peak_in_flight": [4, 3, 1, 1]}).grade == "not reached"


def test_a_schedule_that_cannot_run_is_graded_with_the_first_reason():
    score = pl.score(pl.Schedule.from_text("0B0 0F0", name="mine"), target="1f1b")
    assert (score.legal, score.reached, score.grade, score.marks) == (False, False, "not legal", ())
    assert str(score).startswith("mine: not legal: rank 0, position 0: 0B0 is out of order")
    with pytest.raises(ValueError, match="reasons only"):
        score.mark("makespan")


def test_it_reads_like_a_report():
    assert str(pl.score(pl.build("1f1b", 4, 8), target="zb-h1")).splitlines() == [
        "1f1b: legal; target zb-h1: not reached",
        "  makespan       33, target 27: 6 too much; lower bound in its memory 30",
        "  span           33, target 27: 6 too much; lower bound in its memory 30",
        "  peak in flight 4, target 4: reached",
    ]
    assert (
        str(pl.score(pl.build("zb-h1", 4, 8))).splitlines()[1]
        == "  makespan       27; lower bound in its memory 27 (none is shorter)"
    )
    assert pl.score(pl.build("zb-h1", 4, 8)).mark("span").value == 27


def test_costs_that_know_no_split_give_no_bound():
    measured = pl.Costs.measured(pl.simulate(pl.build("1f1b", 2, 3), pl.Costs.uniform()))
    score = pl.score(pl.build("1f1b", 2, 3), costs=measured)
    assert [mark.bound for mark in score.marks] == [None, None, None] and "bound" not in str(score)


@pytest.mark.parametrize(
    ("target", "words"),
    [
        ("1f2b", "there is no schedule '1f2b'; did you mean 1f1b"),
        (pl.build("1f1b", 4, 6), "the target has 4 ranks and 6 micro-batches, the schedule 4 ranks and 8"),
        (27, "a target is a schedule, a name, or numbers"),
        ({"length": 27}, "a target names makespan, span, peak_in_flight: got 'length'"),
        ({"makespan": "27"}, "the target makespan is a time of at least 0: got '27'"),
        ({"makespan": float("nan")}, "got nan"),
        ({"makespan": None}, "the target makespan has no number: got None; leave it out"),
        ({"span": [27]}, r"the target span is a time of at least 0: got \[27\]"),
        ({"peak_in_flight": None}, "the target peak_in_flight has no number"),
        ({"peak_in_flight": [4]}, "peak_in_flight has 1 numbers for 4 ranks"),
        ({"peak_in_flight": 0}, "peak_in_flight is 0 on rank 0"),
    ],
)
def test_a_target_that_cannot_be_compared_is_refused(target, words):
    with pytest.raises(ValueError, match=words):
        pl.score(pl.build("1f1b", 4, 8), target)


def test_a_text_is_no_schedule_to_score():
    with pytest.raises(ValueError, match=r"score takes a schedule, as Schedule.from_text\(rows\): got '0F0 0B0'"):
        pl.score("0F0 0B0")


@pytest.mark.parametrize("options", [{}, {"groups": 2}])
def test_forwards_only_have_no_bound_of_training(options):
    found = pl.score(pl.build("inference", 2, 4, **options))
    assert [mark.bound for mark in found.marks] == [None, None, None]
