"""How does a stage generate without reading everything again? It keeps the keys and values of the tokens so far.

Read next: `generation`.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional

from pipelab.models import Attention, Embedding


class KVCache:
    """The keys and values that the attention layers of one stage computed, for each group of sequences.

    While attached, attention looks at what is kept as well, and an embedding goes on counting places. `group` says
    whose tokens come now.

    >>> from pipelab.models import build_model
    >>> model, tokens = build_model("tiny").eval(), torch.arange(6)[None]
    >>> cache = KVCache(model)
    >>> with torch.no_grad(), cache.attached():
    ...     both = torch.cat([model(tokens[:, :5]), model(tokens[:, 5:])], dim=1)
    >>> torch.allclose(both, model(tokens), atol=1e-5)
    True
    """

    def __init__(self, layers: nn.Module) -> None:
        self._attention = [module for module in layers.modules() if isinstance(module, Attention)]
        self._embeddings = [module for module in layers.modules() if isinstance(module, Embedding)]
        self._kept: dict[tuple[int, nn.Module], tuple[Tensor, Tensor]] = {}
        self._places: dict[int, int] = {}
        self.group = 0

    @property
    def bytes(self) -> int:
        """What the keys and values of all groups take."""
        return sum(tensor.nbytes for pair in self._kept.values() for tensor in pair)

    @contextmanager
    def attached(self) -> Iterator[None]:
        """Take part in the layers' forwards; afterwards they are as they were."""
        for attention in self._attention:
            attention.core = partial(self._core, attention)  # type: ignore[method-assign]
        for embedding in self._embeddings:
            embedding.places = partial(self._next_places, embedding)  # type: ignore[method-assign]
        try:
            yield
        finally:
            for attention in self._attention:
                del attention.core  # the class's own shows again
            for embedding in self._embeddings:
                del embedding.places

    def clear(self) -> None:
        """Forget all tokens."""
        self._kept.clear()
        self._places.clear()

    def _core(self, attention: nn.Module, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        before = self._kept.get((self.group, attention))
        if before is not None:
            assert query.shape[2] == 1, "after the prompt a sequence goes on one token at a time"
            key, value = (torch.cat(pair, dim=2) for pair in zip(before, (key, value), strict=True))
        self._kept[self.group, attention] = key, value
        return functional.scaled_dot_product_attention(query, key, value, is_causal=before is None)

    def _next_places(self, embedding: Embedding, length: int) -> Tensor:
        begin = self._places.get(self.group, 0)
        self._places[self.group] = begin + length
        return embedding.position.weight[begin : begin + length]
