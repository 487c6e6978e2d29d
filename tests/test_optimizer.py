"""An optimizer is tried out before anything runs, and that leaves GPUs alone."""

import pytest
import torch
from torch import nn

from pipelab.optimizer import adamw, apart_from_gpus, check_parts


def no_gpu_is_touched(monkeypatch):
    def touched(*_):
        raise AssertionError("a GPU was asked")

    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda check_available=False: torch.device("cuda"))
    monkeypatch.setattr(torch.accelerator, "current_stream", touched)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)  # what torch 2.11 asks
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", touched)


@pytest.mark.parametrize("optimizer", [adamw, torch.optim.SGD, torch.optim.Adam, torch.optim.RMSprop])
def test_an_optimizer_that_is_tried_out_asks_no_gpu(monkeypatch, optimizer):
    no_gpu_is_touched(monkeypatch)
    check_parts(optimizer, flat=True, device=torch.device("cpu"))


def test_it_steps_as_it_did():
    ours, theirs = (nn.Parameter(torch.linspace(-1, 1, 5)) for _ in range(2))
    for parameter, made in ((ours, apart_from_gpus(adamw([ours]))), (theirs, adamw([theirs]))):
        for _ in range(3):
            parameter.grad = parameter.detach() ** 3
            made.step()
    assert torch.equal(ours, theirs)
