"""What does one micro-batch take on one stage? The stage itself is run on fake tensors: shapes without any memory.

A fake tensor goes through the same operators as a real one, autograd and hooks included, so what is saved and dropped
is what a run saves and drops. Every storage that an operator gives is counted until nobody has it.
(PyTorch, "Fake tensor"; what needs numbers, such as a branch on a value, cannot be run like this.)
Read next: `memory_prediction`.
"""

import copy
import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from pipelab.action import B, F, I, R
from pipelab.checkpointing import Checkpointing
from pipelab.clock import WallClock
from pipelab.collectives import ALL_GATHER, ALL_REDUCE, Group
from pipelab.costs import Link
from pipelab.loss import Loss
from pipelab.memory import ActivationMeter
from pipelab.optimizer import Optimizer, apart_from_gpus
from pipelab.randomness import Randomness
from pipelab.stage import Stage
from pipelab.storages import LettingGo, LiveStorages
from pipelab.transport import Layout

TILE = {"cpu": 1, "cuda": 512}
"""The bytes to which an allocator rounds up."""


class Footprint(NamedTuple):
    """What one action of one micro-batch takes on its stage, in bytes.

    `rise`: how much more than before is in use while it lasts, at most, with all that it makes and drops; `peak`: the
    same of activations alone. Afterwards `held` is kept for the micro-batch and `gradients` for the weights; `given` is
    handed on, `taken` came in. Of what is held, `input` is the stage's input and `output` its output. `beside_output`:
    the rise where that output stays all the while, as the next stage has it too.
    """

    rise: int
    beside_output: int
    peak: int
    held: int
    gradients: int
    given: int
    taken: int
    input: int
    output: int


class _NoDraws(Randomness):
    """Runs layers as they are: where there are no numbers, none are random."""

    def run(self, name: str, layer: Callable[[Tensor], Tensor], x: Tensor, step: int, microbatch: int) -> Tensor:
        return layer(x)


class FakeStage:
    """A stage of the model on fake tensors, within `fake_mode`; `footprints` runs one micro-batch."""

    def __init__(
        self, layers: nn.Sequential, *,
        first: bool, loss: Loss | None, split: bool, tile: int, make_stage: Callable[..., Stage] = Stage,
        checkpointing: Callable[[ActivationMeter], Checkpointing] | None = None,
    ) -> None:  # fmt: skip
        owned = [*layers.parameters(), *layers.buffers()]
        self.parameters = list(layers.parameters())
        self.storages = LiveStorages(owned, tile)
        self.meter = ActivationMeter(owned, identity=lambda storage: storage._cdata)
        self.checkpointing = None if checkpointing is None else checkpointing(self.meter)
        self.stage = make_stage(
            layers, first=first, loss=loss, split=split, randomness=_NoDraws(0), meter=self.meter,
            checkpointing=self.checkpointing,
        )  # fmt: skip
        self.stage.count = Tensor.numel  # those that are left out have a number, and here are none
        self._ends: list[tuple[weakref.ref[Any], int]] = []

    def footprints(
        self, kinds: Sequence[str], x: Layout, target: Layout | None
    ) -> tuple[Mapping[str, Footprint], Layout]:
        """The footprint of each action of a micro-batch, in their order, and the layout of what it gives."""
        found, layout = {}, x
        if self.checkpointing is not None:
            self.checkpointing.microbatches = frozenset([0] if R in kinds else [])
        with self.stage.attached(), self.storages:
            for kind in kinds:
                found[kind], given = self._run(kind, layout, target)
                layout = given if kind == F else layout
        return found, layout

    def forget_gradients(self) -> None:
        """As at the begin of a step."""
        for parameter in self.parameters:
            parameter.grad = None

    def _run(self, kind: str, layout: Layout, target: Layout | None) -> tuple[Footprint, Any]:
        live, held = self.storages.live, self.meter.live
        self.storages.peak = live
        self.meter.restart_peak()
        letting_go = LettingGo(self.storages, *self._ends[1:])
        taken, given = self._act(kind, layout, target)
        letting_go.over()
        made = None if given is None else Layout.of(given)
        sizes = [0 if tensor is None else self._size(tensor) for tensor in (given, taken)]
        if kind == F:
            assert taken is not None and given is not None
            self._ends = [(weakref.ref(end.untyped_storage()), self._size(end)) for end in (taken, given)]
        del taken, given
        gradients = sum(self._size(p.grad) for p in self.parameters if p.grad is not None)
        kept = [size if storage() is not None else 0 for storage, size in self._ends]
        return Footprint(
            rise=max(letting_go.peak, self.storages.peak) - live,
            beside_output=max(letting_go.peak, self.storages.peak + letting_go.size) - live,
            peak=self.meter.peak - held,
            held=self.storages.live - gradients,
            gradients=gradients,
            given=sizes[0],
            taken=sizes[1],
            input=kept[0],
            output=kept[1],
        ), made

    def _act(self, kind: str, layout: Layout, target: Layout | None) -> tuple[Tensor | None, Tensor | None]:
        """Do it with an input, or an output's gradient, of this layout; gives what was taken and what it gives."""
        if kind == F:
            x = layout.empty()
            y = self.stage.forward(0, x, 0, x if target is None else target.empty())
            self.stage.own_losses.clear()
            return x, y
        gradient = layout.empty() if kind in (B, I) and self.stage.loss is None else None
        return gradient, self.stage.act(kind, 0, gradient)

    def _size(self, tensor: Tensor) -> int:
        return self.storages.rounded(tensor.untyped_storage().nbytes())


