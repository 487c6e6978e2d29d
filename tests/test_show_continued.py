"""The figure of runs that went on from one another says how far their losses are from the uninterrupted run's."""

import dataclasses

import pytest
import torch
from torch import nn

import pipelab as pl
from pipelab.show import continued_chart


@pytest.fixture(scope="module")
def runs():
    batch = torch.ones(6, 4), torch.zeros(6, dtype=torch.int64)
    model = nn.Sequential(*(nn.Linear(4, 4) for _ in range(4)))
    first = pl.train(model, [batch] * 5, pl.build("1f1b", 4, 3), steps=2)
    return [first, pl.reshape(first, schedule=pl.build("zb-v", 2, 3))]


def test_each_part_stands_at_its_steps_over_the_line_of_the_whole(runs):
    whole = runs[1].state.losses
    figure = continued_chart(runs, whole)
    assert figure.layout.title.text == "2 layouts, 5 steps: every loss equals the uninterrupted run's, to the last bit"
    assert [(trace.name, trace.x) for trace in figure.data] == [
        ("uninterrupted", (0, 1, 2, 3, 4)), ("1f1b, pp = 4", (0, 1)), ("zb-v, pp = 2", (2, 3, 4)),
    ]  # fmt: skip
    assert len({trace.marker.symbol for trace in figure.data[1:]}) == 2


def test_losses_that_differ_are_told_by_how_much(runs):
    whole = [*runs[1].state.losses[:4], runs[1].losses[-1] * 1.25]
    assert "the uninterrupted run's but for 0.2 of their size" in repr(continued_chart(runs, whole))


def test_runs_that_cannot_be_placed_are_refused(runs):
    for wrong, whole in (([], [1.0]), (runs, [1.0]), ([dataclasses.replace(runs[0], state=None)], [1.0] * 9)):
        with pytest.raises(ValueError, match="give runs with a state"):
            continued_chart(wrong, whole)
