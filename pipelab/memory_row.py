"""What does a rank hold while its row goes on? The row is played, each action with the footprint of its stage.

Read first: `footprint`.
"""

from collections.abc import Mapping
from typing import NamedTuple

from pipelab.action import MESSAGES, RECV_F, REDUCE, Action, B, Element, F, I, U, W, parts
from pipelab.dependencies import gives, taken
from pipelab.footprint import Footprint
from pipelab.holdings import (
    ACTIVATIONS,
    CAUSES,
    COMMUNICATION,
    DEFERRED,
    GRADIENTS,
    OPTIMIZER,
    PARAMETERS,
    RECOMPUTE,
)
from pipelab.lower import RECEIVED_FROM, Program

WORKING = "working"
"""A further cause: what an action makes and drops while it lasts, and what the optimizer does."""

HELD = (ACTIVATIONS, RECOMPUTE, DEFERRED)
"""The causes that the meter counts as activations."""

TAKING = (F, B, I)
"""The kinds of action that take what another stage gives, and give in their turn."""

Footprints = Mapping[tuple[int, int], tuple[Mapping[str, Footprint], Mapping[str, Footprint]]]
"""By (stage, micro-batch) those of each kind: the first time, when there are no gradients yet, and later."""


class End(NamedTuple):
    """What a rank holds for its update: the weights of each stage and the optimizer's states, always; `update` while
    the optimizer steps; and `piece` for the sum over replicas, beside what is given: the largest bucket in a row, or
    (ZeRO-1) the sums of all shares, for what is given stays until the last replica has come for its part."""

    weights: Mapping[int, int]
    states: int
    update: int
    piece: int


def works(element: Element) -> bool:
    """Whether it computes, as neither messages nor updates do."""
    return all(action.kind not in (*MESSAGES, U, REDUCE) for action in parts(element))


