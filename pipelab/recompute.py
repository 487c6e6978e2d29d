"""Which micro-batches are run forward a second time, and where does R stand in a row? Policies, as words.

    none         a forward keeps what its backward needs
    full         each block keeps its input alone, and R runs the blocks again
    every-K      the same for groups of K blocks: fewer inputs are kept, for the same work (full is every-1)
    selective    the attention sublayer (norm, qkv, core) keeps its input alone: R is short
    except-last  full, but for a micro-batch whose backward follows its forward directly: there nothing would be gained

A policy holds for a stage. R is one action, so the backward finds all activations of the stage rebuilt. (Chen et al.
2016; Huang et al. 2019, section 2.3, where K is all blocks of a stage; Korthikanti et al. 2022, section 5; except-last:
Kim et al. 2020, "torchgpipe".) Read next: `lower`, which puts R into the rows, and `checkpointing`, which does it.
"""

import re
from collections.abc import Sequence
from itertools import pairwise

from pipelab.action import RECV_B, RECV_F, RECV_T, Action, B, Element, F, I, R, parts
from pipelab.schedule import Schedule

NONE, FULL, SELECTIVE, EXCEPT_LAST = "none", "full", "selective", "except-last"
EVERY = re.compile(r"every-([1-9]\d{0,5})")
WORDS = "none, full, selective, every-K (K blocks of 1 or more, as in every-2) or except-last"


def check_policy(policy: object) -> str:
    """The policy itself. Raises ValueError with the list of policies for anything else.

    >>> check_policy("every-2")
    'every-2'
    >>> check_policy("every-0")
    Traceback (most recent call last):
    ValueError: there is no checkpointing 'every-0'; it is none, full, selective, every-K (K blocks of 1 or more, ...
    """
    if isinstance(policy, str) and (policy in (NONE, FULL, SELECTIVE, EXCEPT_LAST) or EVERY.fullmatch(policy)):
        return policy
    raise ValueError(f"there is no checkpointing {policy!r}; it is {WORDS}")


def group_size(policy: str) -> int | None:
    """The blocks that are recomputed from one input; None where the policy is not about blocks.

    >>> group_size("full"), group_size("every-4"), group_size("selective")
    (1, 4, None)
    """
    every = EVERY.fullmatch(policy)
    return int(every[1]) if every else 1 if policy in (FULL, EXCEPT_LAST) else None


def policies(checkpointing: str | Sequence[str], stages: int) -> tuple[str, ...]:
    """One policy a stage, from one for all or a list. Raises ValueError for another length, or for no policy.

    >>> policies("full", stages=2)
    ('full', 'full')
    """
    if isinstance(checkpointing, str):
        return (check_policy(checkpointing),) * stages
    if not isinstance(checkpointing, Sequence):
        raise ValueError(f"checkpointing is a word, or one a stage: got {checkpointing!r}; a word is {WORDS}")
    if len(checkpointing) != stages:
        raise ValueError(f"checkpointing needs one policy a stage, {stages} in all: got {len(checkpointing)}")
    return tuple(map(check_policy, checkpointing))


def recomputed(schedule: Schedule, by_stage: Sequence[str]) -> set[tuple[int, int]]:
    """The (stage, micro-batch) pairs that are recomputed under these policies, one a stage.

    >>> from pipelab import build
    >>> sorted(recomputed(build("1f1b", ranks=2, microbatches=2), ["except-last"] * 2))
    [(0, 0), (0, 1)]
    """
    pairs = {
        (stage, microbatch)
        for stage, policy in enumerate(by_stage) if policy != NONE
        for microbatch in range(schedule.microbatches)
    }  # fmt: skip
    for row in schedule.rows:
        for one, other in pairwise(row):
            ends = {(stage, microbatch) for stage, kind, microbatch in parts(other) if kind in (B, I)}
            for stage, kind, microbatch in parts(one):
                if kind == F and (stage, microbatch) in ends and by_stage[stage] == EXCEPT_LAST:
                    pairs.discard((stage, microbatch))
    return pairs


def with_recompute(row: Sequence[Element], pairs: set[tuple[int, int]], hoist: int) -> tuple[Element, ...]:
    """A lowered row with an R for each of these (stage, micro-batch) pairs, before its first backward.

    >>> row = [Action.parse(word) for word in "0F0 0SEND_F0 0RECV_B0 0B0".split()]
    >>> " ".join(map(str, with_recompute(row, {(0, 0)}, hoist=0)))
    '0F0 0SEND_F0 0RECV_B0 0R0 0B0'
    >>> " ".join(map(str, with_recompute(row, {(0, 0)}, hoist=1)))
    '0F0 0SEND_F0 0R0 0RECV_B0 0B0'
    """
    out: list[Element] = []
    for element in row:
        for stage, kind, microbatch in parts(element):
            if kind in (B, I) and (stage, microbatch) in pairs:
                out.insert(_place(out, stage, microbatch, hoist), Action(stage, R, microbatch))
        out.append(element)
    return tuple(out)


def uniform(rows: Sequence[Sequence[Element]], schedule: Schedule) -> bool:
    """Whether a lowered program recomputes nothing, or all right before its backward: then R is a part of B, or I.

    >>> from pipelab import build, lower
    >>> schedule = build("gpipe", ranks=2, microbatches=3)
    >>> [uniform(lower(schedule, checkpointing="full", hoist=hoist).rows, schedule) for hoist in (0, 1)]
    [True, False]
    """
    found = [(one, after) for row in rows for one, after in pairwise(row) if isinstance(one, Action) and one.kind == R]
    at_once = [R for one, after in found if {one._replace(kind=B), one._replace(kind=I)} & set(parts(after))]
    return not found or len(at_once) == schedule.stages * schedule.microbatches


def _place(row: Sequence[Element], stage: int, microbatch: int, hoist: int) -> int:
    """Where in the row R comes: at its end, or before so many waits for a gradient, the nearest being its own."""
    best = place = len(row)
    own = waits = False
    while hoist:
        element = row[place - 1]
        if isinstance(element, Action) and element.kind in (RECV_F, RECV_B, RECV_T):
            own = own or element == Action(stage, RECV_B, microbatch)
            waits = waits or element.kind == RECV_B
        elif not own:
            break  # the gradient comes from this very rank
        else:
            if waits:  # before all that is received together
                best, waits, hoist = place, False, hoist - 1
            if Action(stage, F, microbatch) in parts(element):
                break
        place -= 1
    return best
