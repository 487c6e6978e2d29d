"""How can every schedule draw the same dropout masks? Key the random numbers by what is computed, not by when.

Each layer's forward of each micro-batch starts from a seed made of (seed, step, layer, micro-batch).
"""

import contextlib
import hashlib
import threading
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

_GENERATOR = threading.Lock()  # torch's default generator is one for all threads of the process


class Randomness:
    """Runs layers so that their random numbers depend on (seed, step, layer, micro-batch) alone.

    A layer whose first run draws nothing is called directly from then on. Ranks that have different tokens of the same
    rows draw different numbers by their `part`.

    >>> x, randomness = torch.ones(8), Randomness(seed=0)
    >>> runs = [randomness.run("0", torch.nn.Dropout(), x, step=1, microbatch=2) for _ in range(2)]
    >>> torch.equal(*runs)
    True
    """

    def __init__(self, seed: int, part: int = 0) -> None:
        self.seed = seed
        self.part = part
        self._draws: dict[str, bool] = {}

    def run(self, name: str, layer: Callable[[Tensor], Tensor], x: Tensor, step: int, microbatch: int) -> Tensor:
        """`layer(x)`, with the generators of the CPU and of x's device seeded for this call and restored after."""
        if not self._draws.get(name, True):
            return layer(x)
        devices = [x.device] if x.is_cuda else []
        with _own_generators(devices):
            _seed(_key(self.seed, step, f"{name}/{self.part}" if self.part else name, microbatch), devices)
            before = _states(devices)
            y = layer(x)
            self._draws[name] = any(not torch.equal(*pair) for pair in zip(before, _states(devices), strict=True))
        return y


class _Drawing(threading.local):
    """What this thread must put back when it no longer needs the generators; None while it does not."""

    outer: tuple[list[torch.device], list[Tensor]] | None = None


_DRAWING = _Drawing()


@contextlib.contextmanager
def _own_generators(devices: list[torch.device]) -> Iterator[None]:
    """Within it nobody else draws; after it the generators are as they were."""
    with _GENERATOR:
        _DRAWING.outer = devices, _states(devices)
        try:
            yield
        finally:
            _restore(*_DRAWING.outer)
            _DRAWING.outer = None


@contextlib.contextmanager
def others_may_draw() -> Iterator[None]:
    """In the midst of a layer, wait for other ranks: within it the generators are theirs."""
    outer = _DRAWING.outer
    if outer is None:
        yield
        return
    devices, states = outer
    mine = _states(devices)
    _restore(devices, states)
    _GENERATOR.release()
    try:
        yield
    finally:
        _GENERATOR.acquire()
        _DRAWING.outer = devices, _states(devices)
        _restore(devices, mine)


def _key(seed: int, step: int, layer: str, microbatch: int) -> int:
    digest = hashlib.blake2b(f"{seed}/{step}/{layer}/{microbatch}".encode(), digest_size=7).digest()
    return int.from_bytes(digest, "big")


def _seed(key: int, devices: list[torch.device]) -> None:
    # torch.manual_seed would also seed the devices that are not ours, and leave them so.
    torch.default_generator.manual_seed(key)
    for device in devices:
        torch.cuda.default_generators[device.index].manual_seed(key)


def _states(devices: list[torch.device]) -> list[Tensor]:
    return [torch.get_rng_state(), *(torch.cuda.get_rng_state(device) for device in devices)]


def _restore(devices: list[torch.device], states: list[Tensor]) -> None:
    torch.set_rng_state(states[0])
    for device, state in zip(devices, states[1:], strict=True):
        torch.cuda.set_rng_state(state, device)