class MemoryRow:
    """The row of one rank. Once it has been played, `worst` is the moment when most is held, by cause, `most` the most
    of each cause, and `activations` the most bytes of them."""

    def __init__(self, rank: int, program: Program, found: Footprints, end: End, buffers: int) -> None:
        self.rank, self.program, self.found, self.end = rank, program, found, end
        self.worst: Mapping[str, int] = {}
        self.most: dict[str, int] = {}
        self.activations = 0
        self._fixed = {OPTIMIZER: end.states, COMMUNICATION: buffers}
        own = program.placement.stages_on(rank)
        self._versions: dict[tuple[int, int], int] = {}
        self._updates = dict.fromkeys(own, 0)
        self._gradients = dict.fromkeys(own, 0)
        self._reducing = 0
        self._held: dict[tuple[int, int], dict[str, int]] = {}
        self._last: dict[tuple[int, int], Footprint] = {}
        self._staying: dict[Action, int] = {}
        self._arrived: dict[Action, int] = {}
        self._seen: set[tuple[int, str]] = set()

    def play(self) -> None:
        """Play all, and the end of the step."""
        for element in self.program.rows[self.rank]:
            if works(element):
                self._compute(element)
            elif isinstance(element, Action) and element.kind in RECEIVED_FROM:
                self._receive(element)
            elif isinstance(element, Action) and element.kind == U:
                self._update(element)
            elif isinstance(element, Action) and element.kind == REDUCE:
                self._reduce(self._gradients[element.stage])
        if self.program.schedule.flush:
            self._note({**self._now(), WORKING: self.end.piece})
            self._reducing = 0
            self._note({**self._now(), WORKING: self.end.update})

    def _reduce(self, size: int) -> None:
        """A stage's gradients are put in a row, and what is sent of that is a copy, bucket by bucket."""
        self._reducing += size
        now = self._now()
        self._note({**now, WORKING: now[WORKING] + min(size, self.end.piece)})

    def _receive(self, message: Action) -> None:
        """From here on it is there, also while an R comes first, or the other action of a pair."""
        kinds, _ = self.found[message.stage, message.microbatch]
        taker = F if message.kind == RECV_F else B if B in kinds else I
        need = taken(message._replace(kind=taker), self.program.schedule.stages)
        assert need is not None
        self._arrived[need] = kinds[taker].taken

    def _compute(self, element: Element) -> None:
        beside = 0  # what an action gives leaves only after the other one of a pair
        for action in parts(element):
            footprint = self._footprint(action)
            if (need := taken(action, self.program.schedule.stages)) is not None:
                self._staying.pop(need, 0)
                self._arrived.pop(need, 0)  # the rise has it
            before = self._now()
            there = self._there(action)
            self.activations = max(self.activations, _activations(before) + footprint.peak - there)
            stays = footprint.held - there if action.kind == F else 0  # what a forward keeps is known by its cause
            rise = footprint.beside_output if self._outlasts(action) else footprint.rise - there
            working = before[WORKING] + beside + rise - stays
            self._note({**before, ACTIVATIONS: before[ACTIVATIONS] + stays, WORKING: working})
            given = footprint.given - (footprint.output if action.kind == F else 0)  # what is kept anyway counts there
            self._keep(action, footprint)
            if not self._stays(action):
                beside += given
            elif action.kind in TAKING:
                self._staying[gives(action, self.program.schedule.stages)] = given
            after = self._now()
            self._note(after)
            self.activations = max(self.activations, _activations(after))
            self.most = {cause: max(size, self.most.get(cause, 0)) for cause, size in after.items()}

    def _keep(self, action: Action, footprint: Footprint) -> None:
        """What is held from the end of an action on."""
        stage, kind, microbatch = action
        key = stage, microbatch
        if kind == F and not self.program.schedule.flush:
            self._versions[key] = self._updates[stage]
        if kind in (B, I, W):  # an I that comes before any W finds none of those that W makes
            self._gradients[stage] = max(self._gradients[stage], self.found[key][0][kind].gradients)
        cause = DEFERRED if kind in (I, W) else ACTIVATIONS if kind in (F, B) else RECOMPUTE
        others = self._held.pop(key, {}) if cause == RECOMPUTE else {}
        self._held[key] = {**others, cause: footprint.held - sum(others.values())}
        self._last[key] = footprint
        self._seen.add((stage, kind))

    def _footprint(self, action: Action) -> Footprint:
        first, later = self.found[action.stage, action.microbatch]
        return (later if (action.stage, action.kind) in self._seen else first)[action.kind]

    def _stays(self, action: Action) -> bool:
        """Whether what an action gives is for a stage of the same rank."""
        return self._own(action.stage + (1 if action.kind == F else -1))

    def _own(self, stage: int) -> bool:
        rank_of = self.program.placement.rank_of
        return 0 <= stage < len(rank_of) and rank_of[stage] == self.rank

    def _there(self, action: Action) -> int:
        """Of what a forward makes the rank hold, its input, if that is the output that the stage before keeps."""
        before = self._last.get((action.stage - 1, action.microbatch)) if action.kind == F else None
        return before.output if before else 0

    def _outlasts(self, action: Action) -> bool:
        """Whether a backward does not free its stage's output, as the next stage keeps it."""
        stage, kind, microbatch = action
        after = self._last.get((stage + 1, microbatch)) if kind in (B, I) else None
        return after is not None and min(self._last[stage, microbatch].output, after.input) > 0

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
            now[PARAMETERS] += len(versions) * self.end.weights[stage]
        now[GRADIENTS] = sum(self._gradients.values())
        now[COMMUNICATION] += self._reducing
        for (stage, microbatch), kept in self._held.items():
            for cause, size in kept.items():
                now[cause] += size
            before = self._last.get((stage - 1, microbatch))
            if before is not None:  # one memory
                shared = min(self._last[stage, microbatch].input, before.output)
                now[DEFERRED if DEFERRED in kept else ACTIVATIONS] -= shared
        now[WORKING] = sum(self._arrived.values())
        for value, size in self._staying.items():
            now[ACTIVATIONS if value.kind == F else COMMUNICATION] += size
        return now

    def _note(self, moment: Mapping[str, int]) -> None:
        if sum(moment.values()) > sum(self.worst.values()):
            self.worst = moment


def _activations(moment: Mapping[str, int]) -> int:
    return sum(moment[cause] for cause in HELD)
