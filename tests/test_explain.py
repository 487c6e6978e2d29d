"""An explanation adds up, without tolerance, for any trace; and what it says is so when it is tried."""

import json
from dataclasses import replace
from fractions import Fraction

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from test_validate import is_legal, legal_schedules

import pipelab as pl
from pipelab.explain import CAUSES, TERMS
from pipelab.explain.advice import recut, rows_of
from pipelab.explain.replay import Steps
from pipelab.lower import lower
from pipelab.simulate import simulate_program
from pipelab.trace import Span, Trace

THOROUGH = settings(max_examples=120)
NAMES = sorted(set(pl.SCHEDULES) - {"pipedream", "inference"})
UNIT = pl.Costs.uniform()
times = st.fractions(min_value=0, max_value=5, max_denominator=7)


def named(name, costs=UNIT, P=4, M=8):
    return pl.simulate(pl.build(name, P, M), costs)


@st.composite
def simulated(draw):
    """Any legal schedule with any times of stages and one latency."""
    schedule = draw(legal_schedules(most_pairs=2))
    assume(is_legal(schedule))
    work = {kind: [draw(times) for _ in range(schedule.stages)] for kind in "FIW"}
    return pl.simulate(schedule, pl.Costs.per_stage(**work, hop=draw(times)))


@st.composite
def measured(draw):
    """Any legal order in which every action starts late by chance and takes its own time, as in a real run."""
    trace = draw(simulated())
    ends, free, spans = {}, [Fraction(0)] * trace.ranks, []
    steps = Steps.of(trace)
    for place in steps.order:
        span = steps.spans[place]
        ready = max([free[span.rank], *(ends[need.giver] for need in steps.needs[place])])
        start = ready + draw(st.sampled_from([0, 0, Fraction(1, 3)]))
        ends[place] = free[span.rank] = start + draw(times)
        spans.append(span._replace(start=start, end=ends[place]))
    return Trace(trace.schedule, "wall", trace.chunks, tuple(spans))


def assert_it_adds_up(trace):
    why = pl.explain(trace)
    assert sum(why.makespan.values()) == trace.makespan and set(why.makespan) == set(TERMS)
    for rank, idle in enumerate(why.idle):
        assert set(idle) == set(CAUSES) and min(idle.values()) >= 0
        assert sum(idle.values()) == trace.makespan - trace.busy[rank]
        own = [pause for pause in why.pauses if pause.rank == rank]
        assert sum(pause.length for pause in own) == sum(idle.values())
    for pause in why.pauses:
        assert sum(time for _, time in pause.causes) == pause.length > 0
        assert sum(leg.length for leg in pause.meanwhile) == pause.length
    assert sum(leg.length for leg in why.critical_path) == trace.makespan
    for one, other in zip(why.critical_path, why.critical_path[1:], strict=False):
        assert one.end == other.start, "a chain has no gap"
    return why


# ------------------------------------------------------------------------------------------------- it adds up


@THOROUGH
@given(simulated())
def test_the_parts_sum_exactly_for_any_legal_schedule_and_costs_and_without_jitter(trace):
    why = assert_it_adds_up(trace)
    assert why.makespan["jitter"] == 0 == sum(idle["jitter"] for idle in why.idle), "a replay gives the same trace"
    assert why.replays.steady.makespan == trace.makespan


@THOROUGH
@given(measured())
def test_the_parts_sum_exactly_for_any_trace_with_delays_by_chance(trace):
    assert_it_adds_up(trace)


@settings(THOROUGH, max_examples=30)
@given(simulated(), measured())
def test_the_difference_of_any_two_traces_is_the_sum_of_its_causes(one, other):
    assert sum(pl.explain(one, against=other).difference.values()) == one.makespan - other.makespan


@pytest.mark.parametrize("hop", [0, Fraction(1, 4), 2])
@pytest.mark.parametrize("name", NAMES)
def test_equal_stages_have_neither_imbalance_nor_jitter_and_no_hop_means_no_communication(name, hop):
    why = assert_it_adds_up(named(name, pl.Costs.uniform(F=1, I=2, W=Fraction(1, 2), hop=hop)))
    for cause in ("imbalance", "jitter", *(["communication"] * (hop == 0))):
        assert why.makespan[cause] == 0 == sum(idle[cause] for idle in why.idle), cause


SKEWED = {"F": 1, "I": 2, "W": Fraction(3, 2)}
EQUAL = {"F": 1, "I": 1, "W": 1}
CLOSED_FOR_EQUAL_TIMES = {"zb-h2", "zb-v", "v-half", "v-min", "1f1b-v", "dualpipe-v"}


