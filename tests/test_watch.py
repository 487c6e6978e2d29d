"""A watched run names the first value that is not finite, with layer and micro-batch; else it changes nothing."""

import copy
import json
import math

import pytest
import torch
from torch import Tensor, nn

import pipelab as pl
from pipelab.cli import main
from pipelab.loss import cross_entropy
from pipelab.models import build_model
from pipelab.virtual_ranks import RunError
from pipelab.watch import Finding, first_finding

MICROBATCHES, ROWS, WIDTH = 4, 2, 6


class Spoils(nn.Module):
    """The identity, but for rows that hold a mark: there its forward, or its backward, gives what is not finite."""

    def __init__(self, mark: float, forward: float = 1.0, backward: float = 1.0) -> None:
        super().__init__()
        self.mark, self.forward_factor, self.backward_factor = mark, forward, backward

    def forward(self, x: Tensor) -> Tensor:
        if not bool((x == self.mark).any()):
            return x.clone()
        y = x * self.forward_factor
        if y.requires_grad:
            y.register_hook(lambda gradient: gradient * self.backward_factor)
        return y


def layers(*spoils: nn.Module) -> nn.Sequential:
    """Eight layers that keep a mark in the last column; the given ones stand in the places 5, 3, ..."""
    made: list[nn.Module] = [nn.Identity(), *(Tail() for _ in range(6)), nn.Linear(WIDTH, 3)]
    for place, spoil in zip((5, 3), spoils, strict=False):
        made[place] = nn.Sequential(Tail(), spoil)
    return nn.Sequential(*made)


