"""A cut is complete, shares the layers, keeps their names, is balanced, and refuses what cannot work."""

from itertools import combinations, pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from pipelab.models import PRESETS, build_model
from pipelab.partition import balanced_boundaries, cut, estimate_work


def linears(count: int) -> nn.Sequential:
    return nn.Sequential(*(nn.Linear(4, 4) for _ in range(count)))


def loads(costs: list[int], boundaries: tuple[int, ...]) -> list[int]:
    return [sum(costs[i:j]) for i, j in pairwise((0, *boundaries, len(costs)))]


@given(st.lists(st.integers(0, 6), min_size=1, max_size=8), st.data())
def test_boundaries_are_the_best_of_all_possible_ones(costs, data):
    stages = data.draw(st.integers(1, len(costs)))
    candidates = combinations(range(1, len(costs)), stages - 1)

    def preference(boundaries):
        each = loads(costs, boundaries)
        return sorted(each, reverse=True), [-load for load in each], [-i for i in boundaries]

    assert balanced_boundaries(costs, stages) == min(candidates, key=preference)


@pytest.mark.parametrize("stages", range(1, 11))
def test_the_slices_in_a_row_are_the_model(stages):
    model = build_model("tiny")
    parts = cut(model, stages)
    assert len(parts) == stages and all(len(part) for part in parts)
    assert [layer for part in parts for layer in part] == list(model)
    names = [name for part in parts for name, _ in part.named_parameters()]
    assert names == [name for name, _ in model.named_parameters()]
    x = torch.randint(256, (2, 16))
    y = x
    for part in parts:
        y = part(y)
    assert torch.equal(y, model(x))


@pytest.mark.parametrize(("stages", "blocks"), [(2, [8, 8]), (3, [6, 5, 5]), (4, [4] * 4), (8, [2] * 8)])
def test_sixteen_equal_blocks_are_shared_evenly_and_earlier_stages_take_the_rest(stages, blocks):
    for name in ("tiny", "small"):
        parts = cut(build_model(name), stages)
        assert [sum(type(layer).__name__ == "Block" for layer in part) for part in parts] == blocks


def test_the_heavy_head_of_gpt2_gets_a_stage_of_its_own():
    blocks, head = [12 * 768**2] * 12, 768 * 50257
    assert balanced_boundaries([0, *blocks, head], 4) == (5, 9, 13)


def test_work_counts_the_parameters_of_matrix_products():
    embedding, *blocks, head = build_model("tiny")
    width = PRESETS["tiny"].width
    assert estimate_work(embedding) == 0
    assert {estimate_work(block) for block in blocks} == {12 * width**2}
    assert estimate_work(head) == 256 * width
    assert estimate_work(nn.LayerNorm(8)) == estimate_work(nn.GELU()) == 1
    assert estimate_work(nn.Sequential(nn.Embedding(9, 4), nn.Linear(4, 5))) == 20


def test_boundaries_can_be_given_by_hand():
    assert [len(part) for part in cut(linears(8), 3, at=[3, 6])] == [3, 3, 2]
    assert len(cut(linears(8), 1, at=[])) == 1


@pytest.mark.parametrize("at", [[3], [6, 3], [3, 3], [0, 3], [3, 8], [3, 6, 7], [1.5, 3]])
def test_impossible_boundaries_are_refused(at):
    with pytest.raises(ValueError, match="at must hold 2 increasing layer indices from 1 to 7"):
        cut(linears(8), 3, at=at)


@pytest.mark.parametrize("stages", [0, -1, 2.0])
def test_fewer_than_one_stage_is_refused(stages):
    with pytest.raises(ValueError, match="stages must be a whole number of at least 1"):
        cut(linears(2), stages)


def test_more_stages_than_layers_are_refused():
    with pytest.raises(ValueError, match=r"3 layers cannot fill 4 stages.*at most 3 stages"):
        cut(linears(3), 4)


def test_only_a_plain_sequential_can_be_cut():
    class OwnForward(nn.Sequential):
        def forward(self, x):
            return x + super().forward(x)

    with pytest.raises(ValueError, match=r"not ModuleList: list its layers.*nn\.Sequential\("):
        cut(nn.ModuleList(linears(2)), 2)
    with pytest.raises(ValueError, match="OwnForward has a forward of its own"):
        cut(OwnForward(*linears(2)), 2)


def test_a_layer_without_parameters_may_be_listed_twice():
    relu = nn.ReLU()
    parts = cut(nn.Sequential(nn.Linear(4, 4), relu, nn.Linear(4, 4), relu), 2)
    assert [list(part._modules) for part in parts] == [["0", "1"], ["2", "3"]]


@pytest.mark.parametrize(
    ("layer", "name"),
    [
        (nn.ReLU(inplace=True), "1"),
        (nn.Dropout(inplace=True), "1"),
        (nn.Sequential(nn.Flatten(), nn.ReLU(inplace=True)), "1.1"),
    ],
)
def test_a_stage_that_would_overwrite_what_it_received_is_refused(layer, name):
    model = nn.Sequential(nn.Linear(4, 4), layer, nn.Linear(4, 4))
    with pytest.raises(ValueError, match=rf"stage 1 starts with layer {name}, .*inplace=False"):
        cut(model, 2, at=[1])
    assert len(cut(model, 2, at=[2])) == 2


def test_slices_are_in_the_mode_of_the_model():
    assert [part.training for part in cut(linears(4).eval(), 2)] == [False, False]
    assert [part.training for part in cut(linears(4), 2)] == [True, True]
