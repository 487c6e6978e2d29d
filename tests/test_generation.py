"""Generation through the pipeline: the uncut model's tokens, and the decode bubble that theory says."""

import pytest
import torch
from torch import nn

import pipelab as pl
from pipelab.costs import Link
from pipelab.generation import generate
from pipelab.kv_cache import KVCache
from pipelab.models import GPTConfig, build_model
from pipelab.reference import generate_uncut
from pipelab.simulate import simulate

SMALL = GPTConfig(vocabulary=256, width=16, heads=2, layers=6, context=24, dropout=0.3)
PROMPTS = torch.randint(0, 256, (6, 9), generator=torch.Generator().manual_seed(1))


@pytest.fixture
def model():
    """Larger weights than at the start of training, so that the tokens differ."""
    model = build_model(SMALL, dtype=torch.float64)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter *= 4
    return model


@pytest.mark.parametrize("ranks, in_flight", [(1, 1), (1, 3), (2, None), (4, 1), (4, 4), (3, 6), (8, 2)])
def test_tokens_and_logits_are_the_uncut_models(model, ranks, in_flight):
    ours = generate(model, PROMPTS, tokens=12, ranks=ranks, in_flight=in_flight)
    tokens, logits = generate_uncut(model.eval(), PROMPTS, 12)
    assert torch.equal(ours.tokens, tokens) and len(tokens.unique()) > 20
    assert torch.allclose(ours.logits, logits, rtol=1e-12, atol=1e-12)


def test_the_cut_changes_no_bit(model):
    whole, cut = (generate(model, PROMPTS, tokens=8, ranks=ranks, in_flight=3) for ranks in (1, 5))
    assert torch.equal(whole.logits, cut.logits)


def test_the_decode_is_its_replay_and_starves_below_one_group_a_rank(model, a_second_each):
    for groups, ranks in [(1, 3), (2, 3), (3, 3), (6, 3)]:
        ours = generate(model, PROMPTS[:groups], tokens=10, ranks=ranks)
        assert ours.schedule == pl.build("inference", ranks, 9 * groups, groups=groups)
        order = [[str(span.action) for span in row] for row in ours.decode.compute]
        assert order == [list(map(str, row)) for row in ours.schedule.rows]
        assert abs(1 - float(ours.decode.bubble("span")) - min(1, groups / ranks)) < 0.1
        assert ours.decode.compute == ours.replay().compute == simulate(ours.schedule, pl.Costs.uniform()).compute


def test_one_sequence_alone_keeps_exactly_one_rank_busy(model):
    """In virtual time to rounding: no two ranks ever work at once."""
    ours = generate(model, PROMPTS[:1], tokens=6, ranks=4)
    assert float(sum(ours.decode.busy)) == pytest.approx(float(ours.decode.makespan), rel=1e-9)


def test_latency_and_throughput_count_prefill_and_decode(model):
    ours = generate(model, PROMPTS, tokens=5, ranks=2, in_flight=4)
    assert ours.groups == (2, 2, 1, 1) and len(ours.latencies) == 6
    assert ours.latencies[0] == ours.latencies[1] < ours.latencies[2]  # the same group, and a later one
    assert all(first < last for first, last in zip(ours.first_token, ours.latencies, strict=True))
    assert max(ours.latencies) == pytest.approx(ours.seconds)
    assert ours.throughput == pytest.approx(30 / ours.seconds)


def test_a_slow_link_is_paid_once_a_rank_for_every_token(model):
    ours = generate(model, PROMPTS[:1], tokens=4, ranks=3, link=Link(latency=1000.0))
    assert 8000 < ours.decode.makespan < 9000  # three rounds of three hops, and no way back from the last


def test_one_token_needs_no_decoding(model):
    ours = generate(model, PROMPTS, tokens=1, ranks=2)
    assert torch.equal(ours.tokens, generate_uncut(model.eval(), PROMPTS, 1)[0])
    assert ours.decode.spans == () and ours.latencies == ours.first_token
    with pytest.raises(ValueError, match="ask for 2 or more"):
        ours.replay()


def test_the_cache_holds_keys_and_values_of_every_token_and_leaves_the_model_alone(model):
    ours = generate(model, PROMPTS, tokens=4, ranks=3)
    assert sum(ours.cache_bytes) == 6 * (9 + 3) * 2 * SMALL.width * SMALL.layers * 8
    assert model.training
    for module in model.modules():
        assert not {"core", "places"} & vars(module).keys()
    again = generate(model, PROMPTS, tokens=4, ranks=3)
    assert torch.equal(ours.logits, again.logits)


def test_a_cache_takes_groups_in_any_order(model):
    model.eval()
    cache, halves = KVCache(model), (PROMPTS[:2], PROMPTS[2:])
    with torch.no_grad(), cache.attached():
        for group in (1, 0):
            cache.group = group
            model(halves[group][:, :-1])
        for group in (0, 1):
            cache.group = group
            ours = model(halves[group][:, -1:])
            assert torch.allclose(ours[:, -1], model_without(model, cache, halves[group]), rtol=1e-12, atol=1e-12)
    cache.clear()
    assert cache.bytes == 0


def model_without(model, cache, tokens):
    """The uncut model's last logits, from a copy that knows no cache."""
    plain = build_model(SMALL, dtype=torch.float64).eval()
    plain.load_state_dict(model.state_dict())
    return plain(tokens)[:, -1]


@pytest.mark.parametrize(
    "changed, sentence",
    [
        ({"tokens": 0}, "tokens must be a whole number of at least 1: got 0"),
        ({"tokens": True}, "tokens must be a whole number of at least 1: got True"),
        ({"tokens": 17}, "need 25 places, and the context has 24"),
        ({"in_flight": 7}, "in_flight must be from 1 to 6"),
        ({"in_flight": 0}, "in_flight must be from 1 to 6"),
        ({"ranks": 0}, "ranks must be a whole number of at least 1"),
        ({"ranks": 9}, "8 layers cannot fill 9 stages"),
        ({"prompts": PROMPTS[0]}, r"int64 \[sequences, tokens\], at least one of each: got torch.int64 \[9\]"),
        ({"prompts": PROMPTS.double()}, "got torch.float64"),
        ({"prompts": PROMPTS[:, :0]}, "at least one of each"),
        ({"model": nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))}, "only a GPT of pipelab.models"),
    ],
)
def test_what_does_not_fit_is_refused_before_any_work(model, changed, sentence):
    asked = {"model": model, "prompts": PROMPTS, "tokens": 4, "ranks": 2, **changed}
    with pytest.raises(ValueError, match=sentence):
        generate(asked.pop("model"), asked.pop("prompts"), **asked)
