"""Which chain of actions and messages made it so late? It is read backwards, without a gap. Read next: `idle`."""

from collections.abc import Iterator
from typing import NamedTuple

from pipelab.action import Element, parts
from pipelab.explain.replay import Need, Steps, result
from pipelab.trace import Number
from pipelab.units import origin


class Leg(NamedTuple):
    """One piece of a chain: `work` on a rank, a `hop` of a result to another one, or `nothing` that the trace shows.

    For a hop, `rank` and `action` are the sender and what it had done.
    """

    kind: str
    rank: int
    action: Element
    start: Number
    end: Number

    @property
    def length(self) -> Number:
        """How long it took."""
        return self.end - self.start


def critical_path(steps: Steps) -> tuple[Leg, ...]:
    """The chain that ends with the step: legs in the order of time, whose lengths sum to the makespan.

    Where two chains are equally long, the one that stays on its rank is taken.

    >>> from pipelab import Costs, build, simulate
    >>> path = critical_path(Steps.of(simulate(build("gpipe", ranks=2, microbatches=2), Costs.uniform(hop=1))))
    >>> [f"{leg.action} {leg.kind} {leg.length}" for leg in path]
    ['0F0 work 1', '0F0 hop 1', '1F0 work 1', '1F1 work 1', '1B0 work 2', '1B0 hop 1', '0B0 work 2', '0B1 work 2']
    """
    last = max(range(len(steps.spans)), key=lambda place: (steps.spans[place].end, steps.spans[place].start))
    span = steps.spans[last]
    legs = [Leg("work", span.rank, span.action, span.start, span.end), *_backwards(steps, last, origin(steps.trace))]
    return tuple(leg for leg in reversed(legs) if leg.end > leg.start)


def chain_before(steps: Steps, place: int, since: Number) -> tuple[Leg, ...]:
    """What went on, from `since` until span `place` started, in the chain that it waited for: legs without a gap."""
    return tuple(leg for leg in reversed([*_backwards(steps, place, since)]) if leg.end > leg.start)


def _backwards(steps: Steps, place: int, since: Number) -> Iterator[Leg]:
    """From the start of span `place` back to `since`: what it waited for, then what that waited for, and so on."""
    until, seen = steps.spans[place].start, {place}
    while until > since:
        span, need = steps.spans[place], _binding(steps, place)
        if need is None or need.giver in seen:
            yield Leg("nothing", span.rank, span.action, since, until)
            return
        place = need.giver
        giver = steps.spans[place]
        seen.add(place)
        done = min(max(giver.end, since), until)  # clocks of two machines may differ by more than a hop
        if done < until:
            yield Leg("hop" if need.message else "nothing", giver.rank, giver.action, done, until)
        begun = min(max(giver.start, since), done)
        yield Leg("work", giver.rank, giver.action, begun, done)
        until = begun


def _binding(steps: Steps, place: int) -> Need | None:
    """What a span started right after: what it says that it waited for, or else what was done last."""
    span, before = steps.spans[place], steps.before[place]
    named = None if span.waiting_for is None else result(span.waiting_for)
    for need in steps.needs[place] if named else ():
        if named in [result(action) for action in parts(steps.spans[need.giver].action)]:
            return need
    candidates = [*([] if before is None else [Need(before, None)]), *steps.needs[place]]
    return max(candidates, key=lambda need: steps.spans[need.giver].end, default=None)
