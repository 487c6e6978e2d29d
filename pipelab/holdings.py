"""What does a rank hold, when, and why? Every byte has a cause, and the causes are counted at the end of every action.

    parameters      the stages' weights and buffers, as long as the run lasts; in several versions without a flush
    gradients       one for each parameter, from its first backward of the step to the optimizer
    optimizer       what the optimizer keeps for each parameter: of AdamW two moments
    activations     what the backward of a micro-batch needs, from its F to its B or I
    recompute       what R computes again, from there to B or I
    deferred        what W multiplies, from I to W
    communication   what is handed from stage to stage: messages under way, buffers for them, gradients that wait

An action that computes needs more while it lasts, for what it makes and drops within; `memory_prediction` counts that.
Read first: `memory` (the meter). Read next: `show.holdings` (the same as areas over time).
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from pipelab.action import Action, B, F, I, W, parts
from pipelab.cuda_memory import Reading
from pipelab.lower import peer
from pipelab.trace import Number, Span

PARAMETERS, GRADIENTS, OPTIMIZER = "parameters", "gradients", "optimizer"
ACTIVATIONS, RECOMPUTE, DEFERRED, COMMUNICATION = "activations", "recompute", "deferred", "communication"
CAUSES = (PARAMETERS, OPTIMIZER, GRADIENTS, ACTIVATIONS, RECOMPUTE, DEFERRED, COMMUNICATION)

Curve = tuple[tuple[Number, int], ...]
"""(time, bytes) steps on the trace's clock: the bytes hold until the next time."""
Microbatch = tuple[int, int]
"""A stage, and a micro-batch on it."""
Change = tuple[Number, int]


class Moment(NamedTuple):
    """What a rank holds when an action has ended, and by which changes: counted in the first step of some shapes.

    `peak` and `live` are bytes of activations: at most while it lasted, and in the end. `changes` has what each earlier
    action holds more, or less, than before. `staying` are gradients for a stage of the same rank, `reducing` those that
    are being summed over replicas.
    """

    peak: int
    live: int
    changes: Mapping[Action | None, int]
    gradients: int
    staying: int
    reducing: int = 0
    device: Reading | None = None


