"""Over NCCL, with a GPU a rank, the numbers are those of one process. Needs two GPUs."""

import copy
from dataclasses import replace

import pytest
import torch

import pipelab as pl
from pipelab.models import GPT, GPTConfig
from pipelab.training import train

CONFIG = GPTConfig(vocabulary=17, width=8, heads=2, layers=6, context=5, dropout=0.0)
needs_two_gpus = pytest.mark.skipif(torch.cuda.device_count() < 2, reason="NCCL wants a GPU for each of two ranks")


def gpt() -> GPT:
    torch.manual_seed(1)
    return GPT(CONFIG).double()


def batch(rows: int) -> tuple[torch.Tensor, torch.Tensor]:
    tokens = torch.randint(CONFIG.vocabulary, (rows, CONFIG.context + 1))
    return tokens[:, :-1].contiguous(), tokens[:, 1:].clone()


@needs_two_gpus
@pytest.mark.parametrize("comm", ["overlapped", "blocking"])
@pytest.mark.parametrize(("name", "chunks"), [("gpipe", 1), ("1f1b", 1), ("interleaved", 2), ("zb-h1", 1)])
def test_two_gpus_train_as_one_process_does(name, chunks, comm):
    torch.manual_seed(0)
    schedule, batches = pl.build(name, 2, 4, chunks), [batch(rows) for rows in (8, 9, 8)]
    there, here = gpt(), gpt()
    run = train(there, batches, schedule, transport="nccl", device="cuda", comm=comm)
    expected = train(here, batches, schedule)
    assert run.losses == pytest.approx(expected.losses, rel=1e-9)
    for ours, theirs in zip(there.parameters(), here.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-12)
    assert run.clock == "wall"
    ended = {span.action: span.end for row in run.trace.compute for span in row}
    for span in run.trace.spans:
        if span.lane == "send" and span.action.kind == "SEND_F":
            assert span.start >= ended[span.action._replace(kind="F")] - 1e-4


@needs_two_gpus
@pytest.mark.parametrize(("axis", "options"), [("dp", {"zero": True}), ("tp", {"sequence_parallel": True})])
def test_two_gpus_are_two_replicas_or_two_shards_of_one_process(axis, options):
    torch.manual_seed(0)
    mesh, model = pl.Mesh(pp=1, **{axis: 2}), GPT(replace(CONFIG, vocabulary=16, context=4)).double()
    there, here = copy.deepcopy(model), copy.deepcopy(model)
    tokens = torch.randint(16, (2, 8, 5))
    batches = [(each[:, :-1].contiguous(), each[:, 1:].clone()) for each in tokens]
    run = train(there, batches, pl.build("1f1b", 1, 2), mesh, transport="nccl", device="cuda", clip=1.0, **options)
    expected = train(here, batches, pl.build("1f1b", 1, 2), mesh, clip=1.0, **options)
    assert run.losses == pytest.approx(expected.losses, rel=1e-9)
    for ours, theirs in zip(there.parameters(), here.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-12)


def test_nccl_is_refused_in_a_sentence_where_its_machine_is_not():
    schedule = pl.build("gpipe", 2, 2)
    options = {"transport": "nccl"}
    with pytest.raises(ValueError, match="transport nccl moves data between GPUs: got device cpu"):
        train(gpt(), [batch(4)], schedule, **options)
    with pytest.raises(ValueError, match="transport nccl runs on the wall clock"):
        train(gpt(), [batch(4)], schedule, clock="virtual", **options)
    with pytest.raises(ValueError, match="transport nccl has real links"):
        train(gpt(), [batch(4)], schedule, link=pl.Link(1.0), **options)
