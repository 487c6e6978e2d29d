"""R stands where a backward would find nothing: once for each micro-batch that is not kept, in no schedule."""

import itertools

import pytest

import pipelab as pl
from pipelab.action import B, F, I, R, parts
from pipelab.recompute import policies, recomputed
from pipelab.simulate import simulate_program

NAMES = ["naive", "gpipe", "1f1b", "interleaved", "looped-bfs", "zb-h1", "zb-h2", "zb-v", "v-half", "dualpipe-v"]
SHAPES = [(name, ranks, count) for name in NAMES for ranks in (1, 2, 4) for count in (1, 3, 8)]


def schedule_of(name, ranks, microbatches):
    return pl.build(name, ranks, microbatches, 2 if name in ("interleaved", "looped-bfs") and ranks > 1 else None)


@pytest.mark.parametrize(("name", "ranks", "microbatches"), SHAPES)
@pytest.mark.parametrize("hoist", [0, 1, 3])
def test_each_forward_has_one_r_between_itself_and_its_backward(name, ranks, microbatches, hoist):
    schedule = schedule_of(name, ranks, microbatches)
    for row in pl.lower(schedule, checkpointing="full", hoist=hoist).rows:
        places = {action: place for place, element in enumerate(row) for action in parts(element)}
        assert sum(map(len, map(parts, row))) == len(places), "nothing is doubled"
        for (stage, kind, m), place in places.items():
            if kind == F:
                backward = min(places[a] for a in ((stage, B, m), (stage, I, m)) if a in places)
                assert place < places[stage, R, m] < backward


@pytest.mark.parametrize(("name", "ranks", "microbatches"), SHAPES)
def test_without_r_the_program_is_that_of_no_checkpointing(name, ranks, microbatches):
    schedule = schedule_of(name, ranks, microbatches)
    rows = pl.lower(schedule, checkpointing="full", hoist=2).rows
    plain = tuple(tuple(element for element in row if element[1] != R) for row in rows)
    assert plain == pl.lower(schedule, checkpointing="none").rows == pl.lower(schedule).rows


@pytest.mark.parametrize(("name", "ranks", "microbatches"), SHAPES)
@pytest.mark.parametrize("hop", [0, 2])
def test_an_r_before_its_own_wait_delays_nothing(name, ranks, microbatches, hop):
    schedule, costs = schedule_of(name, ranks, microbatches), pl.Costs.uniform(F=2, I=3, W=1, hop=hop, R=2)
    late, early = (
        {span.action: span.end for row in simulate_program(program, costs).compute for span in row}
        for program in (pl.lower(schedule, checkpointing="full", hoist=hoist) for hoist in (0, 1))
    )
    assert all(early[action] <= end for action, end in late.items())


@pytest.mark.parametrize("ranks", [2, 4, 8])
@pytest.mark.parametrize("name", ["gpipe", "1f1b"])
def test_full_recomputation_takes_a_third_more_and_the_bubble_keeps_its_share(name, ranks):
    schedule, costs = pl.build(name, ranks, 2 * ranks), pl.Costs.uniform(F=1, I=1, W=1)
    plain, full = (simulate_program(pl.lower(schedule, checkpointing=p), costs) for p in ("none", "full"))
    assert full.makespan * 3 == plain.makespan * 4
    assert full.bubbles() == plain.bubbles()
    hidden = simulate_program(pl.lower(schedule, checkpointing="full", hoist=1), costs)
    assert full.makespan - hidden.makespan == ranks - 1, "each rank but the last recomputes while it waits, once"


@pytest.mark.parametrize("hoist", [0, 1, 2, 4])
def test_no_more_than_hoist_micro_batches_are_rebuilt_at_a_time(hoist):
    for name in ("gpipe", "1f1b", "zb-h1"):
        for row in pl.lower(pl.build(name, 4, 8), checkpointing="full", hoist=hoist).rows:
            rebuilt = most = 0
            for element in row:
                rebuilt += (element.kind == R) - (element.kind in (B, I))
                most = max(most, rebuilt)
            assert most <= max(hoist, 1)


