"""What do we train? A small GPT that is nothing but a list of layers, so that any slice of it is a stage.

The model is an `nn.Sequential` of `Embedding`, N times `Block`, `Head`: each layer takes one tensor and
returns one tensor, therefore it can be cut between any two layers. Read `partition.py` next: it does the
cutting.

Shapes: R rows (sequences in a micro-batch), T tokens in a row (at most `context`), D = `width`, H = `heads`.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipelab.counts import count


@dataclass(frozen=True)
class GPTConfig:
    """The six numbers that describe a GPT, and whether its two ends share a matrix.

    `vocabulary` counts the token ids (256 where a token is a byte), `width` the features of one token,
    `heads` the attention heads that share the width, `layers` the blocks, `context` the longest row in
    tokens; `dropout` is a probability. With `tied` the head uses the embedding's matrix, as GPT-2 does.
    Raises ValueError if the numbers cannot form a model.

    >>> GPTConfig(vocabulary=256, width=32, heads=3, layers=8, context=16)
    Traceback (most recent call last):
    ValueError: width must be a multiple of heads: got width 32 and heads 3; try width 33
    """

    vocabulary: int
    width: int
    heads: int
    layers: int
    context: int
    dropout: float = 0.0
    tied: bool = False

    def __post_init__(self) -> None:
        for name in ("vocabulary", "width", "heads", "layers", "context"):
            count(name, getattr(self, name))
        if self.width % self.heads:
            larger = math.ceil(self.width / self.heads) * self.heads
            raise ValueError(
                f"width must be a multiple of heads: got width {self.width} and heads {self.heads}; try width {larger}"
            )
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout must be at least 0 and below 1: got {self.dropout}")


PRESETS: dict[str, GPTConfig] = {
    "tiny": GPTConfig(vocabulary=256, width=32, heads=2, layers=16, context=16),
    "small": GPTConfig(vocabulary=256, width=128, heads=4, layers=16, context=64),
    "gpt2": GPTConfig(vocabulary=50257, width=768, heads=12, layers=12, context=1024),
}


class Embedding(nn.Module):
    """Turn token ids [R, T] into features [R, T, D]: what the token is plus where in the row it stands.

    Raises ValueError for a row longer than the context.

    >>> Embedding(PRESETS["tiny"])(torch.zeros(2, 16, dtype=torch.int64)).shape
    torch.Size([2, 16, 32])
    """

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.token = nn.Embedding(config.vocabulary, config.width)
        self.position = nn.Embedding(config.context, config.width)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, tokens: Tensor) -> Tensor:
        length, context = tokens.shape[-1], self.position.num_embeddings
        if length > context:
            raise ValueError(f"rows of {length} tokens do not fit into a context of {context}; use shorter rows")
        return self.dropout(self.token(tokens) + self.places(length))

    def places(self, length: int) -> Tensor:
        """The features of the places in a row, [T, D]; generation begins where the cache ends."""
        return self.position.weight[:length]


class Attention(nn.Module):
    """The attention sublayer, [R, T, D] -> [R, T, D]: each token gathers features of the tokens before it.

    The rows of `qkv.weight` are ordered by head first (query, key, value of head 0, then of head 1, ...), as
    in Megatron-LM: an even share of consecutive rows is then an even share of heads, and the number of heads
    is read from the activation. So a tensor-parallel rank may put its own share of `qkv` and `projection`
    into this very module.

    >>> Attention(PRESETS["tiny"])(torch.zeros(2, 16, 32)).shape
    torch.Size([2, 16, 32])
    """

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.head_width = config.width // config.heads
        self.norm = nn.LayerNorm(config.width)
        self.qkv = nn.Linear(config.width, 3 * config.width)
        self.projection = nn.Linear(config.width, config.width)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor) -> Tensor:
        return self.dropout(self.projection(self.attend(x)))

    def attend(self, x: Tensor) -> Tensor:
        """Norm, qkv and core: what selective recomputation redoes, because it holds much and costs little.

        (Korthikanti et al., "Reducing Activation Recomputation in Large Transformer Models", section 5.)
        """
        qkv = self.qkv(self.norm(x)).unflatten(-1, (-1, 3, self.head_width))  # [R, T, H, 3, D/H]
        query, key, value = (each.transpose(1, 2) for each in qkv.unbind(3))  # each [R, H, T, D/H]
        return self.core(query, key, value).transpose(1, 2).flatten(2)

    def core(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """For each token a mean of the values up to its own place, [R, H, T, D/H]; generation puts a cache here."""
        return F.scaled_dot_product_attention(query, key, value, is_causal=True)


class Block(nn.Module):
    """One transformer block [R, T, D] -> [R, T, D]: attention, then an MLP, each added to what came in.

    Each sublayer normalises its own input ("pre-norm"), so the sum itself passes through all blocks untouched
    (Radford et al., "Language Models are Unsupervised Multitask Learners", section 2.3).

    >>> sorted(name for name, _ in Block(PRESETS["tiny"]).named_parameters() if "weight" in name)
    ['attention.norm.weight', 'attention.projection.weight', 'attention.qkv.weight', 'mlp.down.weight', \
'mlp.norm.weight', 'mlp.up.weight']
    """

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.attention = Attention(config)
        self.mlp = nn.Sequential(
            OrderedDict(
                norm=nn.LayerNorm(config.width),
                up=nn.Linear(config.width, 4 * config.width),
                gelu=nn.GELU(),
                down=nn.Linear(4 * config.width, config.width),
                dropout=nn.Dropout(config.dropout),
            )
        )

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(x)
        return x + self.mlp(x)


class Head(nn.Module):
    """Turn features [R, T, D] into one score (logit) for each possible next token [R, T, vocabulary].

    Its matrix is its own unless the model ties it to the embedding's.

    >>> Head(PRESETS["tiny"])(torch.zeros(2, 16, 32)).shape
    torch.Size([2, 16, 256])
    """

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(config.width)
        self.vocabulary = nn.Linear(config.width, config.vocabulary, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.vocabulary(self.norm(x))


class GPT(nn.Sequential):
    """A GPT as a list of layers: token ids [R, T] in, logits [R, T, vocabulary] out.

    The initial parameters depend on torch's global seed only; `build_model` sets that for you.

    >>> model = GPT(PRESETS["tiny"])
    >>> len(model), type(model[0]).__name__, type(model[-1]).__name__
    (18, 'Embedding', 'Head')
    >>> next(name for name, _ in model[3:].named_parameters() if "qkv" in name)  # a slice keeps the names
    '3.attention.qkv.weight'
    """

    def __init__(self, config: GPTConfig) -> None:
        super().__init__(Embedding(config), *(Block(config) for _ in range(config.layers)), Head(config))
        self.config = config
        _initialise(self, config.layers)
        if config.tied:
            self[-1].vocabulary.weight = self[0].token.weight

    def __getitem__(self, index: Any) -> Any:
        # nn.Sequential builds a slice with its own class, but a slice of a GPT is no GPT: it may lack an end.
        return nn.Sequential(OrderedDict(self._modules))[index]


def _initialise(model: nn.Module, layers: int) -> None:
    """GPT-2's start: normal(0, 0.02), and smaller where 2 x layers results add up in the residual stream."""
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear | nn.Embedding):
            adds_to_stream = name.endswith(("attention.projection", "mlp.down"))
            nn.init.normal_(module.weight, std=0.02 / math.sqrt(2 * layers) if adds_to_stream else 0.02)
        if isinstance(module, nn.Linear) and module.bias is not None:
            nn.init.zeros_(module.bias)


