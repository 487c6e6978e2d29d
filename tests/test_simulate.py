"""Simulated time is right: against the lowered program, and against a small simulator of its own."""

import tracemalloc
from fractions import Fraction
from itertools import product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_validate import flat, legal_schedules

from pipelab.action import Action, Pair
from pipelab.costs import Costs, Link
from pipelab.lower import lower
from pipelab.placement import Placement
from pipelab.schedule import Schedule, ScheduleError
from pipelab.schedules import SCHEDULES, build, options_of
from pipelab.simulate import simulate, simulate_program
from pipelab.trace import Span, Trace
from pipelab.validate import validate

COSTS = [
    (1, 1, 1, 0),
    (3, 2, 1, Fraction(1, 3)),
    (2, 5, 0, 4),
    (0, 1, 7, 1),
    (Fraction(1, 7), 2, 3, Fraction(5, 2)),
]
NAMED = [
    build(name, P, M, V)
    for name, P, M, V in product(SCHEDULES, (1, 2, 3, 5), (1, 2, 4, 7), (None, 2, 3))
    if V is None or (name in ("interleaved", "looped-bfs", "interleaved-zb") and "chunks" in options_of(name))
]


def replayed(schedule, work, hop):
    """(rank, element): (start, end), by trying every rank until nothing moves; `work[kind]` is of a rank."""
    chunks = [schedule.placement.rank_of.count(rank) for rank in range(schedule.ranks)]
    ready, free, at, spans, moved = {}, [0] * schedule.ranks, [0] * schedule.ranks, {}, True
    while moved:
        moved = False
        for rank, row in enumerate(schedule.rows):
            if at[rank] == len(row):
                continue
            element = row[at[rank]]
            arrivals = [arrival(ready, need, rank, hop) for a in flat(element) for need in wanted(a, schedule.stages)]
            if None in arrivals:
                continue
            start = max([free[rank], *arrivals])
            end = start + sum(Fraction(work[action.kind]) / chunks[rank] for action in flat(element))
            for action in flat(element):
                ready["gradient" if action.kind in "BI" else action.kind, action.stage, action.microbatch] = (
                    end,
                    rank,
                )
            spans[rank, str(element)] = start, end
            free[rank], at[rank], moved = end, at[rank] + 1, True
    return spans


def wanted(action, stages):
    stage, kind, microbatch = action
    if kind == "F":
        return [("F", stage - 1, microbatch)] if stage else []
    if kind == "W":
        return [("gradient", stage, microbatch)]
    return [("F", stage, microbatch)] + [("gradient", stage + 1, microbatch)] * (stage + 1 < stages)


def arrival(ready, need, rank, hop):
    if need not in ready:
        return None
    end, where = ready[need]
    return end + (hop if where != rank else 0)


def by_element(trace):
    return {(span.rank, str(span.action)): (span.start, span.end) for span in trace.spans if span.lane == "compute"}


def assert_three_simulators_agree(schedule, F, I, W, hop):  # noqa: E741
    costs = Costs.uniform(F=F, I=I, W=W, hop=hop)
    trace = simulate(schedule, costs)
    assert by_element(trace) == replayed(schedule, {"F": F, "I": I, "W": W, "B": I + W}, hop)
    program = simulate_program(lower(schedule), costs)
    assert by_element(program) == by_element(trace)
    assert (program.makespan, program.span, program.bubbles()) == (
        trace.makespan,
        trace.span,
        trace.bubbles(),
    )
    return trace, program


@pytest.mark.parametrize("costs", COSTS)
def test_named_schedules_take_the_same_time_in_three_simulators(costs):
    for schedule in NAMED:
        trace, program = assert_three_simulators_agree(schedule, *costs)
        assert program.compute == trace.compute  # what each waited for, too


