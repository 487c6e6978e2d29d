"""What is predicted not to fit does not begin, and is told why and what would; what fits is never refused."""

import math

import pytest
import torch
from torch import nn

import pipelab as pl
from pipelab import fit
from pipelab.host import available_memory
from pipelab.memory_prediction import predict_memory
from pipelab.models import build_model

ids = torch.arange(32 * 16).reshape(32, 16) % 256
BATCH = ids[:16], ids[16:]


def train(name="gpipe", **options):
    model = options.pop("model", None) or build_model("tiny", layers=4)
    return pl.train(model, [BATCH], pl.build(name, 2, 8), **options)


def needed(name="gpipe"):
    return max(predict_memory(build_model("tiny", layers=4), pl.build(name, 2, 8), BATCH).totals)


def test_the_limit_is_what_one_rank_may_hold_to_the_byte():
    assert train(memory_limit=needed()).losses
    with pytest.raises(ValueError, match=r"will not fit: rank 1 needs 1\.\d+ MiB of 1\.\d+ MiB, activations above all"):
        train(memory_limit=needed() - 1)


def test_the_remedy_is_predicted_to_fit_and_does():
    limit = needed("1f1b")
    with pytest.raises(ValueError, match=r"; 1f1b instead of gpipe would need 0\.\d+ MiB"):
        train(memory_limit=limit)
    assert train("1f1b", memory_limit=limit).losses


def test_where_nothing_fits_the_nearest_is_told():
    with pytest.raises(ValueError, match=r"take smaller micro-batches, more ranks, or a smaller model; nearest comes"):
        train(memory_limit=1000)


def test_nothing_has_begun_when_a_run_is_refused():
    model, seen = build_model("tiny", layers=4), []
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(ValueError, match="will not fit"):
        train(model=model, memory_limit=1000, on_step=lambda *step: seen.append(step))
    assert not seen and all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("transport", ["memory", "gloo"])
def test_without_a_limit_the_ranks_share_what_the_host_has(transport, monkeypatch):
    monkeypatch.setattr(fit, "available_memory", lambda: 2**20)
    with pytest.raises(ValueError, match=r"the 2 ranks that share it need \d\.\d+ MiB of 1 MiB"):
        train(transport=transport)


def test_parameters_that_are_there_already_are_not_needed_again(monkeypatch):
    # A model that is large beside its activations, for two ranks in this process: gradients and states are to come.
    model = nn.Sequential(*(nn.Linear(256, 256) for _ in range(4)))
    batch = torch.zeros(8, 256), torch.zeros(8, dtype=torch.int64)
    schedule, size = pl.build("1f1b", 2, 4), sum(p.nbytes for p in model.parameters())
    for share, fits in ((4.5, True), (3.5, False)):
        monkeypatch.setattr(fit, "available_memory", lambda share=share: int(share * size))
        if fits:
            assert pl.train(model, [batch], schedule).losses
        else:
            with pytest.raises(ValueError, match="will not fit"):
                pl.train(model, [batch], schedule)


class LooksAtNumbers(nn.Module):
    def forward(self, x):
        return x if x.sum().item() > 0 else -x


def test_a_model_that_cannot_be_predicted_is_refused_for_a_limit_of_ones_own_only(monkeypatch):
    monkeypatch.setattr(fit, "available_memory", lambda: 2000)
    model, batch = nn.Sequential(nn.Linear(8, 8), LooksAtNumbers()), (torch.ones(4, 8), torch.zeros(4, 8))
    options = {"loss": nn.functional.mse_loss}
    assert pl.train(model, [batch], pl.build("1f1b", 2, 4), **options).losses
    with pytest.raises(ValueError, match="cannot be predicted"):
        pl.train(model, [batch], pl.build("1f1b", 2, 4), memory_limit=2000, **options)


def test_where_there_is_plenty_nothing_is_predicted(monkeypatch):
    monkeypatch.setattr(fit, "predict_memory", None)
    assert train().losses and train(memory_limit=math.inf).losses


def test_a_limit_is_positive():
    with pytest.raises(ValueError, match="memory_limit must be positive: got 0"):
        train(memory_limit=0)


def test_the_host_says_what_it_has_left():
    left = available_memory()
    assert left is None or 2**20 < left < 2**60
