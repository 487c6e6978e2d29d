"""What must come before what? The dataflow rule of synchronous training, written once.

`validate`, `simulate`, `lower` and, through the lowered program, the worker all read it here. Read next: `engine`.
"""

from collections.abc import Mapping

from pipelab.action import COMPUTE, Action, B, F, I, W

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
    return tuple(Action(stage, kind, action.microbatch) for stage, kind in sources(action.stage, action.kind, stages))


def dataflow(stages: int) -> dict[Value, tuple[Value, ...]]:
    """`sources` of every stage and compute kind, as one table."""
    return {(stage, kind): sources(stage, kind, stages) for stage in range(stages) for kind in COMPUTE}
