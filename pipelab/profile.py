"""What does each layer cost? Every layer is run as a stage of its own: seconds of F, B, I and W, and bytes.

The seconds are those of virtual time (processor time, one rank at a time), so what they predict can be compared with a
run. The embedding and the head, with the loss, are layers like all others. Read `balance` next: it cuts by a profile.
"""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import accumulate, pairwise
from statistics import median

import torch
from torch import Tensor, nn

from pipelab.action import B, F, I, W
from pipelab.clock import make_turn, measure, undisturbed
from pipelab.collector import collector_at_rest
from pipelab.costs import Costs, Link
from pipelab.dependencies import Value
from pipelab.loss import Loss, count_targets, cross_entropy
from pipelab.memory import ActivationMeter
from pipelab.microbatches import cut_batch
from pipelab.partition import cut
from pipelab.randomness import Randomness
from pipelab.stage import Stage

Work = Mapping[str, tuple[float, ...]]
Seconds = dict[str, list[float]]
"""By kind, those of each layer."""


@dataclass(frozen=True)
class Profile:
    """The cost of every layer for one micro-batch: seconds by kind (F, B, I, W), and four sizes in bytes.

    `held` is what a layer keeps from F to its backward, `waiting` what is left of that between I and W, `parameters`
    its weights, `outputs` the message that would carry its output to another rank.
    """

    names: tuple[str, ...]
    work: Work
    held: tuple[int, ...]
    waiting: tuple[int, ...]
    parameters: tuple[int, ...]
    outputs: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.names)

    def costs(self, at: Sequence[int], link: Link = Link()) -> Costs:  # noqa: B008 (a frozen value)
        """The costs of the stages when the model is cut at these layers: sums, and each message's time on the link."""
        ends = [*at, len(self)]
        hops: dict[Value, float] = {}
        if link != Link():
            for stage, end in enumerate(ends[:-1]):
                hops[stage, F] = hops[stage + 1, I] = link.seconds(self.outputs[end - 1])
        return Costs({kind: tuple(stage_sums(times, at)) for kind, times in self.work.items()}, hops or 0)

    def calibrated(self, costs: Costs, at: Sequence[int]) -> "Profile":
        """The same layers, scaled so that each stage of this cut takes what `costs` say it took in a run."""
        ends = [0, *at, len(self)]
        work = {}
        for kind, times in self.work.items():
            seen = costs.work.get(kind) or [None] * (len(ends) - 1)
            scaled: list[float] = []
            for (i, j), took in zip(pairwise(ends), seen, strict=True):  # type: ignore[arg-type]
                own = sum(times[i:j])
                scaled += [time if took is None or not own else time * float(took) / own for time in times[i:j]]
            work[kind] = tuple(scaled)
        return replace(self, work=work)


def stage_sums(values: Sequence[float], at: Sequence[int]) -> list[float]:
    """The sum over the layers of each stage.

    >>> stage_sums([1, 2, 3, 4], at=[1, 3])
    [1, 5, 4]
    """
    total = [0, *accumulate(values)]
    return [total[j] - total[i] for i, j in pairwise((0, *at, len(values)))]


def profile(
    model: nn.Sequential, microbatch: tuple[Tensor, Tensor], *,
    loss: Loss = cross_entropy, device: str | torch.device = "cpu", repeats: int = 5,
) -> Profile:  # fmt: skip
    """Run every layer forward and backward on one micro-batch (inputs, targets); the seconds are medians of `repeats`.

    It works on a copy: the model stays as it is. Raises ValueError for a model that cannot be cut before every layer.

    >>> from pipelab.models import build_model
    >>> tokens = torch.zeros(4, 16, dtype=torch.int64)
    >>> layers = profile(build_model("tiny", layers=2), (tokens, tokens), repeats=1)
    >>> layers.names, layers.parameters[0], layers.outputs[0]
    (('0', '1', '2', '3'), 34816, 8192)
    """
    if repeats < 1:
        raise ValueError(f"a median needs a pass at least: got repeats={repeats}")
    device = torch.device(device)
    (inputs,), (targets,) = cut_batch(0, microbatch, 1)
    inputs, targets = inputs.to(device), targets.to(device)
    layers = cut(copy.deepcopy(model).to(device), len(model))  # refuses what no stage can start with
    with undisturbed(), collector_at_rest():
        whole, held, _, outputs = _Layers(layers, loss, device, split=False).measure(inputs, targets, repeats)
        split, _, waiting, _ = _Layers(layers, loss, device, split=True).measure(inputs, targets, repeats)
    return Profile(
        names=tuple(name for layer in layers for name in layer._modules),
        work={F: whole[F], B: whole[B], I: split[I], W: split[W]},
        held=tuple(held),
        waiting=tuple(waiting),
        parameters=tuple(sum(p.nbytes for p in layer.parameters()) for layer in layers),
        outputs=tuple(outputs),
    )


class _Layers:
    """The layers, each a stage; one meter for all counts a tensor that two of them keep only once."""

    def __init__(self, layers: Sequence[nn.Sequential], loss: Loss, device: torch.device, *, split: bool) -> None:
        self.meter = ActivationMeter(t for layer in layers for t in (*layer.parameters(), *layer.buffers()))
        randomness, last = Randomness(0), len(layers) - 1
        self.stages = [
            Stage(
                layer, first=place == 0, loss=loss if place == last else None, split=split,
                randomness=randomness, meter=self.meter,
            )
            for place, layer in enumerate(layers)
        ]  # fmt: skip
        self.turn = make_turn(device)
        self.split = split

    def measure(self, inputs: Tensor, targets: Tensor, repeats: int) -> tuple[Work, list[int], list[int], list[int]]:
        """Seconds, and the bytes held, waiting and put out by each layer. One pass to warm up, then `repeats` whose
        medians count; gradients add up, as over micro-batches."""
        total = count_targets(targets)
        passes = []
        for _ in range(1 + repeats):
            held, outputs, forward = self._forward(inputs, targets, total)
            waiting, backward = self._backward(held)
            passes.append(forward | backward)
        work = {kind: tuple(map(median, zip(*(one[kind] for one in passes[1:]), strict=True))) for kind in passes[0]}
        return work, held, waiting, outputs

    def _forward(self, x: Tensor, targets: Tensor, total: int) -> tuple[list[int], list[int], Seconds]:
        """By how many bytes more is held after each layer's F, its output's bytes, and its seconds."""
        held, outputs, seconds = [], [], []
        for stage in self.stages:
            target, before = targets if stage.loss is not None else None, self.meter.live
            with stage.attached():
                x, took = measure(self.turn, partial(stage.forward, 0, x, 0, target, total))
            held.append(self.meter.live - before)
            outputs.append(x.nbytes)
            seconds.append(took)
        return held, outputs, {F: seconds}

    def _backward(self, held: Sequence[int]) -> tuple[list[int], Seconds]:
        """What is left of what was held after each layer's B, or I, and the seconds; then the W of all."""
        gradient: Tensor | None = None
        waiting = []
        seconds: Seconds = {kind: [] for kind in ((I, W) if self.split else (B,))}
        for stage, kept in zip(reversed(self.stages), reversed(held), strict=True):
            before, kind = self.meter.live, I if self.split else B
            gradient, took = measure(self.turn, partial(stage.act, kind, 0, gradient))
            waiting.append(kept + self.meter.live - before)
            seconds[kind].append(took)
        for stage in reversed(self.stages) if self.split else ():
            seconds[W].append(measure(self.turn, partial(stage.act, W, 0, None))[1])
        return waiting[::-1], {kind: times[::-1] for kind, times in seconds.items()}
