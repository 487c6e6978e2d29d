"""What may each rank do now, and what holds it up? A trace, one action after the other.

A schedule being built is looked at in the same way: see `draft`.
"""

from typing import NamedTuple

from pipelab.action import Action, parts
from pipelab.dependencies import GIVES, needs
from pipelab.trace import Number, Span, Trace
from pipelab.units import Unit, origin, rank_of, time_unit


class Standing(NamedTuple):
    """Where a rank stands: `state` is running, ready, blocked or finished; `span` its current or next, if any."""

    rank: int
    state: str
    span: Span | None
    why: str

    def __str__(self) -> str:
        return f"rank {self.rank}: {self.why}"


def in_order(trace: Trace) -> list[Span]:
    """All compute spans as they end; at one time the lower rank first.

    >>> from pipelab import Costs, build, simulate
    >>> [str(span.action) for span in in_order(simulate(build("gpipe", 2, 1), Costs.uniform()))]
    ['0F0', '1F0', '1B0', '0B0']
    """
    return sorted((span for row in trace.compute for span in row), key=lambda span: (span.end, span.rank))


def moment(trace: Trace, done: int) -> Number:
    """The time at which so many actions have just ended."""
    return in_order(trace)[done - 1].end if done else origin(trace)


def standings(trace: Trace, done: int) -> list[Standing]:
    """What every rank does once the first `done` actions have ended, and why it does not do more.

    >>> from pipelab import Costs, build, simulate
    >>> for standing in standings(simulate(build("1f1b", ranks=2, microbatches=2), Costs.uniform()), done=3):
    ...     print(standing)
    rank 0: blocked: 0B0 needs 1B0, which rank 1 has not begun
    rank 1: ready: 1B0 starts now
    """
    order = in_order(trace)
    ended = {action for span in order[:done] for action in parts(span.action)}
    now, unit = moment(trace, done), time_unit([trace])
    written = {
        Action(action.stage, GIVES.get(action.kind, action.kind), action.microbatch): (span, action)
        for span in order
        for action in parts(span.action)
    }
    stages = 1 + max((action.stage for _, action in written.values()), default=0)
    return [_standing(rank, row, ended, now, written, stages, unit, trace) for rank, row in enumerate(trace.compute)]


def _standing(
    rank: int,
    row: tuple[Span, ...],
    ended: set[Action],
    now: Number,
    written: dict[Action, tuple[Span, Action]],
    stages: int,
    unit: Unit,
    trace: Trace,
) -> Standing:
    span = next((span for span in row if not ended.issuperset(parts(span.action))), None)
    if span is None:
        return Standing(rank, "finished", None, "finished: its row is at its end")
    first = origin(trace)
    if span.start < now:
        when = "ends now" if span.end == now else f"until {unit.text(span.end - first)}"
        return Standing(rank, "running", span, f"running: {span.action} {when}")
    home = rank_of(trace)
    own = set(parts(span.action))
    for action in parts(span.action):
        for need in needs(action, stages):
            giver, given = written.get(need, (None, need))
            if given not in ended and given not in own:
                what = "has not begun" if giver is None or giver.start >= now else "is busy with"
                which = f"which rank {home.get(given.stage, '?')} {what}"
                until = "" if what == "has not begun" or giver is None else f" until {unit.text(giver.end - first)}"
                return Standing(rank, "blocked", span, f"blocked: {span.action} needs {given}, {which}{until}")
    if span.start > now:
        when = unit.text(span.start - first)
        return Standing(rank, "blocked", span, f"blocked: what {span.action} needs is on its way until {when}")
    return Standing(rank, "ready", span, f"ready: {span.action} starts now")
