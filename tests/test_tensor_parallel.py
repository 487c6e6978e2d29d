"""Tensor shards compute what the uncut model computes, with the textbook's bytes, and W needs no other rank."""

import copy
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations
from torch.utils.checkpoint import checkpoint

import pipelab as pl
from pipelab.clock import Turn, VirtualClock
from pipelab.collectives import ALL_GATHER, ALL_REDUCE, REDUCE_SCATTER, Group, Volume, traffic_of
from pipelab.costs import Link
from pipelab.data import Batches, arithmetic
from pipelab.failure import RunError
from pipelab.launcher import launch
from pipelab.loss import auxiliary, cross_entropy
from pipelab.memory import ActivationMeter
from pipelab.models import GPT, PRESETS, Block, GPTConfig, build_model
from pipelab.partition import cut
from pipelab.randomness import Randomness
from pipelab.reference import train_uncut
from pipelab.stage import Stage
from pipelab.tensor_layers import ColumnParallelLinear, RowParallelLinear, vocabulary_cross_entropy
from pipelab.tensor_parallel import (
    Plan,
    check_tensor_shards,
    cut_state,
    join_state,
    loss_of,
    partial_gradients,
    plan,
    shard,
    shard_dims,
)
from pipelab.transport.meetings import Meetings, Seat
from pipelab.transport.process_groups import ProcessGroup

CONFIG = GPTConfig(vocabulary=22, width=16, heads=4, layers=2, context=12)
ROWS, TOKENS = 3, 8


def seats(size: int) -> list[Group]:
    meetings, turn, members = Meetings(timeout=120), Turn(torch.device("cpu")), tuple(range(size))
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
        errors = [error for future in futures if (error := future.exception(timeout=240))]
    for error in sorted(errors, key=lambda error: type(error).__name__ == "Aborted"):
        raise error
    return [future.result() for future in futures]


def model_of(config: GPTConfig = CONFIG) -> nn.Sequential:
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


@pytest.mark.parametrize("sp", [False, True])
@pytest.mark.parametrize("split", [False, True])
def test_a_stage_in_the_middle_gives_the_gradient_of_its_input(split, sp):
    """Under sequence parallelism each rank has its own tokens of it."""
    layers = cut(model_of(), 4, at=[1, 2, 3])[1]
    generator = torch.Generator().manual_seed(4)
    x, gradient = (torch.randn(ROWS, TOKENS, CONFIG.width, generator=generator).double() for _ in range(2))
    leaf, whole = x.clone().requires_grad_(), copy.deepcopy(layers)
    y = whole(leaf)
    y.backward(gradient)

    def work(group):
        own = shard(layers, group, sequence_parallel=sp)
        stage = stage_of(own, split=split)
        part = (lambda t: t.chunk(group.size, 1)[group.index].contiguous()) if sp else (lambda t: t.clone())
        with stage.attached():
            out = stage.forward(0, part(x), step=0)
            given = stage.backward_input(0, part(gradient))
            stage.backward_weight(0)
        assert stage.meter.live == 0
        assert_equal(out, part(y.detach()))
        assert_equal(given, part(leaf.grad))

    on_all(seats(4), work)


def squares(output: Tensor, target: Tensor) -> Tensor:
    return (output[target != -100] ** 2).mean()


def test_a_loss_of_ones_own_is_given_all_logits():
    model, (tokens, targets) = model_of(), batch()
    value, _, gradients = by_autograd(model, tokens, targets, squares)
    results = on_all(seats(4), lambda g: by_shards(g, model, tokens, targets, split=True, sp=False, loss=squares))
    joined = join_state([result[2] for result in results], shard_dims(results[0][4]))
    assert_equal(results[1][0], value)
    for name, gradient in gradients.items():
        assert_equal(joined[name], gradient, what=name)


def test_without_a_loss_the_logits_are_those_of_the_uncut_model():
    model, (tokens, _) = model_of(), batch()
    for logits in on_all(seats(4), lambda g: shard(model, g, sequence_parallel=True)(tokens)):
        assert_equal(logits, model(tokens))


