"""How is a part of a stage recomputed? Its forward runs twice, and what it saves is kept the second time only.

One rule serves every policy. A *region* (a block, a group of blocks, the attention sublayer) keeps its input. In F,
everything that autograd saves within it is dropped, and its graph holds empty slots instead. R runs the region a second
time from the input that was kept, and the n-th tensor saved fills the n-th slot. The backward is then the one that F
has recorded: it finds its tensors in the slots and lets go of them as it goes along, whether it comes as B, or as I and
W. (PyTorch's own checkpoint works so too, but recomputes within the backward, where no schedule can see it.)

Read first: `recompute` (the policies). Read next: `frontier` (what they cost).
"""

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor, nn

from pipelab.memory import ActivationMeter, Held
from pipelab.models import Attention
from pipelab.partition import cut
from pipelab.recompute import NONE, SELECTIVE, group_size, policies

Function = Callable[[Tensor], Tensor]


class _Slot:
    """The place of one tensor that autograd wants to save: empty until R fills it."""

    __slots__ = ("held",)

    def __init__(self) -> None:
        self.held: Held | None = None

    def tensor(self) -> Tensor:
        """What unpacks it, for the backward."""
        if self.held is None:
            raise RuntimeError("a backward came before the recomputation of its activations; run R first")
        return self.held.tensor


class _Region:
    """One forward of one region for one micro-batch, and its slots."""

    def __init__(self, function: Function, x: Tensor, meter: ActivationMeter) -> None:
        self.function = function
        self.input: Held | None = meter.hold(x.detach())
        self.differentiable = x.requires_grad
        self.version = x._version
        self.meter = meter
        self.slots: list[_Slot] = []

    def run(self, x: Tensor) -> Tensor:
        """The first forward, which saves nothing."""
        with torch.autograd.graph.saved_tensors_hooks(self._drop, _Slot.tensor):
            return self.function(x)

    def refill(self) -> None:
        """The second forward, for the sake of what it saves."""
        assert self.input is not None
        x = self.input.tensor.detach().requires_grad_(self.differentiable)
        if x._version != self.version:
            raise RuntimeError("a block has changed its input in place, so it cannot run again; let it change a copy")
        slots = iter(self.slots)

        def fill(tensor: Tensor) -> None:
            slot = next(slots, None)
            if slot is None:
                raise RuntimeError("a second forward saves more than the first; a block must do the same each time")
            slot.held = self.meter.hold(tensor.detach())

        with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(fill, _Slot.tensor):
            self.function(x)
        if next(slots, None) is not None:
            raise RuntimeError("a second forward saves less than the first; a block must do the same each time")
        self.slots.clear()  # from here on the graph alone keeps them
        self.input = None

    def _drop(self, tensor: Tensor) -> _Slot:
        self.slots.append(_Slot())
        return self.slots[-1]


class Checkpointing:
    """What one stage recomputes, and for which micro-batches.

    `parts` are the names of its layers in the groups in which they run, and `now` is the micro-batch that runs.
    """

    def __init__(
        self, layers: nn.Sequential, policy: str, blocks: Collection[str], microbatches: Collection[int],
        meter: ActivationMeter,
    ) -> None:  # fmt: skip
        size = group_size(policy)
        self.parts = _grouped(list(layers._modules), blocks, size or 1)
        self.recomputed = {part for part in self.parts if size and part[0] in blocks}
        self.sublayers = attentions(layers) if policy == SELECTIVE else []
        self.layers = layers
        self.microbatches = frozenset(microbatches)
        self.meter = meter
        self.now: int | None = None
        self._regions: dict[int, list[_Region]] = {}

    @contextmanager
    def attached(self) -> Iterator[None]:
        """Within it the attention sublayers are regions; afterwards they are as they were."""
        for sublayer in self.sublayers:
            sublayer.attend = partial(self.run, sublayer.attend)  # type: ignore[method-assign]
        try:
            yield
        finally:
            for sublayer in self.sublayers:
                del sublayer.attend  # the class's own shows again

    @contextmanager
    def forward_of(self, microbatch: int) -> Iterator[None]:
        """The context of this micro-batch's F."""
        self.now = microbatch if microbatch in self.microbatches else None
        try:
            yield
        finally:
            self.now = None

    def run(self, function: Function, x: Tensor) -> Tensor:
        """`function(x)`, as a region where the micro-batch that runs is one to recompute."""
        if self.now is None or not torch.is_grad_enabled():
            return function(x)
        region = _Region(function, x, self.meter)
        self._regions.setdefault(self.now, []).append(region)
        return region.run(x)

    def refill(self, microbatch: int) -> None:
        """R: run the regions of this micro-batch again. What a forward does to buffers was done in F."""
        before = [(buffer, buffer.clone()) for buffer in self.layers.buffers()]
        for region in self._regions.pop(microbatch):
            region.refill()
        for buffer, value in before:
            buffer.copy_(value)


def attentions(layers: nn.Module) -> list[Attention]:
    """The attention sublayers in the order they are listed."""
    return [module for module in layers.modules() if isinstance(module, Attention)]


def block_names(model: nn.Sequential) -> frozenset[str]:
    """The blocks of a model: its layers but the first (an embedding) and the last (the head, whose loss keeps most)."""
    return frozenset(list(model._modules)[1:-1])


def policies_of(
    model: nn.Sequential, stages: int, checkpointing: str | Sequence[str], at: Sequence[int] | None = None
) -> tuple[str, ...]:
    """The policy of each stage when the model is cut, "none" where a stage has nothing to recompute.

    Raises ValueError for a policy that is not there, and for one of which no stage has anything.

    >>> from pipelab.models import build_model
    >>> policies_of(build_model("tiny", layers=3), 3, "selective", at=[1, 2])
    ('none', 'selective', 'selective')
    """
    asked = policies(checkpointing, stages)
    if set(asked) == {NONE}:
        return asked
    blocks = block_names(model)
    found = []
    for layers, policy in zip(cut(model, stages, at=at), asked, strict=True):
        has = attentions(layers) if policy == SELECTIVE else not blocks.isdisjoint(layers._modules)
        found.append(policy if has else NONE)
    for policy in dict.fromkeys(asked):
        if policy != NONE and policy not in found:
            what = (
                "recomputes the attention sublayer of pipelab.models, and no stage with this policy has one; use full"
                if policy == SELECTIVE
                else "recomputes blocks, which are all layers but the first and the last, and no stage with it has one"
            )
            raise ValueError(f"checkpointing {policy!r} {what}")
    return tuple(found)


def _grouped(names: Sequence[str], blocks: Collection[str], size: int) -> list[tuple[str, ...]]:
    """The layers in the order they run: groups of `size` blocks (the last may be smaller), all others alone.

    >>> _grouped(list("ehabcd"), blocks="abcd", size=3)
    [('e',), ('h',), ('a', 'b', 'c'), ('d',)]
    """
    groups: list[tuple[str, ...]] = []
    for name in names:
        if name in blocks and groups and groups[-1][0] in blocks and len(groups[-1]) < size:
            groups[-1] += (name,)
        else:
            groups.append((name,))
    return groups
