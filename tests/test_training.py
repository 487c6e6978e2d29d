"""Training with any schedule is training: losses, gradients and parameters equal those of the uncut model."""

import copy
import dataclasses
import math
import threading

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import pipelab as pl
from pipelab.failure import RunError
from pipelab.loss import IGNORED
from pipelab.models import GPT, GPTConfig
from pipelab.reference import train_uncut
from pipelab.schedules import chunks_of
from pipelab.training import train

CONFIG = GPTConfig(vocabulary=17, width=8, heads=2, layers=22, context=5, dropout=0.1)
SHALLOW = dataclasses.replace(CONFIG, layers=10)
SHAPES = [
    (name, ranks, microbatches, chunks)
    for name in ("naive", "gpipe", "1f1b", "interleaved", "zb-h1")
    for ranks in (1, 2, 3, 4, 8)
    for microbatches in (1, 2, 3, 5, 8)
    for chunks in ((2, 3) if name == "interleaved" else (1,))  # with one chunk it has the rows of 1f1b
]
FAMILY = [
    (name, ranks, microbatches, chunks)
    for name in ("looped-bfs", "interleaved-zb", "zb-h2", "zb-v", "v-half", "v-min", "1f1b-v", "dualpipe-v", "zb-auto")
    for ranks in (1, 2, 3, 4)
    for microbatches in (1, 2, 3, 5, 8)
    for chunks in ((1, 3) if chunks_of(name) == "any" else (None,))
]

pytestmark = pytest.mark.usefixtures("one_intra_op_thread")


def gpt(config: GPTConfig = CONFIG) -> GPT:
    torch.manual_seed(1)
    return GPT(config).double()


def text_batches(steps: int = 1, rows: int = 9) -> list[tuple[Tensor, Tensor]]:
    """Nine rows make uneven micro-batches for most M; some targets are ignored."""
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(CONFIG.vocabulary, (steps, rows, CONFIG.context + 1), generator=generator)
    batches = [(batch[:, :-1].contiguous(), batch[:, 1:].clone()) for batch in tokens]
    for _, targets in batches:
        targets[torch.rand(targets.shape, generator=generator) < 0.3] = IGNORED
        targets[0] = IGNORED
    return batches


@pytest.fixture(scope="module")
def uncut():
    """The reference for each number of micro-batches: losses and the model after one step."""
    known: dict[tuple[int, GPTConfig], tuple[list[float], GPT]] = {}

    def reference(microbatches: int, config: GPTConfig = CONFIG) -> tuple[list[float], GPT]:
        if (microbatches, config) not in known:
            model = gpt(config)
            losses = train_uncut(model, text_batches(), microbatches, seed=7)
            known[microbatches, config] = losses, model
        return known[microbatches, config]

    return reference


def ascending(schedule: pl.Schedule) -> bool:
    """Whether every stage adds to its gradients in the order of the micro-batches, as the reference does."""
    return all(
        microbatches == sorted(microbatches)
        for stage in range(schedule.stages)
        for kind in "BIW"
        if (microbatches := [a.microbatch for _, _, a in schedule.actions() if (a.stage, a.kind) == (stage, kind)])
    )


@pytest.mark.parametrize(("name", "ranks", "microbatches", "chunks"), SHAPES + FAMILY)
def test_a_step_of_any_schedule_is_bit_equal_to_plain_autograd(name, ranks, microbatches, chunks, uncut):
    schedule = pl.build(name, ranks, microbatches, chunks)
    config = CONFIG if ranks > 4 else SHALLOW
    losses, reference = uncut(microbatches, config)
    model = gpt(config)
    run = train(model, text_batches(), schedule, seed=7)
    assert run.losses == losses
    assert ascending(schedule) or (name == "looped-bfs" and microbatches > 1)  # last in, first out
    for (name_, ours), theirs in zip(model.named_parameters(), reference.parameters(), strict=True):
        if ascending(schedule):
            assert torch.equal(ours.grad, theirs.grad), name_
            assert torch.equal(ours, theirs), name_
        else:
            torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-9, atol=1e-14)
    assert run.trace.peak_in_flight == pl.simulate(schedule, pl.Costs.uniform()).peak_in_flight


