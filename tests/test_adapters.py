"""A model that others wrote, cut into stages, has the gradients of the uncut one."""

import pytest
import torch
from torch import nn

import pipelab as pl
from pipelab.adapters import from_transformers, untie
from pipelab.loss import cross_entropy
from pipelab.memory import ActivationMeter
from pipelab.split_backward import DeferredWeights

VOCABULARY, ROWS, TOKENS, MICROBATCHES = 50, 2, 12, 4
SIZES = {"vocab_size": VOCABULARY, "bos_token_id": 0, "eos_token_id": 1}


def still(parameters):
    """An optimizer that leaves the parameters where they are, so that gradients can be compared after the step."""
    return torch.optim.SGD(parameters, lr=0.0)


def gpt2(**changes):
    transformers = pytest.importorskip("transformers")
    sizes = {"n_embd": 24, "n_layer": 5, "n_head": 3, "n_positions": 16}
    no_dropout = dict.fromkeys(("embd_pdrop", "resid_pdrop", "attn_pdrop"), 0.0)
    torch.manual_seed(0)
    return transformers.GPT2LMHeadModel(transformers.GPT2Config(**{**SIZES, **sizes, **no_dropout, **changes})).double()


def llama(**changes):
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 5, "num_attention_heads": 6}
    config = {**SIZES, **sizes, "num_key_value_heads": 2, "tie_word_embeddings": False, **changes}
    torch.manual_seed(0)
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**config)).double()


@pytest.fixture
def batch():
    tokens = torch.randint(VOCABULARY, (ROWS * MICROBATCHES, TOKENS + 1), generator=torch.Generator().manual_seed(1))
    return tokens[:, :-1], tokens[:, 1:]


def plain_gradients(model, batch):
    """Of the model as its authors call it, one micro-batch after the other."""
    pieces = zip(*(torch.tensor_split(tensor, MICROBATCHES) for tensor in batch), strict=True)
    for inputs, targets in pieces:
        (cross_entropy(model(inputs).logits, targets) / MICROBATCHES).backward()
    gradients = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    model.zero_grad()
    return gradients


@pytest.mark.parametrize("name", ["1f1b", "interleaved", "zb-h1"])
@pytest.mark.parametrize("make", [llama, lambda: untie(gpt2()), gpt2], ids=["llama", "gpt2", "gpt2-tied"])
def test_a_cut_transformers_model_has_the_gradients_of_the_uncut_one(make, name, batch):
    model = make()
    expected = plain_gradients(model, batch)
    schedule = pl.build(name, 3, MICROBATCHES, 2 if name == "interleaved" else None)
    pl.train(from_transformers(model), [batch], schedule, optimizer=still)
    for parameter, gradient in expected.items():
        ours = model.get_parameter(parameter).grad  # the model's very own parameters were trained
        assert torch.allclose(ours, gradient, rtol=1e-10, atol=1e-14), parameter


@pytest.mark.parametrize("make", [llama, lambda: untie(gpt2())], ids=["llama", "gpt2"])
def test_the_layers_in_a_row_are_the_model(make, batch):
    model = make()
    assert torch.equal(from_transformers(model)(batch[0]), model(batch[0]).logits)


def test_the_weight_products_of_gpt2s_transposed_linears_wait_for_w():
    block = from_transformers(untie(gpt2()))[1]
    put_off = DeferredWeights(block, ActivationMeter()).linears
    assert [type(linear).__name__ for linear in put_off] == ["Conv1D"] * 4


def test_untying_gives_the_head_a_matrix_of_its_own():
    model = gpt2()
    before = model.lm_head.weight.detach().clone()
    layers = from_transformers(untie(model))
    assert torch.equal(layers[-1].weight, before) and layers[-1].weight is not layers[0].wte.weight


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: llama(attn_implementation="eager"), "attn_implementation='sdpa'"),
        (lambda: untie(gpt2(add_cross_attention=True)), "attends to an encoder"),
        (lambda: gpt2().transformer, "list the layers yourself"),
        (lambda: nn.Linear(2, 2), "list the layers yourself"),
    ],
)
def test_what_cannot_be_cut_is_refused_in_a_sentence(make, sentence):
    with pytest.raises(ValueError, match=sentence):
        from_transformers(make())


def test_a_sequential_of_ones_own_needs_no_adapter(batch):
    torch.manual_seed(0)
    layers = [nn.Embedding(VOCABULARY, 8), nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 8), nn.Linear(8, VOCABULARY)]
    model = nn.Sequential(*layers).double()
    loss = cross_entropy(model(batch[0]), batch[1])
    loss.backward()
    expected = [parameter.grad.clone() for parameter in model.parameters()]
    run = pl.train(model, [batch], pl.build("1f1b", 3, MICROBATCHES), optimizer=still)
    assert run.losses[0] == pytest.approx(loss.item(), rel=1e-12)
    for parameter, gradient in zip(model.parameters(), expected, strict=True):
        assert torch.allclose(parameter.grad, gradient, rtol=1e-10, atol=1e-14)
