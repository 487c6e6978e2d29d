"""What crosses the border of two stages when it is not the usual: no gradient, or another dtype than the weights'."""

import copy

import pytest
import torch
from torch import Tensor, nn

import pipelab as pl
from pipelab.reference import train_uncut

pytestmark = pytest.mark.usefixtures("travelling")


class Deaf(nn.Module):
    """A Linear of something else than its input."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(torch.ones_like(x.detach()))


class Half(nn.Module):
    """A Linear under autocast: float32 or bfloat16 in, bfloat16 out."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return self.linear(x).relu()


class Whole(nn.Linear):
    """A Linear in float32, whatever comes in."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.float())


def sgd(parameters):
    return torch.optim.SGD(parameters, lr=0.1)


MODELS = {
    "deaf": lambda: [nn.Linear(6, 6), nn.Linear(6, 6), Deaf(6), nn.Linear(6, 6)],
    "mixed": lambda: [nn.Linear(6, 6), Half(6), Half(6), Whole(6, 6)],
    "mixed first and last": lambda: [Half(6), Whole(6, 6), nn.Linear(6, 6), Half(6)],
}


@pytest.mark.parametrize("transport", ["memory", "gloo"])
@pytest.mark.parametrize("name", MODELS)
def test_a_border_without_gradient_or_in_another_dtype_trains_as_plain_autograd_does(name, transport):
    # sgd, for to it a gradient of zeros (sent where there is none) is the same as no gradient
    torch.manual_seed(0)
    model = nn.Sequential(*MODELS[name]())
    batches = [(torch.randn(6, 6), torch.randint(6, (6,))) for _ in range(3)]
    uncut = copy.deepcopy(model)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    losses = train_uncut(uncut, batches, 3, optimizer=sgd)
    torch.set_num_threads(threads)
    for schedule in (pl.build("1f1b", 4, 3), pl.build("zb-h1", 4, 3)):
        ours = copy.deepcopy(model)
        run = pl.train(ours, batches, schedule, optimizer=sgd, transport=transport)
        assert run.losses == losses, schedule.name
        for (parameter, mine), theirs in zip(ours.named_parameters(), uncut.parameters(), strict=True):
            assert torch.equal(mine, theirs), (schedule.name, parameter)


def test_autocast_around_a_run_is_refused_and_not_ignored():
    model, batch = nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 6)), (torch.randn(4, 6), torch.randint(6, (4,)))
    with torch.autocast("cpu", torch.bfloat16), pytest.raises(ValueError, match="give train autocast="):
        pl.train(model, [batch], pl.build("1f1b", 2, 2))
