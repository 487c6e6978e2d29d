"""How much will each rank hold, and why? Predicted from shapes and from the order of the rows, before anything runs.

Each stage is run once on fake tensors (`footprint`); then the row of every rank is played, action by action. What a
row cannot say is how long messages wait: virtual ranks are taken to work in equal time, and processes to use all the
buffers that they may. Read first: `holdings` (the causes). Read next: `fit` (what if it is too much?).
"""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from pipelab.action import MESSAGES, Action, B, Element, F, I, U, W, parts
from pipelab.costs import Costs
from pipelab.footprint import TILE, FakeStage, Footprint, Shape, fake_copy, fake_mode, optimizer_bytes, tensor_share
from pipelab.holdings import (
    ACTIVATIONS,
    CAUSES,
    COMMUNICATION,
    DEFERRED,
    GRADIENTS,
    OPTIMIZER,
    PARAMETERS,
    RECOMPUTE,
    flights,
    steps,
)
from pipelab.loss import Loss, cross_entropy
from pipelab.lower import CARRIES, Program, lower
from pipelab.mesh import Mesh
from pipelab.message_order import AHEAD, channels, window
from pipelab.optimizer import Optimizer, adamw
from pipelab.partition import cut
from pipelab.schedule import Schedule
from pipelab.simulate import simulate_program
from pipelab.stage import Stage

WORKING = "working"
"""A further cause: what an action makes and drops while it lasts, and what the optimizer does."""

HELD = (ACTIVATIONS, RECOMPUTE, DEFERRED)
"""The causes that the meter counts as activations."""

Batch = tuple[Tensor, Tensor]
Kinds = tuple[str, ...]
Footprints = Mapping[tuple[int, int], tuple[Mapping[str, Footprint], Mapping[str, Footprint]]]
"""By (stage, micro-batch) those of each kind: the first time, when there are no gradients yet, and later."""


@dataclass(frozen=True)
class Prediction:
    """The bytes that each rank of a pipeline is predicted to hold.

    `causes` says for each rank what it holds at its worst moment, by cause, also "working"; `peaks` has the most of
    each cause, as `Memory.peaks_by_cause` measures it, and `activations` what `Memory.peaks` will be.
    """

    mesh: Mesh
    causes: tuple[Mapping[str, int], ...]
    peaks: tuple[Mapping[str, int], ...]
    activations: tuple[int, ...]

    @property
    def totals(self) -> tuple[int, ...]:
        """The most bytes that each rank of a pipeline has in use at once."""
        return tuple(sum(held.values()) for held in self.causes)

    @property
    def everywhere(self) -> int:
        """All ranks of the mesh together, as where they share a host."""
        return sum(self.totals) * self.mesh.dp * self.mesh.tp

    def __str__(self) -> str:
        """A line a rank, in MiB, or in GiB where a rank holds one.

        >>> print(Prediction(Mesh(), ({"parameters": 2**20, "activations": 2**21},), ({},), (0,)))
        rank 0: 3.00 MiB = parameters 1.00 + activations 2.00
        """
        unit, name = (2**30, "GiB") if max(self.totals) >= 2**30 else (2**20, "MiB")
        lines = []
        for rank, held in enumerate(self.causes):
            shares = " + ".join(f"{cause} {size / unit:.2f}" for cause, size in held.items() if size)
            lines.append(f"rank {rank}: {self.totals[rank] / unit:.2f} {name} = {shares}")
        return "\n".join(lines)


