"""A GPT is a list of layers, reproducible from its seed, causal, and unchanged by a later cut."""

import math

import pytest
import torch
from torch import nn

from pipelab.models import GPT, PRESETS, Attention, Block, Embedding, GPTConfig, Head, build_model


def tokens(rows: int = 2, length: int = 16) -> torch.Tensor:
    return torch.randint(256, (rows, length), generator=torch.Generator().manual_seed(0))


def test_children_are_embedding_blocks_and_head():
    model = build_model("tiny")
    assert [type(layer) for layer in model] == [Embedding, *[Block] * 16, Head]
    assert "3.attention.qkv.weight" in dict(model.named_parameters())


@pytest.mark.parametrize("name", ["tiny", "small"])
def test_learning_presets_take_bytes_and_can_be_cut_into_sixteen_stages(name):
    assert PRESETS[name].vocabulary == 256
    assert len(build_model(name)) >= 16


def test_gpt2_preset_has_the_parameters_of_gpt2_small_plus_an_untied_head():
    with torch.device("meta"):
        model = GPT(PRESETS["gpt2"])
    published, head = 124_439_808, 50257 * 768
    assert sum(p.numel() for p in model.parameters()) == published + head


def test_output_is_one_logit_per_row_token_and_vocabulary_entry():
    assert build_model("tiny")(tokens(3, 11)).shape == (3, 11, 256)


def test_a_token_never_sees_later_tokens():
    model, before = build_model("tiny"), tokens()
    after = before.clone()
    after[:, 9:] = (after[:, 9:] + 1) % 256
    with torch.no_grad():
        changed = (model(before) - model(after)).abs().amax(dim=(0, 2)) > 0
    assert changed.tolist() == [False] * 9 + [True] * 7


def test_attention_equals_its_textbook_formula():
    torch.manual_seed(0)
    config = GPTConfig(vocabulary=256, width=12, heads=3, layers=1, context=5)
    attention, x = Attention(config).double(), torch.randn(2, 5, 12, dtype=torch.float64)
    normed = attention.norm(x)
    weight, bias = attention.qkv.weight.view(3, 3, 4, 12), attention.qkv.bias.view(3, 3, 4)
    heads = []
    for head in range(3):
        query, key, value = (normed @ weight[head, i].T + bias[head, i] for i in range(3))
        scores = (query @ key.mT / math.sqrt(4)).masked_fill(torch.ones(5, 5).triu(1).bool(), -math.inf)
        heads.append(scores.softmax(-1) @ value)
    torch.testing.assert_close(attention.attend(x), torch.cat(heads, -1))
    torch.testing.assert_close(attention(x), attention.projection(attention.attend(x)))


def test_an_even_share_of_the_qkv_rows_is_an_even_share_of_the_heads():
    torch.manual_seed(0)
    config = GPTConfig(vocabulary=256, width=32, heads=4, layers=1, context=16)
    whole, x = Attention(config), torch.randn(2, 16, 32)
    shares = []
    for rank in range(2):
        share = Attention(config)
        share.load_state_dict(whole.state_dict())
        share.qkv = nn.Linear(32, 48)
        share.qkv.load_state_dict({name: p.chunk(2)[rank] for name, p in whole.qkv.state_dict().items()})
        shares.append(share.attend(x))
    torch.testing.assert_close(torch.cat(shares, -1), whole.attend(x))


def test_the_seed_alone_decides_the_parameters_and_the_callers_random_state_is_kept():
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    first = build_model("tiny", seed=1)
    assert torch.equal(torch.rand(3), expected)
    second, other = build_model("tiny", seed=1), build_model("tiny", seed=2)
    assert all(map(torch.equal, first.parameters(), second.parameters()))
    assert not torch.equal(first[0].token.weight, other[0].token.weight)


def test_gpt_itself_depends_on_the_global_seed():
    torch.manual_seed(1)
    model = GPT(PRESETS["tiny"])
    assert all(map(torch.equal, model.parameters(), build_model("tiny", seed=1).parameters()))


def test_a_float64_model_starts_from_the_numbers_of_its_float32_twin():
    for single, double in zip(
        build_model("tiny").parameters(), build_model("tiny", dtype=torch.float64).parameters(), strict=True
    ):
        assert double.dtype is torch.float64 and torch.equal(single.double(), double)


def test_parameters_start_as_in_gpt2():
    model = build_model("small")
    layers = PRESETS["small"].layers
    for name, parameter in model.named_parameters():
        if name.endswith("norm.weight"):
            assert (parameter == 1).all()
        elif name.endswith("bias"):
            assert (parameter == 0).all()
        else:
            adds_to_stream = "projection" in name or "down" in name
            expected = 0.02 / math.sqrt(2 * layers) if adds_to_stream else 0.02
            assert parameter.std().item() == pytest.approx(expected, rel=0.05), name


def test_an_untrained_model_guesses_evenly():
    logits = build_model("tiny")(tokens())
    loss = nn.functional.cross_entropy(logits.flatten(0, 1), tokens().flatten())
    assert loss.item() == pytest.approx(math.log(256), abs=0.1)


def test_every_matrix_product_is_a_plain_linear():
    for name, module in build_model("tiny").named_modules():
        if module._parameters and not isinstance(module, nn.Embedding | nn.LayerNorm):
            assert type(module) is nn.Linear, name


def test_a_slice_is_a_plain_sequential_that_shares_layers_and_keeps_names():
    model = build_model("tiny")
    part = model[2:4]
    assert type(part) is nn.Sequential and part[0] is model[2] and model[-1] is list(model)[-1]
    assert list(dict(part.named_children())) == ["2", "3"]


def test_layers_replaces_the_number_of_blocks():
    assert len(build_model("tiny", layers=14)) == 16
    assert len(build_model(PRESETS["tiny"], layers=1)) == 3


def test_dropout_acts_in_training_only():
    model = build_model(GPTConfig(vocabulary=256, width=32, heads=2, layers=2, context=16, dropout=0.5))
    assert not torch.equal(model(tokens()), model(tokens()))
    model.eval()
    assert torch.equal(model(tokens()), model(tokens()))


def test_without_dropout_no_random_number_is_drawn():
    model, state = build_model("tiny"), torch.get_rng_state()
    model(tokens()).sum().backward()
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"width": 30}, "width must be a multiple of heads: got width 30 and heads 4; try width 32"),
        ({"layers": 0}, "layers must be a whole number of at least 1: got 0"),
        ({"context": 2.5}, "context must be a whole number of at least 1: got 2.5"),
        ({"dropout": 1.0}, "dropout must be at least 0 and below 1: got 1.0"),
    ],
)
def test_impossible_sizes_are_refused(change, sentence):
    sizes = {"vocabulary": 256, "width": 32, "heads": 4, "layers": 2, "context": 8} | change
    with pytest.raises(ValueError) as refusal:
        GPTConfig(**sizes)
    assert str(refusal.value) == sentence


def test_unknown_models_and_long_rows_are_refused():
    with pytest.raises(ValueError, match="no model 'large'; choose one of: tiny, small, gpt2"):
        build_model("large")
    with pytest.raises(ValueError, match="rows of 17 tokens do not fit into a context of 16"):
        build_model("tiny")(tokens(1, 17))
