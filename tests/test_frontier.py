"""What a checkpointing holds is predicted to the byte, and the one that is chosen is the cheapest that fits."""

import itertools

import pytest
import torch
from torch import nn

import pipelab as pl
from pipelab.frontier import POLICIES, Piece, PolicyProfile, profile_policies
from pipelab.models import GPT, GPTConfig
from pipelab.show import frontier_chart

CONTEXT = 16
TOKENS = torch.randint(32, (2, CONTEXT), generator=torch.Generator().manual_seed(0))


def gpt() -> GPT:
    torch.manual_seed(1)
    return GPT(GPTConfig(vocabulary=32, width=16, heads=2, layers=8, context=CONTEXT))


@pytest.mark.parametrize(
    ("name", "chunks"), [("gpipe", None), ("1f1b", None), ("interleaved", 2), ("zb-h1", None), ("zb-v", None)]
)
def test_predicted_peaks_are_the_measured_ones_to_the_byte(name, chunks):
    schedule = pl.build(name, 2, 5, chunks)
    measured = profile_policies(gpt(), (TOKENS, TOKENS), schedule, repeats=1)
    mixed = [POLICIES[stage % len(POLICIES)] for stage in range(schedule.stages)]
    for checkpointing, hoist in [*((policy, 0) for policy in POLICIES), (mixed, 1)]:
        run = pl.train(gpt(), [(TOKENS.repeat(5, 1),) * 2], schedule, checkpointing=checkpointing, hoist=hoist)
        predicted = measured.predict(checkpointing, hoist)
        assert predicted.bytes == run.memory.peaks, (checkpointing, hoist)
        assert predicted.step > 0


def test_pairs_are_predicted_within_5_percent():
    schedule = pl.build("dualpipe-v", 2, 6)
    measured = profile_policies(gpt(), (TOKENS, TOKENS), schedule, repeats=1)
    for policy in ("none", "full"):
        run = pl.train(gpt(), [(TOKENS.repeat(6, 1),) * 2], schedule, checkpointing=policy)
        assert measured.predict(policy).bytes == pytest.approx(run.memory.peaks, rel=0.05)


def toy(name: str = "1f1b") -> PolicyProfile:
    """Stages that differ: the later, the larger."""
    schedule = pl.build(name, 3, 4)

    def pieces(keep: int, again: int) -> dict[tuple[int, str], Piece]:
        kinds = {"F": Piece(6, keep, keep), "R": Piece(again, 16 - keep, 16 - keep), "B": Piece(12, 1, -16)}
        kinds["I"], kinds["W"] = Piece(6, 1, -10), Piece(6, 0, -6)
        return {
            (stage, kind): Piece(p.seconds + stage, p.rise, p.more)
            for stage in range(schedule.stages)
            for kind, p in kinds.items()
        }

    return PolicyProfile(schedule, {"none": pieces(16, 0), "selective": pieces(12, 1), "full": pieces(1, 6)})


@pytest.mark.parametrize("name", ["1f1b", "gpipe", "zb-h1", "zb-v"])
@pytest.mark.parametrize("hoist", [0, 1])
def test_with_one_stage_a_rank_no_mixture_that_fits_has_a_shorter_step_than_the_one_chosen(name, hoist):
    known = toy(name)
    tried = [known.predict(mix, hoist) for mix in itertools.product(known.pieces, repeat=known.schedule.stages)]
    for limit in sorted({max(choice.bytes) for choice in tried})[:: 1 + len(tried) // 100]:
        best = min(choice.step for choice in tried if max(choice.bytes) <= limit)
        chosen = known.choose(limit, hoist)
        assert max(chosen.bytes) <= limit
        assert chosen.step == best if name != "zb-v" else chosen.step < 1.05 * best


def test_each_rank_may_have_a_limit_of_its_own():
    chosen = toy().choose([1000, 20, 1000])
    assert chosen.policies == ("none", "full", "none") and chosen.bytes[1] <= 20
    with pytest.raises(ValueError, match="or one a rank, 3 in all: got 2"):
        toy().choose([1, 2])


def test_what_cannot_fit_is_refused_with_the_least_that_is_needed():
    with pytest.raises(ValueError, match=r"rank 0 needs at least 0\.00 MiB of activations \(full\), and the limit is"):
        toy().choose(17)
    with pytest.raises(ValueError, match=r"rank \d needs at least \d\.\d\d MiB of activations"):
        pl.choose_checkpointing(gpt(), (TOKENS, TOKENS), pl.build("1f1b", 2, 4), limit=1000, repeats=1)


def test_what_was_not_measured_cannot_be_predicted():
    with pytest.raises(ValueError, match="'every-2' was not measured; measured were none, selective, full"):
        toy().predict("every-2")


def test_the_model_is_left_as_it_was_and_policies_that_do_not_apply_are_not_tried():
    model = nn.Sequential(*(nn.Linear(4, 4) for _ in range(6)))
    before = [p.clone() for p in model.parameters()]
    x = torch.randn(3, 4)
    options = {"loss": nn.functional.mse_loss, "repeats": 1}
    measured = profile_policies(model, (x, x), pl.build("1f1b", 2, 3), **options)
    assert list(measured.pieces) == ["none", "full", "except-last"]
    assert all(map(torch.equal, before, model.parameters())) and model[0].weight.grad is None
    with pytest.raises(ValueError, match="selective"):
        profile_policies(model, (x, x), pl.build("1f1b", 2, 3), tried=["selective"], **options)


def test_the_choice_can_be_trained_with():
    schedule = pl.build("1f1b", 2, 4)
    known = profile_policies(gpt(), (TOKENS, TOKENS), schedule, repeats=1)
    limit = (max(known.predict("none").bytes) + max(known.predict("full").bytes)) / 2
    chosen = known.choose(limit)
    run = pl.train(gpt(), [(TOKENS.repeat(4, 1),) * 2], schedule, checkpointing=chosen.policies)
    assert max(run.memory.peaks) <= limit < max(known.predict("none").bytes)
    assert "MiB of activations on a rank, step" in str(chosen)


def test_points_can_be_drawn_in_per_cent_of_one_of_them():
    figure = frontier_chart({"none": (4e6, 0.01), "full": (1e6, 0.013)}, "virtual", relative_to="none")
    drawn = sorted(zip(figure.data[0].x, figure.data[0].y, strict=True))
    assert drawn == [pytest.approx((25, 130)), pytest.approx((100, 100))]
    assert "% of none" in figure.layout.xaxis.title.text and "% of none" in figure.layout.yaxis.title.text
