"""Which contiguous cut is the best, by any measure? Dynamic programming, then trades, then branch and bound.

A cut is the first layer of each stage but the first, increasing. Its value may be anything, such as a simulated
makespan; the search needs a lower bound for all cuts that begin alike, and says in the end whether it has proved the
best. Read `balance` next: it says what is searched for.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from math import inf

Cut = tuple[int, ...]
ROUNDING = 1e-9  # of values closer than this the first stays: sums of the same floats in another order are equal


@dataclass(frozen=True)
class Found:
    """The best cut found, its value, a value that no cut is below, and whether those two are the same (`exact`)."""

    at: Cut
    value: float
    bound: float

    @property
    def exact(self) -> bool:
        """Whether no other cut can be better."""
        return not _better(self.bound, self.value)


def bottleneck(layers: int, stages: int, load: Callable[[int, int, int], float]) -> tuple[Cut, float]:
    """The cut whose heaviest stage is the lightest, where stage s of layers i..j-1 weighs `load(s, i, j)`.

    Exact, by dynamic programming from the last stage to the first: the best cut of a tail of the layers stays the best
    whatever stands before it. With a load that depends on s, stages may be unequal by nature, such as 1F1B's memory.

    >>> bottleneck(5, 2, lambda stage, i, j: (2 - stage) * (j - i))  # on stage 0 every layer weighs twice
    ((1,), 4)
    """
    best: dict[int, tuple[float, Cut]] = {
        start: (load(stages - 1, start, layers), ()) for start in range(stages - 1, layers)
    }
    for stage in reversed(range(stages - 1)):
        best = {
            start: min((max(load(stage, start, j), best[j][0]), (j, *best[j][1])) for j in best if j > start)
            for start in range(stage, max(best))
        }
    value, at = best[0]
    return at, value


def best_cut(
    layers: int, stages: int, starts: Iterable[Cut], *,
    value: Callable[[Cut], float], bound: Callable[[Cut], float], floor: float, effort: int, price: int,
) -> Found:  # fmt: skip
    """The cut of least `value`, from some cuts to start with.

    Each layer at a border is traded while that helps; then all cuts are enumerated, but those that cannot be better: of
    equal ones the first stays. `bound(begin)` is a lower bound for the cuts that begin with these borders, `floor` one
    for all of them. After `effort` bounds (a value costs `price` of them) the best so far is given, which is then not
    proved (`Found.exact`).

    >>> work = [1, 1, 1, 1, 4]
    >>> heaviest = lambda at: max(sum(work[: at[0]]), sum(work[at[0] :]))
    >>> best_cut(5, 2, [(1,)], value=heaviest, bound=heaviest, floor=0, effort=99, price=1)
    Found(at=(4,), value=4, bound=4)
    """
    best, at = inf, next(iter(starts := list(starts)))
    for start in starts:
        if _better(there := value(start), best):
            best, at = there, start
    while _better(floor, best):
        there, near = min(((value(near), near) for *_, near in moves(at, layers)), default=(inf, at))
        if not _better(there, best):
            break
        best, at = there, near
    left = effort
    stack: list[Cut] = [()] if stages > 1 else []
    while stack and left > 0 and _better(floor, best):
        begin = stack.pop()
        left -= 1
        if begin and not _better(bound(begin), best):
            continue
        if len(begin) == stages - 1:
            left -= price
            if _better(there := value(begin), best):
                best, at = there, begin
            continue
        first, last = (begin[-1] if begin else 0) + 1, layers - (stages - 1 - len(begin))
        stack += ((*begin, border) for border in range(last, first - 1, -1))
    return Found(at, best, floor if stack else best)


def _better(value: float, than: float) -> bool:
    """Whether it is lower, by more than rounding."""
    return value < than and (than == inf or than - value > ROUNDING * abs(than))


def moves(at: Cut, layers: int) -> Iterator[tuple[int, int, int, Cut]]:
    """(layer, from stage, to stage, new cut) for each layer beside a cut whose stage has another one.

    >>> list(moves((2,), 3))
    [(1, 0, 1, (1,))]
    """
    ends = (0, *at, layers)
    for place, border in enumerate(at):
        if border - 1 > ends[place]:
            yield border - 1, place, place + 1, (*at[:place], border - 1, *at[place + 1 :])
        if border + 1 < ends[place + 2]:
            yield border, place + 1, place, (*at[:place], border + 1, *at[place + 1 :])