def test_gpipe_with_the_last_backward_first_is_equal_to_rounding(uncut):
    losses, reference = uncut(5)
    model = gpt()
    run = train(model, text_batches(), pl.build("gpipe", 3, 5, backward_order="lifo"), seed=7)
    assert run.losses == losses
    for ours, theirs in zip(model.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-9, atol=1e-14)


@pytest.mark.parametrize("microbatches", [1, 4, 6, 9])
def test_a_run_with_pairs_is_replayed_and_keeps_both_halves_in_its_trace(microbatches):
    schedule = pl.build("dualpipe-v", 2, microbatches)
    run = train(gpt(), text_batches(), schedule, seed=7)
    assert [span.action for row in run.trace.compute for span in row] == [step for row in schedule.rows for step in row]
    assert set(run.bubbles()) == {"measured", "replayed", "formula"}
    assert pl.Trace.from_json(run.trace.to_json()) == run.trace


def test_a_schedule_that_adds_gradients_in_another_order_is_equal_to_rounding(uncut):
    order = [3, 0, 2, 1, 4]
    rows = [
        "0F0 0F1 0F2 0F3 0F4 " + " ".join(f"0I{m} 0W{m}" if m % 2 else f"0B{m}" for m in order),
        "1F0 1F1 1F2 1F3 1F4 " + " ".join(f"1B{m}" for m in order),
    ]
    losses, reference = uncut(5)
    model = gpt()
    run = train(model, text_batches(), pl.Schedule.from_text("\n".join(rows)), seed=7)
    assert run.losses == losses
    for ours, theirs in zip(model.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-9, atol=1e-14)


def test_several_steps_with_adamw_stay_bit_equal():
    model, reference = gpt(), gpt()
    batches = text_batches(steps=3)
    losses = train_uncut(reference, batches, 4, seed=3)
    run = train(model, batches, pl.build("zb-h1", 3, 4), seed=3)
    assert run.losses == losses
    assert all(
        torch.equal(ours, theirs) for ours, theirs in zip(model.parameters(), reference.parameters(), strict=True)
    )
    assert set(run.parameters()) == {name for name, _ in reference.named_parameters()}


def test_the_two_linear_model_of_the_manual_split_tutorial_trains():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 5), nn.Linear(5, 2)).double()
    reference = copy.deepcopy(model)
    batch = torch.randn(8, 6).double(), torch.randn(8, 2).double()
    losses = train_uncut(reference, [batch], 3, loss=functional.mse_loss)
    for name in ("gpipe", "zb-h1"):
        ours = copy.deepcopy(model)
        run = train(ours, [batch], pl.build(name, 2, 3), loss=functional.mse_loss)
        assert run.losses == losses == pytest.approx([functional.mse_loss(model(batch[0]), batch[1]).item()])
        assert all(torch.equal(p, q) for p, q in zip(ours.parameters(), reference.parameters(), strict=True))


def test_stages_without_parameters_and_batch_norm_train():
    torch.manual_seed(0)
    layers = [nn.Flatten(), nn.Linear(12, 6), nn.BatchNorm1d(6), nn.Tanh(), nn.Linear(6, 3)]
    model = nn.Sequential(*layers).double()
    reference = copy.deepcopy(model)
    batch = torch.randn(8, 3, 4).double(), torch.randint(3, (8,))
    train_uncut(reference, [batch], 2)
    train(model, [batch], pl.build("1f1b", 5, 2))
    for (name, ours), theirs in zip(model.state_dict().items(), reference.state_dict().values(), strict=True):
        assert torch.equal(ours, theirs), name


def test_the_warm_up_step_leaves_everything_as_it_was():
    torch.manual_seed(5)
    generator_before = torch.get_rng_state()
    threads_before = torch.get_num_threads()
    taken = []

    def stream():
        for number, batch in enumerate(text_batches(steps=4)):
            taken.append(number)
            yield batch

    model = gpt()
    torch.set_rng_state(generator_before)
    run = train(model, stream(), pl.build("zb-h1", 2, 2), steps=2)
    assert len(run.losses) == len(run.traces) == 2
    assert taken == [0, 1]
    assert torch.equal(torch.get_rng_state(), generator_before)
    assert torch.get_num_threads() == threads_before
    assert not any("forward" in vars(module) for module in model.modules())


