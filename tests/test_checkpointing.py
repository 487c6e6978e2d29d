"""What is recomputed changes no number: gradients are bit-equal, each block runs twice, and what is saved is told."""

import copy
import itertools
from collections import Counter

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import pipelab as pl
from pipelab.failure import RunError
from pipelab.loss import auxiliary
from pipelab.memory import ActivationMeter
from pipelab.memory_prediction import predict_memory
from pipelab.models import GPT, Block, GPTConfig
from pipelab.reference import train_delayed, train_uncut
from pipelab.training import train

POLICIES = ["none", "full", "selective", "every-2", "every-9", "except-last"]
SCHEDULES = [("gpipe", None), ("1f1b", None), ("interleaved", 2), ("zb-h1", None), ("zb-v", None), ("dualpipe-v", None)]
RANKS, MICROBATCHES, CONTEXT = 2, 5, 5


def gpt(dropout: float = 0.0, layers: int = 6, context: int = CONTEXT) -> GPT:
    torch.manual_seed(1)
    config = GPTConfig(vocabulary=17, width=8, heads=2, layers=layers, context=context, dropout=dropout)
    return GPT(config).double()


def batches(steps: int = 1, rows: int = 9, context: int = CONTEXT) -> list[tuple[Tensor, Tensor]]:
    tokens = torch.randint(17, (steps, rows, context + 1), generator=torch.Generator().manual_seed(0))
    return [(batch[:, :-1].contiguous(), batch[:, 1:].clone()) for batch in tokens]


pytestmark = pytest.mark.usefixtures("one_intra_op_thread")


@pytest.fixture(scope="module")
def uncut():
    """Losses and the trained model of plain autograd, by dropout."""
    models = {dropout: gpt(dropout) for dropout in (0.0, 0.1)}
    return {dropout: (train_uncut(model, batches(2), MICROBATCHES, seed=7), model) for dropout, model in models.items()}


def assert_equal(ours: nn.Module, theirs: nn.Module) -> None:
    for (name, p), q in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        assert torch.equal(p.grad, q.grad), name
        assert torch.equal(p, q), name


# ---- the numbers


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize(
    ("name", "chunks", "dropout"), [*((*one, 0.1) for one in SCHEDULES), ("1f1b", None, 0.0), ("zb-h1", None, 0.0)]
)
def test_gradients_are_bit_equal_to_plain_autograd(name, chunks, policy, dropout, uncut):
    losses, reference = uncut[dropout]
    model = gpt(dropout)
    schedule = pl.build(name, RANKS, MICROBATCHES, chunks)
    run = train(model, batches(2), schedule, seed=7, checkpointing=policy)
    assert run.losses == losses
    assert_equal(model, reference)


@pytest.mark.parametrize("hoist", [1, 3])
def test_a_mixture_of_policies_and_a_hoist_change_no_number_either(hoist, uncut):
    losses, reference = uncut[0.1]
    model = gpt(0.1)
    schedule = pl.build("zb-h1", 4, MICROBATCHES)
    asked = ["every-2", "selective", "none", "except-last"]
    assert train(model, batches(2), schedule, seed=7, checkpointing=asked, hoist=hoist).losses == losses
    assert_equal(model, reference)


@pytest.mark.parametrize("policy", ["full", "selective"])
def test_without_a_flush_the_weights_of_the_forward_are_those_of_the_recomputation(policy):
    ours, theirs = gpt(0.1), gpt(0.1)
    losses = train_delayed(theirs, batches(2), MICROBATCHES, 3, seed=7)
    run = train(ours, batches(2), pl.build("pipedream", 3, MICROBATCHES), seed=7, checkpointing=policy)
    assert run.losses == pytest.approx(losses, rel=1e-12)
    for p, q in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("policy", ["full", "selective", "except-last"])
@pytest.mark.parametrize(
    "options", [{"pp": 2, "dp": 2}, {"pp": 2, "tp": 2}, {"pp": 2, "tp": 2, "sequence_parallel": True}]
)
def test_replicas_and_tensor_shards_recompute_their_own(options, policy):
    wide, axes = options.get("sequence_parallel", False), {k: v for k, v in options.items() if k in ("pp", "dp", "tp")}
    mesh, models = pl.Mesh(**axes), [gpt(0.0 if wide else 0.1, context=6) for _ in range(2)]
    runs = [
        train(model, batches(2, rows=8, context=6), pl.build("zb-h1", 2, 3), mesh, seed=7, checkpointing=p,
              sequence_parallel=wide)
        for model, p in zip(models, ("none", policy), strict=True)
    ]  # fmt: skip
    assert runs[0].losses == runs[1].losses and len(runs[1].memory.rebuilt) == mesh.size
    assert_equal(*models)
    bubbles = runs[1].bubbles()
    assert 0 <= bubbles["replayed"]["step"] < 1 and runs[1].replay().makespan > 0


