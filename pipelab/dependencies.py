"""What must come before what? The dataflow rule of synchronous training, written once.

`validate`, `simulate`, `lower` and, through the lowered program, the worker all read it here. Read next: `validate`.
"""

from collections import deque
from collections.abc import Iterator, Mapping, Sequence

from pipelab.action import COMPUTE, Action, B, Element, F, I, W, parts

Value = tuple[int, str]
"""(stage, kind): what that stage's action of that kind computes, for any one micro-batch."""

NEEDS: Mapping[str, tuple[tuple[int, str], ...]] = {
    F: ((-1, F),),  # the activations of the stage before
    I: ((0, F), (+1, I)),  # what the own forward kept, and the gradient from the stage after
    B: ((0, F), (+1, I)),
    W: ((0, I),),  # the gradient that arrived for I
}
"""For each kind the values it needs, as (distance in stages, kind). B = I + W, so a need for I is met by B too."""

GIVES: Mapping[str, str] = {B: I}
"""The kind under which an action's result is looked up, where that is not its own."""


def sources(stage: int, kind: str, stages: int) -> tuple[Value, ...]:
    """The values that an action of this stage and kind needs (none outside the model).

    >>> sources(1, "I", stages=3)
    ((1, 'F'), (2, 'I'))
    """
    return tuple((stage + step, need) for step, need in NEEDS[kind] if 0 <= stage + step < stages)


def needs(action: Action, stages: int) -> tuple[Action, ...]:
    """The actions that must finish before this one starts; where it names an I, the full backward B serves as well.

    >>> [str(need) for need in needs(Action.parse("1B4"), stages=3)]
    ['1F4', '2I4']
    """
    return tuple(
        Action(stage, kind, action.microbatch) for stage, kind in sources(action.stage, action.kind, stages)
    )


def dataflow(stages: int) -> dict[Value, tuple[Value, ...]]:
    """`sources` of every stage and compute kind, as one table."""
    return {(stage, kind): sources(stage, kind, stages) for stage in range(stages) for kind in COMPUTE}


class Stuck(Exception):
    """No rank can go on: `.waiting` maps each unfinished rank to (its position, the action it needs)."""

    def __init__(self, waiting: dict[int, tuple[int, Action]]) -> None:
        self.waiting = waiting
        super().__init__("; ".join(f"rank {rank} waits for {need}" for rank, (_, need) in waiting.items()))


def walk(
    rows: Sequence[Sequence[Element]], table: Mapping[Value, tuple[Value, ...]], microbatches: int
) -> Iterator[tuple[int, Element]]:
    """Visit (rank, element) so that every need comes first, each rank in the order of its row.

    `table` maps (stage, kind) to the values it needs, as `dataflow` does. Takes time proportional to the number of
    actions. Raises Stuck when every rank that has work left waits.

    >>> rows = [[Action(0, "F", 0), Action(0, "B", 0)], [Action(1, "F", 0), Action(1, "B", 0)]]
    >>> [str(element) for _, element in walk(rows, dataflow(stages=2), microbatches=1)]
    ['0F0', '1F0', '1B0', '0B0']
    """
    done: dict[Value, bytearray] = {value: bytearray(microbatches) for value in table}
    inputs = {value: tuple((done[source], source) for source in needed) for value, needed in table.items()}
    position = [0] * len(rows)
    waiting: dict[int, tuple[int, Action]] = {}
    waiters: dict[Action, list[int]] = {}
    ready = deque(range(len(rows)))
    while ready:
        rank = ready.popleft()
        waiting.pop(rank, None)
        row = rows[rank]
        while position[rank] < len(row):
            element = row[position[rank]]
            need = _unmet(element, inputs)
            if need is not None:
                waiting[rank] = (position[rank], need)
                waiters.setdefault(need, []).append(rank)
                break
            position[rank] += 1
            yield rank, element
            for stage, kind, microbatch in parts(element):
                given = GIVES.get(kind, kind)
                done[stage, given][microbatch] = 1
                if waiters:
                    ready.extend(waiters.pop(Action(stage, given, microbatch), ()))
    if waiting:
        raise Stuck(dict(sorted(waiting.items())))


def _unmet(
    element: Element, inputs: Mapping[Value, tuple[tuple[bytearray, Value], ...]]
) -> Action | None:
    for stage, kind, microbatch in parts(element):
        for finished, source in inputs[stage, kind]:
            if not finished[microbatch]:
                return Action(*source, microbatch)
    return None
