"""Replicas, stages and tensor shards together: the numbers of the uncut model on one device, whatever the mesh."""

import copy
from itertools import product

import pytest
import torch

import pipelab as pl
from pipelab.data import Batches, arithmetic
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
    run = pl.train(model, batches, schedule, pl.Mesh(dp=dp, pp=pp, tp=tp), clip=CLIP, rate=rate, timeout=60, **options)
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
