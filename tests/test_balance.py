"""Each policy is the best by its own measure, among all cuts; the limit is kept or refused in a sentence."""

from dataclasses import replace
from itertools import combinations
from statistics import median

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import pipelab as pl
from pipelab.balance import POLICIES, balance, kept_at_most, predict
from pipelab.cli.cut import POLICIES as OFFERED
from pipelab.costs import Link
from pipelab.data import Batches
from pipelab.models import GPTConfig, build_model
from pipelab.profile import Profile, profile

NAMES = [name for name in pl.SCHEDULES if name != "zb-auto"]


def layers(F, B=None, held=None, parameters=None):
    count = len(F)
    times = tuple(map(float, F))
    twice = tuple(2.0 * time for time in times) if B is None else tuple(map(float, B))
    half = tuple(time / 2 for time in twice)
    return Profile(
        names=tuple(map(str, range(count))),
        work={"F": times, "B": twice, "I": half, "W": half},
        held=tuple(held or (1000,) * count),
        waiting=tuple(size // 2 for size in held or (1000,) * count),
        parameters=tuple(parameters or (10,) * count),
        outputs=(100,) * count,
    )


def all_cuts(profiled, schedule):
    return combinations(range(1, len(profiled)), schedule.stages - 1)


HEAVY_HEAD = layers([0.2, *[1] * 6, 6], held=[10, *[800] * 6, 5000], parameters=[3000, *[100] * 6, 3000])


@pytest.mark.parametrize("name", NAMES)
def test_optimal_is_the_shortest_simulated_step_of_all_cuts(name):
    schedule = pl.build(name, 2, 4)
    found = balance("optimal", HEAVY_HEAD, schedule)
    steps = {at: predict("all", at, HEAVY_HEAD, schedule).step for at in all_cuts(HEAVY_HEAD, schedule)}
    assert found.exact and found.step == pytest.approx(min(steps.values()), rel=1e-8)
    assert found.step == steps[found.at] == pl.simulate(schedule, HEAVY_HEAD.costs(found.at)).makespan


@pytest.mark.parametrize("name", NAMES)
def test_memory_is_the_leanest_of_all_cuts_and_then_the_shortest(name):
    schedule = pl.build(name, 2, 4)
    found = balance("memory", HEAVY_HEAD, schedule)
    every = [predict("all", at, HEAVY_HEAD, schedule) for at in all_cuts(HEAVY_HEAD, schedule)]
    leanest = min(max(each.bytes) for each in every)
    assert found.exact and max(found.bytes) == leanest
    assert found.step == pytest.approx(min(e.step for e in every if max(e.bytes) == leanest), rel=1e-8)


@settings(max_examples=40)
@given(
    st.sampled_from(NAMES), st.integers(1, 3), st.integers(1, 5), st.lists(st.integers(0, 9), min_size=6, max_size=7),
    st.integers(0, 2),
)  # fmt: skip
def test_whatever_the_layers_a_proved_cut_is_the_best(name, ranks, microbatches, times, hop):
    schedule, profiled = pl.build(name, ranks, microbatches), layers(times)
    link = Link(latency=hop)
    found = balance("optimal", profiled, schedule, link=link)
    steps = [predict("all", at, profiled, schedule, link=link).step for at in all_cuts(profiled, schedule)]
    assert found.exact and found.step == pytest.approx(min(steps), rel=1e-8)


def test_within_a_limit_optimal_is_the_shortest_that_fits():
    schedule = pl.build("1f1b", 3, 6)
    every = [predict("all", at, HEAVY_HEAD, schedule) for at in all_cuts(HEAVY_HEAD, schedule)]
    for limit in sorted({max(each.bytes) for each in every}):
        found = balance("optimal", HEAVY_HEAD, schedule, limit=limit)
        assert max(found.bytes) <= limit
        assert found.step == pytest.approx(min(e.step for e in every if max(e.bytes) <= limit), rel=1e-8)


@pytest.mark.parametrize("policy", POLICIES)
def test_a_limit_that_cannot_be_kept_is_refused_with_the_remedy(policy):
    with pytest.raises(ValueError, match=r"rank \d would hold .* MiB of 0\.00; (allow|balance)"):
        balance(policy, HEAVY_HEAD, pl.build("1f1b", 2, 4), limit=100)


def test_what_a_cut_holds_indeed_is_what_the_limit_bounds():
    schedule = pl.build("1f1b", 3, 6)

    def held(at):
        return [size + 2000 + 100 * rank for rank, size in enumerate(predict("any", at, HEAVY_HEAD, schedule).bytes)]

    every = {
        at: (max(held(at)), predict("any", at, HEAVY_HEAD, schedule).step) for at in all_cuts(HEAVY_HEAD, schedule)
    }
    for limit in sorted({most for most, _ in every.values()}):
        found = balance("optimal", HEAVY_HEAD, schedule, limit=limit, held=held)
        assert max(found.bytes) == every[found.at][0] <= limit
        assert found.step <= 1.05 * min(step for most, step in every.values() if most <= limit)
    for policy in POLICIES:
        with pytest.raises(ValueError, match=r"rank \d would hold"):
            balance(policy, HEAVY_HEAD, schedule, limit=min(most for most, _ in every.values()) - 1, held=held)


def test_the_simple_policies_look_at_what_they_are_called_after():
    schedule = pl.build("1f1b", 2, 4)
    assert balance("uniform", HEAVY_HEAD, schedule).at == (4,)
    assert balance("parameters", HEAVY_HEAD, schedule).at == (4,)
    assert balance("time", HEAVY_HEAD, schedule).at == (7,), "the head alone weighs as much as all else"


def test_optimal_sees_what_the_chunks_of_a_rank_add_up_to_and_time_by_stage_does_not():
    schedule = pl.build("zb-v", 2, 8)
    assert balance("optimal", HEAVY_HEAD, schedule).step < 0.9 * balance("time", HEAVY_HEAD, schedule).step


def test_the_command_line_offers_the_policies_there_are():
    assert OFFERED == POLICIES


def test_other_words_and_too_few_layers_are_refused():
    with pytest.raises(ValueError, match="uniform, parameters, time, memory, optimal: got 'best'"):
        balance("best", HEAVY_HEAD, pl.build("1f1b", 2, 4))
    with pytest.raises(ValueError, match="8 layers cannot fill 9 stages"):
        balance("time", HEAVY_HEAD, pl.build("1f1b", 9, 4))


def test_what_is_no_limit_and_no_cut_is_refused():
    with pytest.raises(ValueError, match="positive: got nan"):
        balance("optimal", HEAVY_HEAD, pl.build("1f1b", 2, 4), limit=float("nan"))
    with pytest.raises(ValueError, match=r"2 increasing layer indices from 1 to 7.*got \[5, 4\]"):
        predict("mine", (5, 4), HEAVY_HEAD, pl.build("1f1b", 3, 4))


def test_what_is_kept_at_most_follows_from_the_rows():
    assert kept_at_most(pl.build("1f1b", 3, 9)) == [[{0: (3, 0)}], [{1: (2, 0)}], [{2: (1, 0)}]]
    assert kept_at_most(pl.build("gpipe", 2, 5)) == [[{0: (5, 0)}], [{1: (5, 0)}]]
    together = kept_at_most(pl.build("zb-h1", 3, 9))
    assert all(sum(moment[rank]) <= 3 for rank in range(3) for moment in together[rank])


@pytest.mark.parametrize(("name", "chunks"), [("gpipe", None), ("1f1b", None), ("interleaved", 2), ("zb-h1", None)])
def test_the_predicted_activations_are_those_that_a_run_holds(name, chunks):
    config = GPTConfig(vocabulary=2000, width=32, heads=2, layers=8, context=16)
    batches = Batches(text=bytes(range(256)) * 8, microbatches=4, rows=2, context=16, seed=0, steps=1)
    model, schedule = build_model(config), pl.build(name, 2, 4, chunks)
    layers_ = profile(model, tuple(tensor[:2] for tensor in batches[0]), repeats=1)
    at = balance("uniform", layers_, schedule).at
    activations = predict("all", at, replace(layers_, parameters=(0,) * len(layers_)), schedule).bytes
    run = pl.train(model, batches, schedule, at=list(at))
    for predicted, held in zip(activations, run.memory.peaks, strict=True):
        assert predicted == pytest.approx(held, rel=0.05)


def test_a_heavy_embedding_and_a_heavy_head_are_seen():
    config = GPTConfig(vocabulary=20_000, width=32, heads=2, layers=6, context=16)
    tokens = torch.randint(256, (2, 16))
    seen = profile(build_model(config), (tokens, tokens), repeats=3)
    assert seen.parameters[0] == (20_000 + 16) * 32 * 4 and seen.held[-1] > 2 * 16 * 20_000 * 4
    schedule = pl.build("1f1b", 2, 4)
    uniform, optimal = (balance(policy, seen, schedule) for policy in ("uniform", "optimal"))
    assert optimal.step <= uniform.step and uniform.at == (4,)
    for kind in "FB":
        *others, head = seen.work[kind]
        assert head > 2 * median(others), "many times what a block takes"