class Tail(nn.Module):
    """A Linear on all columns but the last."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(WIDTH - 1, WIDTH - 1)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.linear(x[:, :-1]), x[:, -1:]], dim=1)


def batch(marks: dict[int, float]) -> tuple[Tensor, Tensor]:
    inputs = torch.randn(ROWS * MICROBATCHES, WIDTH, generator=torch.Generator().manual_seed(0))
    inputs[:, -1] = 0
    for microbatch, mark in marks.items():
        inputs[ROWS * microbatch, -1] = mark
    return inputs, torch.zeros(ROWS * MICROBATCHES, dtype=torch.int64)


def run(model: nn.Sequential, *batches: tuple[Tensor, Tensor], name: str = "1f1b", watch: bool = True) -> pl.Run:
    torch.manual_seed(0)
    chunks = 2 if name == "interleaved" else None
    ranks = 4 // (chunks or 1)
    schedule = pl.build(name, ranks, MICROBATCHES, chunks)
    return pl.train(model, batches, schedule, at=[2, 4, 6], watch=watch)


@pytest.mark.parametrize("name", ["gpipe", "1f1b", "interleaved", "zb-h1"])
@pytest.mark.parametrize(
    ("spoil", "way", "value"),
    [
        (Spoils(7.0, forward=math.inf), "forward", "nan"),
        (Spoils(7.0, forward=math.nan), "forward", "nan"),
        (Spoils(7.0, backward=math.nan), "backward", "nan"),
    ],
)
def test_the_culprit_is_named_with_its_step_layer_stage_rank_micro_batch_and_way(name, spoil, way, value):
    rank = 0 if name == "interleaved" else 2
    layer = "5.1" if way == "forward" else "5"
    sentence = (
        rf"^step 1: the first value that is not finite is {value}, in the {way} of layer {layer} "
        rf"\(stage 2, rank {rank}\), micro-batch 2$"
    )
    with pytest.raises(RunError, match=sentence):
        run(layers(spoil), batch({}), batch({2: 7.0}), name=name)


@pytest.mark.parametrize("name", ["gpipe", "1f1b", "zb-h1"])
def test_of_several_culprits_the_first_in_the_schedule_is_named(name):
    with pytest.raises(RunError, match=r"layer 3.1 \(stage 1, rank 1\), micro-batch 1$"):
        run(layers(Spoils(7.0, forward=math.nan), Spoils(8.0, forward=math.nan)), batch({3: 7.0, 1: 8.0}), name=name)


def test_a_weight_that_is_not_finite_is_found_in_the_layer_that_uses_it():
    model = layers()
    with torch.no_grad():
        model[3].linear.weight[0, 0] = math.nan
    with pytest.raises(RunError, match=r"in the forward of layer 3.linear \(stage 1, rank 1\), micro-batch 0$"):
        run(model, batch({}))


def test_a_bad_input_is_told_apart_from_a_bad_layer():
    inputs, targets = batch({})
    inputs[0, 0] = math.inf
    with pytest.raises(RunError, match=r"in the forward of the input"):
        run(layers(), (inputs, targets))


def test_a_weight_gradient_that_overflows_is_named_by_its_parameter():
    class Overflows(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(()))

        def forward(self, x: Tensor) -> Tensor:
            return x + (self.weight * 1e30) * (1e30 * x.detach())

    model = nn.Sequential(nn.Identity(), nn.Linear(WIDTH, WIDTH), Overflows(), nn.Linear(WIDTH, 3))
    with pytest.raises(RunError, match=r"layer 2.weight \(stage 1, rank 1\), weight gradients of all micro-batches$"):
        pl.train(model, [batch({})], pl.build("1f1b", 2, MICROBATCHES), at=[2], watch=True)


def test_large_numbers_whose_norm_overflows_are_finite():
    model = nn.Sequential(nn.Linear(WIDTH, WIDTH), Scale(1e30), Scale(1e-30), nn.Linear(WIDTH, 3))
    pl.train(model, [batch({})], pl.build("1f1b", 2, MICROBATCHES), at=[2], watch=True)


class Scale(nn.Module):
    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, x: Tensor) -> Tensor:
        return x * self.factor


def test_norms_are_those_of_the_uncut_model_and_watching_changes_no_number():
    batches = [batch({}), batch({})]
    model = layers()
    uncut, unwatched = copy.deepcopy(model), copy.deepcopy(model)
    watched, plain = run(model, *batches), run(unwatched, *batches, watch=False)
    assert watched.losses == plain.losses and plain.norms == ({}, {})
    assert len(watched.norms[0]) == 7 * MICROBATCHES  # 4 stages forward, 3 backward
    inputs, targets = (torch.tensor_split(tensor, MICROBATCHES)[1] for tensor in batches[0])
    middle = uncut[:4](inputs)
    middle.retain_grad()
    (cross_entropy(uncut[4:](middle), targets) / MICROBATCHES).backward()
    assert watched.norms[0][pl.Action.parse("1F1")] == pytest.approx(middle.norm().item(), rel=1e-5)
    assert watched.norms[0][pl.Action.parse("2I1")] == pytest.approx(middle.grad.norm().item(), rel=1e-5)


def test_findings_are_ordered_by_the_schedule_not_by_their_rank():
    schedule = pl.build("1f1b", 3, 3)
    early, late = (Finding(0, stage, stage, "F", m, "x", "nan") for stage, m in ((1, 0), (0, 2)))
    assert first_finding([late, None, early], schedule) == early
    assert first_finding([], schedule) is None
    weights = Finding(0, 0, 0, "W", None, "x", "nan")
    assert first_finding([weights, late], schedule) == late


def test_the_command_prints_the_norms_and_one_sentence_with_exit_1(monkeypatch, capsys):
    shape = ["--schedule", "1f1b", "--pp", "2", "--microbatches", "2", "--model", "tiny", "--layers", "2"]
    arguments = ["train", *shape, "--steps", "1", "--watch"]
    assert main([*arguments, "--json"]) == 0
    norms = json.loads(capsys.readouterr().out)["norms"]
    assert [len(norms[what]) for what in ("activations", "gradients")] == [2, 1]

    def spoiled(*given, **options):
        model = build_model(*given, **options)
        with torch.no_grad():
            model[1].mlp.up.weight[0, 0] = math.nan
        return model

    monkeypatch.setattr("pipelab.models.build_model", spoiled)
    assert main(arguments) == 1
    said = capsys.readouterr()
    assert said.out == "" and said.err.splitlines()[-1] == (
        "pipelab train: step 0: the first value that is not finite is nan, in the forward of layer 1.mlp.up"
        " (stage 0, rank 0), micro-batch 0"
    )


def test_among_processes_every_rank_has_its_own_watch_and_the_same_culprit_is_named():
    model = build_model("tiny", layers=6)
    with torch.no_grad():
        model[4].attention.qkv.weight[0, 0] = math.nan
    tokens = torch.randint(256, (ROWS * MICROBATCHES, 16), generator=torch.Generator().manual_seed(0))
    schedule = pl.build("1f1b", 2, MICROBATCHES)
    with pytest.raises(RunError, match=r"forward of layer 4.attention.qkv \(stage 1, rank 1\), micro-batch 0"):
        pl.train(model, [(tokens, tokens)], schedule, transport="gloo", watch=True, timeout=120)


def test_norms_of_processes_are_those_of_threads():
    tokens = torch.randint(256, (ROWS * MICROBATCHES, 16), generator=torch.Generator().manual_seed(0))
    schedule = pl.build("1f1b", 2, MICROBATCHES)
    norms = [
        pl.train(build_model("tiny", layers=6), [(tokens, tokens)], schedule, transport=transport, watch=True).norms
        for transport in ("memory", "gloo")
    ]
    assert norms[0] == norms[1] and len(norms[0][0]) == 3 * MICROBATCHES
