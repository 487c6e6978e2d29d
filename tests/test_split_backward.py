"""I then W is B: the same gradients to the last bit for the same work, and the layers are given back as they were."""

import copy
import itertools

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

from pipelab.memory import ActivationMeter
from pipelab.models import Block, GPTConfig
from pipelab.randomness import Randomness
from pipelab.split_backward import DeferredWeights
from pipelab.stage import Stage

SIZES = list(itertools.product((False, True), ((6, 4), (3, 5, 4)), (torch.float32, torch.float64)))

pytestmark = pytest.mark.usefixtures("one_intra_op_thread")


def stage_of(layers: nn.Sequential, *, first: bool = False, split: bool = True) -> Stage:
    return Stage(layers, first=first, loss=None, split=split, randomness=Randomness(seed=0), meter=ActivationMeter())


def backward_in_halves(layers: nn.Sequential, inputs: list[Tensor], gradients: list[Tensor], *, first=False):
    """Forward and I of every micro-batch, then the Ws; gives the input gradients."""
    stage = stage_of(layers, first=first)
    with stage.attached():
        for microbatch, x in enumerate(inputs):
            stage.forward(microbatch, x, step=0)
        given = [stage.backward_input(microbatch, gradient) for microbatch, gradient in enumerate(gradients)]
        for microbatch in range(len(inputs)):
            stage.backward_weight(microbatch)
    assert stage.meter.live == 0
    return given


def backward_by_autograd(layers: nn.Sequential, inputs: list[Tensor], gradients: list[Tensor]):
    given = []
    for x, gradient in zip(inputs, gradients, strict=True):
        leaf = x.detach().clone()
        if leaf.is_floating_point():
            leaf.requires_grad_()
        layers(leaf).backward(gradient)
        given.append(leaf.grad)
    return given


def assert_halves_equal_the_whole(layers: nn.Sequential, *shape: int, dtype=torch.float64, microbatches: int = 3):
    whole = copy.deepcopy(layers)
    torch.manual_seed(2)
    inputs = [torch.randn(shape, dtype=dtype) for _ in range(microbatches)]
    gradients = [torch.randn_like(whole(x)) for x in inputs]
    ours = backward_in_halves(layers, inputs, gradients)
    theirs = backward_by_autograd(whole, inputs, gradients)
    assert all(map(torch.equal, ours, theirs))
    for (name, p), q in zip(layers.named_parameters(), whole.parameters(), strict=True):
        assert (p.grad is None) == (q.grad is None), name
        assert p.grad is None or torch.equal(p.grad, q.grad), name


# ---- the numbers


@pytest.mark.parametrize(("bias", "shape", "dtype"), SIZES)
def test_a_linear_gets_the_gradients_of_a_full_backward_bit_for_bit(bias, shape, dtype):
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Linear(4, 7, bias=bias), nn.Tanh(), nn.Linear(7, 2, bias=bias)).to(dtype)
    assert_halves_equal_the_whole(layers, *shape, dtype=dtype)


class OfOneVector(nn.Module):
    """Gives its Linear an input without a batch dimension."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x.mean(0))


def test_a_linear_of_a_single_vector_is_split_too():
    torch.manual_seed(0)
    assert_halves_equal_the_whole(nn.Sequential(OfOneVector()).double(), 5, 4)


class OfAView(nn.Module):
    """Gives its Linear inputs that are not contiguous: one transposed, one expanded."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x.transpose(1, 2)) + self.linear(x[:, :1, :1].expand(-1, 4, 5))


def test_inputs_that_are_not_contiguous_make_no_difference():
    torch.manual_seed(0)
    assert_halves_equal_the_whole(nn.Sequential(OfAView()).double(), 2, 5, 4)


@pytest.mark.parametrize("frozen", ["weight", "bias", "weight bias"])
def test_frozen_parameters_stay_without_gradient(frozen):
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4)).double()
    for name in frozen.split():
        getattr(layers[1], name).requires_grad_(False)
    assert_halves_equal_the_whole(layers, 6, 4)


class Twice(nn.Module):
    """One Linear used three times in a forward."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(torch.tanh(self.linear(torch.tanh(self.linear(x)))))


def test_a_linear_used_several_times_sums_its_uses_before_it_adds_them():
    torch.manual_seed(0)
    assert_halves_equal_the_whole(nn.Sequential(Twice()).double(), 6, 4)


def test_two_linears_that_share_a_weight_and_a_bias_add_up_as_in_autograd():
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4)).double()
    layers[2].weight, layers[2].bias = layers[0].weight, layers[0].bias
    assert_halves_equal_the_whole(layers, 6, 4)


class EmbeddingAndHead(nn.Module):
    """Tied weights: the table that is looked up is also the matrix of a Linear."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(11, 4)
        self.head = nn.Linear(4, 11, bias=False)
        self.head.weight = self.table.weight

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(torch.tanh(self.table(tokens)))


