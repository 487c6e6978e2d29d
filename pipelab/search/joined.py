"""Several stages on each rank, but next to each other: is that not one stage? What one stage can do, they can, too.

With slow messages one stage a rank is shorter than a loop or a V, whose micro-batches travel the ranks more often. So
orders for one stage a rank are candidates for several, each action cut into as many. Read next: `improve`.
"""

from dataclasses import replace

from pipelab.action import Action, F
from pipelab.placement import Placement
from pipelab.search.problem import Problem, Rows
from pipelab.trace import Number


def in_a_row(ranks: int, chunks: int) -> Placement:
    """Neighbours on one rank: stage s on rank s // V.

    >>> in_a_row(2, 3).rank_of
    (0, 0, 0, 1, 1, 1)
    """
    return Placement(ranks, tuple(stage // chunks for stage in range(ranks * chunks)))


def joined(problem: Problem) -> Problem:
    """The stages of each rank, which are in a row, taken for one.

    >>> from pipelab.costs import Costs
    >>> one = joined(Problem.of(in_a_row(2, 2), 8, Costs.per_stage([1, 2, 3, 4], [1] * 4, [2] * 4, hop=5)))
    >>> one.placement.rank_of, one.F, one.W, one.hop_down, one.limits
    ((0, 1), (3, 7), (4, 4), (5,), (2, 2))
    """
    V = problem.chunks

    def total(times: tuple[Number, ...]) -> tuple[Number, ...]:
        return tuple(sum(times[first : first + V]) for first in range(0, len(times), V))

    return replace(
        problem,
        placement=Placement.loop(problem.ranks),
        F=total(problem.F),
        I=total(problem.I),
        W=total(problem.W),
        hop_down=problem.hop_down[V - 1 :: V],
        hop_up=problem.hop_up[V - 1 :: V],
        limits=tuple(limit // V for limit in problem.limits),
    )


def cut(rows: Rows, chunks: int) -> Rows:
    """Each action cut into one for every chunk: forwards go up the stages, gradients come down.

    >>> print(*cut([[Action(0, "F", 0), Action(0, "I", 0), Action(0, "W", 0)]], chunks=2)[0])
    0F0 1F0 1I0 0I0 1W0 0W0
    """
    up = range(chunks)
    return [
        [Action(stage * chunks + chunk, kind, m) for stage, kind, m in row for chunk in (up if kind == F else up[::-1])]
        for row in rows
    ]
