"""The shares of the micro-batches add up to the loss of the batch, however it is cut and whatever is left out."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional

from pipelab.loss import IGNORED, count_targets, cross_entropy, weighted_loss

CLASSES = 5


def cut(tensor: torch.Tensor, sizes: list[int]) -> tuple[torch.Tensor, ...]:
    return torch.split(tensor, sizes)


@settings(max_examples=60)
@given(
    sizes=st.lists(st.integers(1, 4), min_size=1, max_size=5),
    ignored=st.floats(0, 1),
    seed=st.integers(0, 2**16),
)
def test_shares_of_uneven_micro_batches_with_ignored_targets_add_up_to_the_loss_of_the_batch(sizes, ignored, seed):
    generator = torch.Generator().manual_seed(seed)
    rows = sum(sizes)
    logits = torch.randn(rows, 3, CLASSES, generator=generator, dtype=torch.float64, requires_grad=True)
    targets = torch.randint(CLASSES, (rows, 3), generator=generator)
    targets[torch.rand(targets.shape, generator=generator) < ignored] = IGNORED
    total = count_targets(targets)
    whole = cross_entropy(logits, targets) if total else logits.sum() * 0
    (expected,) = torch.autograd.grad(whole, logits)
    shares = [
        weighted_loss(cross_entropy, part, target, total)
        for part, target in zip(cut(logits, sizes), cut(targets, sizes), strict=True)
    ]
    (gradient,) = torch.autograd.grad(sum(shares), logits)
    assert sum(shares).item() == pytest.approx(whole.item(), rel=1e-12, abs=1e-12)
    torch.testing.assert_close(gradient, expected, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("loss", [functional.mse_loss, functional.l1_loss, nn.SmoothL1Loss()])
def test_shares_of_a_regression_weigh_by_their_numbers(loss):
    torch.manual_seed(0)
    output, target = torch.randn(2, 7, 3, dtype=torch.float64)
    shares = [
        weighted_loss(loss, part, own, count_targets(target))
        for part, own in zip(cut(output, [1, 4, 2]), cut(target, [1, 4, 2]), strict=True)
    ]
    assert sum(shares).item() == pytest.approx(loss(output, target).item(), rel=1e-12)


def test_a_micro_batch_without_targets_has_a_share_of_zero_and_a_gradient_of_zero():
    logits = torch.randn(2, CLASSES, requires_grad=True)
    share = weighted_loss(cross_entropy, logits, torch.full((2,), IGNORED), total=6)
    share.backward()
    assert share.item() == 0
    assert torch.equal(logits.grad, torch.zeros(2, CLASSES))


def test_a_step_without_any_target_has_a_loss_of_zero_and_not_nan():
    logits, targets = torch.randn(2, CLASSES), torch.full((2,), IGNORED)
    assert weighted_loss(cross_entropy, logits, targets, count_targets(targets)).item() == 0


def test_the_only_micro_batch_has_the_whole_loss_to_the_bit():
    torch.manual_seed(0)
    logits, targets = torch.randn(4, CLASSES), torch.randint(CLASSES, (4,))
    assert weighted_loss(cross_entropy, logits, targets, 4).item() == cross_entropy(logits, targets).item()


def test_targets_are_class_indices_that_are_not_ignored_or_all_numbers_of_a_tensor():
    assert count_targets(torch.tensor([[0, IGNORED], [3, 4]])) == 3
    assert count_targets(torch.full((3,), IGNORED)) == 0
    assert count_targets(torch.zeros(3, 2)) == 6
    assert count_targets(torch.full((3,), float(IGNORED))) == 3