@pytest.mark.parametrize("scale", [1.0, 1e3])
def test_cross_entropy_of_logits_that_never_meet(scale):
    """Also where a softmax without the largest logit would overflow, and for an uneven vocabulary."""
    generator = torch.Generator().manual_seed(2)
    logits, targets = scale * torch.randn(3, 5, 7, generator=generator).double(), batch(7)[1][:, :5]
    leaf = logits.clone().requires_grad_()
    expected = cross_entropy(leaf, targets)
    expected.backward()

    def work(group):
        parts = logits.tensor_split(group.size, -1)
        own = parts[group.index].clone().requires_grad_()
        first = sum(part.shape[-1] for part in parts[: group.index])
        value = vocabulary_cross_entropy(own, targets, group=group, first=first, vocabulary=7)
        value.backward()
        assert_equal(value, expected)
        assert_equal(own.grad, leaf.grad.tensor_split(group.size, -1)[group.index])
        return traffic_of(group.taken())

    for traffic in on_all(seats(3), work):
        three_numbers_a_target = 3 * targets.numel() * 8
        assert traffic == {("tp", ALL_REDUCE): Volume(3, 2 * 2 * three_numbers_a_target // 3)}


def test_replicated_dropout_draws_one_mask_on_all_ranks_that_of_the_uncut_model():
    config = GPTConfig(vocabulary=22, width=16, heads=4, layers=1, context=12, dropout=0.4)
    model, (tokens, targets) = model_of(config), batch()
    alone = stage_of(copy.deepcopy(model), first=True, loss=cross_entropy)
    value = alone.forward(0, tokens, step=5, target=targets, total=int((targets != -100).sum()))

    def work(group):
        own = shard(model, group)
        stage = stage_of(own, first=True, loss=loss_of(own, cross_entropy))
        return stage.forward(0, tokens, step=5, target=targets, total=int((targets != -100).sum()))

    for ours in on_all(seats(2), work):
        assert_equal(ours, value)


def test_ranks_with_different_tokens_draw_different_masks_by_their_part():
    x, layer = torch.ones(64), nn.Dropout(0.5)
    masks = [Randomness(0, part).run("1", layer, x, 0, 0) for part in (0, 0, 1)]
    assert torch.equal(masks[0], masks[1]) and not torch.equal(masks[0], masks[2])
    assert torch.equal(masks[0], Randomness(0).run("1", layer, x, 0, 0))


# ---- the bytes


@pytest.mark.parametrize("sp", [False, True])
@pytest.mark.parametrize("tp", [2, 4])
def test_a_block_moves_8bsh_times_t_minus_1_over_t_elements_for_each_micro_batch(tp, sp):
    """4 all-reduces of [b, s, h] (Narayanan et al. 2021, section 3.2), or as many all-gathers and reduce-scatters."""
    block, bsh = cut(model_of(), 4, at=[1, 2, 3])[1], ROWS * TOKENS * CONFIG.width
    part = TOKENS // tp if sp else TOKENS

    def work(group):
        stage = stage_of(shard(block, group, sequence_parallel=sp), split=True)
        with stage.attached():
            stage.forward(0, torch.ones(ROWS, part, CONFIG.width).double(), step=0)
            stage.backward_input(0, torch.ones(ROWS, part, CONFIG.width).double())
            moved = traffic_of(group.taken())
            stage.backward_weight(0)
            assert group.taken() == []
            return moved

    kinds = {ALL_GATHER: 4, REDUCE_SCATTER: 4} if sp else {ALL_REDUCE: 4}
    for traffic in on_all(seats(tp), work):
        assert {kind: volume.times for (_, kind), volume in traffic.items()} == kinds
        assert sum(volume.nbytes for volume in traffic.values()) == 8 * bsh * (tp - 1) // tp * 8


def test_the_logits_stay_where_they_are():
    model, (tokens, targets) = model_of(), batch()
    results = on_all(seats(2), lambda g: by_shards(g, model, tokens, targets, split=False, sp=False))
    bsh, targets_bytes = ROWS * TOKENS * CONFIG.width * 8, targets.numel() * 8
    forward, backward = results[0][3]
    assert forward == {("tp", ALL_REDUCE): Volume(1 + 2 * 2 + 3, 5 * bsh + 3 * targets_bytes)}
    assert backward == {("tp", ALL_REDUCE): Volume(2 * 2 + 1, 5 * bsh)}


# ---- the memory


@pytest.mark.parametrize("split", [False, True])
@pytest.mark.parametrize("tp", [1, 2, 4])
def test_a_block_keeps_what_the_formula_says_less_the_scores(tp, split):
    """sbh(10 + 24/t + 5as/ht) bytes in 16 bits (Korthikanti et al. 2022, equation 2), of which ours has no masks of
    dropout, 2sbh, and no scores, 5as/ht: the attention keeps one number a head and token, and a norm two a token.
    With sequence parallelism the gathered inputs of two Linears stay whole, 4sbh; all else is shared, also the norms'.
    """
    block, tokens, width = cut(model_of(), 4, at=[1, 2, 3])[1], ROWS * TOKENS, CONFIG.width
    korthikanti = width * (10 - 2 + 24 / tp) / 2
    shared = width * (4 + (34 - 2 - 4) / tp) / 2

    def work(group, sp):
        stage = stage_of(shard(block, group, sequence_parallel=sp), split=split)
        stage.meter.weights_moved((), [p.data_ptr() for p in stage.layers.parameters()])
        with stage.attached():
            stage.forward(0, torch.ones(ROWS, TOKENS // tp if sp else TOKENS, width).double(), step=0)
        return stage.meter.live / tokens / 8

    statistics = CONFIG.heads / tp
    assert on_all(seats(tp), lambda g: work(g, sp=False)) == [korthikanti + statistics + 4] * tp
    assert on_all(seats(tp), lambda g: work(g, sp=True)) == [shared + statistics + 4 / tp] * tp


# ---- what is cut, and what is refused


def test_names_stay_and_parts_join_to_the_whole():
    model = model_of()
    whole = dict(model.named_parameters())
    shards = [shard(model, group) for group in seats(4)]
    dims = shard_dims(shards[0])
    states = [dict(own.named_parameters()) for own in shards]
    joined = join_state(states, dims)
    assert all(torch.equal(joined[name], parameter) for name, parameter in whole.items())
    for index, state in enumerate(states):
        mine = cut_state(whole, dims, index, 4)
        assert state.keys() == mine.keys() and all(torch.equal(state[name], mine[name]) for name in mine)
        assert not any(state[name].data_ptr() == whole[name].data_ptr() for name in whole)
    assert {name for name in whole if name not in dims} == {
        name
        for name in whole
        if "norm" in name or "position" in name or name.endswith(("projection.bias", "down.bias"))
    }
    assert partial_gradients(shards[0]) == ()


def test_a_layer_that_is_listed_twice_stays_one_layer():
    block = model_of()[1]
    layers = nn.Sequential(block, block)
    own = shard(layers, seats(2)[0])
    assert own[0] is own[1] and isinstance(own[0].mlp.up, ColumnParallelLinear)
    assert own[0].mlp.up.weight.shape == (2 * CONFIG.width, CONFIG.width)


class MLP(nn.Module):
    """A layer of a user's."""

    def __init__(self, width: int = 4) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(width, 8, bias=False), nn.Linear(8, width)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(torch.relu(self.up(x)))


class TaughtMLP(MLP):
    """One whose plan is known."""


@plan.register
def _(layer: TaughtMLP) -> Plan:
    return Plan({"up": ColumnParallelLinear, "down": RowParallelLinear})


@pytest.mark.parametrize("split", [False, True])
def test_a_layer_of_ones_own_is_taught_and_another_stays_whole(split):
    torch.manual_seed(0)
    layers = nn.Sequential(TaughtMLP(), MLP(), nn.Tanh()).double()
    x, target = torch.randn(3, 4).double(), torch.tensor([0, 3, -100])
    value, given, gradients = by_autograd(layers, x, target)
    results = on_all(seats(2), lambda g: by_shards(g, layers, x, target, split=split, sp=False))
    assert shard_dims(results[0][4]) == {"0.up.weight": 0, "0.down.weight": 1}
    joined = join_state([result[2] for result in results], shard_dims(results[0][4]))
    for result in results:
        assert_equal(result[0], value)
        assert_equal(result[1], given)
    for name, gradient in gradients.items():
        assert_equal(joined[name], gradient, what=name)


class Recomputed(nn.Module):
    """Does its forward, and the collectives in it, a second time in the backward."""

    def __init__(self) -> None:
        super().__init__()
        self.body = TaughtMLP()

    def forward(self, x: Tensor) -> Tensor:
        return checkpoint(self.body, x, use_reentrant=False)


@pytest.mark.parametrize("split", [False, True])
def test_what_is_recomputed_meets_the_others_once_more(split):
    torch.manual_seed(0)
    layers = nn.Sequential(Recomputed(), TaughtMLP()).double()
    x, target = torch.randn(3, 4).double(), torch.tensor([0, 3, -100])
    _, given, gradients = by_autograd(layers, x, target)
    results = on_all(seats(2), lambda g: by_shards(g, layers, x, target, split=split, sp=False))
    assert_equal(results[1][1], given)
    joined = join_state([result[2] for result in results], shard_dims(layers))
    for name, gradient in gradients.items():
        assert_equal(joined[name], gradient, what=name)


def normed() -> nn.Sequential:
    layers = nn.Sequential(TaughtMLP())
    parametrizations.weight_norm(layers[0].up)
    return layers


def tied_to_a_whole_module() -> nn.Sequential:
    layers = nn.Sequential(TaughtMLP(), MLP())
    layers[1].up.weight = layers[0].up.weight
    return layers


REFUSED = {
    "heads": (lambda: build_model("tiny"), 4, False, "tp=4 does not divide the 2 heads of 1.attention; .* from 1, 2$"),
    "widths": (lambda: nn.Sequential(TaughtMLP()), 3, False, "tp=3 does not divide the 8 outputs of 0.up; .* 2, 4, 8$"),
    "weights": (normed, 2, False, "0.up is a ParametrizedLinear, and only a plain nn.Linear or nn"),
    "nothing to cut": (lambda: nn.Sequential(MLP(), nn.Tanh()), 2, False, r"no layer .* \(MLP, Tanh\) has a plan"),
    "not by token": (lambda: build_model("tiny").append(nn.Tanh()), 2, True, "layer 18 .Tanh. has no plan that says"),
    "no embedding": (lambda: nn.Sequential(TaughtMLP()), 2, True, "begins at a vocabulary-parallel embedding"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_shared_is_refused_in_a_sentence(case):
    make, tp, sp, sentence = REFUSED[case]
    with pytest.raises(ValueError, match=sentence):
        check_tensor_shards(make(), tp, sequence_parallel=sp)


def test_a_cut_parameter_of_a_whole_module_and_rows_of_odd_length_are_refused():
    with pytest.raises(ValueError, match=r"parameter 1\.up\.weight is that of a cut module, too"):
        shard(tied_to_a_whole_module(), seats(2)[0])
    model, tokens = model_of(), batch()[0][:, :7]
    with pytest.raises(ValueError, match="rows of 7 tokens cannot be shared evenly by 2 tensor ranks"):
        on_all(seats(2), lambda g: shard(model, g, sequence_parallel=True)(tokens))


def test_presets_can_be_cut_also_gpt2_whose_vocabulary_is_odd():
    for name, tp in (("tiny", 2), ("small", 2), ("small", 4)):
        check_tensor_shards(build_model(name), tp, sequence_parallel=True)
    with torch.device("meta"):
        check_tensor_shards(GPT(PRESETS["gpt2"]), 4)


# ---- beside PyTorch's own


def a_block_by_hand_and_by_dtensor():
    import torch.distributed as dist
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

    dist.init_process_group("gloo")
    rank, size = dist.get_rank(), dist.get_world_size()
    clock = VirtualClock(Turn(torch.device("cpu")))
    group = Group(
        "tp", tuple(range(size)), rank, ProcessGroup(dist.group.WORLD, size, 120, stamped=True), clock, Link()
    )
    block = cut(model_of(), 4, at=[1, 2, 3])[1]
    generator = torch.Generator().manual_seed(4)
    x, gradient = (torch.randn(ROWS, TOKENS, CONFIG.width, generator=generator).double() for _ in range(2))

    def by_hand():
        own = shard(block, group)
        stage = stage_of(own, split=True)
        with stage.attached():
            out = stage.forward(0, x.clone(), step=0)
            given = stage.backward_input(0, gradient)
            stage.backward_weight(0)
        dims = shard_dims(own)
        grads = {name: parameter.grad for name, parameter in own.named_parameters()}
        return out, given, {n: group.all_gather(g, dims[n]) if n in dims else g for n, g in grads.items()}

    ours, _, _ = clock.run(by_hand)
    styles = {"attention.qkv": ColwiseParallel, "attention.projection": RowwiseParallel}
    styles |= {"mlp.up": ColwiseParallel, "mlp.down": RowwiseParallel}
    copied = copy.deepcopy(block)
    parallelize_module(copied[0], init_device_mesh("cpu", (size,)), {path: style() for path, style in styles.items()})
    leaf = x.clone().requires_grad_()
    out = copied(leaf)
    out.backward(gradient)
    grads = {
        n: p.grad.full_tensor() if hasattr(p.grad, "full_tensor") else p.grad for n, p in copied.named_parameters()
    }
    dist.destroy_process_group()
    return ours, (out.detach(), leaf.grad, grads)


def test_a_block_cut_by_hand_computes_what_dtensor_computes():
    for ours, theirs in launch(a_block_by_hand_and_by_dtensor, ranks=2):
        assert_equal(ours[0], theirs[0], what="output")
        assert_equal(ours[1], theirs[1], what="gradient of the input")
        assert ours[2].keys() == theirs[2].keys()
        for name, gradient in theirs[2].items():
            assert_equal(ours[2][name], gradient, what=name)


# ---- in a run


def batches(microbatches: int) -> Batches:
    text = bytes(byte % CONFIG.vocabulary for byte in arithmetic()[:4000])
    return Batches(text=text, microbatches=microbatches, rows=ROWS, context=TOKENS, seed=0, steps=2)


def run_of(name="1f1b", mesh=pl.Mesh(tp=2), *, config=CONFIG, loss=cross_entropy, clip=None, **options):  # noqa: B008
    """A run on a mesh, and the losses and the model of one device."""
    model, uncut = model_of(config), model_of(config)
    schedule = pl.build(name, mesh.pp, 3, 2 if name == "interleaved" else None)
    run = pl.train(model, batches(3 * mesh.dp), schedule, mesh, loss=loss, clip=clip, timeout=60, **options)
    return run, train_uncut(uncut, batches(3 * mesh.dp), 3 * mesh.dp, loss=loss, clip=clip), uncut


def assert_trains_the_model_of_one_device(*args, **options):
    run, losses, uncut = run_of(*args, **options)
    assert run.losses == pytest.approx(losses, rel=1e-9)
    for (name, ours), theirs in zip(run.model.named_parameters(), uncut.parameters(), strict=True):
        assert_equal(ours.detach(), theirs.detach(), what=name)


FOUR_LAYERS = GPTConfig(vocabulary=22, width=16, heads=4, layers=4, context=12)


@pytest.mark.parametrize(
    ("name", "mesh", "options"),
    [
        ("1f1b", pl.Mesh(tp=4), {"clip": 0.3}),
        ("zb-h1", pl.Mesh(pp=2, tp=2), {"clip": 0.3}),
        ("interleaved", pl.Mesh(pp=2, tp=2), {}),
        ("zb-v", pl.Mesh(pp=2, tp=4), {}),
        ("gpipe", pl.Mesh(dp=2, pp=2, tp=2), {"zero": True, "clip": 0.3}),
        ("zb-h1", pl.Mesh(pp=2, tp=2), {"transport": "gloo"}),
    ],
)
def test_a_run_with_sequence_parallelism_trains_the_model_of_one_device(name, mesh, options):
    assert_trains_the_model_of_one_device(name, mesh, config=FOUR_LAYERS, sequence_parallel=True, **options)


def test_a_run_with_a_loss_of_ones_own_trains_the_model_of_one_device():
    assert_trains_the_model_of_one_device("zb-h1", pl.Mesh(pp=2, tp=2), loss=squares)


def test_a_run_with_dropout_trains_the_model_of_one_device():
    dropped = GPTConfig(vocabulary=22, width=16, heads=4, layers=2, context=12, dropout=0.3)
    assert_trains_the_model_of_one_device("zb-h1", pl.Mesh(pp=2, tp=2), config=dropped)


class Regularised(Block):
    """A block with a loss of its own."""

    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x)
        auxiliary(y.square().mean())
        return y


def test_an_auxiliary_loss_needs_all_tokens():
    def model():
        layers = model_of(FOUR_LAYERS)
        return nn.Sequential(layers[0], Regularised(FOUR_LAYERS).double(), *layers[2:])

    torch.manual_seed(0)
    ours, mesh, schedule = model(), pl.Mesh(pp=2, tp=2), pl.build("zb-h1", 2, 3)
    uncut = copy.deepcopy(ours)
    run = pl.train(ours, batches(3), schedule, mesh, timeout=60)
    assert run.losses == pytest.approx(train_uncut(uncut, batches(3), 3), rel=1e-9)
    with pytest.raises(RunError, match="an auxiliary loss is a mean over all tokens"):
        pl.train(model(), batches(3), schedule, mesh, timeout=60, sequence_parallel=True)


@pytest.mark.parametrize("sp", [False, True])
def test_a_run_counts_the_bytes_of_every_layer(sp):
    """8bsh(t-1)/t elements a block, half as many for embedding and head together, three all-reduced numbers a target;
    and under sequence parallelism, once a step, the gradients that are partial: norms, places, biases behind sums."""
    run, _, _ = run_of(mesh=pl.Mesh(tp=4), sequence_parallel=sp)
    microbatches, bs, width = 3, ROWS * TOKENS, CONFIG.width
    ring = 8 * (4 - 1) / 4  # bytes that a rank sends for each element, for each of the ring's rounds
    layers = microbatches * (8 * CONFIG.layers + 4) * bs * width * ring
    targets = microbatches * 3 * bs * 2 * ring
    partial = (6 * CONFIG.layers + 2 + CONFIG.context) * width * 2 * ring
    for rank in range(4):
        sent = {kind: volume.nbytes for (_, kind), volume in run.sent(rank).items()}
        if sp:
            assert sent == {ALL_GATHER: layers / 2, REDUCE_SCATTER: layers / 2, ALL_REDUCE: targets + partial}
        else:
            assert sent == {ALL_REDUCE: layers + targets}


def test_weight_gradients_need_no_other_rank():
    run, _, _ = run_of("zb-h1", pl.Mesh(pp=2, tp=2))
    inside = {span.action.kind for span in run.trace.spans if span.lane == "collective"}
    assert {"F", "I"} <= inside and "W" not in inside


@pytest.mark.parametrize(("place", "what"), [(0, "a token"), (1, "a target")])
@pytest.mark.parametrize("number", [-1, CONFIG.vocabulary])
def test_a_token_outside_of_the_vocabulary_is_no_rank_s_and_is_refused(place, what, number):
    wrong = tuple(tensor.clone() for tensor in batches(3)[0])
    wrong[place][0, 0] = number
    with pytest.raises(RunError, match=f"{what} is none of the vocabulary's, 0 to {CONFIG.vocabulary - 1}"):
        pl.train(model_of(), [wrong], pl.build("1f1b", 2, 3), pl.Mesh(pp=2, tp=2), timeout=60)


def test_more_ranks_than_tokens_are_refused():
    config = GPTConfig(vocabulary=3, width=8, heads=4, layers=2, context=8)
    with pytest.raises(ValueError, match=r"tp=4 is more than the 3 parts that 0\.token\.weight can be cut into"):
        check_tensor_shards(model_of(config), 4)
