"""How do t ranks compute one layer together? Each holds a part of its matrix, and two collectives make them one.

A pair of matrices is cut so that what lies between needs no word from the others: the first by its outputs (columns in
the papers, where x stands left of the matrix: x A), the second by its inputs (rows). Before the pair stands `copy_in`,
behind it `sum_out`; with sequence parallelism, where each rank has a part of every row of tokens in between,
`gather_in` and `scatter_out`. Each is the other's backward.
(Shoeybi et al. 2019, section 3; Korthikanti et al. 2022, section 4.) Read next: `tensor_parallel`, which cuts a model.

Shapes: R rows of T tokens, D features; t ranks.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from pipelab.collectives import Group
from pipelab.loss import IGNORED

Exchange = Callable[[Tensor], Tensor]


class _Conjugate(torch.autograd.Function):
    """One thing on the way there, another on the way back."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, there: Exchange, back: Exchange) -> Tensor:
        ctx.back = back
        return there(x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        return ctx.back(grads[0]), None, None


def _same(x: Tensor) -> Tensor:
    return x.view_as(x)


def copy_in(x: Tensor, group: Group) -> Tensor:
    """All ranks have x, and each takes it through its own part: the gradients are summed. (Megatron's f.)"""
    return _Conjugate.apply(x, _same, group.all_reduce)


def sum_out(x: Tensor, group: Group) -> Tensor:
    """Each rank has a summand, and all get the sum: its gradient is that of every summand. (Megatron's g.)"""
    return _Conjugate.apply(x, group.all_reduce, _same)


def gather_in(x: Tensor, group: Group) -> Tensor:
    """[R, T/t, D] -> [R, T, D]: `copy_in` for ranks that have a part of the tokens each. (Korthikanti's g.)"""
    return _Conjugate.apply(x, partial(group.all_gather, dim=-2), partial(group.reduce_scatter, dim=-2))


def scatter_out(x: Tensor, group: Group) -> Tensor:
    """[R, T, D] -> [R, T/t, D]: `sum_out`, but each rank gets the sum of its own tokens. (Korthikanti's g-bar.)

    Raises ValueError for a T that is no multiple of t.
    """
    if x.shape[-2] % group.size:
        raise ValueError(
            f"rows of {x.shape[-2]} tokens cannot be shared evenly by {group.size} tensor ranks; make them a multiple"
            f" of {group.size} tokens, or train without sequence parallelism"
        )
    return _Conjugate.apply(x, partial(group.reduce_scatter, dim=-2), partial(group.all_gather, dim=-2))


def bounds(size: int, index: int, ranks: int) -> tuple[int, int]:
    """Which of `size` rows or columns rank `index` of `ranks` has, as `torch.tensor_split` shares them out.

    >>> [bounds(10, index, 3) for index in range(3)]
    [(0, 4), (4, 7), (7, 10)]
    """
    each, rest = divmod(size, ranks)
    first = index * each + min(index, rest)
    return first, first + each + (index < rest)


class ColumnParallelLinear(nn.Linear):
    """A Linear of which a rank has its own rows of the weight, thus its own features of the output: the first of two.

    Made of a Linear whose parameters have been cut. With sequence parallelism its input is gathered, [R, T, D], and
    kept so until the weight gradient: RTD(1 - 1/t) elements more than if the backward gathered it once more, as
    Korthikanti et al. do (section 4.2.2). That saves a third all-gather, and W needs no collective.
    """

    dims: ClassVar[Mapping[str, int]] = {"weight": 0, "bias": 0}
    even = "out_features"
    """What all ranks together have, in equal parts."""

    def __init__(self, linear: nn.Linear, group: Group, sequence_parallel: bool) -> None:
        _take_over(self, linear)
        self.group = group
        self.enter = gather_in if sequence_parallel else copy_in

    def forward(self, x: Tensor) -> Tensor:
        return self.product(self.enter(x, self.group))

    def product(self, x: Tensor) -> Tensor:
        """What needs no other rank: of this a deferred weight gradient is put off."""
        return functional.linear(x, self.weight, self.bias)


class RowParallelLinear(nn.Linear):
    """A Linear of which a rank has its own columns of the weight, for its own features of the input: the second of two.

    Made of a Linear whose weight has been cut. The bias is whole on every rank and added once, after the sum.
    """

    dims: ClassVar[Mapping[str, int]] = {"weight": 1}
    even = "in_features"

    def __init__(self, linear: nn.Linear, group: Group, sequence_parallel: bool) -> None:
        _take_over(self, linear)
        self.group = group
        self.leave = scatter_out if sequence_parallel else sum_out

    def forward(self, x: Tensor) -> Tensor:
        y = self.leave(self.product(x), self.group)
        return y if self.bias is None else y + self.bias

    def product(self, x: Tensor) -> Tensor:
        """This rank's summand; of this a deferred weight gradient is put off."""
        return functional.linear(x, self.weight)


class VocabularyParallelEmbedding(nn.Embedding):
    """An Embedding of which a rank has its own rows: it looks up its own tokens, zeros for the others, and all add up.

    Made of an Embedding whose weight has been cut; `num_embeddings` is still that of all ranks.
    """

    dims: ClassVar[Mapping[str, int]] = {"weight": 0}
    even = ""  # some ranks may have a token more than others

    def __init__(self, embedding: nn.Embedding, group: Group, sequence_parallel: bool) -> None:
        if embedding.padding_idx is not None or embedding.max_norm is not None:
            raise ValueError("an embedding with padding_idx or max_norm cannot be cut by vocabulary; leave both out")
        self.__dict__.update(embedding.__dict__)
        self.group = group
        self.leave = scatter_out if sequence_parallel else sum_out
        self.first, self.end = bounds(embedding.num_embeddings, group.index, group.size)

    def forward(self, tokens: Tensor) -> Tensor:
        _refuse_outside(tokens, self.num_embeddings, "a token")
        others = (tokens < self.first) | (tokens >= self.end)
        rows = functional.embedding((tokens - self.first).masked_fill(others, 0), self.weight)
        return self.leave(rows.masked_fill(others.unsqueeze(-1), 0), self.group)


class VocabularyParallelHead(ColumnParallelLinear):
    """The last Linear, from features to logits. It gathers the logits of all ranks, unless the loss takes them as they
    are (`vocabulary_cross_entropy`): they are the largest activation of all."""

    even = ""

    def __init__(self, linear: nn.Linear, group: Group, sequence_parallel: bool) -> None:
        super().__init__(linear, group, sequence_parallel)
        self.bounds = [bounds(linear.out_features, index, group.size) for index in range(group.size)]
        self.gathers = True

    def forward(self, x: Tensor) -> Tensor:
        logits = super().forward(x)
        return _Conjugate.apply(logits, self._all, self._own) if self.gathers else logits

    def _all(self, logits: Tensor) -> Tensor:
        # Collectives want tensors of one size; the first rank has no fewer logits than any other.
        sizes = [end - first for first, end in self.bounds]
        padded = functional.pad(logits, (0, sizes[0] - logits.shape[-1]))
        parts = self.group.all_gather(padded, -1).split(sizes[0], -1)
        return torch.cat([part[..., :size] for part, size in zip(parts, sizes, strict=True)], -1)

    def _own(self, grad: Tensor) -> Tensor:
        first, end = self.bounds[self.group.index]
        return grad[..., first:end]


def vocabulary_cross_entropy(
    logits: Tensor, targets: Tensor, *, group: Group, first: int, vocabulary: int
) -> Tensor:  # fmt: skip
    """`loss.cross_entropy` of logits [R, T, vocabulary/t] that begin with that of token `first`: they never meet.

    What meets is three numbers a target: the largest logit, the sum of the exponentials, the logit of the target.
    """
    kept = targets != IGNORED
    _refuse_outside(targets.masked_fill(~kept, 0), vocabulary, "a target")
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    logits = logits - group.all_reduce(logits.detach().amax(-1, keepdim=True), largest=True)
    own = targets - first
    others = (own < 0) | (own >= logits.shape[-1])
    of_target = logits.gather(-1, own.masked_fill(others, 0).unsqueeze(-1)).squeeze(-1).masked_fill(others, 0)
    losses = sum_out(logits.exp().sum(-1), group).log() - sum_out(of_target, group)
    return losses.masked_fill(~kept, 0).sum() / kept.sum()


def _refuse_outside(tokens: Tensor, vocabulary: int, what: str) -> None:
    """Uncut layers raise here; of the shards each would take it for another's. (A GPU is not waited for.)"""
    inside = (tokens >= 0) & (tokens < vocabulary)
    torch._assert_async(inside.all(), f"{what} is none of the vocabulary's, 0 to {vocabulary - 1}")


def _take_over(module: nn.Linear, linear: nn.Linear) -> None:
    """Become this Linear: the same parameters, whose sizes are from here on told as they are."""
    module.__dict__.update(linear.__dict__)
    module.out_features, module.in_features = linear.weight.shape
