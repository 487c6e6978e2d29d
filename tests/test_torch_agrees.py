"""Our rows are those of PyTorch's own generators, and PyTorch reads our text.

PyTorch keeps its generators under private names. Where one is gone, these tests fail and name the version:
then look for the new name, for no other independent witness is as good.
"""

import importlib
from itertools import product

import pytest
import torch

from pipelab.action import Action
from pipelab.lower import lower
from pipelab.schedule import Schedule
from pipelab.schedules import SCHEDULES, build

SCHEDULES_PY = "torch.distributed.pipelining.schedules"
VISUALIZER = "torch.distributed.pipelining._schedule_visualizer"


def private(module, name):
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError):
        pytest.fail(f"torch {torch.__version__} has no {module}.{name}; this test was written for torch 2.13")


def torch_rows(name, ranks, microbatches, chunks=None):
    """The compute actions that torch's generator lists, as text; None where torch refuses these counts."""
    get_schedule_ops = private(VISUALIZER, "get_schedule_ops")
    try:
        rows = get_schedule_ops(name, ranks, microbatches, num_stages_per_rank=chunks)
    except ValueError:
        return None
    return [[str(action) for action in row if action is not None and action.is_compute_op] for row in rows]


def our_rows(schedule):
    return [[str(action) for action in row] for row in schedule.rows]


def last_rank_renumbered(rows):
    """The last rank's forwards counted from 0, as its backwards are."""
    forwards = iter(range(len(rows[-1])))
    last = [Action.parse(word) for word in rows[-1]]
    return [*rows[:-1], [str(a._replace(microbatch=next(forwards)) if a.kind == "F" else a) for a in last]]


def compared(name, torch_name, counts, mend=lambda rows: rows):
    """Compare wherever torch accepts the counts, and return how many it accepted and how many it refused."""
    accepted = refused = 0
    for P, M, V in counts:
        expected = torch_rows(torch_name, P, M, V)
        if expected is None:
            refused += 1
            continue
        assert our_rows(build(name, P, M, V)) == mend(expected), (name, P, M, V)
        accepted += 1
    return accepted, refused


def test_gpipe_is_torchs():
    assert compared("gpipe", "GPipe", product(range(1, 8), range(1, 10), [None])) == (63, 0)


def test_1f1b_is_torchs_with_the_last_rank_renumbered():
    """Torch refuses M < P. On the last rank it counts the micro-batch up before it lists it: next test."""
    counts = product(range(1, 8), range(1, 10), [None])
    assert compared("1f1b", "1F1B", counts, last_rank_renumbered) == (42, 21)


def test_torchs_listing_of_1f1b_still_names_a_microbatch_that_is_not_there():
    """A wrong listing, which torch does not execute. When torch mends it, drop `last_rank_renumbered`."""
    rows = torch_rows("1F1B", 2, 3)
    assert rows[0] == ["0F0", "0F1", "0B0", "0F2", "0B1", "0B2"]
    assert rows[1] == ["1F1", "1B0", "1F2", "1B1", "1F3", "1B2"], (
        f"torch {torch.__version__} has mended its 1F1B listing"
    )
    assert our_rows(build("1f1b", 2, 3))[1] == ["1F0", "1B0", "1F1", "1B1", "1F2", "1B2"]


def test_interleaved_is_torchs_wherever_torch_accepts_the_rounds():
    """Torch refuses rounds that are not equal; ours are as even as can be."""
    counts = list(product(range(1, 7), range(1, 13), (2, 3, 4)))
    uneven = sum(M % max(1, M // P) != 0 for P, M, _ in counts)
    assert compared("interleaved", "Interleaved1F1B", counts) == (len(counts) - uneven, uneven) == (186, 30)
    assert torch_rows("Interleaved1F1B", 2, 5, 2) is None and build("interleaved", 2, 5, 2).microbatches == 5
    assert torch_rows("Interleaved1F1B", 4, 10, 2) is not None  # two rounds of five


# Ours, torch's, the chunks that torch takes, and how many of the 6 x 14 counts of each it refuses.
FAMILY = [
    ("looped-bfs", "LoopedBFS", (2, 3), 0),
    ("interleaved-zb", "InterleavedZeroBubble", (2, 3, 4), 51),  # rounds that are not equal
    ("zb-v", "ZBVZeroBubble", (2,), 0),
    ("dualpipe-v", "DualPipeV", (2,), 36),  # M < 2P
]


@pytest.mark.parametrize("name, torch_name, chunks, refusals", FAMILY)
def test_the_family_is_torchs_both_ways_pairs_included(name, torch_name, chunks, refusals):
    """Our CSV is torch's listing to the letter, and torch's listing, read by us, is our schedule."""
    refused = 0
    for P, M, V in product(range(1, 7), range(1, 15), chunks):
        listing = torch_rows(torch_name, P, M, V)
        if listing is None:
            refused += 1
            continue
        ours = build(name, P, M, V)
        text = "".join(",".join(row) + "\n" for row in listing)
        assert ours.to_csv() == text, (P, M, V)
        assert Schedule.from_csv(text, name) == ours
    assert refused == refusals


@pytest.mark.parametrize("name", [name for name in SCHEDULES if name != "inference"])  # torch wants a backward
def test_torch_reads_our_csv_and_finds_it_complete(name):
    torch_action = private(SCHEDULES_PY, "_Action")
    torch_validate = private(SCHEDULES_PY, "_validate_schedule")
    for ranks, microbatches in [(1, 1), (2, 5), (4, 8), (4, 3)]:
        schedule = build(name, ranks, microbatches)
        lines = schedule.to_csv().splitlines()
        rows = {rank: [torch_action.from_str(cell) for cell in line.split(",")] for rank, line in enumerate(lines)}
        text = "\n".join(",".join(map(str, row)) for row in rows.values()) + "\n"
        assert text == schedule.to_csv()
        stage_to_rank = torch_validate(rows, ranks, schedule.stages, microbatches)
        assert [stage_to_rank[stage] for stage in range(schedule.stages)] == list(schedule.placement.rank_of)


def test_torch_reads_a_pair_as_two_overlapped_actions():
    torch_action = private(SCHEDULES_PY, "_Action")
    schedule = Schedule.from_text("0F0 0F1 0F2+0B0 0B1 0B2")
    assert schedule.to_csv() == "0F0,0F1,(0F2;0B0)OVERLAP_F_B,0B1,0B2\n"
    pair = torch_action.from_str("(0F2;0B0)OVERLAP_F_B")
    assert [str(action) for action in pair.sub_actions] == ["0F2", "0B0"]
    assert str(pair) == "(0F2;0B0)OVERLAP_F_B" and pair.is_compute_op


def test_torch_lowers_our_rows_to_the_same_messages():
    """Torch may place a message elsewhere in the row, but it sends and receives what `lower` does."""
    torch_action, add = private(SCHEDULES_PY, "_Action"), private(SCHEDULES_PY, "_add_send_recv")
    for name, V in [("gpipe", None), ("1f1b", None), ("interleaved", 2), ("zb-h1", None), ("zb-v", None)]:
        schedule = build(name, 3, 5, V)
        rows = {rank: [torch_action.from_str(word) for word in row] for rank, row in enumerate(our_rows(schedule))}
        lowered = add(rows, schedule.placement.rank_of.__getitem__, schedule.stages)
        for rank, ours in enumerate(lower(schedule).rows):
            assert sorted(map(str, lowered[rank])) == sorted(map(str, ours))
