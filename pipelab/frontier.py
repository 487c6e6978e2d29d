"""Which checkpointing is the cheapest that fits? Measure each policy with one micro-batch; then predict any mixture.

A run with a single micro-batch shows, for every stage, what an action takes, how many bytes it needs, and how many are
held after it. Walking a rank's row with these numbers gives its peak for any number of micro-batches, and simulating
the rows gives the step: the frontier of bytes and seconds, before anything runs. What a rank holds depends on its own
stages alone, and the less any rank has to do, the shorter is the step; so each rank takes the least work that fits.
With one stage a rank no mixture that fits has a shorter step; with several, where on the rank the work is matters, too.

Read first: `recompute` (the policies), `checkpointing` (what R does).
"""

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from pipelab.action import WORK, Action, B, Element, F, I, R, W, parts
from pipelab.checkpointing import policies_of
from pipelab.costs import Costs, Link
from pipelab.dependencies import Value
from pipelab.loss import Loss, cross_entropy
from pipelab.lower import lower
from pipelab.placement import Placement
from pipelab.recompute import EXCEPT_LAST, FULL, NONE, SELECTIVE, policies, recomputed, with_recompute
from pipelab.run import Run
from pipelab.schedule import Schedule
from pipelab.simulate import simulate_program
from pipelab.trace import Number
from pipelab.training import train

POLICIES = (NONE, SELECTIVE, FULL, EXCEPT_LAST)
"""What is tried unless told otherwise."""


class Piece(NamedTuple):
    """One action: its seconds, the most bytes that it needs beside those held before, and how many it adds to them."""

    seconds: float
    rise: int
    more: int


@dataclass(frozen=True)
class Choice:
    """One policy a stage, as `train` takes it, and what is predicted: the peak of each rank in bytes, and the step.

    >>> print(Choice(("full", "none"), (3 * 2**20, 2**20), step=0.012, plain=0.010))
    full none: at most 3.00 MiB of activations on a rank, step 12.00 ms (+20 % over none)
    """

    policies: tuple[str, ...]
    bytes: tuple[int, ...]
    step: float
    plain: float

    def __str__(self) -> str:
        words = self.policies[0] if len(set(self.policies)) == 1 else " ".join(self.policies)
        held = f"at most {max(self.bytes) / 2**20:.2f} MiB of activations on a rank"
        return f"{words}: {held}, step {1e3 * self.step:.2f} ms ({100 * (self.step / self.plain - 1):+.0f} % over none)"


@dataclass(frozen=True)
class PolicyProfile:
    """What each action of each stage of a schedule costs under each policy; `predict` and `choose` use it."""

    schedule: Schedule
    pieces: Mapping[str, Mapping[Value, Piece]]
    hop: Number | Mapping[Value, Number] = 0

    def predict(self, checkpointing: str | Sequence[str], hoist: int = 0) -> Choice:
        """What these policies would hold and take. Raises ValueError for a policy that was not measured."""
        by_stage = policies(checkpointing, self.schedule.stages)
        for policy in by_stage:
            if policy not in self.pieces:
                raise ValueError(f"{policy!r} was not measured; measured were {', '.join(self.pieces)}")
        program = lower(self.schedule, checkpointing=by_stage, hoist=hoist)
        pairs = recomputed(self.schedule, by_stage)
        peaks = tuple(_peak(self._priced(row, by_stage, pairs)) for row in program.rows)
        step = float(simulate_program(program, self._costs(by_stage)).makespan)
        return Choice(by_stage, peaks, step, self._plain)

    def choose(self, limit: float | Sequence[float], hoist: int = 0) -> Choice:
        """The mixture of least added work that holds at most `limit` bytes of activations, a number or one a rank.

        Raises ValueError, naming the rank and what it needs at least, when no policy fits.
        """
        ranks = self.schedule.ranks
        limits = list(limit) if isinstance(limit, Sequence) else [limit] * ranks
        if len(limits) != ranks:
            raise ValueError(f"limit is one number of bytes, or one a rank, {ranks} in all: got {len(limits)}")
        by_stage = [NONE] * self.schedule.stages
        rows = lower(self.schedule).rows
        for rank, most in enumerate(limits):
            stages = self.schedule.placement.stages_on(rank)
            tried = []
            for mixture in self._mixtures(len(stages)):
                own = dict(zip(stages, mixture, strict=True))
                asked = [own.get(stage, NONE) for stage in range(len(by_stage))]
                pairs = recomputed(self.schedule, asked)
                row = with_recompute(rows[rank], pairs, hoist)
                pieces = self._priced(row, asked, pairs)
                tried.append((sum(piece.seconds for piece in pieces), _peak(pieces), asked))
            fits = [candidate for candidate in tried if candidate[1] <= most]
            if not fits:
                least = min(tried, key=lambda candidate: candidate[1])
                raise ValueError(
                    f"rank {rank} needs at least {_mib(least[1])} of activations ({least[2][stages[0]]}), and the limit"
                    f" is {_mib(most)}; make micro-batches smaller, or use a schedule that holds fewer of them"
                )
            best = min(fits, key=lambda candidate: candidate[:2])[2]
            for stage in stages:
                by_stage[stage] = best[stage]
        return self.predict(by_stage, hoist)

    def _mixtures(self, stages: int) -> Iterator[tuple[str, ...]]:
        """The policies to try on a rank: one for its first stages, and the same or another for the rest."""
        for one in self.pieces:
            yield (one,) * stages
            for count in range(1, stages):
                yield from ((one,) * count + (other,) * (stages - count) for other in self.pieces if other != one)

    def _priced(self, row: Sequence[Element], by_stage: Sequence[str], pairs: set[tuple[int, int]]) -> list[Piece]:
        """Every action of a row; for a micro-batch that is not recomputed it costs what it does without a policy."""
        return [
            self.pieces[by_stage[stage] if (stage, microbatch) in pairs else NONE][stage, kind]
            for stage, kind, microbatch in chain(*map(parts, row))
            if kind in WORK
        ]

    def _costs(self, by_stage: Sequence[str]) -> Costs:
        seconds = {
            value: piece.seconds
            for stage, policy in enumerate(by_stage) for value, piece in self.pieces[policy].items()
            if value[0] == stage
        }  # fmt: skip
        return Costs.by_value(seconds, self.hop)

    @cached_property
    def _plain(self) -> float:
        """The step without any checkpointing."""
        return float(simulate_program(lower(self.schedule), self._costs([NONE] * self.schedule.stages)).makespan)


