"""Which orders are published? The named schedules, their backwards split. Read next: `greedy`.

With I and then W at once in the place of B, a gradient leaves earlier and all else stays: never longer than with B,
and no memory more. The two halves of an overlapped pair, one after the other, are never later than the pair either.
"""

from collections.abc import Iterator
from itertools import takewhile

from pipelab.action import Action, B, Element, I, W, parts
from pipelab.placement import Placement
from pipelab.schedule import Schedule
from pipelab.schedules.dualpipe_v import dualpipe_v
from pipelab.schedules.gpipe import gpipe
from pipelab.schedules.interleaved import interleaved
from pipelab.schedules.looped_bfs import looped_bfs
from pipelab.schedules.naive import naive
from pipelab.schedules.one_f_one_b import one_f_one_b
from pipelab.schedules.v_shape import one_f_one_b_v, v_half, v_min
from pipelab.schedules.zb_v import zb_v
from pipelab.schedules.zero_bubble import interleaved_zb, zb_h1, zb_h2
from pipelab.search.problem import Problem, Rows

ONE_STAGE = (naive, gpipe, one_f_one_b, zb_h1, zb_h2)
LOOPED = (looped_bfs, interleaved, interleaved_zb)
V_SHAPED = (zb_v, v_half, v_min, one_f_one_b_v, dualpipe_v)


def words(problem: Problem) -> Iterator[Rows]:
    """The published orders of this shape; with several chunks a rank also for the micro-batches in small groups.

    A group of g is done before the next one begins, so that it never holds more than g. One at a time always fits.

    >>> from pipelab.placement import Placement
    >>> for rows in words(Problem.of(Placement.loop(2), 3)):
    ...     print("".join(action.kind for action in rows[0]))
    FIWFIWFIW
    FFFIWIWIW
    FFIWFIWIW
    FFIWFIWIW
    FFFIWIWIW
    """
    M = problem.microbatches
    groups = (
        [M]
        if problem.chunks == 1
        else [M, *takewhile(lambda size: size < M and size <= problem.ranks, (4**n for n in range(M)))]
    )
    for size in groups:
        wholes = list(_named(problem, size))
        rests = list(_named(problem, M % size)) if M % size else wholes
        for whole, rest in zip(wholes, rests, strict=True):
            blocks = [whole] * (-(-M // size) - 1) + [rest]
            yield [_in_turn([block.rows[rank] for block in blocks], size) for rank in range(problem.ranks)]


def _named(problem: Problem, microbatches: int) -> Iterator[Schedule]:
    """The named schedules with this placement."""
    P, V = problem.ranks, problem.chunks
    if V == 1:
        yield from (generate(P, microbatches) for generate in ONE_STAGE)
        return
    if problem.placement == Placement.loop(P, V):
        yield from (generate(P, microbatches, V) for generate in LOOPED)
    if problem.placement == Placement.vee(P):
        yield from (generate(P, microbatches) for generate in V_SHAPED)


def _in_turn(blocks: list[tuple[Element, ...]], size: int) -> list[Action]:
    """One rank's rows of groups of so many micro-batches, one after the other, in F, I and W."""
    return [
        Action(stage, half, number * size + microbatch)
        for number, row in enumerate(blocks)
        for element in row
        for stage, kind, microbatch in parts(element)
        for half in (I + W if kind == B else kind)
    ]
