"""Which messages does a schedule imply? `lower` adds them, and the one program is simulated, executed and drawn.

Every value that a stage on another rank needs (by `dependencies.NEEDS`) is sent right after the action that gives it
and received right before the action that needs it. Where activations are not kept, R comes before the backward. With
replicas a stage's gradients are summed as soon as it has its last.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from pipelab.action import (
    MESSAGES,
    RECV_B,
    RECV_F,
    RECV_T,
    REDUCE,
    SEND_B,
    SEND_F,
    SEND_T,
    Action,
    B,
    Element,
    F,
    I,
    R,
    U,
    W,
    parts,
)
from pipelab.dependencies import T, Value, dataflow, gives
from pipelab.mesh import Mesh
from pipelab.placement import Placement
from pipelab.recompute import NONE, policies, recomputed, with_recompute
from pipelab.schedule import Schedule

SEND = {F: SEND_F, I: SEND_B, T: SEND_T}
RECV = {F: RECV_F, I: RECV_B, T: RECV_T}
"""The message that carries a value: activations after F, the gradient of the input after I (or B), a new token."""

CARRIES = {message: value for value, message in SEND.items()}

RECEIVED_FROM = {RECV_F: (-1, SEND_F), RECV_B: (+1, SEND_B), RECV_T: (-1, SEND_T)}
"""For a receive, the (distance in stages, kind) of the send that feeds it; before the first stage comes the last."""


@dataclass(frozen=True)
class Program:
    """A schedule with its messages written out: for each rank, what a worker executes in order.

    >>> from pipelab import build
    >>> print(lower(build("gpipe", ranks=2, microbatches=1)))
    0F0 0SEND_F0 0RECV_B0 0B0
    1RECV_F0 1F0 1B0 1SEND_B0
    """

    schedule: Schedule
    rows: tuple[tuple[Element, ...], ...]

    @property
    def placement(self) -> Placement:
        """Which rank holds which stage."""
        return self.schedule.placement

    def peer(self, message: Action) -> Action:
        """The send that feeds a receive, and the other way round: `peer`."""
        return peer(message, self.schedule.stages)

    def send_of(self, step: Element) -> Action | None:
        """The send of the message of which a step is either end; None for what is no message."""
        if not isinstance(step, Action) or step.kind not in MESSAGES:
            return None
        return step if step.kind in CARRIES else self.peer(step)

    def __str__(self) -> str:
        return "\n".join(" ".join(map(str, row)) for row in self.rows)


def peer(message: Action, stages: int = 1) -> Action:
    """The send that feeds a receive, and the other way round. Raises ValueError for what is not a message.

    A token alone goes round: from the last of all `stages` to the first.

    >>> str(peer(Action.parse("1RECV_F0"))), str(peer(Action.parse("0SEND_F0")))
    ('0SEND_F0', '1RECV_F0')
    """
    if message.kind == RECV_T:
        return Action(stages - 1, SEND_T, message.microbatch)
    if message.kind == SEND_T:
        return Action(0, RECV_T, message.microbatch)
    for receive, (step, send) in RECEIVED_FROM.items():
        if message.kind == receive:
            return Action(message.stage + step, send, message.microbatch)
        if message.kind == send:
            return Action(message.stage - step, receive, message.microbatch)
    raise ValueError(f"{message} is not a message")


def lower(
    schedule: Schedule, mesh: Mesh | None = None, *, checkpointing: str | Sequence[str] = NONE, hoist: int = 0
) -> Program:
    """Add to each row the sends and receives that its dependencies imply; values that stay on a rank need none.

    Without a flush each micro-batch's backward is followed by U, the update of its stage's weights. On a mesh with
    replicas the last B or W of each stage is followed by REDUCE: the sum of its gradients over `dp` begins.

    With `checkpointing` (a policy, or one a stage: see `recompute`) an R comes right before each backward whose
    activations the forward has not kept. `hoist=1` puts it before the wait for the gradient, where it fills the bubble;
    that delays nothing, and of each stage no more than one micro-batch is rebuilt. `hoist=n` puts it before the n-th
    wait on the way back to its forward: up to n are rebuilt and held then, and what came between comes later.

    >>> from pipelab import build
    >>> print(lower(build("gpipe", ranks=2, microbatches=1), checkpointing=["full", "none"]))
    0F0 0SEND_F0 0RECV_B0 0R0 0B0
    1RECV_F0 1F0 1B0 1SEND_B0
    >>> print(lower(build("pipedream", ranks=2, microbatches=1)))
    0F0 0SEND_F0 0RECV_B0 0B0 0U0
    1RECV_F0 1F0 1B0 1SEND_B0 1U0
    >>> print(lower(build("gpipe", ranks=2, microbatches=1), Mesh(dp=2, pp=2)))
    0F0 0SEND_F0 0RECV_B0 0B0 0REDUCE0
    1RECV_F0 1F0 1B0 1SEND_B0 1REDUCE0
    """
    remote = _remote(schedule)
    wanted = {source for sources in remote.values() for source in sources}
    rows = tuple(
        tuple(step for element in row for step in _with_messages(element, schedule, remote, wanted))
        for row in schedule.rows
    )
    if not isinstance(hoist, int) or hoist < 0:
        raise ValueError(f"hoist is how many waits R is put forward, 0 or more: got {hoist!r}")
    pairs = recomputed(schedule, policies(checkpointing, schedule.stages))
    if pairs:
        rows = tuple(with_recompute(row, pairs, hoist) for row in rows)
    if mesh is not None and mesh.dp > 1:
        rows = tuple(tuple(_with_reductions(row)) for row in rows)
    return Program(schedule, rows)


def message_flow(schedule: Schedule) -> dict[Value, tuple[Value, ...]]:
    """What each step of a lowered program waits for from another rank: a receive waits for its send."""
    stages = schedule.stages
    table: dict[Value, tuple[Value, ...]] = dict.fromkeys(dataflow(stages), ())
    for stage in range(stages):
        table[stage, R] = table[stage, U] = table[stage, REDUCE] = ()
        for receive, (step, send) in RECEIVED_FROM.items():
            table[stage, send] = ()
            inside = 0 <= stage + step < stages
            if inside != (receive == RECV_T):  # a token alone goes round, from the last stage to the first
                table[stage, receive] = (((stage + step) % stages, send),)
    return table


def _remote(schedule: Schedule) -> dict[Value, list[Value]]:
    """For each (stage, kind), the values that it needs from another rank."""
    rank_of = schedule.placement.rank_of
    return {
        (stage, kind): [source for source in sources if rank_of[source[0]] != rank_of[stage]]
        for (stage, kind), sources in dataflow(schedule.stages, schedule.groups).items()
    }


def _with_messages(
    element: Element, schedule: Schedule, remote: dict[Value, list[Value]], wanted: set[Value]
) -> Iterator[Element]:
    for stage, kind, microbatch in parts(element):
        for _, carried in remote[stage, kind]:
            if carried != T or microbatch >= schedule.groups:
                yield Action(stage, RECV[carried], microbatch)
    yield element
    for action in parts(element):
        stage, given, microbatch = gives(action, schedule.stages, schedule.groups)
        if (stage, given) in wanted and microbatch < schedule.microbatches:
            yield Action(stage, SEND[given], microbatch)
        if not schedule.flush and action.kind in (B, W):
            yield Action(stage, U, action.microbatch)


def _with_reductions(row: tuple[Element, ...]) -> Iterator[Element]:
    """A stage's gradients are complete after its last B or W; what that gives is sent first, for somebody waits."""
    last = {action.stage: at for at, element in enumerate(row) for action in parts(element) if action.kind in (B, W)}
    due: list[int] = []
    for at, element in enumerate(row):
        if due and not (isinstance(element, Action) and element.kind in CARRIES):
            yield from (Action(stage, REDUCE, 0) for stage in due)
            due = []
        yield element
        due += [action.stage for action in parts(element) if last.get(action.stage) == at]
    yield from (Action(stage, REDUCE, 0) for stage in due)