class Balanced(nn.Module):
    """Has a loss of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.tanh(self.linear(x))
        auxiliary(0.1 * y.square().mean())
        return y


@pytest.mark.parametrize("autocast", [None, torch.bfloat16])
@pytest.mark.parametrize("name", ["1f1b", "zb-h1"])
def test_auxiliary_losses_count_once_and_a_lower_precision_is_that_of_the_forward(name, autocast):
    features = [tuple(torch.randn(2, 8, 6, generator=torch.Generator().manual_seed(4)))] * 2
    model = of_features(*(Balanced() for _ in range(4))).float()
    models = [model, copy.deepcopy(model)]
    runs = [
        train(model, features, pl.build(name, 2, 4), loss=nn.functional.mse_loss, checkpointing=p, autocast=autocast)
        for model, p in zip(models, ("none", "every-2"), strict=True)
    ]
    assert runs[0].losses == runs[1].losses
    assert_equal(*models)


def of_features(*layers: nn.Module) -> nn.Sequential:
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(6, 6), *layers, nn.Linear(6, 6)).double()


class Residual(nn.Module):
    """A block with what may go wrong: statistics, an operation in place, a Linear used twice, a frozen weight."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.norm, self.frozen = nn.Linear(6, 6), nn.BatchNorm1d(6), nn.Linear(6, 6)
        self.frozen.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.frozen(torch.relu_(self.norm(self.linear(torch.tanh(self.linear(x))))))


class Nested(Residual):
    """Its author checkpoints the inside already."""

    def forward(self, x: Tensor) -> Tensor:
        return checkpoint(super().forward, x, use_reentrant=False)


@pytest.mark.parametrize("block", [Residual, Nested])
@pytest.mark.parametrize("name", ["gpipe", "zb-h1"])
def test_any_block_can_be_recomputed_and_its_buffers_change_once(name, block):
    features = [tuple(torch.randn(2, 8, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(4)))]
    model = of_features(*(block() for _ in range(4)))
    models = [model, copy.deepcopy(model)]
    for model, policy in zip(models, ("none", "every-2"), strict=True):
        train(model, features, pl.build(name, 2, 4), loss=nn.functional.mse_loss, checkpointing=policy)
    for (key, ours), theirs in zip(models[0].state_dict().items(), models[1].state_dict().values(), strict=True):
        assert torch.equal(ours, theirs), key


# ---- once


class Counted(Block):
    """Notes its forwards."""

    seen: Counter

    def forward(self, x: Tensor) -> Tensor:
        self.seen[self] += 1
        return super().forward(x)


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize(("name", "chunks"), SCHEDULES)
def test_each_block_runs_forward_once_more_for_each_r_and_never_again(name, chunks, policy, monkeypatch):
    monkeypatch.setattr(Counted, "seen", Counter(), raising=False)
    model = gpt()
    for block in model[1:-1]:
        block.__class__ = Counted
    schedule = pl.build(name, RANKS, MICROBATCHES, chunks)
    run = train(model, batches(1), schedule, checkpointing=policy)
    again = Counter(a.stage for row in run.program.rows for a in row if a[1] == "R")
    steps, starts = 2, [0, *run.at, len(model)]  # the warm-up is one, too
    for stage, (first, end) in enumerate(itertools.pairwise(starts)):
        for block in (block for block in model[first:end] if isinstance(block, Counted)):
            whole = 0 if policy in ("none", "selective") else again[stage]
            assert Counted.seen[block] == steps * (MICROBATCHES + whole)
    everything = {"none": 0, "except-last": None}.get(policy, schedule.stages * MICROBATCHES)
    assert everything in (None, sum(again.values()))
    spans = [span.action for row in run.trace.compute for span in row]
    assert [a for a in spans if a[1] == "R"] == [a for row in run.program.rows for a in row if a[1] == "R"]


