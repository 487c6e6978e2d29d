"""What must come before what? The dataflow rule of training and of inference, written once.

`validate`, `simulate`, `lower` and, through the lowered program, the worker all read it here. Read next: `engine`.
"""

from collections.abc import Mapping

from pipelab.action import COMPUTE, Action, B, F, I, R, W

Value = tuple[int, str]
"""(stage, kind): what that stage's action of that kind computes, for any one micro-batch."""

NEEDS: Mapping[str, tuple[tuple[int, str], ...]] = {
    F: ((-1, F),),  # the activations of the stage before
    I: ((0, F), (+1, I)),  # what the own forward kept, and the gradient from the stage after
    B: ((0, F), (+1, I)),
    W: ((0, I),),  # the gradient that arrived for I
    R: ((0, F),),  # the input that the forward kept; the backward comes after it in the same row
}
"""For each kind the values it needs, as (distance in stages, kind). B = I + W, so a need for I is met by B too."""

GIVES: Mapping[str, str] = {B: I}
"""The kind under which an action's result is looked up, where that is not its own."""

T = "T"
"""Not an action but a value: the token that a micro-batch of generation begins with. The last stage's forward makes it
for the micro-batch one round later, which is `groups` further on."""


def sources(stage: int, kind: str, stages: int) -> tuple[Value, ...]:
    """The values that an action of this stage and kind needs (none outside the model).

    >>> sources(1, "I", stages=3)
    ((1, 'F'), (2, 'I'))
    """
    return tuple((stage + step, need) for step, need in NEEDS[kind] if 0 <= stage + step < stages)


def needs(action: Action, stages: int, groups: int = 0) -> tuple[Action, ...]:
    """The actions that must finish before this one starts; where it names an I, the full backward B serves as well.

    In generation, with `groups` of sequences, the first stage needs the token T after the first round.

    >>> [str(need) for need in needs(Action.parse("1B4"), stages=3)]
    ['1F4', '2I4']
    >>> needs(Action.parse("0F2"), stages=3, groups=2)
    (Action(stage=2, kind='T', microbatch=2),)
    """
    stage, kind, microbatch = action
    if groups and (stage, kind) == (0, F):
        return (Action(stages - 1, T, microbatch),) if microbatch >= groups else ()
    return tuple(Action(other, need, microbatch) for other, need in sources(stage, kind, stages))


def taken(action: Action, stages: int, groups: int = 0) -> Action | None:
    """Of what an action needs, what comes from another stage, if anything does (as a token comes to the first).

    >>> str(taken(Action.parse("1B4"), stages=3)), taken(Action.parse("2B4"), stages=3)
    ('2I4', None)
    """
    needed = needs(action, stages, groups)
    return next((need for need in needed if need.stage != action.stage or need.kind == T), None)


def gives(action: Action, stages: int, groups: int = 0) -> Action:
    """The value that an action makes, under the name by which it is needed.

    >>> str(gives(Action.parse("1B4"), stages=3))
    '1I4'
    >>> gives(Action.parse("2F0"), stages=3, groups=2)
    Action(stage=2, kind='T', microbatch=2)
    """
    stage, kind, microbatch = action
    if groups and (stage, kind) == (stages - 1, F):
        return Action(stage, T, microbatch + groups)
    return Action(stage, GIVES.get(kind, kind), microbatch)


def dataflow(stages: int, groups: int = 0) -> dict[Value, tuple[Value, ...]]:
    """What every stage and compute kind needs, as one table; T is there in the first round already."""
    table = {(stage, kind): sources(stage, kind, stages) for stage in range(stages) for kind in COMPUTE}
    if groups:
        table[0, F] = ((stages - 1, T),)
    return table


def carried_over(stages: int, groups: int) -> dict[Value, tuple[Value, int]]:
    """The values that are another value of so many micro-batches before: in generation, T is the last stage's F.

    >>> carried_over(stages=3, groups=2)
    {(2, 'T'): ((2, 'F'), 2)}
    """
    return {(stages - 1, T): ((stages - 1, F), groups)} if groups else {}