@settings(max_examples=150)
@given(legal_schedules(most_pairs=3), st.sampled_from(COSTS))
def test_any_legal_schedule_takes_the_same_time_in_three_simulators(schedule, costs):
    try:
        validate(schedule)
    except ScheduleError:
        with pytest.raises(ScheduleError):
            simulate(schedule, Costs.uniform(*costs))
    else:
        trace, program = assert_three_simulators_agree(schedule, *costs)
        for rank, row in enumerate(trace.compute):
            assert [span.action for span in row] == list(schedule.rows[rank])
        sends = [span for span in program.spans if span.lane == "send"]
        receives = [span for span in program.spans if span.lane == "recv"]
        assert len(sends) == len(receives) and all(span.end - span.start == costs[3] for span in sends)


def test_a_wait_names_the_action_that_was_waited_for():
    trace = simulate(build("1f1b", 2, 2), Costs.uniform(F=1, I=1, W=1, hop=1))
    waits = {str(span.action): span.waiting_for and str(span.waiting_for) for span in trace.spans}
    assert waits == {
        "0F0": None,
        "0F1": None,
        "1F0": "0F0",
        "1B0": None,
        "0B0": "1B0",
        "1F1": None,
        "1B1": None,
        "0B1": "1B1",
    }


def test_a_pair_takes_the_time_of_both_halves_and_needs_what_both_need():
    schedule = Schedule.from_text("0F0 0F1 0B0 0B1\n1F0 1F1+1B0 1B1")
    trace, _ = assert_three_simulators_agree(schedule, 1, 1, 1, 0)
    assert {str(span.action): (span.start, span.end) for span in trace.compute[1]} == {
        "1F0": (1, 2),
        "1F1+1B0": (2, 5),
        "1B1": (5, 7),
    }
    assert trace.peak_in_flight == (2, 2)  # both micro-batches are held while the pair runs
    overlap = Pair(Action(0, "F", 1), Action(0, "B", 0))
    one_rank = Schedule("hand-made", Placement.loop(1), 2, ((Action(0, "F", 0), overlap, Action(0, "B", 1)),))
    assert simulate(one_rank, Costs.uniform(F=2, I=3, W=5)).makespan == 2 * (2 + 3 + 5)


def hand_made():
    """Two ranks: busy 3 of 0..4, and 4 of 1..6, so ideal 4, longest span 5, makespan 6."""
    return Trace(
        "hand-made",
        "simulated",
        (1, 1),
        (
            Span(0, "compute", Action(0, "F", 0), 0, 1),
            Span(0, "send", Action(0, "SEND_F", 0), 1, 1),
            Span(1, "recv", Action(1, "RECV_F", 0), 0, 1, Action(0, "F", 0)),
            Span(1, "compute", Action(1, "F", 0), 1, 3, Action(0, "F", 0)),
            Span(0, "compute", Action(0, "B", 0), 2, 4),
            Span(1, "compute", Action(1, "B", 0), 4, 6),
        ),
    )


def test_the_three_bubbles_of_a_trace_made_by_hand():
    trace = hand_made()
    assert (trace.busy, trace.makespan, trace.span) == ((3, 4), 6, 5)
    assert trace.bubble("step") == 1 - Fraction(3 + 4, 2 * 6)
    assert trace.bubble("span") == 1 - Fraction(4, 5)
    assert trace.bubble("overhead") == Fraction(6, 4) - 1
    assert trace.bubbles() == {kind: trace.bubble(kind) for kind in ("step", "span", "overhead")}
    with pytest.raises(ValueError, match="a bubble is 'step', 'span' or 'overhead': got 'idle'"):
        trace.bubble("idle")


def test_recomputation_is_busy_time_and_messages_are_not():
    trace = hand_made()
    recompute = Span(0, "compute", Action(0, "F", 0), 1, 2)
    spans = (*trace.spans[:1], recompute, *trace.spans[1:])
    assert Trace("r", "simulated", (1, 1), spans).busy == (4, 4)


