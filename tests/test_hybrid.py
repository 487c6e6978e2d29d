"""Replicas, stages and tensor shards together: the numbers of the uncut model on one device, whatever the mesh."""

import copy
from itertools import product

import pytest
import torch
from torch import nn

import pipelab as pl
from pipelab.collectives import Volume
from pipelab.costs import Link, Network
from pipelab.data import Batches, arithmetic
from pipelab.evaluation import Evaluation, in_evaluation_mode
from pipelab.failure import RunError
from pipelab.launcher import launch
from pipelab.loss import auxiliary, cross_entropy
from pipelab.models import GPTConfig, build_model
from pipelab.reference import train_uncut

SCHEDULES = ("gpipe", "1f1b", "interleaved", "zb-h1", "zb-v")
MESHES = [(pp, tp, dp) for pp, tp, dp in product((1, 2, 3, 4, 5, 6, 7, 8), repeat=3) if pp * tp * dp <= 8]
HEADS = {3: 6, 5: 5, 6: 6, 7: 7}  # a number of heads that the shards can share; 8 otherwise
STEPS, ROWS, CONTEXT, CLIP = 2, 2, 8, 0.5


def model_for(tp, *, tied=False, layers=6):
    heads = HEADS.get(tp, 8)
    config = GPTConfig(vocabulary=61, width=2 * heads, heads=heads, layers=layers, context=CONTEXT, tied=tied)
    return build_model(config, dtype=torch.float64)


def batches_for(dp, microbatches, steps=STEPS):
    text = bytes(byte % 61 for byte in arithmetic()[:4000])
    return Batches(text=text, microbatches=dp * microbatches, rows=ROWS, context=CONTEXT, seed=0, steps=steps)


def rate(step):
    return 1 / (1 + step)


def assert_same_as_on_one_device(name, mesh, microbatches=3, *, tied=False, **options):
    """Losses, every gradient of the last step and every parameter after it; gives the run."""
    pp, tp, dp = mesh
    chunks = 2 if name == "interleaved" else None
    layers = max(6, 2 * pp - 2)
    model = model_for(tp, tied=tied, layers=layers)
    uncut = copy.deepcopy(model)
    schedule = pl.build(name, pp, microbatches, chunks)
    batches = batches_for(dp, microbatches)
    run = pl.train(model, batches, schedule, pl.Mesh(dp=dp, pp=pp, tp=tp), clip=CLIP, rate=rate, timeout=120, **options)
    losses = train_uncut(uncut, batches, dp * microbatches, clip=CLIP, rate=rate)
    assert run.losses == pytest.approx(losses, rel=1e-9)
    for (parameter, ours), theirs in zip(model.named_parameters(), uncut.parameters(), strict=True):
        assert torch.allclose(ours, theirs, rtol=1e-9, atol=1e-12), parameter
        if options.get("transport", "memory") == "memory" and not options.get("zero"):
            assert torch.allclose(ours.grad, theirs.grad, rtol=1e-9, atol=1e-12), parameter
    return run


@pytest.mark.parametrize(("mesh", "name"), [(mesh, SCHEDULES[n % 5]) for n, mesh in enumerate(MESHES)])
def test_every_mesh_of_up_to_eight_ranks_trains_the_same_model(mesh, name):
    assert_same_as_on_one_device(name, mesh)


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("options", [{}, {"zero": True}, {"zero": True, "sequence_parallel": True}], ids=str)
def test_tied_weights_zero_and_sequence_shards_change_nothing(name, options):
    assert_same_as_on_one_device(name, (2, 2, 2), tied=True, **options)


@pytest.mark.parametrize(("name", "pp"), [("1f1b", 1), ("1f1b", 3), ("zb-v", 2), ("interleaved", 2)])
def test_tied_ends_are_one_parameter_or_stay_equal_wherever_they_live(name, pp):
    run = assert_same_as_on_one_device(name, (pp, 1, 1), tied=True)
    assert run.model[-1].vocabulary.weight is run.model[0].token.weight
    tied = {axis for axis, _ in run.sent()} & {"tie"}
    assert bool(tied) == (run.schedule.placement.rank_of[0] != run.schedule.placement.rank_of[-1])


