"""What does it cost to split a backward into I and W, ours beside PyTorch's own, in time and in memory?

PyTorch's `stage_backward_input` and `stage_backward_weight` (private) split any graph and keep all of it for W; ours
puts off the products of Linears and keeps their two factors. Both are timed in turn with a full backward of their own.
"""

import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.distributed.pipelining import _backward as theirs

from pipelab.bench import Bench, Row
from pipelab.clock import undisturbed
from pipelab.costs import middle
from pipelab.memory import ActivationMeter
from pipelab.models import GPTConfig, build_model
from pipelab.randomness import Randomness
from pipelab.stage import Stage

SHAPES = {"tiny": 4, "small": 2, "wide": 2}
"""Rows of a micro-batch by the size of its blocks."""
LAYERS = 4


def compare_splits(repetitions: int = 20) -> Iterator[Row]:
    """One row a size: (I + W) / B, and the share of F's activations that is held between I and W."""
    with undisturbed():
        for work in SHAPES:
            yield _compare(work, repetitions)


def _compare(work: str, repetitions: int) -> Row:
    sides = {"ours": _ours(work), "torch": _torch(work)}
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in sides}
    for repetition in range(repetitions + 2):
        for name, (whole, halves, _) in sides.items():
            pair = whole(), halves()
            if repetition >= 2:  # first calls are slow
                times[name].append(pair)
    row: Row = {"work": work}
    for name, (_, _, held) in sides.items():
        row[name] = middle([halves / whole for whole, halves in times[name]])
        row[f"{name}_held"] = held()
    return row


Side = tuple[Callable[[], float], Callable[[], float], Callable[[], float]]
"""Seconds of B, seconds of I + W, and the bytes between I and W over those after F."""


def _blocks(work: str) -> tuple[Any, Any, Any]:
    """The blocks of a middle stage, an input and the gradient of its output."""
    wide = GPTConfig(vocabulary=256, width=512, heads=8, layers=LAYERS, context=64)
    model = build_model(wide if work == "wide" else work, layers=LAYERS)
    shape = SHAPES[work], model.config.context, model.config.width
    generator = torch.Generator().manual_seed(0)
    return model[1:-1], torch.randn(shape, generator=generator), torch.randn(shape, generator=generator)


def _ours(work: str) -> Side:
    layers, x, gradient = _blocks(work)

    def stage(*, split: bool) -> Stage:
        meter = ActivationMeter(layers.parameters())
        return Stage(layers, first=False, loss=None, split=split, randomness=Randomness(0), meter=meter)

    one, two = stage(split=False), stage(split=True)

    def whole() -> float:
        one.forward(0, x, 0)
        return _seconds(lambda: one.backward(0, gradient))

    def halves() -> float:
        with two.attached():
            two.forward(0, x, 0)
            return _seconds(lambda: two.backward_input(0, gradient)) + _seconds(lambda: two.backward_weight(0))

    def held() -> float:
        with two.attached():
            two.forward(0, x, 0)
            before = two.meter.live
            two.backward_input(0, gradient)
            between = two.meter.live
            two.backward_weight(0)
        return between / before

    return whole, halves, held


def _torch(work: str) -> Side:
    layers, x, gradient = _blocks(work)
    parameters = list(layers.parameters())

    def forward() -> tuple[Any, Any]:
        leaf = x.clone().requires_grad_()
        return leaf, layers(leaf)

    def whole() -> float:
        leaf, y = forward()
        return _seconds(lambda: theirs.stage_backward((y,), (gradient,), (leaf,)))

    def halves() -> float:
        leaf, y = forward()
        groups: list[Any] = []
        first = _seconds(lambda: groups.extend(_input_half(leaf, y)))
        return first + _seconds(lambda: theirs.stage_backward_weight(iter(parameters), groups))

    def _input_half(leaf: Any, y: Any) -> Any:
        return theirs.stage_backward_input([y], [gradient], [leaf], iter(parameters))[1]

    def held() -> float:
        meter = ActivationMeter(parameters)
        with meter.watch():
            leaf, y = forward()
        before = meter.live
        groups = _input_half(leaf, y)
        kept = [meter.hold(g) for group in groups for grads in group["grads"] for g in grads if torch.is_tensor(g)]
        between = meter.live
        theirs.stage_backward_weight(iter(parameters), groups)
        return between / before if kept else 0.0

    return whole, halves, held


def _seconds(work: Callable[[], object]) -> float:
    """Processor time of this thread."""
    begin = time.thread_time()
    work()
    return time.thread_time() - begin


BENCH = Bench(
    "(I + W) / B (processor time, median), and bytes held between I and W over those held after F",
    {"work": "{}", "ours": "{:.2f}", "torch": "{:.2f}", "ours_held": "{:.2f}", "torch_held": "{:.2f}"},
    lambda _: (compare_splits(), len(SHAPES)),
)