def test_a_stage_that_fails_is_named_with_its_rank_and_action_and_nobody_waits():
    class Fails(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            raise RuntimeError("no such luck")

    model = nn.Sequential(nn.Linear(2, 2), Fails(), nn.Linear(2, 2))
    batch = torch.ones(4, 2), torch.zeros(4, dtype=torch.int64)
    with pytest.raises(RunError, match=r"rank 1 failed at 1F0: RuntimeError: no such luck"):
        train(model, [batch], pl.build("1f1b", 3, 4))
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("rank")]


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"batches": []}, "no batch to train on"),
        ({"schedule": pl.build("gpipe", 2, 8)}, "4 rows cannot be cut into 8 micro-batches"),
        ({"schedule": pl.build("gpipe", 3, 2)}, "2 layers"),
        ({"mesh": pl.Mesh(pp=3)}, "pp=3 and the schedule 2 ranks"),
        ({"mesh": pl.Mesh(pp=2, dp=3)}, "4 rows cannot be cut into 6 micro-batches"),
        ({"mesh": pl.Mesh(pp=2, tp=2)}, "no layer of this model"),
        ({"zero": True}, "raise dp"),
        ({"clip": -1.0}, "largest norm"),
        ({"clock": "sun"}, "'virtual' or 'wall'"),
        ({"timeout": 0.0}, "above 0: got 0"),
        ({"timeout": math.nan, "transport": "gloo"}, "above 0: got nan"),
        ({"device": "mps"}, "'cpu' or 'cuda': got 'mps'"),
        ({"device": "cuda:1"}, "CUDA_VISIBLE_DEVICES"),
        ({"schedule": pl.Schedule.from_text("0F0\n1F0 1B0")}, "0B0"),
        ({"batches": [(torch.ones(4, 2), torch.zeros(3, dtype=torch.int64))]}, "4 inputs come with 3 targets"),
    ],
)
def test_what_does_not_fit_is_refused_in_a_sentence_before_any_work(change, sentence):
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    before = copy.deepcopy(model.state_dict())
    given = {
        "batches": [(torch.ones(4, 2), torch.zeros(4, dtype=torch.int64))],
        "schedule": pl.build("gpipe", 2, 2),
        **change,
    }
    with pytest.raises(ValueError, match=sentence):
        train(model, **given)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_the_wall_clock_sees_a_real_step():
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    batch = torch.ones(4, 2), torch.zeros(4, dtype=torch.int64)
    run = train(model, [batch], pl.build("1f1b", 2, 2), clock="wall")
    assert run.clock == "wall"
    assert run.step_seconds > 0


def test_a_layer_listed_twice_runs_twice_in_every_cut():
    torch.manual_seed(0)
    tanh, linear = nn.Tanh(), nn.Linear(5, 5)
    model = nn.Sequential(nn.Linear(4, 5), tanh, linear, tanh, linear, nn.Linear(5, 3)).double()
    batch = torch.randn(6, 4).double(), torch.randint(3, (6,))
    plain = copy.deepcopy(model)
    functional.cross_entropy(plain(batch[0]), batch[1]).backward()
    uncut = copy.deepcopy(model)
    losses = train_uncut(uncut, [batch], 1)
    for name, at in (("1f1b", [5]), ("zb-h1", [2])):
        ours = copy.deepcopy(model)
        assert train(ours, [batch], pl.build(name, 2, 1), at=at).losses == losses
        for p, q, r in zip(ours.parameters(), uncut.parameters(), plain.parameters(), strict=True):
            assert torch.equal(p.grad, q.grad) and torch.equal(q.grad, r.grad)


def test_integers_cannot_cross_a_cut():
    model = nn.Sequential(nn.Identity(), nn.Embedding(5, 4), nn.Linear(4, 3))
    batch = torch.randint(5, (4,)), torch.randint(3, (4,))
    with pytest.raises(RunError, match="only floating-point activations can cross a cut"):
        train(model, [batch], pl.build("gpipe", 2, 2), at=[1])
