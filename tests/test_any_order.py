"""Any legal order on any placement trains as the uncut model does: a schedule says when, never what."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_training import SHALLOW, ascending, gpt, text_batches
from test_validate import legal_schedules

import pipelab as pl
from pipelab.reference import train_uncut


@st.composite
def rules(draw):
    """Schedules by a rule that takes any ready action, also on placements that are neither loop nor V."""
    ranks = draw(st.integers(1, 4))
    owner = draw(st.lists(st.integers(0, ranks - 1), min_size=1, max_size=8))
    random = draw(st.randoms(use_true_random=False))
    placement, microbatches = pl.Placement(ranks, tuple(owner)), draw(st.integers(1, 6))
    return pl.Schedule.from_rule("random rule", placement, microbatches, lambda ready, moment: random.choice(ready))


@settings(max_examples=40)
@given(st.one_of(legal_schedules(), rules()))
def test_a_random_legal_order_validates_and_trains_to_the_gradients_of_plain_pytorch(schedule):
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        model, uncut = gpt(SHALLOW), gpt(SHALLOW)
        losses = train_uncut(uncut, text_batches(), schedule.microbatches, seed=7)
        run = pl.train(model, text_batches(), pl.validate(schedule), seed=7)
    finally:
        torch.set_num_threads(threads)
    assert run.losses == losses
    for ours, theirs in zip(model.parameters(), uncut.parameters(), strict=True):
        if ascending_together(schedule):
            assert torch.equal(ours.grad, theirs.grad)
        else:
            torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-9, atol=1e-14)


def ascending_together(schedule):
    """Whether B, and W and I, each run in the order of the micro-batches, also where a stage mixes them."""
    orders = {}
    for _, _, (stage, kind, microbatch) in schedule.actions():
        if kind in "BI":
            orders.setdefault((stage, "I"), []).append(microbatch)
        if kind in "BW":
            orders.setdefault((stage, "W"), []).append(microbatch)
    return ascending(schedule) and all(order == sorted(order) for order in orders.values())
