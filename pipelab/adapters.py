"""How does somebody else's model become stages? As an `nn.Sequential` whose layers pass one tensor on.

An `nn.Sequential` of yours needs nothing: `train` cuts it as it is. A language model of Hugging Face's transformers
passes more than one tensor between its layers (positions, rotary angles, a mask); here each layer makes them itself.
The layers are the model's very own: training the stages trains the model.
"""

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn


def from_transformers(model: Any) -> nn.Sequential:
    """The layers of a causal GPT-2 or Llama in the order they run: token ids [R, T] in, logits [R, T, vocabulary] out.

    R rows of T tokens each, none of them padding. Nothing is copied but the table of rotary angles, so that after
    `train` the model itself is trained, and so it is where the head is tied to the embedding. Raises ValueError for
    another kind of model, or an attention that needs its mask handed over.

    >>> from transformers import LlamaConfig, LlamaForCausalLM  # doctest: +SKIP
    >>> config = LlamaConfig(hidden_size=64, num_hidden_layers=6, num_attention_heads=4)  # doctest: +SKIP
    >>> layers = from_transformers(LlamaForCausalLM(config))  # doctest: +SKIP
    >>> run = train(layers, batches, build("1f1b", ranks=4, microbatches=8))  # doctest: +SKIP
    """
    kind = getattr(getattr(model, "config", None), "model_type", None)
    if kind not in _LAYERS or getattr(model, "lm_head", None) is None:
        raise ValueError(
            f"{type(model).__name__} is not a model that this adapter knows ({', '.join(_LAYERS)}, with a language"
            " modelling head); list the layers yourself: nn.Sequential(model.embedding, *model.blocks, model.head)"
        )
    attention = model.config._attn_implementation
    if attention != "sdpa":
        raise ValueError(
            f"the model's attention is {attention!r}, which takes its causal mask from outside; build the model with"
            " attn_implementation='sdpa'"
        )
    return nn.Sequential(*_LAYERS[kind](model))


def untie(model: Any) -> Any:
    """Give the head a copy of the embedding's matrix; from here on the two are trained apart. Gives the model back."""
    model.lm_head.weight = nn.Parameter(model.lm_head.weight.detach().clone())
    model.config.tie_word_embeddings = False  # or saving and loading would tie them again
    return model


def _gpt2(model: Any) -> list[nn.Module]:
    body = model.transformer
    if model.config.add_cross_attention:
        raise ValueError("this GPT-2 attends to an encoder as well, whose output would have to reach every stage")
    return [_GPT2Embedding(body), *(_Block(block) for block in body.h), body.ln_f, model.lm_head]


def _llama(model: Any) -> list[nn.Module]:
    body = model.model
    blocks = [_Block(block, body.rotary_emb) for block in body.layers]
    return [body.embed_tokens, *blocks, body.norm, model.lm_head]


_LAYERS: dict[str, Callable[[Any], list[nn.Module]]] = {"gpt2": _gpt2, "llama": _llama}


class _GPT2Embedding(nn.Module):
    """What the token is plus where it stands."""

    def __init__(self, body: Any) -> None:
        super().__init__()
        self.wte, self.wpe, self.drop = body.wte, body.wpe, body.drop

    def forward(self, tokens: Tensor) -> Tensor:
        return self.drop(self.wte(tokens) + self.wpe(_positions(tokens)))


class _Block(nn.Module):
    """One block, which works out for itself where the tokens stand; without a mask, "sdpa" attends causally."""

    def __init__(self, block: nn.Module, rotary: nn.Module | None = None) -> None:
        super().__init__()
        self.block = block
        self.rotary = copy.deepcopy(rotary)  # its buffers belong to the stage, whose process may be another

    def forward(self, x: Tensor) -> Tensor:
        angles = {}
        if self.rotary is not None:
            positions = _positions(x[..., 0])
            angles = {"position_ids": positions, "position_embeddings": self.rotary(x, positions)}
        y = self.block(x, attention_mask=None, use_cache=False, **angles)
        return y if isinstance(y, Tensor) else y[0]  # a tuple in older versions


def _positions(rows: Tensor) -> Tensor:
    """0, 1, ... along each row, as [1, T]."""
    return torch.arange(rows.shape[-1], device=rows.device)[None]
