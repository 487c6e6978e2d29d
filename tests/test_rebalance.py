"""The move that a timeline suggests is the best of all, predicted with the run's own times, and it can be run."""

from dataclasses import replace

import pytest
import torch

import pipelab as pl
from pipelab.balance import predict
from pipelab.data import Batches
from pipelab.models import build_model
from pipelab.profile import Profile, profile
from pipelab.rebalance import Move, suggest_move

BATCHES = Batches(text=bytes(range(256)) * 8, microbatches=6, rows=2, context=16, seed=0, steps=2)

TIMES = (0.5, *[1.0] * 16, 3.0)  # an embedding, blocks, a head
KNOWN = Profile(
    tuple(map(str, range(18))), {"F": TIMES, "B": tuple(2 * time for time in TIMES), "I": TIMES, "W": TIMES},
    *[(1,) * 18] * 4,
)  # fmt: skip


@pytest.fixture(scope="module")
def layers():
    return profile(build_model("tiny"), tuple(tensor[:2] for tensor in BATCHES[0]), repeats=2)


def train(name, at, chunks=None):
    ranks = (len(at) + 1) // (chunks or 1)
    return pl.train(build_model("tiny"), BATCHES, pl.build(name, ranks, 6, chunks), at=at)


def known(run, seconds=1.0):
    """The run, had its layers taken the known times on a host of this speed."""
    costs = KNOWN.costs(run.at)
    slower = pl.Costs({kind: tuple(seconds * time for time in times) for kind, times in costs.work.items()})
    return replace(run, traces=[pl.simulate(run.schedule, slower)])


@pytest.mark.parametrize(("at", "slow"), [([3, 13], 1), ([13, 16], 0), ([2, 4], 2)])
def test_a_layer_leaves_the_slow_rank(at, slow):
    run = train("1f1b", at)
    assert run.at == tuple(at)
    move = suggest_move(known(run), KNOWN)
    assert move.source == slow and abs(move.target - slow) == 1
    assert move.change < -0.03 and f"move layer {move.layer} from rank {slow} to rank" in str(move)


def test_the_prediction_starts_from_what_the_run_took(layers):
    run = known(train("1f1b", [3, 13]), seconds=0.125)
    move = suggest_move(run, layers)
    assert move.before == pytest.approx(float(run.replay().makespan))
    own = layers.calibrated(run.costs(), run.at)
    assert move.after == pytest.approx(predict("moved", move.at, own, run.schedule).step)


def test_a_suggestion_is_verified_by_running_it():
    move = suggest_move(known(train("1f1b", [3, 13])), KNOWN)
    again = train("1f1b", list(move.at))
    assert again.at == move.at and len(again.losses) == 2
    assert torch.equal(torch.tensor(again.losses), torch.tensor(train("1f1b", [9, 12]).losses))


def test_where_no_move_helps_there_is_none(layers):
    assert suggest_move(train("1f1b", []), layers) is None


def test_with_several_chunks_a_rank_the_stages_are_named():
    move = suggest_move(known(train("interleaved", [2, 4, 15], chunks=2)), KNOWN)
    assert move is not None and move.ranks == (move.source % 2, move.target % 2)
    named = str(Move(7, source=2, target=3, ranks=(0, 1), at=(1, 2, 7), before=0.1, after=0.2))
    assert named.startswith("move layer 7 from stage 2 (rank 0) to stage 3 (rank 1): predicted +100.0 %")


def test_the_profile_of_another_model_is_refused(layers):
    run = pl.train(build_model("tiny", layers=4), BATCHES, pl.build("1f1b", 2, 6))
    with pytest.raises(ValueError, match=r"18 layers and the run's model 6"):
        suggest_move(run, layers)