def test_r_costs_what_f_costs_unless_it_is_told():
    program = pl.lower(pl.build("gpipe", 1, 2), checkpointing="full")
    for costs, makespan in (
        (pl.Costs.uniform(F=2), 2 * (2 + 2 + 2)),
        (pl.Costs.uniform(F=2, R=0), 2 * (2 + 2)),
        (pl.Costs.per_stage(F=[2], I=[1], W=[1], R=[5]), 2 * (2 + 5 + 2)),
    ):
        trace = simulate_program(program, costs)
        assert trace.makespan == makespan == trace.busy[0], "R is work, no bubble"
        assert pl.Trace.from_json(trace.to_json()) == trace
        assert simulate_program(program, pl.Costs.measured(trace)) == trace


def test_except_last_keeps_exactly_the_micro_batches_whose_backward_comes_next():
    schedule = pl.build("1f1b", 4, 8)
    kept = {(stage, m) for stage in range(4) for m in range(8)} - recomputed(schedule, ["except-last"] * 4)
    assert kept == {(3, m) for m in range(8)}
    assert not recomputed(pl.build("naive", 4, 8), ["except-last"] * 4)
    last_first = pl.build("gpipe", 4, 8, backward_order="lifo")
    assert len(recomputed(last_first, ["except-last"] * 4)) == 4 * 8 - 4, "on each rank the last one, as in torchgpipe"


def test_in_an_explanation_r_is_work_and_other_schedules_recompute_too():
    trace = simulate_program(pl.lower(pl.build("1f1b", 4, 8), checkpointing="full"), pl.Costs.uniform())
    why = pl.explain(trace)
    assert why.makespan["work"] == 8 * 4 and sum(why.makespan.values()) == trace.makespan
    (gpipe,) = (change for change in why.advice if change.what == "gpipe")
    assert gpipe.trace.makespan == (8 + 3) * 4 and "right before its backward" in gpipe.assumes


def test_a_schedule_holds_no_r():
    assert str(pl.Action.parse("0R1")) == "0R1"
    with pytest.raises(pl.ScheduleError, match="0R0 is a recomputation, which `lower` adds; a schedule holds F, B, I"):
        pl.Schedule.from_text("0F0 0R0 0B0")
    rows = ((pl.Action(0, F, 0), pl.Action(0, R, 0), pl.Action(0, B, 0)),)
    with pytest.raises(pl.ScheduleError, match="0R0 is not compute work; a schedule holds F, B, I and W only"):
        pl.validate(pl.Schedule("mine", pl.Placement.loop(1), 1, rows))


@pytest.mark.parametrize("policy", ["every-0", "every-", "every--1", "every-1.5", "Full", "", "r", None, 3])
def test_an_unknown_policy_is_refused_with_the_list(policy):
    for asked in (policy, ["none", policy]):
        with pytest.raises(ValueError, match=r"none, full, selective, every-K .* or except-last"):
            policies(asked, 2)


@pytest.mark.parametrize("length", [0, 1, 3])
def test_one_policy_a_stage_or_one_for_all(length):
    with pytest.raises(ValueError, match=f"one policy a stage, 2 in all: got {length}"):
        pl.lower(pl.build("gpipe", 2, 2), checkpointing=["full"] * length)


@pytest.mark.parametrize("hoist", [-1, 0.5, "1"])
def test_a_hoist_is_a_count(hoist):
    with pytest.raises(ValueError, match="hoist is how many waits R is put forward, 0 or more"):
        pl.lower(pl.build("gpipe", 2, 2), checkpointing="full", hoist=hoist)


def test_policies_mix_within_a_program():
    schedule = pl.build("zb-h1", 3, 4)
    for mixture in itertools.product(("none", "selective", "full"), repeat=3):
        rows = pl.lower(schedule, checkpointing=mixture).rows
        assert [any(element[1] == R for element in row) for row in rows] == [word != "none" for word in mixture]
