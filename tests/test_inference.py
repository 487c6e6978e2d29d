"""Evaluation through the pipeline equals the uncut model's; a schedule of forwards only is judged, timed and drawn."""

import copy
from dataclasses import replace
from itertools import product

import pytest
import torch
from torch.nn import functional

import pipelab as pl
from pipelab.data import Batches, load_text
from pipelab.explain import explain
from pipelab.generation import generate
from pipelab.inference import evaluate
from pipelab.models import GPTConfig, build_model
from pipelab.show.memory import in_flight_curve
from pipelab.simulate import simulate_program

SMALL = GPTConfig(vocabulary=256, width=16, heads=2, layers=4, context=8, dropout=0.3)


def batches(microbatches, steps=2):
    return Batches(text=load_text("stdlib-docs"), microbatches=microbatches, rows=2, context=8, seed=0, steps=steps)


@pytest.mark.parametrize("ranks, microbatches", [(1, 1), (2, 3), (4, 5), (3, 1)])
def test_losses_are_the_uncut_models_and_nothing_changes(ranks, microbatches):
    model = build_model(SMALL, dtype=torch.float64)
    before = copy.deepcopy(model)
    run = evaluate(model, batches(microbatches), pl.build("inference", ranks, microbatches))
    before.eval()  # no dropout
    for loss, (inputs, targets) in zip(run.losses, batches(microbatches), strict=True):
        expected = functional.cross_entropy(before(inputs).flatten(0, 1), targets.flatten())
        assert loss == pytest.approx(expected.item(), rel=1e-12)
    assert all(torch.equal(p, dict(before.named_parameters())[name]) for name, p in model.named_parameters())
    assert all(p.grad is None for p in model.parameters()) and model.training
    assert run.trace.peak_in_flight == (1,) * ranks


def test_bubbles_stand_beside_replay_and_formula():
    run = evaluate(build_model(SMALL), batches(4), pl.build("inference", 2, 4))
    bubbles = run.bubbles()
    assert bubbles["formula"]["step"] == pytest.approx(1 / 5)
    assert 0 < bubbles["replayed"]["step"] < 1


def test_rows_without_a_backward_are_inference_only_where_the_schedule_says_so():
    rows = pl.Schedule.from_text("0F0 0F1\n1F0 1F1")
    with pytest.raises(pl.ScheduleError, match="the backward of 0F0 is missing"):
        pl.validate(rows)
    assert pl.validate(replace(rows, forward_only=True)).rows == pl.build("inference", 2, 2).rows
    for text, sentence in [
        ("0F0 0F1 0B0\n1F0 1F1", "0B0 is no forward, and this schedule is of forwards only"),
        ("0F0 0F1\n1F0", "rank 1: 1F1 is missing: stage 1 never runs micro-batch 1 forward"),
        ("0F0 0F1 0F0\n1F0 1F1", "0F0 is doubled"),
        ("2F0 0F0 2F1 0F1\n1F0 1F1\n", "deadlock: rank 0, position 0: 2F0 waits for 1F0"),
    ]:
        with pytest.raises(pl.ScheduleError, match=sentence):
            pl.validate(replace(pl.Schedule.from_text(text), forward_only=True))


def test_generation_played_from_rows_is_the_lowered_program_played():
    for P, groups, rounds, hop in product((1, 2, 3, 5), (1, 2, 4, 8), (1, 2, 5), (0, 1, 0.25)):
        schedule, costs = pl.build("inference", P, groups * rounds, groups=groups), pl.Costs.uniform(F=2, hop=hop)
        assert pl.validate(schedule) is schedule
        assert pl.simulate(schedule, costs).compute == simulate_program(pl.lower(schedule), costs).compute


def test_generation_takes_a_round_trip_a_token_or_the_time_of_all_groups():
    """Rounds of max(P (F + hop), m F); the last token is through after the remaining way down the ranks."""
    for P, groups, rounds, hop in product((2, 3, 5), (1, 2, 4, 8), (1, 2, 5), (0, 1)):
        trace = pl.simulate(pl.build("inference", P, groups * rounds, groups=groups), pl.Costs.uniform(F=2, hop=hop))
        turn = max(P * (2 + hop), groups * 2)
        assert trace.makespan == (rounds - 1) * turn + (groups + P - 1) * 2 + (P - 1) * hop
        if hop == 0 and rounds == 5:
            assert abs(1 - trace.bubble("span") - min(1, groups / P)) <= 1 / 10


def test_the_curve_of_a_forward_only_trace_never_holds_more_than_one():
    trace = pl.simulate(pl.build("inference", 3, 6), pl.Costs.uniform())
    assert max(held for _, held in in_flight_curve(trace, rank=0)) == 1


def test_a_token_goes_from_the_last_rank_to_the_first():
    program = pl.lower(pl.build("inference", 2, 4, groups=2))
    assert str(program).splitlines() == [
        "0F0 0SEND_F0 0F1 0SEND_F1 0RECV_T2 0F2 0SEND_F2 0RECV_T3 0F3 0SEND_F3",
        "1RECV_F0 1F0 1SEND_T2 1RECV_F1 1F1 1SEND_T3 1RECV_F2 1F2 1RECV_F3 1F3",
    ]
    assert str(program.peer(pl.Action.parse("0RECV_T2"))) == "1SEND_T2"
    assert str(program.peer(pl.Action.parse("1SEND_T2"))) == "0RECV_T2"


def test_a_round_before_its_own_token_is_refused():
    schedule = pl.build("inference", 2, 2, groups=1)
    early = replace(schedule, rows=(schedule.rows[0][::-1], schedule.rows[1]))
    with pytest.raises(pl.ScheduleError, match="0F1 waits for 1F0"):
        pl.validate(early)


@pytest.mark.parametrize("schedule", [pl.build("1f1b", 2, 2), pl.build("inference", 2, 2, groups=1)])
def test_evaluation_takes_forwards_only_and_says_which(schedule):
    with pytest.raises(ValueError, match=r'build\("inference", ranks=2, microbatches=2\)'):
        evaluate(build_model(SMALL), batches(2), schedule)


def test_training_refuses_a_schedule_without_a_backward():
    with pytest.raises(ValueError, match="no backward"):
        pl.train(build_model(SMALL), batches(2), pl.build("inference", 2, 2))


def test_an_explanation_recommends_neither_relative_and_explains_generation():
    advised = explain(pl.simulate(pl.build("1f1b", 3, 6), pl.Costs.uniform())).advice
    assert advised and not any("inference" in change.what or "pipedream" in change.what for change in advised)
    starving = explain(pl.simulate(pl.build("inference", 4, 12, groups=2), pl.Costs.uniform()))
    assert "before 0F2" in str(starving) and "waits for 3F0" in str(starving)


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_a_device_that_is_not_there_is_refused_in_training_s_words():
    with pytest.raises(ValueError, match="device cuda: torch sees no CUDA device here; use device='cpu'"):
        evaluate(build_model(SMALL), batches(2), pl.build("inference", 2, 2), device="cuda")
    with pytest.raises(ValueError, match="device cuda: torch sees no CUDA device here; use device='cpu'"):
        generate(build_model(SMALL), torch.zeros(1, 1).long(), tokens=1, ranks=2, device="cuda")