@pytest.mark.parametrize("name", sorted(set(NAMES) - {"zb-auto"}))  # what a search finds has no formula
def test_what_the_order_forces_is_the_formula(name):
    times = EQUAL if name in CLOSED_FOR_EQUAL_TIMES else SKEWED
    formula = pl.formula(name, "makespan", P=4, M=8, **times)
    why = pl.explain(named(name, pl.Costs.uniform(**times, hop=Fraction(1, 3))))
    assert why.makespan["work"] + why.makespan["order"] == formula == why.replays.alone.makespan


def test_latency_breaks_the_tie_of_gpipe_and_1f1b():
    gpipe, one_f_one_b = (pl.explain(named(name, pl.Costs.uniform(hop=1))) for name in ("gpipe", "1f1b"))
    for why in (gpipe, one_f_one_b):
        assert (why.makespan["work"], why.makespan["order"]) == (24, 9), "the same bubble without latency"
    assert gpipe.makespan["communication"] == 6, "once there and once back: 2 (P-1) hops"
    assert one_f_one_b.makespan["communication"] == 16
    difference = pl.explain(one_f_one_b.trace, against=gpipe.trace).difference
    assert difference == {"work": 0, "order": 0, "communication": 10, "imbalance": 0, "jitter": 0}


def test_a_slow_stage_is_imbalance_on_the_others_and_none_on_its_own_rank():
    slow = [1, 1, 1, 2]
    why = pl.explain(named("1f1b", pl.Costs.per_stage(F=slow, I=slow, W=slow)))
    assert why.idle[3]["imbalance"] == 0
    assert all(why.idle[rank]["imbalance"] > 8 for rank in range(3))
    assert why.makespan["imbalance"] == why.trace.makespan - pl.formula("1f1b", "makespan", P=4, M=8) * Fraction(5, 4)


def test_a_rank_without_work_is_idle_because_of_imbalance():
    why = pl.explain(pl.simulate(replace(pl.Schedule.from_text("0F0 0B0"), placement=pl.Placement(2, (0,)),
                                         rows=(pl.Schedule.from_text("0F0 0B0").rows[0], ())), UNIT))  # fmt: skip
    assert why.idle[1]["imbalance"] == why.trace.makespan == sum(why.idle[1].values())


# ------------------------------------------------------------------------------------------- the waits are named


def test_a_pause_names_what_it_waits_for_and_what_went_on_meanwhile():
    (first, *_) = (pause for pause in pl.explain(named("1f1b")).pauses if pause.rank == 0)
    assert (str(first.before), str(first.waiting_for), first.start, first.end) == ("0B0", "1B0", 4, 10)
    assert [str(leg.action) for leg in first.meanwhile] == ["3B0", "2B0", "1B0"]
    assert first.causes == (("dependency", 6),)


def test_the_critical_path_of_1f1b_goes_down_stays_on_the_last_rank_and_comes_back():
    path = pl.explain(named("1f1b")).critical_path
    assert [leg.rank for leg in path] == [0, 1, 2, *[3] * 16, 2, 1, 0]
    assert {leg.kind for leg in path} == {"work"}


def test_hops_are_on_the_critical_path_with_their_length():
    path = pl.explain(named("gpipe", pl.Costs.uniform(hop=Fraction(1, 3)))).critical_path
    assert [leg.length for leg in path if leg.kind == "hop"] == [Fraction(1, 3)] * 6


@pytest.mark.parametrize("name", ["1f1b", "zb-v", "dualpipe-v"])
def test_messages_in_lanes_of_their_own_are_explained_in_the_same_way(name):
    schedule, costs = pl.build(name, 3, 6), pl.Costs.uniform(F=2, hop=Fraction(1, 2))
    one = pl.explain(pl.simulate(schedule, costs))
    other = pl.explain(simulate_program(lower(schedule), costs))
    assert (one.idle, one.makespan, one.critical_path) == (other.idle, other.makespan, other.critical_path)


# ------------------------------------------------------------------------------------------- advice is simulated


@pytest.mark.parametrize("name", NAMES)
def test_every_gain_is_what_the_simulator_says(name):
    why = pl.explain(named(name))
    gains = [change.gain for change in why.advice]
    assert gains == sorted(gains, reverse=True) and len(gains) >= 12
    for change in why.advice:
        assert change.gain == why.trace.makespan - change.trace.makespan
        other = change.what.split(" ")[0]
        if other in pl.SCHEDULES and other != "zb-auto":
            chunks = 2 if "chunks" in change.what or other in ("interleaved", "looped-bfs", "interleaved-zb") else None
            assert change.trace.makespan == pl.simulate(pl.build(other, 4, 8, chunks), UNIT).makespan


