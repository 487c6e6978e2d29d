"""Tensor shards compute what the uncut model computes, with the textbook's bytes, and W needs no other rank."""

import copy
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import Tensor, nn

from pipelab.clock import Turn, VirtualClock
from pipelab.collectives import Group, traffic_of
from pipelab.costs import Link
from pipelab.loss import cross_entropy
from pipelab.memory import ActivationMeter
from pipelab.models import GPTConfig, build_model
from pipelab.randomness import Randomness
from pipelab.stage import Stage
from pipelab.tensor_parallel import (
    join_state,
    loss_of,
    partial_gradients,
    shard,
    shard_dims,
)
from pipelab.transport.meetings import Meetings, Seat

CONFIG = GPTConfig(vocabulary=22, width=16, heads=4, layers=2, context=12)
ROWS, TOKENS = 3, 8


def seats(size: int) -> list[Group]:
    meetings, turn, members = Meetings(timeout=20), Turn(torch.device("cpu")), tuple(range(size))
    return [Group("tp", members, i, Seat(meetings, "tp", i, size), VirtualClock(turn), Link()) for i in members]


def on_all(groups: list[Group], work):
    """Run `work(group)` on every seat at once; a rank that fails wakes the others."""

    def run(group):
        try:
            return group.clock.run(lambda: work(group))[0]
        except BaseException:
            group.carrier.meetings.abort()
            raise

    with ThreadPoolExecutor(len(groups)) as pool:
        futures = [pool.submit(run, group) for group in groups]
        errors = [error for future in futures if (error := future.exception(timeout=60))]
    for error in sorted(errors, key=lambda error: type(error).__name__ == "Aborted"):
        raise error
    return [future.result() for future in futures]


def model_of(config: GPTConfig = CONFIG, dropout: float = 0.0) -> nn.Sequential:
    """With parameters that are nowhere zero or one, so that each of them matters."""
    model = build_model(config, seed=3, dtype=torch.float64)
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    return model


def batch(vocabulary: int = CONFIG.vocabulary) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randint(vocabulary, (ROWS, TOKENS), generator=generator)
    targets = torch.randint(vocabulary, (ROWS, TOKENS), generator=generator)
    targets[0, :3] = -100
    return tokens, targets


def stage_of(layers, *, first=False, loss=None, split=False) -> Stage:
    return Stage(layers, first=first, loss=loss, split=split, randomness=Randomness(0), meter=ActivationMeter())


def by_autograd(model: nn.Sequential, x: Tensor, target: Tensor, loss=cross_entropy):
    """Loss, input gradient (of features) and gradients, of the uncut model."""
    whole = copy.deepcopy(model)
    x = x.clone().requires_grad_(x.is_floating_point())
    value = loss(whole(x), target)
    value.backward()
    return value.detach(), x.grad, {name: p.grad for name, p in whole.named_parameters()}


def by_shards(group: Group, layers: nn.Sequential, x: Tensor, target: Tensor, *, split, sp, loss=cross_entropy):
    """The same through a stage on one tensor rank; partial gradients are summed at the end, as after a step."""
    own = shard(layers, group, sequence_parallel=sp)
    stage = stage_of(own, first=not x.is_floating_point(), loss=loss_of(own, loss), split=split)
    with stage.attached():
        value = stage.forward(0, x, step=0, target=target, total=int((target != -100).sum()))
        forward = traffic_of(group.taken())
        given = stage.backward_input(0, None)
        backward = traffic_of(group.taken())
        stage.backward_weight(0)
        assert group.taken() == []
    gradients = {name: parameter.grad for name, parameter in own.named_parameters()}
    for name in partial_gradients(own):
        gradients[name] = group.all_reduce(gradients[name])
    return value, given, gradients, (forward, backward), own


def assert_equal(ours, theirs, *, what: str = ""):
    torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-13, msg=lambda text: f"{what}: {text}")


# ---- the numbers


@pytest.mark.parametrize("sp", [False, True])
@pytest.mark.parametrize("split", [False, True])
@pytest.mark.parametrize("tp", [1, 2, 4])
def test_loss_and_gradients_are_those_of_the_uncut_model(tp, split, sp):
    model, (tokens, targets) = model_of(), batch()
    value, _, gradients = by_autograd(model, tokens, targets)
    results = on_all(seats(tp), lambda g: by_shards(g, model, tokens, targets, split=split, sp=sp))
    dims = shard_dims(results[0][4])
    joined = join_state([result[2] for result in results], dims)
    assert joined.keys() == gradients.keys()
    for result in results:
        assert_equal(result[0], value, what="loss")
        for name, gradient in result[2].items():
            if name not in dims:
                assert_equal(gradient, gradients[name], what=name)
    for name, gradient in gradients.items():
        assert_equal(joined[name], gradient, what=name)