def test_peaks_count_from_the_start_of_f_to_the_end_of_b_or_w_and_a_chunk_as_its_share():
    text = "0F0 0F1 0I0 0I1 0F2 0W0 0W1 0I2 0W2"
    trace = simulate(Schedule.from_text(text), Costs.uniform())
    assert (trace.peak_in_flight, trace.peak_until_input) == ((3,), (2,))
    two_chunks = simulate(Schedule.from_text("0F0 1F0 1B0 0B0"), Costs.uniform())
    assert two_chunks.peak_in_flight == (1,)


@pytest.mark.parametrize("hop", [0, 0.75, Fraction(3, 4)])
def test_a_trace_survives_json(hop):
    """With the same times where they are whole or halves, to a float's precision where they are thirds."""
    for schedule in NAMED:
        costs = Costs.uniform(F=1, I=2, W=1, hop=hop)
        for trace in (simulate(schedule, costs), simulate_program(lower(schedule), costs)):
            again = Trace.from_json(trace.to_json())
            assert again.to_json() == trace.to_json()
            if schedule.stages != 3 * schedule.ranks:
                assert again == trace
            assert again.bubbles() == pytest.approx({kind: float(b) for kind, b in trace.bubbles().items()})
    assert Trace.from_json(hand_made().to_json()) == hand_made()


@pytest.mark.parametrize(
    "text",
    [
        "",
        "1",
        "[]",
        "{}",
        '{"schedule": "x", "clock": "wall", "chunks": [1], "spans": [[0, "compute", "0X0", 0, 1, null]]}',
    ],
)
def test_json_that_is_no_trace_is_refused_in_a_sentence(text):
    with pytest.raises(ValueError, match=r"this is not a pipelab trace .*; write one with Trace\.to_json\(\)"):
        Trace.from_json(text)


def test_costs_per_stage_are_used_stage_by_stage():
    schedule = Schedule.from_text("0F0 2F0 2B0 0B0\n1F0 1I0 1W0")
    trace = simulate(schedule, Costs.per_stage(F=[1, 2, 3], I=[10, 20, 30], W=[100, 200, 300], hop=1000))
    assert by_element(trace) == {
        (0, "0F0"): (0, 1),
        (1, "1F0"): (1001, 1003),
        (0, "2F0"): (2003, 2006),
        (0, "2B0"): (2006, 2336),
        (1, "1I0"): (3336, 3356),
        (1, "1W0"): (3356, 3556),
        (0, "0B0"): (4356, 4466),
    }


@pytest.mark.parametrize("name", ["1f1b", "interleaved", "zb-h1"])
def test_measured_costs_of_a_simulated_program_are_the_costs(name):
    schedule = build(name, 3, 5, 2 if name == "interleaved" else None)
    stages = range(schedule.stages)
    costs = Costs.per_stage(
        F=[1 + stage for stage in stages],
        I=[2 + Fraction(stage, 3) for stage in stages],
        W=[3 + stage % 2 for stage in stages],
        hop=Fraction(2, 7),
    )
    trace = simulate_program(lower(schedule), costs)
    measured, true = Costs.measured(trace).durations(schedule.placement), costs.durations(schedule.placement)
    kinds = "FIW" if name == "zb-h1" else "FB"
    assert all(measured[stage, kind] == true[stage, kind] for stage in stages for kind in kinds)
    replay = simulate(schedule, Costs.measured([trace, trace]))  # a median of two equal numbers may be a float
    assert [span.action for span in replay.spans] == [span.action for span in trace.spans if span.lane == "compute"]
    assert float(replay.makespan) == pytest.approx(float(trace.makespan), rel=1e-12)
    no_messages = Costs.measured(simulate(schedule, costs))  # its messages are edges: no flight is seen
    assert simulate(schedule, no_messages).makespan < trace.makespan