def fake_mode() -> Any:
    """The context in which tensors are fake."""
    from torch._subclasses.fake_tensor import FakeTensorMode  # takes a second to import, as the first optimizer does

    return FakeTensorMode(allow_non_fake_inputs=True)


def copies(slices: Sequence[nn.Sequential], device: str = "cpu") -> list[nn.Sequential]:
    """The same layers with parameters and buffers of their own, without values; what was shared is shared.

    Within `fake_mode` they are fake; on the device "meta" they have no memory either.
    """
    twins: dict[int, Any] = {}
    for layers in slices:
        for tensor in (*layers.parameters(), *layers.buffers()):
            twin = torch.empty(tensor.shape, dtype=tensor.dtype, device=device)
            twins[id(tensor)] = nn.Parameter(twin, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else twin
    return [copy.deepcopy(layers, twins) for layers in slices]


class _Alone:
    """What would bring a group together, where there is nobody else: only the shapes and the copies are real."""

    def __init__(self, size: int) -> None:
        self.size = size

    def start(self, kind: str, tensor: Tensor, now: float, *, largest: bool = False) -> "_Arrived":
        given = tensor.detach().clone()
        if kind == ALL_REDUCE:
            return _Arrived(given, given)
        shape = (self.size, *given.shape) if kind == ALL_GATHER else given.shape[1:]
        return _Arrived(given.new_empty(shape), given)


class _Arrived(NamedTuple):
    result: Tensor
    given: Tensor

    def wait(self) -> tuple[Tensor, float]:
        return self.result, 0.0


def fake_seat(size: int) -> Group:
    """The first seat among `size` tensor shards that are not there."""
    return Group("tp", tuple(range(size)), 0, _Alone(size), WallClock(), Link())


def optimizer_bytes(optimizer: Optimizer, parameters: list[nn.Parameter], device: str) -> tuple[int, int]:
    """What an optimizer keeps for these fake parameters, and what its step takes besides, within `fake_mode`.

    One that goes through its parameters in turn needs room for one; one that takes them all together ("foreach",
    PyTorch's default on a GPU) needs it for all.
    """
    from torch._subclasses.fake_tensor import DataDependentOutputException

    alike: dict[Layout, list[nn.Parameter]] = {}
    for parameter in parameters:
        if parameter.requires_grad:
            alike.setdefault(Layout.of(parameter), []).append(parameter)
    if not alike:
        return 0, 0
    made = _optimizer_of(optimizer, list(alike))  # what is kept for a parameter depends on its shape
    together = made.defaults.get("foreach")
    if together or (together is None and device == "cuda" and not made.defaults.get("fused")):
        made = _optimizer_of(optimizer, [Layout.of(p) for p in parameters if p.requires_grad])
        for group in made.param_groups:
            group["foreach"] = True
    some = [parameter for group in made.param_groups for parameter in group["params"]]
    storages = LiveStorages(some, TILE[device])
    with storages:
        for _ in range(2):  # the first step makes the states
            before = storages.live
            storages.peak = before
            try:
                made.step()
            except DataDependentOutputException:
                break  # it looks at a number; by then it has made its states
    kept = {Layout.of(p): sum(v.nbytes for v in made.state[p].values() if isinstance(v, Tensor)) for p in some}
    return sum(len(those) * kept[shape] for shape, those in alike.items()), storages.peak - before


def _optimizer_of(optimizer: Optimizer, shapes: Sequence[Layout]) -> torch.optim.Optimizer:
    some = [nn.Parameter(shape.empty()) for shape in shapes]
    for parameter in some:
        parameter.grad = torch.empty_like(parameter)
    return apart_from_gpus(optimizer(some))