def test_a_weight_tied_to_an_embedding_is_equal_to_rounding_and_for_one_micro_batch_to_the_bit():
    # With more, the lookup's share is added in I and the product's in W: another order than autograd's.
    for microbatches in (1, 3):
        torch.manual_seed(0)
        layers = nn.Sequential(EmbeddingAndHead()).double()
        whole = copy.deepcopy(layers)
        tokens = [torch.randint(11, (3, 5)) for _ in range(microbatches)]
        gradients = [torch.randn(3, 5, 11).double() for _ in tokens]
        assert backward_in_halves(layers, tokens, gradients, first=True) == [None] * microbatches
        backward_by_autograd(whole, tokens, gradients)
        ours, theirs = layers[0].table.weight.grad, whole[0].table.weight.grad
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-14)
        assert microbatches > 1 or torch.equal(ours, theirs)


def test_the_first_stage_computes_no_gradient_of_its_input():
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2)).double()
    whole = copy.deepcopy(layers)
    x, gradient = torch.randn(6, 4).double(), torch.randn(6, 2).double()
    assert backward_in_halves(layers, [x], [gradient], first=True) == [None]
    whole(x).backward(gradient)
    assert all(torch.equal(p.grad, q.grad) for p, q in zip(layers.parameters(), whole.parameters(), strict=True))


def test_a_transformer_block_is_split_bit_for_bit():
    torch.manual_seed(0)
    config = GPTConfig(vocabulary=7, width=8, heads=2, layers=1, context=5)
    assert_halves_equal_the_whole(nn.Sequential(Block(config), Block(config)).double(), 2, 5, 8)


class Checkpointed(nn.Module):
    """Recomputes its forward during the backward."""

    def __init__(self, *, reentrant: bool) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4))
        self.reentrant = reentrant

    def forward(self, x: Tensor) -> Tensor:
        return checkpoint(self.body, x, use_reentrant=self.reentrant)


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0)])
def test_a_recomputed_linear_leaves_its_product_with_its_own_micro_batch(order, reentrant):
    # The last forward was of micro-batch 2, and what a recomputation puts off belongs to another one.
    torch.manual_seed(0)
    layers = nn.Sequential(Checkpointed(reentrant=reentrant)).double()
    whole = copy.deepcopy(layers)
    inputs = [torch.randn(6, 4).double() for _ in order]
    stage = stage_of(layers)
    with stage.attached():
        for microbatch, x in enumerate(inputs):
            stage.forward(microbatch, x, step=0)
        for microbatch in order:
            stage.backward_input(microbatch, torch.ones(6, 4).double())
            stage.backward_weight(microbatch)
    backward_by_autograd(whole, [inputs[m] for m in order], [torch.ones(6, 4).double()] * 3)
    assert all(torch.equal(p.grad, q.grad) for p, q in zip(layers.parameters(), whole.parameters(), strict=True))


