"""Training without a flush equals plain autograd with the same delayed updates; a stage keeps P-r versions."""

import copy
from dataclasses import replace
from itertools import product

import pytest
import torch
from torch import nn

import pipelab as pl
from pipelab.data import Batches, load_text
from pipelab.evaluation import Evaluation
from pipelab.models import GPTConfig, build_model
from pipelab.reference import train_delayed, train_uncut

SHAPES = [(1, 3, 2), (2, 1, 4), (3, 2, 3), (4, 8, 2), (4, 3, 1)]
SMALL = GPTConfig(vocabulary=256, width=16, heads=2, layers=4, context=8)


def sgd(parameters):
    return torch.optim.SGD(parameters, lr=0.1, momentum=0.9)


def batches(microbatches, steps, rows=2):
    return Batches(text=load_text("stdlib-docs"), microbatches=microbatches, rows=rows, context=8, seed=0, steps=steps)


def alike(run, reference):
    theirs = dict(reference.named_parameters())
    return all(torch.equal(ours, theirs[name]) for name, ours in run.parameters().items())


@pytest.mark.parametrize("ranks, microbatches, steps", SHAPES)
@pytest.mark.parametrize("optimizer", [sgd, pl.train.__kwdefaults__["optimizer"]], ids=["sgd", "adamw"])
def test_it_is_bit_equal_to_plain_autograd_with_the_same_delays(ranks, microbatches, steps, optimizer):
    model = build_model(SMALL, dtype=torch.float64)
    reference = copy.deepcopy(model)
    schedule = pl.build("pipedream", ranks, microbatches)
    run = pl.train(model, batches(microbatches, steps), schedule, optimizer=optimizer)
    losses = train_delayed(reference, batches(microbatches, steps), microbatches, ranks, optimizer=optimizer)
    assert run.losses == losses and len(losses) == steps
    assert alike(run, reference)


def test_dropout_uneven_microbatches_and_cuts_by_hand_are_exact_too():
    model = build_model(replace(SMALL, dropout=0.2), dtype=torch.float64)
    reference = copy.deepcopy(model)
    tokens = torch.arange(7 * 9).reshape(7, 9) * 37 % 256
    data = [(tokens[:, :-1], tokens[:, 1:])] * 3  # 7 rows: micro-batches of 3, 2 and 2
    run = pl.train(model, data, pl.build("pipedream", 3, 3), at=[1, 3], seed=5)
    assert run.losses == train_delayed(reference, data, 3, 3, at=[1, 3], seed=5)
    assert alike(run, reference)


def test_one_rank_is_plain_sgd_on_every_microbatch_and_delays_change_the_result():
    model = build_model(SMALL, dtype=torch.float64)
    plain, stale = copy.deepcopy(model), copy.deepcopy(model)
    losses = train_uncut(plain, batches(1, 6), 1)
    assert pl.train(model, batches(1, 6), pl.build("pipedream", 1, 1)).losses == losses
    assert pl.train(stale, batches(1, 6), pl.build("pipedream", 2, 1)).losses != losses


@pytest.mark.parametrize("ranks, microbatches, steps", SHAPES)
def test_stages_are_as_stale_as_ranks_come_after_and_keep_one_version_more(ranks, microbatches, steps):
    run = pl.train(build_model(SMALL), batches(microbatches, steps), pl.build("pipedream", ranks, microbatches))
    total = steps * microbatches
    for stage, staleness in enumerate(run.versions.staleness):
        assert staleness == tuple(min(n, ranks - 1 - stage) for n in range(total))
    for rank, (peak, one) in enumerate(zip(run.versions.peaks, run.versions.weights, strict=True)):
        after = ranks - 1 - rank
        assert peak == (1 + min(after, max(total - after, 1), total - 1)) * one  # P-r, but for very short runs
    assert sum(run.versions.weights) == sum(p.nbytes for p in run.model.parameters())


def test_a_run_is_one_schedule_that_fills_and_drains_once():
    run = pl.train(build_model(SMALL), batches(4, 5), pl.build("pipedream", 3, 4))
    assert run.schedule == pl.build("pipedream", 3, 20)
    assert [len(run.losses), len(run.traces), run.trace.peak_in_flight] == [5, 1, (3, 2, 1)]
    assert run.step_seconds == pytest.approx(run.trace.makespan / 5)
    updates = [span.action for span in run.trace.spans if span.lane == "memory"]
    assert sorted(map(str, updates)) == sorted(f"{s}U{n}" for s, n in product(range(3), range(20)))
    assert pl.Trace.from_json(run.trace.to_json()) == run.trace