def test_selective_runs_the_attention_alone_a_second_time(monkeypatch):
    calls: Counter = Counter()
    core = torch.nn.functional.scaled_dot_product_attention
    monkeypatch.setattr(
        torch.nn.functional, "scaled_dot_product_attention", lambda *a, **k: calls.update("c") or core(*a, **k)
    )
    model = gpt(layers=4)
    train(model, batches(1), pl.build("zb-h1", 2, 3), checkpointing="selective")
    assert calls["c"] == 2 * 4 * 3 * 2  # steps, blocks, micro-batches, F and R
    assert "attend" not in vars(model[1].attention), "the layers are given back as they were"


# ---- the memory


def peaks(name: str, policy: str, ranks: int = 4, microbatches: int = 8) -> tuple[int, ...]:
    return train(
        wide(), wide_batch(microbatches), pl.build(name, ranks, microbatches), checkpointing=policy
    ).memory.peaks


def wide() -> GPT:
    torch.manual_seed(1)
    return GPT(GPTConfig(vocabulary=32, width=64, heads=4, layers=8, context=32))


def wide_batch(microbatches: int) -> list[tuple[Tensor, Tensor]]:
    return [tuple(torch.randint(32, (2, microbatches, 32), generator=torch.Generator().manual_seed(0)))]


def test_a_recomputed_micro_batch_waits_with_one_input_for_each_group():
    run = {p: train(wide(), wide_batch(8), pl.build("gpipe", 4, 8), checkpointing=p) for p in ("full", "every-2")}
    held = 1 * 32 * 64 * 4  # the features of one micro-batch, in bytes
    for rank in (1, 2):  # two blocks each
        full, pairs = (run[p].memory.peaks[rank] for p in ("full", "every-2"))
        assert full - pairs == (8 - 1) * held, "one input less for each of the 7 that wait"
        assert run["every-2"].memory.rebuilt[rank] == run["full"].memory.rebuilt[rank] + held, (
            "which is rebuilt instead"
        )


def test_in_gpipe_a_rank_then_holds_one_micro_batch_and_the_inputs_of_all():
    none, full, alone = peaks("gpipe", "none"), peaks("gpipe", "full"), peaks("gpipe", "none", microbatches=1)
    for rank in (1, 2):
        assert full[rank] < 2.1 * alone[rank] < 0.3 * none[rank]


def test_under_a_split_backward_what_waits_for_w_cannot_shrink():
    runs = [train(wide(), wide_batch(8), pl.build("zb-h1", 4, 8), checkpointing=p).memory for p in ("none", "full")]
    waiting = [[memory.peaks_by_cause(rank)["deferred"] for rank in range(4)] for memory in runs]
    assert waiting[0] == waiting[1] == sorted(waiting[0]) and waiting[0][0] > 0
    none, full = (memory.peaks for memory in runs)
    saved = [one - other for one, other in zip(none, full, strict=True)]
    assert saved == sorted(saved, reverse=True) and saved[-1] <= 0, "rank r holds r micro-batches that wait for W"
    whole = [one - other for one, other in zip(peaks("gpipe", "none"), peaks("gpipe", "full"), strict=True)]
    assert min(whole) > 0.5 * max(whole), "a whole backward leaves nothing behind"


def test_at_the_end_nothing_is_held(monkeypatch):
    made = []

    class Seen(ActivationMeter):
        def __init__(self, *arguments) -> None:
            super().__init__(*arguments)
            made.append(self)

    monkeypatch.setattr("pipelab.assembly.ActivationMeter", Seen)
    for policy, name in itertools.product(POLICIES, ("1f1b", "zb-v")):
        train(gpt(), batches(1), pl.build(name, 2, 4), checkpointing=policy, hoist=1)
    assert len(made) == 2 * 2 * len(POLICIES) and all(meter.live == 0 for meter in made)


# ---- the times


@pytest.mark.parametrize(("name", "chunks"), SCHEDULES)
def test_a_replay_recomputes_what_the_run_did(name, chunks):
    run = train(gpt(), batches(1), pl.build(name, RANKS, MICROBATCHES, chunks), checkpointing="except-last", hoist=1)
    assert [[s.action for s in row] for row in run.replay().compute] == [
        [s.action for s in row] for row in run.trace.compute
    ]
    bubbles = run.bubbles()
    assert bubbles["formula"] is None, "no formula knows of micro-batches that are kept"
    assert sum(map(float, run.trace.busy)) == pytest.approx(sum(map(float, run.replay().busy)), rel=0.5)


def test_where_all_is_recomputed_in_place_a_formula_counts_r_as_a_part_of_the_backward():
    run = train(gpt(), batches(1), pl.build("1f1b", RANKS, MICROBATCHES), checkpointing="full")
    assert run.bubbles()["formula"]["step"] == pytest.approx((RANKS - 1) / (MICROBATCHES + RANKS - 1))