def build_model(
    name_or_config: str | GPTConfig,
    *,
    seed: int = 0,
    layers: int | None = None,
    tied: bool | None = None,
    dtype: torch.dtype = torch.float32,
) -> GPT:
    """Build a model whose initial parameters depend on `seed` only, wherever in a program it is called.

    `name_or_config` is a key of `PRESETS` or a `GPTConfig`; `layers` replaces its number of blocks,
    `tied` whether its two ends share a matrix.
    Parameters are drawn first and converted to `dtype` afterwards, so a float64 model starts from the very
    numbers of its float32 twin. The caller's random state is left as it was. Raises ValueError for an
    unknown name or impossible sizes.

    >>> model = build_model("tiny", seed=1, layers=2)
    >>> [type(layer).__name__ for layer in model]
    ['Embedding', 'Block', 'Block', 'Head']
    >>> model(torch.zeros(2, 16, dtype=torch.int64)).shape
    torch.Size([2, 16, 256])
    """
    if isinstance(name_or_config, str):
        if name_or_config not in PRESETS:
            raise ValueError(f"there is no model {name_or_config!r}; choose one of: {', '.join(PRESETS)}")
        config = PRESETS[name_or_config]
    else:
        config = name_or_config
    if layers is not None:
        config = replace(config, layers=layers)
    if tied is not None:
        config = replace(config, tied=tied)
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        # torch.manual_seed would also reset the GPUs' random state.
        torch.default_generator.manual_seed(seed)
        return GPT(config).to(dtype)