def test_activations_are_those_of_1f1b_and_never_the_stashed_weights():
    stale = pl.train(build_model(SMALL), batches(8, 3), pl.build("pipedream", 4, 8))
    flushed = pl.train(build_model(SMALL), batches(8, 3), pl.build("1f1b", 4, 8))
    assert stale.memory.peaks == flushed.memory.peaks


def test_a_model_gets_its_own_parameters_back_and_the_steps_are_told():
    model, told = build_model(SMALL), []
    own = dict(model.named_parameters())
    run = pl.train(
        model, batches(2, 3), pl.build("pipedream", 2, 2), on_step=lambda step, loss: told.append((step, loss))
    )
    assert all(parameter is own[name] for name, parameter in model.named_parameters())
    assert told == list(enumerate(run.losses))
    assert all(parameter.grad is None for parameter in own.values())


def test_stages_with_frozen_shared_or_no_parameters():
    def model():
        torch.manual_seed(0)
        shared = nn.Linear(4, 4, dtype=torch.float64)
        frozen = nn.Linear(4, 4, dtype=torch.float64).requires_grad_(False)
        return nn.Sequential(nn.Tanh(), nn.Linear(4, 4, dtype=torch.float64), frozen, shared, nn.Tanh(), shared)

    data = [(torch.ones(4, 4, dtype=torch.float64), torch.tensor([0, 1, 2, 3]))] * 3
    ours, reference = model(), model()
    run = pl.train(ours, data, pl.build("pipedream", 3, 2), at=[1, 3], optimizer=sgd)
    start = copy.deepcopy(reference)
    assert run.losses == train_delayed(reference, data, 2, 3, at=[1, 3], optimizer=sgd)
    assert alike(run, reference) and run.versions.weights[0] == 0
    assert torch.equal(ours[2].weight, start[2].weight) and not torch.equal(ours[3].weight, start[3].weight)


def test_the_rows_are_those_of_1f1b_and_the_program_updates_after_every_backward():
    for ranks, microbatches in product((1, 2, 4), (1, 3, 8)):
        schedule = pl.build("pipedream", ranks, microbatches)
        assert schedule.rows == pl.build("1f1b", ranks, microbatches).rows and not schedule.flush
        for row in pl.lower(schedule).rows:
            kinds = [action.kind for action in row if action.kind in "BU"]
            assert kinds == ["B", "U"] * microbatches
        assert "U" not in str(pl.lower(pl.build("1f1b", ranks, microbatches)))
    bubbles = [pl.simulate(pl.build("pipedream", 4, 8 * steps), pl.Costs.uniform()).bubble("step") for steps in (1, 9)]
    assert bubbles == [pl.formula("pipedream", "bubble_step", P=4, M=8 * steps) for steps in (1, 9)]
    assert bubbles[1] < bubbles[0] / 6


def test_what_cannot_be_written_for_all_steps_is_refused():
    own = replace(pl.build("gpipe", 2, 2), flush=False)
    with pytest.raises(ValueError, match="gpipe says flush=False, but is not a named schedule"):
        pl.train(build_model(SMALL), batches(2, 2), own)


def evaluation():
    return Evaluation(list(batches(2, 1)))


@pytest.mark.parametrize("option", [{"watch": True}, {"clip": 1.0}, {"rate": float}, {"evaluation": evaluation()}])
def test_what_works_between_two_steps_has_no_place_and_is_refused(option):
    (what,) = option
    with pytest.raises(ValueError, match=f"{what} works between two steps, and pipedream has nothing between them"):
        pl.train(build_model(SMALL), batches(2, 2), pl.build("pipedream", 2, 2), **option)


def test_a_failing_layer_is_named_with_its_rank_and_nothing_hangs():
    class Broken(nn.Module):
        def forward(self, x):
            if x.requires_grad and x.abs().sum() > 0 and torch.is_grad_enabled():
                raise ArithmeticError("broken on purpose")
            return x

    model = nn.Sequential(nn.Linear(2, 2), Broken())
    data = [(torch.ones(2, 2), torch.zeros(2, dtype=torch.int64))] * 2
    with pytest.raises(RuntimeError, match="rank 1 failed at 1F0: ArithmeticError: broken on purpose"):
        pl.train(model, data, pl.build("pipedream", 2, 2))
