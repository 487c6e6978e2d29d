"""Random numbers depend on what is computed, never on when, where or in which order."""

import random
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import Tensor, nn

import pipelab as pl
from pipelab.randomness import Randomness

ONES = torch.ones(64)
CALLS = [(name, step, microbatch) for name in ("0", "3", "13") for step in range(3) for microbatch in range(4)]


def masks(seed: int, calls=CALLS, workers: int = 1) -> dict[tuple[str, int, int], Tensor]:
    """The dropout mask of each call, by one object and a number of threads."""
    randomness, layer = Randomness(seed), nn.Dropout(0.5)
    with ThreadPoolExecutor(workers) as pool:
        drawn = pool.map(lambda call: randomness.run(call[0], layer, ONES, call[1], call[2]), calls)
        return dict(zip(calls, drawn, strict=True))


def same(ours, theirs) -> bool:
    return ours.keys() == theirs.keys() and all(torch.equal(ours[call], theirs[call]) for call in ours)


def test_masks_do_not_depend_on_order_or_thread():
    first = masks(seed=1)
    assert same(first, masks(seed=1, calls=random.Random(0).sample(CALLS, len(CALLS))))
    assert same(first, masks(seed=1, workers=4))


def test_masks_do_not_depend_on_the_state_of_the_generator():
    torch.manual_seed(1)
    first = masks(seed=1)
    torch.manual_seed(2)
    torch.rand(5)
    assert same(first, masks(seed=1))


def test_masks_differ_by_seed_step_layer_and_micro_batch():
    drawn = [tuple(mask.tolist()) for seed in (1, 2) for mask in masks(seed).values()]
    assert len(set(drawn)) == len(drawn) == 2 * len(CALLS)


@pytest.mark.parametrize(
    ("ours", "theirs"), [(("1", 11, 1), ("11", 1, 1)), (("1", 1, 11), ("1", 11, 1)), (("0", 1, 0), ("0.1", 0, 0))]
)
def test_keys_that_would_read_alike_are_told_apart(ours, theirs):
    assert not torch.equal(*masks(seed=0, calls=[ours, theirs]).values())


def test_the_generator_is_as_it_was_afterwards_also_after_an_exception():
    class Fails(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            torch.rand(1)
            raise RuntimeError("no such luck")

    torch.manual_seed(5)
    before = torch.get_rng_state()
    randomness = Randomness(0)
    randomness.run("0", nn.Dropout(), ONES, 0, 0)
    with pytest.raises(RuntimeError, match="no such luck"):
        randomness.run("1", Fails(), ONES, 0, 0)
    assert torch.equal(torch.get_rng_state(), before)
    assert same(masks(seed=3), masks(seed=3))  # and the next call does not wait for a lock


def test_other_devices_generators_are_left_alone(monkeypatch):
    def refuse(seed: int) -> None:
        raise AssertionError("seeded")

    monkeypatch.setattr(torch.cuda, "manual_seed", refuse)
    monkeypatch.setattr(torch.cuda, "manual_seed_all", refuse)
    Randomness(0).run("0", nn.Dropout(), ONES, 0, 0)


def test_a_layer_that_draws_nothing_is_called_directly_from_then_on(monkeypatch):
    randomness, layer = Randomness(0), nn.Linear(64, 2)
    randomness.run("0", layer, ONES, 0, 0)

    def refuse(*arguments, **options):
        raise AssertionError("the generator was looked at again")

    monkeypatch.setattr(torch, "get_rng_state", refuse)
    assert torch.equal(randomness.run("0", layer, ONES, 0, 1), layer(ONES))
    with pytest.raises(AssertionError):
        randomness.run("1", layer, ONES, 0, 0)


def test_a_layer_that_draws_is_seeded_every_time():
    randomness, layer = Randomness(0), nn.Dropout()
    repeated = [randomness.run("0", layer, ONES, 2, 1) for _ in range(3)]
    assert all(torch.equal(repeated[0], mask) for mask in repeated)
    assert 0 < repeated[0].count_nonzero() < 64


@pytest.mark.parametrize("name", ["naive", "gpipe", "interleaved", "zb-h1"])
def test_every_schedule_draws_the_masks_of_1f1b(name):
    def losses(name: str, chunks: int | None = None) -> list[float]:
        torch.manual_seed(0)
        model = nn.Sequential(*(nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5)) for _ in range(4))).double()
        batch = torch.randn(3, 6, 4).double()
        return pl.train(model, [tuple(batch[:2])] * 2, pl.build(name, 2, 3, chunks), loss=nn.functional.mse_loss).losses

    assert losses(name, 2 if name == "interleaved" else None) == losses("1f1b")
