"""What may each rank do now, and what holds it up? A trace, one action after the other.

A schedule being built is looked at in the same way: see `draft`.
"""

from typing import NamedTuple

from pipelab.action import Action, parts
from pipelab.dependencies import GIVES, needs
from pipelab.trace import Number, Span, Trace
from pipelab.units import origin, rank_of, time_unit


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
    order, now, home = in_order(trace), moment(trace, done), rank_of(trace)
    ended = {action for span in order[:done] for action in parts(span.action)}
    written = {
        Action(action.stage, GIVES.get(action.kind, action.kind), action.microbatch): (span, action)
        for span in order
        for action in parts(span.action)
    }
    stages = 1 + max((action.stage for _, action in written.values()), default=0)

    def told(time: Number) -> str:
        return time_unit([trace]).text(time - origin(trace))

    def missing(span: Span) -> str | None:
        """The first need that has not ended, and what its rank does."""
        own = parts(span.action)
        for need in (need for action in own for need in needs(action, stages)):
            giver, given = written.get(need, (None, need))
            if given not in ended and given not in own:
                busy = giver is not None and giver.start < now
                state = f"is busy with until {told(giver.end)}" if giver is not None and busy else "has not begun"
                return f"{span.action} needs {given}, which rank {home.get(given.stage, '?')} {state}"
        return None

    def standing(rank: int, row: tuple[Span, ...]) -> Standing:
        span = next((span for span in row if not ended.issuperset(parts(span.action))), None)
        if span is None:
            return Standing(rank, "finished", None, "finished: its row is at its end")
        if span.start < now:
            when = "ends now" if span.end == now else f"until {told(span.end)}"
            return Standing(rank, "running", span, f"running: {span.action} {when}")
        if why := missing(span):
            return Standing(rank, "blocked", span, f"blocked: {why}")
        if span.start > now:
            why = f"what {span.action} needs is on its way until {told(span.start)}"
            return Standing(rank, "blocked", span, f"blocked: {why}")
        return Standing(rank, "ready", span, f"ready: {span.action} starts now")

    return [standing(rank, row) for rank, row in enumerate(trace.compute)]