def test_advice_knows_stages_latency_memory_and_the_number_of_micro_batches():
    slow = [1, 1, 1, 2]
    costs = pl.Costs.per_stage(F=slow, I=slow, W=slow, hop=1)
    why = pl.explain(named("gpipe", costs))
    tried = {change.what: change for change in why.advice}
    assert tried["messages that take no time"].gain == 6
    even = pl.simulate(pl.build("gpipe", 4, 8), pl.Costs.uniform(*[Fraction(5, 4)] * 3, hop=1))
    assert tried["stages of equal work"].trace.makespan == even.makespan
    twice = tried["the same batch in 16 micro-batches instead of 8"]
    half = [Fraction(time, 2) for time in slow]
    assert twice.trace.makespan == named("gpipe", pl.Costs.per_stage(half, half, half, hop=1), M=16).makespan
    assert twice.peak == 8 and tried["1f1b"].peak == 4


def test_halves_that_the_trace_does_not_show_are_named_as_assumed():
    tried = {change.what: change.assumes for change in pl.explain(named("1f1b")).advice}
    assert tried["zb-h1 (the backward split)"] == "B splits into equal halves at no cost"
    assert {change.assumes for change in pl.explain(named("zb-h1")).advice if change.what == "gpipe"} == {""}


@given(st.lists(times, min_size=1, max_size=6), st.integers(1, 12))
@THOROUGH
def test_cutting_a_model_again_keeps_its_work(work, stages):
    assert sum(recut(work, stages)) == sum(work) and len(recut(work, stages)) == stages
    assert recut(work, len(work)) == work


@THOROUGH
@given(legal_schedules(most_pairs=2))
def test_the_schedule_is_read_off_the_trace(schedule):
    assume(is_legal(schedule))
    trace = pl.simulate(replace(schedule, name="mine"), UNIT)
    assert rows_of(trace) == replace(schedule, name="mine")


# --------------------------------------------------------------------------------------- any trace, and none at all


@pytest.mark.parametrize("name", NAMES)
def test_a_trace_read_from_json_is_explained_alike(name):
    trace = named(name, pl.Costs.uniform(hop=0.5))
    assert str(pl.explain(Trace.from_json(trace.to_json()))) == str(pl.explain(trace))


def test_forwards_alone_are_explained_and_it_says_what_was_not_tried():
    row = [Span(rank, "compute", pl.Action(rank, "F", m), rank + m, rank + m + 1) for rank in (0, 1) for m in (0, 1)]
    why = assert_it_adds_up(Trace("inference", "virtual", (1, 1), tuple(row)))
    assert why.idle[0]["cool-down"] == why.idle[1]["warm-up"] == 1
    (note,) = why.notes
    assert "not tried: the trace does not have a forward and a backward of every stage and micro-batch" in note


def span(rank, text, start, end, waiting_for=None):
    return Span(rank, "compute", pl.Action.parse(text), start, end, waiting_for)


@pytest.mark.parametrize(
    ("spans", "sentence"),
    [
        ([], "no compute spans"),
        ([span(0, "0F0", 0, 1), span(0, "0F0", 1, 2)], "0F0 comes twice"),
        ([span(0, "0F0", 0, 2), span(0, "0B0", 1, 3)], "rank 0 starts 0B0 before it ends 0F0"),
        ([span(0, "0B0", 0, 1), span(0, "0F0", 1, 2)], "0B0 waits for itself in a circle"),
    ],
)
def test_what_is_no_step_is_refused_in_a_sentence(spans, sentence):
    with pytest.raises(ValueError, match=sentence):
        pl.explain(Trace("odd", "wall", (1,), tuple(spans)))


def test_clocks_that_disagree_by_more_than_a_hop_still_give_a_path_of_the_right_length():
    spans = (span(0, "0F0", 0, 5), span(1, "1F0", 4, 7, pl.Action.parse("0F0")), span(1, "1B0", 7, 9))
    assert_it_adds_up(Trace("skewed", "wall", (1, 1), spans))