@dataclass
class Counted:
    """The moments of a step, one for each action that computes, and the bytes of each message sent."""

    moments: list[Moment] = field(default_factory=list)
    sent: dict[Action, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Holdings:
    """One rank in one step: what was counted, when that was, and what the rank holds all the time.

    `parameters` has the bytes of each stage, `versions` what they come to with an update, as (time, stage, bytes);
    `buffers` are those that the transport keeps, 0 where messages wait in no buffer.
    """

    spans: tuple[Span, ...]
    counted: Counted
    parameters: Mapping[int, int]
    versions: tuple[tuple[Number, int, int], ...] = ()
    optimizer: int = 0
    buffers: int = 0

    def by_microbatch(self) -> dict[tuple[Microbatch, str], list[Change]]:
        """For each micro-batch of each stage and each cause when it takes and gives back how many bytes."""
        taken: dict[tuple[Microbatch, str], list[Change]] = defaultdict(list)
        now: dict[Microbatch, dict[str, int]] = defaultdict(lambda: defaultdict(int))
        split: set[Microbatch] = set()
        for span, moment in zip(_compute(self.spans), self.counted.moments, strict=True):
            takes = all(action.kind in TAKES for action in parts(span.action))  # and what it is given is its own now
            for owner, size in moment.changes.items():
                assert owner is not None
                key = owner.stage, owner.microbatch
                cause = DEFERRED if key in split or owner.kind in (I, W) else _CAUSE[owner.kind]
                early = takes or (size > 0 and owner.kind in TAKES and owner in parts(span.action))
                taken[key, cause].append((span.start if early else span.end, size))
                now[key][cause] += size
            for action in parts(span.action):
                key = action.stage, action.microbatch
                if action.kind == I:  # what is left now waits for W
                    split.add(key)
                    for cause in (ACTIVATIONS, RECOMPUTE):
                        moved, now[key][cause] = now[key][cause], 0
                        taken[key, cause].append((span.end, -moved))
                        taken[key, DEFERRED].append((span.end, moved))
        return taken

    def by_cause(self) -> dict[str, list[Change]]:
        """For each of `CAUSES` when it takes and gives back how many bytes; what is held all the time comes first."""
        begin = min((span.start for span in self.spans), default=0.0)
        taken: dict[str, list[Change]] = {cause: [(begin, 0)] for cause in CAUSES}
        for (_, cause), changes in self.by_microbatch().items():
            taken[cause] += changes
        weights = dict(self.parameters)
        taken[PARAMETERS] = [(begin, sum(weights.values()))]
        for time, stage, held in self.versions:
            taken[PARAMETERS].append((time, held - weights[stage]))
            weights[stage] = held
        taken[OPTIMIZER] = [(begin, self.optimizer)]
        grads = staying = 0
        for span, moment in zip(_compute(self.spans), self.counted.moments, strict=True):
            taken[GRADIENTS].append((span.end, moment.gradients - grads))
            taken[COMMUNICATION].append((span.end, moment.staying + moment.reducing - staying))
            grads, staying = moment.gradients, moment.staying + moment.reducing
        taken[COMMUNICATION] += [(begin, self.buffers)] if self.buffers else []
        return taken


TAKES = (F, "R")
"""The kinds of action that take memory from their start on; others give back, and add gradients, at their end."""
_CAUSE = {F: ACTIVATIONS, B: ACTIVATIONS, "R": RECOMPUTE}


@dataclass(frozen=True)
class Memory:
    """What each rank held in a step: activation bytes at most and over time, and all bytes by cause.

    `peaks` has the most activation bytes of each global rank, over all steps, `curves` those of the first pipeline's
    ranks over time, as (time, bytes) steps on the trace's clock. All else goes by global rank. `readings` has, on a
    GPU, what the allocator said after each action (`cuda_memory`). `pipelines` has the global ranks of each pipeline.
    """

    peaks: tuple[int, ...]
    curves: tuple[Curve, ...]
    holdings: tuple[Holdings, ...] = ()
    pipelines: tuple[tuple[int, ...], ...] = ()

    def by_cause(self, rank: int) -> dict[str, Curve]:
        """What a rank holds over time for each of `CAUSES`: exact at the ends of actions.

        What an F keeps counts from its start, all else changes at the end of an action. Messages of virtual ranks count
        for the sender until they arrive, and then for the receiver until it takes them.

        >>> import pipelab as pl, torch
        >>> from torch import nn
        >>> batch = torch.ones(4, 8), torch.zeros(4, dtype=torch.int64)
        >>> run = pl.train(nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 2)), [batch], pl.build("gpipe", 2, 2))
        >>> {cause: max(held for _, held in curve) for cause, curve in run.memory.by_cause(0).items()}["gradients"]
        288
        """
        return {cause: steps(changes) for cause, changes in self._changes(rank).items()}

    def by_microbatch(self, rank: int) -> dict[Microbatch, Curve]:
        """What a rank holds over time for each (stage, micro-batch): activations, recomputed ones, deferred inputs."""
        taken: dict[Microbatch, list[Change]] = defaultdict(list)
        for (key, _), changes in self.holdings[rank].by_microbatch().items():
            taken[key] += changes
        return {key: steps(taken[key]) for key in sorted(taken)}

    def peaks_by_cause(self, rank: int) -> dict[str, int]:
        """The most bytes of each cause; they need not come at the same time."""
        return {cause: max((held for _, held in curve), default=0) for cause, curve in self.by_cause(rank).items()}

    def total(self, rank: int) -> Curve:
        """All that a rank holds over time."""
        return steps([change for changes in self._changes(rank).values() for change in changes])

    @property
    def totals(self) -> tuple[int, ...]:
        """The most bytes that each rank holds, of all causes together."""
        return tuple(max(held for _, held in self.total(rank)) for rank in range(len(self.holdings)))

    @property
    def rebuilt(self) -> tuple[int, ...]:
        """The most bytes that each rank has recomputed for a backward still to come."""
        return tuple(self.peaks_by_cause(rank)[RECOMPUTE] for rank in range(len(self.holdings)))

    @property
    def readings(self) -> tuple[tuple[tuple[Number, Reading], ...], ...]:
        """For each rank what the GPU's allocator said, as (end of an action, reading); empty on a CPU."""
        return tuple(
            tuple((s.end, m.device) for s, m in zip(_compute(h.spans), h.counted.moments, strict=True) if m.device)
            for h in self.holdings
        )

    def _changes(self, rank: int) -> dict[str, list[Change]]:
        held = self.holdings[rank]
        taken = held.by_cause()
        if not held.buffers:
            (members,) = (pipeline for pipeline in self.pipelines if rank in pipeline)
            theirs = [self.holdings[member] for member in members]
            sizes = {send: size for each in theirs for send, size in each.counted.sent.items()}
            taken[COMMUNICATION] += flights([s for each in theirs for s in each.spans], sizes, members.index(rank))
        return taken


def _compute(spans: Iterable[Span]) -> list[Span]:
    return [span for span in spans if span.lane == "compute"]


def flights(spans: Iterable[Span], sizes: Mapping[Action, int], rank: int) -> list[Change]:
    """The messages of a rank where they need no buffers: its own until they arrive, and those that it has yet to take.

    `spans` are those of all ranks, `sizes` the bytes of each message by its send.
    """
    sends, receives = ([span for span in spans if span.lane == lane] for lane in ("send", "recv"))
    sent = {span.action: span for span in sends}
    changes: list[Change] = []
    for span in (*sends, *receives):
        send = sent[span.action if span.lane == "send" else peer(span.action)]  # type: ignore[arg-type]
        begin, end = (send.start, send.end) if span is send else (send.end, max(send.end, span.end))
        size = sizes.get(send.action, 0) if span.rank == rank else 0  # type: ignore[arg-type]
        changes += [(begin, size), (end, -size)] if size else []
    return changes


def steps(changes: Sequence[Change]) -> Curve:
    """The sum of the changes, at each of their times once.

    >>> steps([(0, 8), (2, -8), (1, 4), (2, 1)])
    ((0, 8), (1, 12), (2, 5))
    """
    held = 0
    curve: list[Change] = []
    for time, size in sorted(changes, key=lambda change: change[0]):
        held += size
        if curve and curve[-1][0] == time:
            curve.pop()
        curve.append((time, held))
    return tuple(curve)
