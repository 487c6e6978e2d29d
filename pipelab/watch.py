"""Where did the numbers go wrong? A watch notes norms as a run goes on and names the first value that is not finite.

It looks at what a stage gives away: the norm of one tensor an action costs little, and a NaN or an infinity inside a
stage shows there. Only when one does, the stage repeats that micro-batch layer by layer to find the culprit.
"""

import math
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

from pipelab.action import B, F, I, W, parts
from pipelab.costs import Costs
from pipelab.loss import weighted_loss
from pipelab.schedule import Schedule
from pipelab.simulate import simulate

if TYPE_CHECKING:
    from pipelab.stage import Stage


INPUT, LOSS = "the input", "the loss"
"""What may be the culprit instead of a layer."""


class Finding(NamedTuple):
    """The first value of a stage that is not finite; `microbatch` is None for a sum over all of them."""

    step: int
    rank: int
    stage: int
    kind: str
    microbatch: int | None
    layer: str
    value: str

    def __str__(self) -> str:
        way = "forward" if self.kind == F else "backward"
        what = self.layer if self.layer in (INPUT, LOSS) else f"layer {self.layer}"
        where = f"{what} (stage {self.stage}, rank {self.rank})"
        which = "weight gradients of all micro-batches" if self.microbatch is None else f"micro-batch {self.microbatch}"
        return f"step {self.step}: the first value that is not finite is {self.value}, in the {way} of {where}, {which}"


class Watch:
    """Watches one stage: `norms` of the step by (kind, micro-batch), F of activations, I of gradients, and `first`."""

    def __init__(self, rank: int, stage: int) -> None:
        self.rank = rank
        self.stage = stage
        self.step = 0
        self.norms: dict[tuple[str, int], float] = {}
        self.first: Finding | None = None
        self._targets: dict[int, tuple[Tensor | None, int]] = {}

    def forward(
        self, stage: "Stage", microbatch: int, step: int, x: Tensor, y: Tensor, target: Tensor | None, total: int
    ) -> None:
        """Look at the output of a forward."""
        if step != self.step or (F, microbatch) in self.norms:
            self.step, self.norms, self._targets = step, {}, {}  # a new step; the warm-up has the number of the first
        self._targets[microbatch] = target, total
        self._look(F, microbatch, y, lambda: _culprit_forward(stage, microbatch, step, x) or LOSS)

    def backward(
        self, stage: "Stage", microbatch: int, x: Tensor, gradient: Tensor | None, given: Tensor | None
    ) -> None:
        """Look at the gradient of the input; the first stage gives none."""
        target, total = self._targets.pop(microbatch)
        if given is not None:
            self._look(
                I,
                microbatch,
                given,
                lambda: _culprit_backward(stage, microbatch, self.step, x, gradient, target, total),
            )

    def weights(self, layers: nn.Module) -> None:
        """Look at the gradients of the parameters, once all micro-batches are in."""
        gradients = {name: p.grad for name, p in layers.named_parameters() if p.grad is not None}
        if self.first is None and gradients and not torch.nn.utils.get_total_norm(gradients.values()).isfinite():
            for name, gradient in gradients.items():
                if (value := not_finite(gradient)) is not None:
                    self.first = Finding(self.step, self.rank, self.stage, W, None, name, value)
                    return

    def _look(self, kind: str, microbatch: int, tensor: Tensor, culprit: Callable[[], str]) -> None:
        norm = float(torch.linalg.vector_norm(tensor))
        self.norms[kind, microbatch] = norm
        # The norm of finite numbers may overflow, so their own word counts.
        if self.first is None and not math.isfinite(norm) and (value := not_finite(tensor)) is not None:
            self.first = Finding(self.step, self.rank, self.stage, kind, microbatch, culprit(), value)


def first_finding(findings: Iterable[Finding | None], schedule: Schedule) -> Finding | None:
    """Of several stages' findings, the one that comes first in the schedule, were all actions equally long."""
    starts: dict[tuple[int, str, int], Any] = {}
    for rank in simulate(schedule, Costs.uniform()).compute:
        for span in rank:
            for action in parts(span.action):
                starts[action.stage, I if action.kind == B else action.kind, action.microbatch] = span.start

    def order(finding: Finding) -> tuple[int, Any]:
        if finding.microbatch is None:
            return finding.step, math.inf
        return finding.step, starts[finding.stage, finding.kind, finding.microbatch]

    return min((finding for finding in findings if finding is not None), key=order, default=None)


def not_finite(tensor: Tensor) -> str | None:
    """ "nan" or "inf" if the tensor holds one, else None.

    >>> not_finite(torch.tensor([1.0, float("inf")])), not_finite(torch.ones(2))
    ('inf', None)
    """
    if not tensor.is_floating_point() or bool(torch.isfinite(tensor).all()):
        return None
    return "nan" if bool(torch.isnan(tensor).any()) else "inf"


@torch.no_grad()
def _inputs(stage: "Stage", microbatch: int, step: int, x: Tensor) -> list[tuple[str, nn.Module, Tensor]]:
    """The layers with their inputs, up to and with the first that gives what is not finite."""
    steps = []
    for name, layer in stage.layers._modules.items():
        assert layer is not None
        steps.append((name, layer, x))
        x = stage.randomness.run(name, layer, x.clone(), step, microbatch)  # a copy: it may work in place
        if not_finite(x) is not None:
            return steps
    return [*steps, ("", nn.Identity(), x)]


def _culprit_forward(stage: "Stage", microbatch: int, step: int, x: Tensor) -> str | None:
    """The innermost module that makes it; None if no layer does."""
    if not_finite(x) is not None:
        return INPUT
    name, layer, x = _inputs(stage, microbatch, step, x)[-1]
    found: list[str] = []

    def seen(path: str) -> Callable[..., None]:
        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            if isinstance(output, Tensor) and not_finite(output) is not None:
                found.append(path)

        return hook

    with ExitStack() as hooks, torch.no_grad():
        for path, module in layer.named_modules():
            hooks.callback(module.register_forward_hook(seen(".".join(filter(None, (name, path))))).remove)
        stage.randomness.run(name, layer, x.clone(), step, microbatch)
    return found[0] if found else name or None  # inner modules end before the outer


def _culprit_backward(
    stage: "Stage", microbatch: int, step: int, x: Tensor, gradient: Tensor | None, target: Tensor | None, total: int
) -> str:
    """The last layer whose input's gradient is not finite though its output's is."""
    if stage.deferred is not None:
        stage.deferred.waiting = []  # what the repetition puts off is nobody's
    *steps, (_, _, y) = _inputs(stage, microbatch, step, x)
    if stage.loss is not None:
        assert target is not None
        y = y.detach().requires_grad_()
        with torch.enable_grad():
            (gradient,) = torch.autograd.grad(weighted_loss(stage.loss, y, target, total), y)
    if gradient is None or not_finite(gradient) is not None:
        return LOSS
    for name, layer, before in reversed(steps):
        leaf = before.detach().requires_grad_()
        with torch.enable_grad():
            after = stage.randomness.run(name, layer, leaf.clone(), step, microbatch)
            (gradient,) = torch.autograd.grad(after, leaf, gradient)
        if not_finite(gradient) is not None:
            return name
    return steps[0][0]