# ---- bad input


def test_what_a_model_does_not_have_cannot_be_recomputed():
    plain, features = of_features(nn.Tanh(), nn.Tanh()), [(torch.zeros(4, 6), torch.zeros(4, 6))]
    with pytest.raises(
        ValueError, match=r"'selective' recomputes the attention sublayer of pipelab.models, and no stage"
    ):
        train(plain, features, pl.build("gpipe", 2, 2), checkpointing="selective")
    with pytest.raises(ValueError, match=r"'full' recomputes blocks, which are all layers but the first and the last"):
        train(of_features(), features, pl.build("gpipe", 2, 2), checkpointing="full")
    with pytest.raises(ValueError, match="one policy a stage, 2 in all: got 3"):
        train(plain, features, pl.build("gpipe", 2, 2), checkpointing=["none"] * 3)


def test_a_stage_without_blocks_recomputes_nothing():
    model = gpt(layers=3)
    run = train(model, batches(1), pl.build("gpipe", 3, 2), at=[1, 4], checkpointing="full")
    assert {a.stage for row in run.program.rows for a in row if a[1] == "R"} == {1}


class OverwritesItsInput(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.relu_(x) * 2


class Forgetful(nn.Module):
    """Does something else each time."""

    def __init__(self) -> None:
        super().__init__()
        self.runs = 0

    def forward(self, x: Tensor) -> Tensor:
        self.runs += 1
        return torch.sin(x) if self.runs % 2 else torch.sin(torch.cos(x))


@pytest.mark.parametrize(
    ("block", "said"), [(OverwritesItsInput, "changed its input in place"), (Forgetful, "do the same each time")]
)
def test_a_block_that_cannot_run_twice_is_no_silent_wrong_number(block, said):
    model = of_features(nn.Linear(6, 6), block(), nn.Linear(6, 6)).float()
    batch = torch.ones(4, 6), torch.ones(4, 6)
    with pytest.raises(RunError, match=said):
        train(model, [batch], pl.build("gpipe", 1, 1), loss=nn.functional.mse_loss, checkpointing="full")


def test_processes_recompute_as_threads_do():
    runs, models = [], []
    for transport in ("memory", "gloo"):
        models.append(gpt(0.1))
        schedule = pl.build("1f1b", 2, 3)
        runs.append(train(models[-1], batches(1), schedule, seed=7, checkpointing="full", transport=transport))
    assert runs[0].losses == runs[1].losses and runs[0].memory.peaks == runs[1].memory.peaks
    assert runs[0].memory.rebuilt == runs[1].memory.rebuilt
    assert all(map(torch.equal, models[0].parameters(), models[1].parameters()))


@pytest.mark.parametrize(
    ("name", "axes", "policy"),
    [
        ("1f1b", {}, "every-2"),
        ("zb-h1", {}, "except-last"),
        ("zb-v", {}, "full"),
        ("1f1b", {"tp": 2}, "full"),
        ("zb-h1", {"dp": 2}, "selective"),
    ],
)
def test_what_is_recomputed_is_predicted_before_anything_runs(name, axes, policy):
    mesh, schedule = pl.Mesh(pp=2, **axes), pl.build(name, 2, 5)
    batch, options = wide_batch(5 * mesh.dp), {"checkpointing": policy, "hoist": 1}
    memory, predicted = (
        train(wide(), batch, schedule, mesh, **options).memory,
        predict_memory(wide(), schedule, batch[0], mesh, **options),
    )
    for rank, member in enumerate(mesh.group("pp", 0)):
        assert predicted.activations[rank] == pytest.approx(memory.peaks[member], rel=0.01)
        for cause in ("recompute", "deferred"):
            assert predicted.peaks[rank].get(cause, 0) == memory.peaks_by_cause(member)[cause]


def test_a_run_that_fits_only_with_recomputation_is_told_so_and_begins_with_it():
    model, batch, schedule = wide(), wide_batch(8), pl.build("v-min", 2, 8)
    need = {p: max(predict_memory(model, schedule, batch[0], checkpointing=p).totals) for p in ("none", "full")}
    limit = (need["none"] + need["full"]) / 2
    with pytest.raises(ValueError, match=r"will not fit.*checkpointing full would need"):
        train(model, batch, schedule, memory_limit=limit)
    assert max(train(model, batch, schedule, memory_limit=limit, checkpointing="full").memory.totals) <= limit