@pytest.mark.parametrize("options", [{}, {"zero": True, "sequence_parallel": True, "tied": True}], ids=str)
def test_eight_processes_train_the_same_model(options):
    assert_same_as_on_one_device("zb-h1", (2, 2, 2), transport="gloo", **options)


def test_replicas_shares_of_uneven_batches_and_ignored_targets_are_exact():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(7, 4), nn.Linear(4, 4), nn.Linear(4, 7)).double()
    uncut = copy.deepcopy(model)
    inputs = torch.randint(7, (7, 3))
    targets = torch.where(torch.rand(7, 3) < 0.4, -100, inputs)
    run = pl.train(model, [(inputs, targets)], pl.build("zb-h1", 2, 2), pl.Mesh(dp=3, pp=2))
    losses = train_uncut(uncut, [(inputs, targets)], 6)
    assert run.losses == pytest.approx(losses, rel=1e-12)
    for ours, theirs in zip(model.parameters(), uncut.parameters(), strict=True):
        assert torch.allclose(ours, theirs, rtol=1e-12, atol=1e-14)


def test_bytes_of_every_axis_are_those_of_the_textbook():
    """Pipeline: bsh a hop. Tensor: 8bsh(t-1)/t a block, and what the ends take. Data: 2(d-1)/d of the parameters."""
    pp, tp, dp, microbatches, layers = 2, 2, 2, 3, 4
    model = model_for(tp, layers=layers)
    width, vocabulary = model.config.width, model.config.vocabulary
    batches = batches_for(dp, microbatches, steps=1)
    schedule = pl.build("1f1b", pp, microbatches)
    run = pl.train(model, batches, schedule, pl.Mesh(dp=dp, pp=pp, tp=tp), at=[3])
    bsh = ROWS * CONTEXT * width * 8  # float64
    for rank in range(run.mesh.size):
        sent, (_, stage, _) = run.sent(rank), run.mesh.coordinates(rank)
        assert sent["pp", "SEND_B" if stage else "SEND_F"] == Volume(microbatches, microbatches * bsh)
        blocks = layers // pp * 8 * bsh * (tp - 1) // tp
        ends = 2 * bsh * (tp - 1) // tp  # the embedding's sum; the gradient of the head's input
        of_loss = 0 if stage == 0 else 3 * 2 * ROWS * CONTEXT * 8 * (tp - 1) // tp  # maximum, sum, the target's logit
        assert sent["tp", "all_reduce"].nbytes == microbatches * (blocks + ends + of_loss)
    own = sum(parameter.nbytes for parameter in model[:3].parameters())
    cut = sum(p.nbytes for name, p in model[:3].named_parameters() if is_cut(name))
    tokens = -(-vocabulary // tp) * width * 8 - vocabulary * width * 8 // tp  # 61 tokens are not shared evenly
    assert run.sent(0)["dp", "all_reduce"].nbytes == 2 * (dp - 1) * (own - cut + cut // tp + tokens) // dp


def is_cut(name):
    return any(word in name for word in ("token", "qkv", "up", "down.weight", "projection.weight"))


def test_zero_sends_as_many_bytes_and_keeps_half_of_the_optimizers_state():
    sizes, states = [], []
    for zero in (False, True):
        kept = []

        def optimizer(parameters, kept=kept):
            kept.append(torch.optim.AdamW(parameters))
            return kept[-1]

        model = model_for(1)
        schedule = pl.build("1f1b", 2, 2)
        run = pl.train(model, batches_for(2, 2), schedule, pl.Mesh(dp=2, pp=2), zero=zero, optimizer=optimizer)
        sizes.append(sum(volume.nbytes for (axis, _), volume in run.sent(0).items() if axis == "dp"))
        states.append(sum(state["exp_avg"].nbytes for state in kept[-1].state.values()))
    assert sizes[0] == pytest.approx(sizes[1], rel=0.01) and states[0] == pytest.approx(2 * states[1], rel=0.01)


def test_gradients_are_summed_once_a_step_and_beside_the_work():
    model = model_for(1)
    link = Link(latency=1e-3)
    run = pl.train(model, batches_for(2, 4), pl.build("1f1b", 2, 4), pl.Mesh(dp=2, pp=2), link=link)
    assert run.sent(0)["dp", "all_reduce"].times == 1
    (reduction,) = [span for span in run.trace.spans if span.rank == 1 and span.lane == "collective"]
    last = run.trace.compute[1][-1]
    assert last.action.kind == "B" and reduction.start >= last.end
    assert reduction.end - reduction.start == pytest.approx(2e-3)  # a ring of two sends twice
    assert run.step_seconds >= float(reduction.end)


def test_tensor_shards_wait_within_their_actions_and_that_is_not_work():
    run = pl.train(model_for(2), batches_for(1, 2), pl.build("gpipe", 2, 2), pl.Mesh(pp=2, tp=2), link=Link(1e-3))
    inside = [span for span in run.trace.spans if span.lane == "collective"]
    assert {span.action.kind for span in inside} == {"F", "B"}
    works = {(span.rank, span.action): span for span in run.trace.spans if span.lane == "compute"}
    for span in inside:
        work = works[span.rank, span.action]
        assert work.start <= span.start <= span.end <= work.end
        assert span.end - span.start >= 1.999e-3
    for rank, row in enumerate(run.trace.compute):
        lasts = sum(span.end - span.start for span in row)
        waits = sum(span.end - span.start for span in inside if span.rank == rank)
        assert run.trace.busy[rank] == pytest.approx(lasts - waits)


def test_the_slow_link_is_paid_by_the_axis_that_crosses_hosts():
    slow = Link(latency=5.0)  # in virtual time, beside which the work is nothing
    seconds = {}
    for inside, host_of in {"tp": (0, 0, 1, 1), "dp": (0, 1, 0, 1)}.items():
        network = Network(host_of, inside=Link(), between=slow)
        run = pl.train(model_for(2), batches_for(2, 2), pl.build("naive", 1, 2), pl.Mesh(dp=2, tp=2), link=network)
        seconds[inside] = run.step_seconds
    assert seconds["dp"] - seconds["tp"] > 20 * 5  # shards meet 30 times a micro-batch, replicas once


@pytest.mark.parametrize("name", ["1f1b", "zb-h1"])
@pytest.mark.parametrize("transport", ["memory", "gloo"])
def test_autocast_computes_what_plain_pytorch_computes_under_it(name, transport):
    model = build_model("tiny", layers=4)
    uncut = copy.deepcopy(model)
    batches = [(torch.randint(256, (4, 16)), torch.randint(256, (4, 16)))]
    options = {"autocast": torch.bfloat16, "optimizer": lambda parameters: torch.optim.SGD(parameters, lr=0.1)}
    run = pl.train(model, batches, pl.build(name, 2, 4), transport=transport, **options)
    assert run.losses == train_uncut(uncut, batches, 4, **options)
    for ours, theirs in zip(model.parameters(), uncut.parameters(), strict=True):
        assert ours.dtype == torch.float32 and torch.equal(ours, theirs)


class Even(nn.Module):
    """A layer in the middle with a loss of its own."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(4))

    def forward(self, x):
        y = x * self.scale
        auxiliary(0.1 * y.square().mean())
        return y


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("transport", ["memory", "gloo"])
def test_auxiliary_losses_of_inner_stages_count_as_in_the_uncut_model(name, transport):
    torch.manual_seed(0)
    layers = [nn.Embedding(7, 4), Even(), nn.Linear(4, 4), Even(), nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 7), Even7()]
    model = nn.Sequential(*layers).double()
    uncut = copy.deepcopy(model)
    inputs = torch.randint(7, (9, 3))
    batch = inputs, torch.where(torch.rand(9, 3) < 0.3, -100, inputs)
    schedule = pl.build(name, 2, 2, 2 if name == "interleaved" else None)
    run = pl.train(model, [batch] * 2, schedule, pl.Mesh(dp=2, pp=2), transport=transport)
    assert run.losses == pytest.approx(train_uncut(uncut, [batch] * 2, 4), rel=1e-12)
    for ours, theirs in zip(model.parameters(), uncut.parameters(), strict=True):
        assert torch.allclose(ours, theirs, rtol=1e-9, atol=1e-12)


class Even7(nn.Module):
    """Such a loss beside the main one."""

    def forward(self, x):
        auxiliary(0.1 * x.square().mean())
        return x


@pytest.mark.parametrize(
    ("mesh", "options", "sentence"),
    [
        (pl.Mesh(pp=2, tp=3), {}, "tp=3 does not divide the 8 heads of 1.attention; choose tp from 1, 2, 4, 8"),
        (pl.Mesh(pp=2), {"zero": True}, "raise dp"),
        (pl.Mesh(pp=2), {"sequence_parallel": True}, "raise tp"),
        (pl.Mesh(pp=2), {"clip": 0.0}, "positive"),
        (pl.Mesh(pp=2), {"autocast": torch.float16}, "needs no scaling"),
        (pl.Mesh(pp=2, dp=2), {"link": Network((0, 1), Link(), Link())}, "2 ranks, and the mesh has 4"),
        (pl.Mesh(pp=3), {}, "pp=3"),
    ],
)
def test_a_mesh_that_does_not_fit_is_refused_in_a_sentence(mesh, options, sentence):
    with pytest.raises(ValueError, match=sentence):
        pl.train(model_for(2), batches_for(2, 2), pl.build("1f1b", 2, 2), mesh, **options)


@pytest.mark.parametrize(
    ("mesh", "options", "named"),
    [
        (pl.Mesh(tp=2), {"optimizer": torch.optim.Adafactor}, "Adafactor .* tp at 1"),
        (pl.Mesh(dp=2), {"optimizer": torch.optim.Adafactor, "zero": True}, "Adafactor .* leave zero out"),
        (pl.Mesh(dp=2), {"optimizer": lambda own: matrices_decay(own), "zero": True}, "AdamW .* flat"),
    ],
)
def test_an_optimizer_that_sees_more_than_single_numbers_is_refused_where_it_gets_parts(mesh, options, named):
    with pytest.raises(ValueError, match=named):
        pl.train(model_for(2), batches_for(2, 2), pl.build("gpipe", 1, 2), mesh, **options)


def matrices_decay(parameters):
    """As many do it: the number of dims tells which parameters decay."""
    matrices = [parameter for parameter in parameters if parameter.dim() > 1]
    others = [parameter for parameter in parameters if parameter.dim() <= 1]
    return torch.optim.AdamW([{"params": matrices, "weight_decay": 0.5}, {"params": others, "weight_decay": 0.0}])


def test_replicas_and_shards_take_an_optimizer_that_decays_matrices_alone():
    model, uncut = model_for(2), model_for(2)
    batches = batches_for(2, 2)
    pl.train(model, batches, pl.build("gpipe", 1, 2), pl.Mesh(dp=2, tp=2), optimizer=matrices_decay)
    train_uncut(uncut, batches, 4, optimizer=matrices_decay)
    for ours, theirs in zip(model.parameters(), uncut.parameters(), strict=True):
        assert torch.allclose(ours, theirs, rtol=1e-9, atol=1e-12)


def test_a_batch_to_evaluate_on_that_is_too_small_is_refused_before_the_first_step():
    evaluation, steps = Evaluation([tuple(tensor[:3] for tensor in batches_for(2, 2)[0])]), []
    with pytest.raises(ValueError, match=r"evaluation, .* 3 rows cannot be cut into 4"):
        pl.train(model_for(1), batches_for(2, 2), pl.build("gpipe", 1, 2), pl.Mesh(dp=2), evaluation=evaluation,
                 on_step=lambda step, loss: steps.append(step))  # fmt: skip
    assert not steps


class Broken(nn.Module):
    def forward(self, x):
        raise ArithmeticError("out of range")


def test_a_rank_that_fails_is_named_and_nobody_waits_for_it():
    model = nn.Sequential(*model_for(2)[:4], Broken(), model_for(2)[-1])
    with pytest.raises(RunError, match=r"rank [2367] failed at 1F0: ArithmeticError: out of range"):
        pl.train(model, batches_for(2, 2), pl.build("1f1b", 2, 2), pl.Mesh(dp=2, pp=2, tp=2), timeout=120, at=[3])


class Stray(torch.optim.SGD):
    """An optimizer that does something else on each replica."""

    made = 0

    def __init__(self, parameters):
        Stray.made += 1
        super().__init__(parameters, lr=0.1 if Stray.made <= 2 else 0.11)


def test_replicas_that_drift_apart_are_found_by_their_bits():
    schedule, mesh = pl.build("zb-h1", 2, 2), pl.Mesh(dp=2, pp=2)
    pl.train(model_for(1), batches_for(2, 2), schedule, mesh, watch=True)
    with pytest.raises(RunError, match=r"replicas differ after step 0: first in 0\.token\.weight"):
        pl.train(model_for(1), batches_for(2, 2), schedule, mesh, watch=True, optimizer=Stray)


def ddp_with_a_split_backward():
    """torch's DDP around a Linear, whose W comes after what DDP's hooks have seen."""
    import torch.distributed as dist
    from torch.nn.parallel import DistributedDataParallel

    from pipelab.clock import WallClock
    from pipelab.collectives import Group
    from pipelab.data_parallel import first_that_differs
    from pipelab.memory import ActivationMeter
    from pipelab.split_backward import DeferredWeights, pay
    from pipelab.transport.process_groups import ProcessGroup

    dist.init_process_group("gloo")
    torch.manual_seed(0)
    linear = nn.Linear(4, 4)
    model = DistributedDataParallel(nn.Sequential(nn.LayerNorm(4), linear))
    x = torch.full((2, 4), float(dist.get_rank())) + torch.eye(4)[:2]
    with DeferredWeights(linear, ActivationMeter()) as deferred:
        deferred.waiting = waiting = []
        model(x).sum().backward()
        pay(waiting)
    torch.optim.SGD(model.parameters(), lr=0.1).step()
    group = Group(
        "dp", (0, 1), dist.get_rank(), ProcessGroup(dist.group.WORLD, 2, 120, stamped=False), WallClock(), Link()
    )
    found = first_that_differs(group, linear.named_parameters())
    dist.destroy_process_group()
    return found


def test_the_check_catches_what_torchs_ddp_does_to_a_split_backward():
    """DDP sees no weight gradient, reduces nothing, says nothing; its replicas are then different models."""
    assert launch(ddp_with_a_split_backward, ranks=2) == ["weight", "weight"]


@pytest.mark.parametrize("transport", ["memory", "gloo"])
@pytest.mark.parametrize(
    ("name", "mesh"),
    [("1f1b", pl.Mesh(pp=2)), ("zb-v", pl.Mesh(dp=2, pp=2, tp=2)), ("dualpipe-v", pl.Mesh(pp=2))],
    ids=["1f1b", "zb-v", "dualpipe-v"],
)
def test_evaluation_between_steps_is_that_of_the_model_so_far_and_changes_nothing(name, mesh, transport):
    config = GPTConfig(vocabulary=61, width=16, heads=8, layers=6, context=CONTEXT, dropout=0.1)
    steps, schedule = 4, pl.build(name, mesh.pp, 4)
    batches, held_out = batches_for(mesh.dp, 4, steps), list(batches_for(mesh.dp, 4, 7))[5:]
    evaluation = Evaluation(held_out, every=2)
    model, plain = (build_model(config, dtype=torch.float64) for _ in range(2))
    run = pl.train(model, batches, schedule, mesh, evaluation=evaluation, transport=transport)
    without = pl.train(plain, batches, schedule, mesh)
    assert run.losses == without.losses
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(model.parameters(), plain.parameters(), strict=True))
    assert [step for step, _ in run.evaluations] == [1, 3]
    with in_evaluation_mode(model), torch.no_grad():
        expected = [cross_entropy(model(inputs), targets).item() for inputs, targets in held_out]
    assert run.evaluations[-1][1] == pytest.approx(sum(expected) / len(expected), rel=1e-9)
    assert model.training


def test_the_sum_for_the_norm_is_counted_and_drawn_too():
    run = pl.train(model_for(1), batches_for(2, 2), pl.build("1f1b", 2, 2), pl.Mesh(dp=2, pp=2), clip=1.0)
    assert run.sent(0)["all", "all_reduce"] == Volume(1, 2 * 3 * 8 // 4)  # one float64, once around four ranks and back
    norms = [span for span in run.trace.spans if span.action.kind == "NORM"]
    assert [span.rank for span in norms] == [0, 1] and {span.lane for span in norms} == {"collective"}
    assert pl.Trace.from_json(run.trace.to_json()).spans == run.trace.spans