def test_time_in_which_the_trace_shows_nothing_is_on_the_path():
    spans = (span(0, "0F0", 0, 1), span(0, "0B0", 3, 4))
    why = assert_it_adds_up(Trace("slow host", "wall", (1,), spans))
    assert [leg.kind for leg in why.critical_path] == ["work", "nothing", "work"]
    assert why.idle[0]["jitter"] == 2


# ------------------------------------------------------------------------------------------------- the sentences


def test_the_paragraph_of_1f1b():
    assert str(pl.explain(named("1f1b"))) == (
        "1f1b on 4 ranks takes 33 in simulated time: 24 (work of each rank) + 9 (waiting that this order "
        "forces). All ranks together are idle for 36, 27.3 % of the step: 6 before a rank's first action "
        "(warm-up), 12 after its last one (cool-down) and 18 for results of other ranks (dependency). No "
        "pause between two actions is longer than rank 0's before 0B0, 6: it waits for 1B0 from rank 1, which "
        "is late because 3B0, 2B0 and 1B0 run one after another. A critical path: 0F0, 1F0, 2F0, rank 3 from "
        "3F0 to 3B7 without a pause (24), 2B7, 1B7, 0B7. Of 14 simulated changes none helps more than "
        "interleaved-zb (2 chunks a rank, the backward split): 25.5 instead of 33, if stages can be cut in "
        "equal parts and B splits into equal halves at no cost; it takes no more memory."
    )


def test_the_paragraph_of_one_rank():
    assert str(pl.explain(named("gpipe", P=1))).startswith(
        "gpipe on 1 rank takes 24 in simulated time: 24 (work of each rank). No rank is ever idle. A critical path:"
    )


def test_the_sentence_of_a_difference():
    text = str(pl.explain(named("1f1b", pl.Costs.uniform(hop=1)), against=named("gpipe", pl.Costs.uniform(hop=1))))
    assert text.startswith(
        "1f1b in simulated time takes 49, 10 longer than gpipe in simulated time (39), and the difference is made of"
        " 10 (messages). 1f1b on 4 ranks takes 49"
    )
    same = str(pl.explain(named("1f1b"), against=named("1f1b")))
    assert same.startswith("1f1b in simulated time takes 33, as long as the one it is compared with (33). 1f1b")


@settings(THOROUGH, max_examples=30)
@given(measured())
def test_there_is_a_paragraph_a_table_and_a_dict_for_any_trace(trace):
    why = pl.explain(trace)
    assert str(why).endswith(".") and "| all |" in why._repr_markdown_() and trace.schedule in repr(why)
    assert json.loads(json.dumps(why.as_dict(), default=float))["text"] == str(why)


def test_a_path_says_what_it_does_not_know():
    spans = (span(0, "0F0", 0, 1), span(0, "0B0", 3, 4))
    assert "A critical path: 0F0, 0B0 and 2 s in which the trace shows nothing." in str(
        pl.explain(Trace("slow host", "wall", (1,), spans))
    )


def test_a_schedule_is_no_trace_to_explain():
    schedule = pl.build("gpipe", 2, 2)
    trace = pl.simulate(schedule, pl.Costs.uniform())
    for arguments in ((schedule,), (trace, schedule), (None,)):
        with pytest.raises(ValueError, match=r"explain takes a trace, as of simulate\(schedule, costs\)"):
            pl.explain(*arguments)


def test_no_synchronous_schedule_is_proposed_in_place_of_pipedream():
    said = pl.explain(pl.simulate(pl.build("pipedream", 4, 8), pl.Costs.uniform(hop=1)))
    assert [change.what for change in said.advice] == ["messages that take no time"]
    assert said.notes == ("Other schedules were not tried: none of them trains as pipedream does.",)


def test_tensor_shards_that_meet_within_an_action_are_told_apart_from_idle_time():
    costs = pl.Costs.uniform(F=2, I=2, W=2)
    plain = pl.simulate(pl.build("gpipe", 2, 2), costs)
    halves = [span._replace(lane="collective", start=span.end - 1) for span in plain.spans if span.lane == "compute"]
    shards = Trace(plain.schedule, plain.clock, plain.chunks, (*plain.spans, *halves))
    found, without = pl.explain(shards), pl.explain(plain)
    assert found.idle == without.idle and found.makespan == without.makespan
    idle = sum(sum(causes.values()) for causes in found.idle)
    assert Fraction(idle, 2 * shards.makespan) == plain.bubble("step") < shards.bubble("step")
    assert "33.3 % of the step" in str(found) and "33.3 % of the step" in str(without)
    assert "Of the work of all ranks, 8 are collectives within actions" in str(found)
