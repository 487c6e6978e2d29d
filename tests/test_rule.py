"""A rule gives a schedule: the published ones are rules, every rule gives a legal one or says why it is stuck."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import pipelab as pl
from pipelab.rule import Moment, first_of

THOROUGH = settings(max_examples=150)
SHAPES = [(P, M) for P in (1, 2, 3, 4, 8) for M in (1, 2, 3, 5, 8, 16)]


def by_rule(placement, microbatches, order, **options):
    return pl.Schedule.from_rule("mine", placement, microbatches, order, **options)


@pytest.mark.parametrize(("P", "M"), SHAPES)
def test_naive_gpipe_and_1f1b_are_rules(P, M):
    line = pl.Placement.loop(P)
    assert by_rule(line, M, "BF", in_flight=1).rows == pl.build("naive", P, M).rows
    assert by_rule(line, M, "FB").rows == pl.build("gpipe", P, M).rows
    assert by_rule(line, M, "BF", in_flight=[P - rank for rank in range(P)]).rows == pl.build("1f1b", P, M).rows


@pytest.mark.parametrize(("P", "M"), [(P, M) for P, M in SHAPES if M >= 2 * P - 1])
def test_i_before_f_before_w_with_2p_minus_1_in_flight_has_no_bubble_in_its_span(P, M):
    trace = pl.simulate(by_rule(pl.Placement.loop(P), M, "IFW", in_flight=2 * P - 1), pl.Costs.uniform())
    assert trace.span == 3 * M == pl.simulate(pl.build("zb-h2", P, M), pl.Costs.uniform()).span
    assert max(trace.peak_in_flight) <= 2 * P - 1


def test_latency_and_unequal_stages_are_known_to_the_rule():
    near = by_rule(pl.Placement.loop(3), 6, "BF", in_flight=3)
    far = by_rule(pl.Placement.loop(3), 6, "BF", in_flight=3, costs=pl.Costs.uniform(hop=2))
    slow = by_rule(pl.Placement.loop(3), 6, "BF", in_flight=3, costs=pl.Costs.per_stage([9, 1, 1], [1] * 3, [1] * 3))
    assert near.rows != far.rows != slow.rows != near.rows


@st.composite
def asked(draw):
    """Any placement, order, limits and costs; whole limits of one stage a rank can never be stuck."""
    ranks = draw(st.integers(1, 4))
    owner = draw(st.one_of(st.just(range(ranks)), st.lists(st.integers(0, ranks - 1), min_size=1, max_size=6)))
    placement = pl.Placement(ranks, tuple(owner))
    order = draw(st.sampled_from(["FB", "BF", "FIW", "IFW", "IWF", "WIF", "WFI", "FWI"]))
    limits = draw(st.one_of(st.none(), st.lists(st.integers(1, 4), min_size=ranks, max_size=ranks)))
    costs = pl.Costs.uniform(*(draw(st.integers(0, 3)) for _ in range(4)))
    return placement, draw(st.integers(1, 6)), order, limits, costs


@THOROUGH
@given(asked())
def test_every_rule_gives_a_legal_schedule_within_its_limits_or_says_where_it_is_stuck(question):
    placement, microbatches, order, limits, costs = question
    try:
        schedule = by_rule(placement, microbatches, order, in_flight=limits, costs=costs)
    except pl.ScheduleError as stuck:
        assert limits is not None and max(placement.chunks_per_rank()) > 1
        assert all("the rule is stuck" in reason and "allow" in reason for reason in stuck.reasons)
        assert stuck.reasons and "^" in str(stuck)
        return
    trace = pl.simulate(pl.validate(schedule), costs)
    most = limits or [microbatches] * placement.ranks
    assert all(peak <= limit for peak, limit in zip(trace.peak_in_flight, most, strict=True))


@THOROUGH
@given(asked(), st.randoms(use_true_random=False))
def test_a_function_may_choose_anything_that_is_ready(question, random):
    placement, microbatches, _, _, costs = question

    def rule(ready, moment):
        assert moment.time >= 0 and 0 <= moment.rank < placement.ranks
        return random.choice(ready)

    schedule = by_rule(placement, microbatches, rule, costs=costs)
    assert pl.validate(schedule).microbatches == microbatches


def test_a_function_sees_rank_time_what_is_held_and_the_last_action():
    seen = []

    def rule(ready, moment):
        seen.append((moment, tuple(map(str, ready))))
        return first_of("BF")(ready, moment)

    by_rule(pl.Placement.loop(2), 1, rule)
    last = pl.Action(0, "F", 0)
    assert seen[0] == (Moment(0, 0, 0, None), ("0F0",))
    assert seen[-1] == (Moment(0, 4, 1, last), ("0B0", "0I0"))


@pytest.mark.parametrize(
    ("rule", "words"),
    [
        (lambda ready, moment: None, "rank 0, position 0: the rule is stuck: it waits for ever: 0F0 may start"),
        (
            lambda ready, moment: ready[0] if ready[0].kind == "F" else None,
            "rank 1, position 2: the rule is stuck: it waits for ever: 1B0, 1I0 may start, and nothing else will",
        ),
        (lambda ready, moment: pl.Action(1, "B", 7), "rank 0, position 0: the rule gave 1B7, which may not start now"),
        (lambda ready, moment: "0F0", "rank 0, position 0: the rule gave 0F0, which may not start now; return one of"),
    ],
)
def test_a_function_that_never_goes_on_is_refused_with_the_place(rule, words):
    with pytest.raises(pl.ScheduleError, match=words):
        by_rule(pl.Placement.loop(2), 2, rule)


def test_a_limit_too_small_for_two_chunks_is_named_with_the_number_to_try():
    with pytest.raises(pl.ScheduleError) as stuck:
        by_rule(pl.Placement.loop(2, chunks=2), 4, "BF", in_flight=1)
    assert stuck.value.reasons == [
        "rank 0, position 2: the rule is stuck: 0F2 has no room: the rank holds 1 of the 1 micro-batches in_flight"
        " allows, and none can be finished first; allow 1.5 or more"
    ]
    pl.validate(by_rule(pl.Placement.loop(2, chunks=2), 4, "BF", in_flight=2))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"order": "IF"}, "a rule's order names F and B, or F, I and W"),
        ({"order": "FF"}, "got 'FF'"),
        ({"order": "FBW"}, "got 'FBW'"),
        ({"order": 3}, "order is a text such as 'IFW', or a function"),
        ({"order": "BF", "in_flight": 0}, "in_flight is 0 on rank 0"),
        ({"order": "BF", "in_flight": [2]}, "in_flight has 1 numbers for 2 ranks"),
        ({"order": "BF", "in_flight": "4"}, "in_flight is a number of micro-batches"),
        ({"order": "BF", "in_flight": float("nan")}, "in_flight is nan on rank 0"),
        ({"order": "BF", "costs": pl.Costs.per_stage([1], [1], [1])}, "the costs have 1 stages"),
        ({"order": "BF", "microbatches": 10**8}, "more than 20 million actions"),
    ],
)
def test_wrong_arguments_are_named_with_what_to_give(arguments, words):
    with pytest.raises(ValueError, match=words):
        by_rule(**{"placement": pl.Placement.loop(2), "microbatches": 2, **arguments})


def test_an_action_that_may_not_start_is_shown_where_the_rule_gave_it():
    with pytest.raises(pl.ScheduleError) as refused:
        pl.Schedule.from_rule("hasty", pl.Placement.loop(1), 1, lambda ready, moment: pl.Action(0, "B", 0))
    assert str(refused.value).splitlines() == [
        "rank 0, position 0: the rule gave 0B0, which may not start now; return one of 0F0, or None to wait",
        "rank 0: 0B0",
        "        ^^^",
    ]