def profile_policies(
    model: nn.Sequential, microbatch: tuple[Tensor, Tensor], schedule: Schedule, *,
    tried: Sequence[str] | None = None, loss: Loss = cross_entropy, device: str | torch.device = "cpu",
    link: Link = Link(), at: list[int] | None = None, repeats: int = 5,  # noqa: B008 (a frozen value)
) -> PolicyProfile:  # fmt: skip
    """Run one micro-batch (inputs, targets) through the schedule's stages, `repeats` times with each policy tried.

    By default these are the `POLICIES` that apply to the model. It works on a copy: the model stays as it is. Raises
    ValueError for a policy that does not apply.

    >>> from pipelab import build
    >>> from pipelab.models import build_model
    >>> tokens = torch.zeros(4, 16, dtype=torch.int64)
    >>> measured = profile_policies(build_model("tiny", layers=6), (tokens, tokens), build("1f1b", 2, 4), repeats=1)
    >>> none, full = (measured.predict(policy) for policy in ("none", "full"))
    >>> none.bytes[0] > 1.3 * full.bytes[0], none.bytes[1] == full.bytes[1]
    (True, True)
    """
    asked = _that_apply(model, schedule, at) if tried is None else [NONE, *tried]
    kinds = {action.kind for _, _, action in schedule.actions()}
    pieces: dict[str, dict[Value, Piece]] = {}
    for policy in dict.fromkeys(asked):
        policies_of(model, schedule.stages, policy, at)
        pieces[policy] = {}
        if policy == EXCEPT_LAST and FULL in pieces:  # one or the other, for each micro-batch
            pieces[policy] = pieces[FULL]
            continue
        for backward in [[B]] * (B in kinds) + [[I, W]] * (W in kinds):
            run = train(
                copy.deepcopy(model), [microbatch] * repeats, _of_one_microbatch(schedule.placement, backward),
                loss=loss, device=device, link=link, at=at, checkpointing=FULL if policy == EXCEPT_LAST else policy,
            )  # fmt: skip
            pieces[policy] |= _measured(run)
    return PolicyProfile(schedule, pieces, run.costs().hop)


def choose_checkpointing(
    model: nn.Sequential, microbatch: tuple[Tensor, Tensor], schedule: Schedule, *,
    limit: float | Sequence[float], hoist: int = 0, **options: Any,
) -> Choice:  # fmt: skip
    """The checkpointing of least added time whose activations fit into `limit` bytes, a number or one a rank.

    Each policy is measured with one micro-batch (inputs, targets), so this takes a second or two; `options` are those
    of `profile_policies`, which is the one to keep where several limits are of interest. Give `.policies` to `train`.

    Raises ValueError when nothing fits: it names the rank and what it needs at least.

    >>> from pipelab import build
    >>> from pipelab.models import build_model
    >>> tokens = torch.zeros(4, 16, dtype=torch.int64)
    >>> model, schedule = build_model("tiny", layers=6), build("1f1b", ranks=2, microbatches=4)
    >>> choose_checkpointing(model, (tokens, tokens), schedule, limit=2**30, repeats=1).policies
    ('none', 'none')
    """
    return profile_policies(model, microbatch, schedule, **options).choose(limit, hoist)


def _that_apply(model: nn.Sequential, schedule: Schedule, at: list[int] | None) -> list[str]:
    found = []
    for policy in POLICIES:
        with suppress(ValueError):
            policies_of(model, schedule.stages, policy, at)
            found.append(policy)
    return found


def _of_one_microbatch(placement: Placement, backward: Sequence[str]) -> Schedule:
    """The rows of a single micro-batch, the only ones there are but for the place of W."""
    rows = []
    for rank in range(placement.ranks):
        stages = sorted(placement.stages_on(rank))
        forwards = [Action(stage, F, 0) for stage in stages]
        rows.append((*forwards, *(Action(stage, kind, 0) for stage in reversed(stages) for kind in backward)))
    return Schedule("one micro-batch", placement, 1, tuple(rows))


def _measured(run: Run) -> dict[Value, Piece]:
    """The actions of every stage; one that recomputes nothing has an R of no time."""
    pieces: dict[Value, Piece] = {(stage, R): Piece(0.0, 0, 0) for stage in range(run.schedule.stages)}
    seconds = run.costs().durations(run.schedule.placement)
    for row, curve in zip(run.trace.compute, run.memory.curves, strict=True):
        before = 0
        for span, (_, peak), (_, live) in zip(row, curve[::2], curve[1::2], strict=True):
            assert isinstance(span.action, Action)
            stage, kind, _ = span.action
            pieces[stage, kind] = Piece(float(seconds[stage, kind]), peak - before, live - before)
            before = live
    return pieces


def _peak(pieces: Sequence[Piece]) -> int:
    """The most bytes held at any moment of these actions."""
    live = peak = 0
    for piece in pieces:
        peak, live = max(peak, live + piece.rise), live + piece.more
    return peak


def _mib(size: float) -> str:
    return f"{size / 2**20:.2f} MiB"
