"""Which weights does a micro-batch see? Without a flush: those that its forward saw, in its backward as well.

The stage that updates after every micro-batch keeps the versions that are still needed ("weight stashing":
Narayanan et al. 2019, section 3.3). Read first: `stage`. What the numbers must be: `reference.train_delayed`.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from pipelab.memory import ActivationMeter
from pipelab.optimizer import Optimizer, state_bytes
from pipelab.stage import Stage


class Update(NamedTuple):
    """One update of a stage's weights: by which micro-batch, how many updates came since its forward, and the bytes of
    weights, all versions together, that the stage holds from then on."""

    stage: int
    microbatch: int
    staleness: int
    held: int


@dataclass(frozen=True)
class Versions:
    """What the versions of a run's weights were and took.

    `staleness[stage][n]`: how many updates the stage made between forward and update of micro-batch n of the run.
    `peaks`: most bytes of weights, all versions together, on each rank; `weights`: the bytes of one version.
    `update_seconds`: all updates of each rank, in seconds of processor time (of the clock on the wall where the run's
    clock is that). In virtual time they are not on the timeline, as the update of a synchronous step is not.
    """

    staleness: tuple[tuple[int, ...], ...]
    peaks: tuple[int, ...]
    weights: tuple[int, ...]
    update_seconds: tuple[float, ...]


class _Version(NamedTuple):
    number: int
    leaves: list[nn.Parameter]


class WeightVersions:
    """The weights of one stage, in as many versions as micro-batches in flight need.

    The latest version shares the memory of the parameters themselves; it is copied only when an update comes while
    another micro-batch in flight has used it.

    >>> from pipelab.optimizer import adamw
    >>> versions = WeightVersions(nn.Linear(2, 3), adamw, ActivationMeter())
    >>> versions.bytes == (2 * 3 + 3) * 4
    True
    """

    def __init__(self, layers: nn.Module, optimizer: Optimizer, meter: ActivationMeter) -> None:
        self._parameters = list(layers.parameters())
        number = {parameter: place for place, parameter in enumerate(self._parameters)}
        self._places = [
            (module._parameters, name, number[parameter])
            for module in layers.modules()
            for name, parameter in module._parameters.items()
            if parameter is not None
        ]
        self._optimizer = optimizer(self._parameters) if self._parameters else None
        self._meter = meter
        self._updates = 0
        self._used: dict[int, _Version] = {}
        self._latest = self._version()
        self._storages = self._count()

    @property
    def bytes(self) -> int:
        """The memory of all versions that are kept now."""
        return sum(self._storages.values())

    @property
    def state_bytes(self) -> int:
        """What the optimizer keeps by now."""
        return 0 if self._optimizer is None else state_bytes(self._optimizer)

    def use(self, microbatch: int) -> None:
        """Give the layers the weights that this micro-batch's forward saw: the latest, when this is its forward."""
        self._install(self._used.setdefault(microbatch, self._latest).leaves)

    def update(self, microbatch: int) -> int:
        """One step of the optimizer with this micro-batch's gradient; gives its staleness."""
        used = self._used.pop(microbatch)
        staleness = self._updates - used.number
        for parameter, leaf in zip(self._parameters, used.leaves, strict=True):
            parameter.grad, leaf.grad = leaf.grad, None
        self._install(self._parameters)
        del used  # if nobody else uses it, its memory is free before the next version needs some
        if any(version is self._latest for version in self._used.values()):
            for parameter in self._parameters:
                parameter.data = parameter.data.clone()
        if self._optimizer is not None:
            self._optimizer.step()
        for parameter in self._parameters:
            parameter.grad = None
        self._updates += 1
        self._latest = self._version()
        self._recount()
        return staleness

    def _version(self) -> _Version:
        # Leaves of their own, over the same memory: autograd must not see the optimizer's change of a weight that it
        # has saved, and need not, for weights that it has saved are not changed.
        leaves = [nn.Parameter(parameter.data, parameter.requires_grad) for parameter in self._parameters]
        return _Version(self._updates, leaves)

    def _install(self, weights: list[nn.Parameter]) -> None:
        for parameters, name, place in self._places:
            parameters[name] = weights[place]

    def _count(self) -> dict[int, int]:
        kept = [leaf.untyped_storage() for version in (self._latest, *self._used.values()) for leaf in version.leaves]
        return {storage.data_ptr(): storage.nbytes() for storage in kept}

    def _recount(self) -> None:
        before, self._storages = self._storages, self._count()
        self._meter.weights_moved(before.keys() - self._storages.keys(), self._storages.keys() - before.keys())

    @contextmanager
    def attached(self) -> Iterator[None]:
        """At the end the layers get their own parameters back, with the latest weights."""
        try:
            yield
        finally:
            self._install(self._parameters)


class UpdatingStage(Stage):
    """A stage that updates its weights after every micro-batch, and stashes the versions that are still needed."""

    def __init__(self, layers: nn.Sequential, *, optimizer: Optimizer, meter: ActivationMeter, **rest: Any) -> None:
        super().__init__(layers, meter=meter, **rest)
        self.versions = WeightVersions(layers, optimizer, meter)

    @contextmanager
    def attached(self) -> Iterator[None]:
        """The context in which the stage may run."""
        with super().attached(), self.versions.attached():
            yield

    def forward(self, microbatch: int, x: Tensor, step: int, target: Tensor | None = None, total: int = 1) -> Tensor:
        """Run the layers, with the latest weights."""
        self.versions.use(microbatch)
        return super().forward(microbatch, x, step, target, total)

    def act(self, kind: str, microbatch: int, gradient: Tensor | None) -> Tensor | None:
        """What comes after F, with the weights of the micro-batch's own forward."""
        self.versions.use(microbatch)
        return super().act(kind, microbatch, gradient)

    @torch.no_grad()
    def update(self, microbatch: int) -> tuple[int, int]:
        """U: step the optimizer with the gradient of this micro-batch; gives its staleness, and the bytes then held."""
        return self.versions.update(microbatch), self.versions.bytes
