"""A profile measures each layer as a stage of its own, and leaves the model as it was."""

import pytest
import torch
from torch import nn

import pipelab as pl
from pipelab.costs import Link
from pipelab.models import build_model
from pipelab.profile import profile, stage_sums

TOKENS = torch.randint(256, (2, 16), generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def layers():
    return profile(build_model("tiny", layers=3), (TOKENS, TOKENS), repeats=2)


def test_every_layer_has_seconds_of_each_kind(layers):
    assert layers.names == ("0", "1", "2", "3", "4")
    assert {kind: len(times) for kind, times in layers.work.items()} == {"F": 5, "B": 5, "I": 5, "W": 5}
    assert all(time > 0 for kind in "FBI" for time in layers.work[kind])


def test_bytes_are_exact(layers):
    assert layers.parameters == tuple(
        sum(p.nbytes for p in layer.parameters()) for layer in build_model("tiny", layers=3)
    )
    assert layers.outputs[:-1] == (2 * 16 * 32 * 4,) * 4
    assert layers.held[0] == TOKENS.nbytes and layers.held[1] == layers.held[2] == layers.held[3]
    assert layers.waiting[0] == 0 and all(
        0 < left <= held for left, held in zip(layers.waiting[1:], layers.held[1:], strict=True)
    )


def test_the_model_stays_as_it_was_and_so_do_the_generators():
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Dropout(0.5), nn.Linear(4, 2))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state, threads = torch.get_rng_state(), torch.get_num_threads()
    profile(model, (torch.ones(6, 4), torch.zeros(6, dtype=torch.int64)), repeats=1)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())
    assert torch.equal(torch.get_rng_state(), state) and torch.get_num_threads() == threads


def test_the_costs_of_a_cut_are_sums_and_its_messages_take_what_the_link_says(layers):
    costs = layers.costs([2], Link(latency=1.0, bytes_per_second=4096))
    assert costs.work["F"] == tuple(stage_sums(layers.work["F"], [2])) and len(costs.work["F"]) == 2
    assert costs.hop == {(0, "F"): 2.0, (1, "I"): 2.0}
    assert layers.costs([2]).hop == 0


def test_calibrated_layers_add_up_to_the_stages_of_the_run(layers):
    seen = pl.Costs.per_stage(F=[1.0, 2.0], I=[3.0, 4.0], W=[5.0, 6.0])
    costs = layers.calibrated(seen, [2]).costs([2])
    for kind in "FIW":
        assert costs.work[kind] == pytest.approx(seen.work[kind])
    assert costs.work["B"] == pytest.approx(layers.costs([2]).work["B"])


def test_a_model_that_cannot_be_cut_everywhere_is_refused_with_the_remedy():
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(inplace=True), nn.Linear(4, 2))
    with pytest.raises(ValueError, match="inplace=False"):
        profile(model, (torch.ones(2, 4), torch.zeros(2, dtype=torch.int64)))