def test_measured_takes_the_median_and_knows_only_what_it_saw():
    spans = [Span(0, "compute", Action(0, "F", m), 10 * m, 10 * m + length) for m, length in enumerate([1, 9, 2])]
    backward = Span(0, "compute", Action(0, "B", 0), 30, 34)
    costs = Costs.measured(Trace("t", "wall", (1,), (*spans, backward)))
    assert simulate(build("1f1b", 1, 4), costs).makespan == 4 * (2 + 4)
    with pytest.raises(ValueError, match="these costs say nothing of I on stage 0, only of B, F; measure them"):
        simulate(build("zb-h1", 1, 4), costs)
    with pytest.raises(ValueError, match="this trace has no compute spans"):
        Costs.measured(Trace("t", "wall", (1,), ()))


@pytest.mark.parametrize("wrong", [-1, float("nan"), float("inf"), -0.5, "1", None])
def test_costs_that_are_no_times_are_refused(wrong):
    for make in (
        lambda: Costs.uniform(F=wrong),
        lambda: Costs.uniform(hop=wrong),
        lambda: Costs.per_stage(F=[1], I=[wrong], W=[1]),
        lambda: Costs.per_stage(F=[1], I=[1], W=[1], hop=wrong),
    ):
        with pytest.raises(ValueError, match=r"(F|I|hop) must be a time of at least 0: got"):
            make()


def test_costs_that_do_not_fit_are_refused_in_a_sentence():
    with pytest.raises(ValueError, match="F, I and W need one time for each stage: got F 2, I 1, W 2"):
        Costs.per_stage(F=[1, 2], I=[1], W=[1, 2])
    with pytest.raises(ValueError, match="the costs have 2 stages and the schedule 4; give one time a stage"):
        simulate(build("1f1b", 4, 2), Costs.per_stage(F=[1, 2], I=[1, 2], W=[1, 2]))
    with pytest.raises(ValueError, match="bytes_per_second must be positive: got 0"):
        Link(bytes_per_second=0)


@pytest.mark.parametrize("text", ["0B0 0F0", "0F0 0B0 0F1 0B1\n1F0 1F1 1B0 1B1", "0F0 0F1+0B1 0B0\n1F0 1B0 1F1 1B1"])
def test_a_schedule_that_cannot_run_is_refused_with_the_reasons_of_validate(text):
    schedule = Schedule.from_text(text)
    with pytest.raises(ScheduleError) as expected:
        validate(schedule)
    with pytest.raises(ScheduleError) as found:
        simulate(schedule, Costs.uniform())
    assert found.value.reasons == expected.value.reasons


def test_a_link_takes_latency_and_bytes_over_bandwidth():
    assert Link(latency=0.5, bytes_per_second=100).seconds(50) == 1.0
    assert Link(latency=0.5).seconds(10**9) == 0.5


def test_fractions_are_counted_in_ticks_and_are_the_same_trace_in_time():
    half, third = Fraction(1, 2), Fraction(1, 3)
    trace = simulate(build("dualpipe-v", 2, 5), Costs.uniform(F=half, I=third, W=half, hop=third))
    by_hand = Trace(trace.schedule, trace.clock, trace.chunks, trace.spans)
    assert trace.ticks > by_hand.ticks == 1
    assert (trace, hash(trace)) == (by_hand, hash(by_hand))
    for figure in ("busy", "makespan", "span", "peak_in_flight", "peak_until_input"):
        assert getattr(trace, figure) == getattr(by_hand, figure)
    assert trace.bubbles() == by_hand.bubbles() and trace.compute == by_hand.compute


@pytest.mark.parametrize("name", [name for name in SCHEDULES if name != "zb-auto"])
def test_a_trace_takes_at_most_400_bytes_an_action(name):
    schedule = build(name, 4, 500)
    tracemalloc.start()
    simulate(schedule, Costs.uniform(F=Fraction(1, 3), I=Fraction(2, 7), hop=1)).bubbles()
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 400 * sum(1 for _ in schedule.actions())