def test_an_input_changed_in_place_before_its_backward_is_refused_as_by_autograd():
    class Overwrites(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            x = x + 1
            y = self.linear(x)
            x.add_(1)
            return y

    with pytest.raises(RuntimeError, match="inplace operation"):
        Overwrites()(torch.ones(2, 4)).sum().backward()
    with pytest.raises(RuntimeError, match="changed in place before its backward"):
        backward_in_halves(nn.Sequential(Overwrites()), [torch.ones(2, 4)], [torch.ones(2, 4)])


def test_a_recomputed_linear_holds_nothing_until_its_backward():
    layers = nn.Sequential(Checkpointed(reentrant=False))
    stage = stage_of(layers)
    with stage.attached():
        stage.forward(0, torch.ones(6, 4), step=0)
        assert stage.meter.live == 6 * 4 * 4  # the input alone
        stage.backward_input(0, torch.ones(6, 4))
        stage.backward_weight(0)
    assert stage.meter.live == 0


# ---- what is put off, and what it costs


def test_weights_and_biases_of_linears_wait_for_w_and_all_other_parameters_do_not():
    torch.manual_seed(0)
    layers = nn.Sequential(nn.LayerNorm(4), nn.Linear(4, 4), nn.PReLU(), nn.Linear(4, 2))
    stage = stage_of(layers)
    with stage.attached():
        stage.forward(0, torch.randn(3, 4), step=0)
        stage.backward_input(0, torch.ones(3, 2))
        early = {name for name, parameter in layers.named_parameters() if parameter.grad is not None}
        stage.backward_weight(0)
    assert early == {"0.weight", "0.bias", "2.weight"}
    assert all(parameter.grad is not None for parameter in layers.parameters())


def matmul_flops(work) -> int:
    with FlopCounterMode(display=False) as counter:
        work()
    return counter.get_total_flops()


@pytest.mark.parametrize("first", [False, True])
def test_input_and_weight_gradient_together_do_the_products_of_a_full_backward(first):
    torch.manual_seed(0)
    config = GPTConfig(vocabulary=7, width=8, heads=2, layers=1, context=5)
    layers = nn.Sequential(nn.Linear(8, 8), Block(config), nn.Linear(8, 3))
    x, gradient = torch.randn(2, 5, 8), torch.randn(2, 5, 3)

    def count(*, split: bool) -> list[int]:
        stage = stage_of(layers, first=first, split=split)
        with stage.attached():
            forward = matmul_flops(lambda: stage.forward(0, x, step=0))
            if not split:
                return [forward, matmul_flops(lambda: stage.backward(0, gradient))]
            first_half = matmul_flops(lambda: stage.backward_input(0, gradient))
            return [forward, first_half, matmul_flops(lambda: stage.backward_weight(0))]

    (whole_forward, whole), (forward, half, other) = count(split=False), count(split=True)
    linear = 2 * 10 * (8 * 8 + 8 * 24 + 8 * 8 + 8 * 32 + 32 * 8 + 8 * 3)
    assert whole_forward == forward
    assert other == linear  # each weight product: as many as the forward's
    assert half + other == whole


# ---- which layers, and what is left of it


class Doubled(nn.Linear):
    """A subclass with a forward of its own."""

    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


def weight_normed() -> nn.Module:
    return parametrizations.weight_norm(nn.Linear(4, 4))


def masked() -> nn.Module:
    """As pruning leaves a Linear: its weight is a plain attribute, made anew from a parameter of another name."""
    linear = nn.Linear(4, 4)
    linear.register_parameter("whole", nn.Parameter(linear.weight.detach()))
    del linear.weight
    linear.weight = torch.ones(4, 4)
    return linear


def replaced_forward() -> nn.Module:
    linear = nn.Linear(4, 4)
    linear.forward = lambda x: torch.relu(nn.functional.linear(x, linear.weight, linear.bias))
    return linear


def frozen() -> nn.Module:
    return nn.Linear(4, 4).requires_grad_(False)


@pytest.mark.parametrize("make", [lambda: Doubled(4, 4), weight_normed, masked, replaced_forward, frozen])
def test_other_than_plain_linears_are_left_to_autograd_and_come_out_equal(make):
    torch.manual_seed(0)
    layers = nn.Sequential(make(), nn.Linear(4, 2))
    deferred = DeferredWeights(layers, ActivationMeter())
    assert deferred.linears == [layers[1]]
    if make is not replaced_forward:  # a deep copy would keep the lambda of the original
        assert_halves_equal_the_whole(layers, 6, 4, dtype=torch.float32)


def test_the_forward_of_every_linear_is_given_back_also_after_an_exception():
    layers = nn.Sequential(nn.Linear(4, 4), nn.Sequential(nn.Linear(4, 2)))
    linears = [layers[0], layers[1][0]]
    before = layers.state_dict(keep_vars=True)
    with pytest.raises(RuntimeError, match="cannot be multiplied"), stage_of(layers).attached():
        assert all("forward" in vars(linear) for linear in linears)
        layers(torch.ones(1, 3))
    assert not any("forward" in vars(linear) for linear in linears)
    after = layers.state_dict(keep_vars=True)
    assert all(after[name] is parameter for name, parameter in before.items())
    layers(torch.ones(1, 4)).sum().backward()
    assert all(parameter.grad is not None for parameter in layers.parameters())


def test_hooks_on_a_linear_still_run():
    layers = nn.Sequential(nn.Linear(4, 4))
    seen = []
    layers[0].register_forward_hook(lambda module, inputs, output: seen.append("forward"))
    layers[0].register_full_backward_hook(lambda module, before, after: seen.append("backward"))
    backward_in_halves(layers, [torch.ones(2, 4)], [torch.ones(2, 4)])
    assert seen == ["forward", "backward"]


def test_a_stage_whose_output_depends_on_nothing_gives_a_gradient_of_zero():
    class Constant(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.ones_like(x)

    [gradient] = backward_in_halves(nn.Sequential(Constant()), [torch.randn(2, 4)], [torch.ones(2, 4)])
    assert torch.equal(gradient, torch.zeros(2, 4))