def predict_memory(
    model: nn.Sequential, schedule: Schedule, batch: Batch, mesh: Mesh | None = None, *,
    loss: Loss = cross_entropy, optimizer: Optimizer = adamw, at: Sequence[int] | None = None,
    device: str = "cpu", transport: str = "memory", make_stage: Callable[..., Stage] = Stage, zero: bool = False,
) -> Prediction:  # fmt: skip
    """What each rank of `train(model, [batch], schedule, mesh, ...)` will hold; nothing is computed or changed.

    `batch` is what one replica takes in a step. Tensor shards divide the matrices of pipelab's blocks and what is kept
    between them; replicas repeat all, or with `zero` divide the optimizer's states (ZeRO-1: Rajbhandari et al. 2020).
    The model and the batch may lie on the device "meta", where nothing has memory. Raises ValueError for a schedule
    without a backward, for what cannot be cut, and for layers that look at numbers.

    >>> from pipelab import build
    >>> with torch.device("meta"):  # parameters of 4 GiB
    ...     model = nn.Sequential(*(nn.Linear(2**14, 2**14) for _ in range(4)))
    ...     batch = torch.zeros(64, 2**14), torch.zeros(64, dtype=torch.int64)
    >>> held = predict_memory(model, build("1f1b", 2, 4), batch)
    >>> [round(total / 2**30) for total in held.totals]
    [10, 10]
    """
    if schedule.forward_only:
        raise ValueError(f"{schedule.name} has no backward; memory is predicted of schedules that train")
    mesh = mesh or Mesh(pp=schedule.ranks)
    program, tile = lower(schedule), TILE[device]
    mode = fake_mode()
    slices = [fake_copy(layers, mode) for layers in cut(model, schedule.stages, at=at)]
    if mesh.tp > 1:
        with mode:
            for layers in slices:
                tensor_share(layers, mesh.tp)
    split = {action.stage for _, _, action in schedule.actions() if action.kind == W}
    last = schedule.stages - 1
    stages = [
        FakeStage(
            layers, first=stage == 0, loss=loss if stage == last else None, split=stage in split, tile=tile,
            make_stage=make_stage,
        )
        for stage, layers in enumerate(slices)
    ]  # fmt: skip
    with mode:
        try:
            found = _footprints(stages, program, batch)
            own = [[p for s in on for p in stages[s].parameters] for on in _stages_on(schedule)]
            states = [optimizer_bytes(optimizer, parameters, tile) for parameters in own]
        except Exception as error:
            what = f"{type(error).__name__}: {error}"
            raise ValueError(f"the memory of this model cannot be predicted without running it ({what})") from error
    rows = [_Row(rank, program, stages, found) for rank in range(schedule.ranks)]
    for row, messages, (kept, work) in zip(rows, _messages(program, found, transport), states, strict=True):
        row.play(messages, -(-kept // mesh.dp) if zero else kept, work)
    return Prediction(
        mesh, tuple(r.worst for r in rows), tuple(dict(r.most) for r in rows), tuple(r.activations for r in rows)
    )


def _works(element: Element) -> bool:
    """Whether it computes, as neither messages nor updates do."""
    return all(action.kind not in (*MESSAGES, U) for action in parts(element))


def _stages_on(schedule: Schedule) -> list[Sequence[int]]:
    return [schedule.placement.stages_on(rank) for rank in range(schedule.ranks)]


def _footprints(stages: Sequence[FakeStage], program: Program, batch: Batch) -> Footprints:
    """The footprints of all micro-batches; those of equal shapes and equal actions are measured once."""
    kinds: dict[tuple[int, int], Kinds] = defaultdict(tuple)
    for row in program.rows:
        for action in (action for element in row if _works(element) for action in parts(element)):
            kinds[action.stage, action.microbatch] += (action.kind,)
    count = program.schedule.microbatches
    inputs, targets = ([Shape.of(one) for one in torch.tensor_split(tensor, count)] for tensor in batch)
    known: dict[object, tuple[tuple[Mapping[str, Footprint], Mapping[str, Footprint]], Shape]] = {}
    found = {}
    for microbatch, (x, target) in enumerate(zip(inputs, targets, strict=True)):
        for stage, fake in enumerate(stages):
            goal = target if fake.stage.loss is not None else None
            key = stage, x, goal, kinds[stage, microbatch]
            if key not in known:
                fake.forget_gradients()
                first, output = fake.footprints(kinds[stage, microbatch], x, goal)
                known[key] = (first, fake.footprints(kinds[stage, microbatch], x, goal)[0]), output
                fake.forget_gradients()
            found[stage, microbatch], x = known[key]
    return found


@dataclass
class _Row:
    """The row of one rank, played once: `worst` and `most` are what it came to."""

    rank: int
    program: Program
    stages: Sequence[FakeStage]
    found: Footprints
    worst: Mapping[str, int] = field(default_factory=dict)
    most: dict[str, int] = field(default_factory=dict)
    activations: int = 0

    def play(self, messages: int, states: int, update: int) -> None:
        """Play all; `messages` and `states` are held all the time, `update` while the optimizer steps."""
        schedule = self.program.schedule
        own = schedule.placement.stages_on(self.rank)
        self._weights = {stage: [self.stages[stage].bytes] for stage in own}
        self._versions: dict[tuple[int, int], int] = {}
        self._updates = dict.fromkeys(own, 0)
        self._gradients = dict.fromkeys(own, 0)
        self._held: dict[tuple[int, int], dict[str, int]] = {}
        self._staying: dict[Action, int] = {}
        self._fixed = {OPTIMIZER: states, COMMUNICATION: messages}
        self._seen: set[tuple[int, str]] = set()
        for element in self.program.rows[self.rank]:
            if isinstance(element, Action) and element.kind == U:
                self._update(element)
            elif _works(element):
                self._compute(element)
        if schedule.flush:
            self._note({**self._now(), WORKING: update})

    def _compute(self, element: Element) -> None:
        schedule, actions = self.program.schedule, parts(element)
        beside = [self._footprint(action).taken for action in actions[1:]]  # all has come before the first begins
        for action in actions:
            footprint = self._footprint(action)
            stage, kind, microbatch = action
            key = stage, microbatch
            self._staying.pop(self._needed(action), 0)
            before = self._now()
            activations = sum(before[cause] for cause in HELD)
            self.activations = max(self.activations, activations + footprint.peak)
            if kind == F and not schedule.flush:
                self._versions[key] = self._updates[stage]
            self._seen.add((stage, kind))
            if kind in (B, I, W):
                self._gradients[stage] = max(self._gradients[stage], footprint.gradients)
            kept = self._held.pop(key, {})
            cause = DEFERRED if kind in (I, W) else ACTIVATIONS if kind in (F, B) else RECOMPUTE
            others = kept if cause == RECOMPUTE else {}
            self._held[key] = {**others, cause: footprint.held - sum(others.values())}
            stays = footprint.held if kind == F else 0  # of a forward what it keeps is known by its cause
            extra = {ACTIVATIONS: before[ACTIVATIONS] + stays, WORKING: sum(beside) + footprint.rise - stays}
            self._note({**before, **extra})
            beside = [*beside[1:], footprint.given]
            if footprint.given and self._stays(action):
                self._staying[Action(stage, F if kind == F else I, microbatch)] = footprint.given
            after = self._now()
            self._note(after)
            self.activations = max(self.activations, sum(after[cause] for cause in HELD))
            for cause, size in after.items():
                self.most[cause] = max(self.most.get(cause, 0), size)

    def _footprint(self, action: Action) -> Footprint:
        first, later = self.found[action.stage, action.microbatch]
        return (later if (action.stage, action.kind) in self._seen else first)[action.kind]

    def _stays(self, action: Action) -> bool:
        """Whether what an action gives is for a stage of the same rank."""
        other = action.stage + (1 if action.kind == F else -1)
        rank_of = self.program.placement.rank_of
        return 0 <= other < len(rank_of) and rank_of[other] == self.rank

    def _needed(self, action: Action) -> Action:
        return Action(action.stage + (-1 if action.kind == F else 1), F if action.kind == F else I, action.microbatch)

    def _update(self, update: Action) -> None:
        self._versions.pop((update.stage, update.microbatch), None)
        self._updates[update.stage] += 1
        self._gradients[update.stage] = 0
        self._seen = {key for key in self._seen if key[0] != update.stage}

    def _now(self) -> dict[str, int]:
        """What is held between two actions, by cause."""
        now = dict.fromkeys((*CAUSES, WORKING), 0) | self._fixed
        for stage, updates in self._updates.items():
            versions = {updates, *(version for key, version in self._versions.items() if key[0] == stage)}
            now[PARAMETERS] += len(versions) * self.stages[stage].bytes
        now[GRADIENTS] = sum(self._gradients.values())
        for kept in self._held.values():
            for cause, size in kept.items():
                now[cause] += size
        for value, size in self._staying.items():
            now[ACTIVATIONS if value.kind == F else COMMUNICATION] += size
        return now

    def _note(self, moment: Mapping[str, int]) -> None:
        if sum(moment.values()) > sum(self.worst.values()):
            self.worst = moment


def _messages(program: Program, found: Footprints, transport: str) -> list[int]:
    """What messages take on each rank: all buffers of a process, or at most what is under way between virtual ranks."""
    most = [0] * program.schedule.ranks
    if transport != "memory":
        width = window(program)
        for channel, traffic in channels(program).items():
            size = max(_size(send, found) for send in traffic.sent)
            most[channel.sender] += size * min(width, len(traffic.sent))
            most[channel.receiver] += size * min(AHEAD + 1, len(traffic.sent))
        return most
    spans = simulate_program(program, Costs.uniform()).spans
    sizes = {send: _size(send, found) for traffic in channels(program).values() for send in traffic.sent}
    return [max((held for _, held in steps(flights(spans, sizes, rank))), default=0) for rank in range(len(most))]


def _size(send: Action, found: Footprints) -> int:
    kinds, _ = found[send.stage, send.microbatch]
    return max(
        (kinds[kind].given for kind in ((F,) if CARRIES[send.kind] == F else (B, I)) if kind in kinds), default=0
    )
