"""Which single change would help most? Each one is simulated, with the times that the trace shows. Read next: `words`.

Where the trace cannot tell, something is assumed, and `Change.assumes` says what: that a stage's work is spread evenly
over its part of the model, that half a micro-batch takes half the time (and its message as long as before), that B
splits into equal halves I and W at no cost, that what is recomputed is recomputed right before its backward.
"""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from fractions import Fraction
from typing import NamedTuple

from pipelab.action import Action, B, Element, F, I, R, W, parts
from pipelab.costs import Costs, middle, share
from pipelab.dependencies import Value
from pipelab.explain.idle import Replays
from pipelab.explain.replay import Steps
from pipelab.explain.times import hop_times, own_times
from pipelab.placement import Placement
from pipelab.schedule import Schedule
from pipelab.schedules import SCHEDULES, build, chunks_of, resized
from pipelab.simulate import simulate
from pipelab.trace import Number, Trace, plain
from pipelab.validate import complete

MOST_ACTIONS = 20_000
MOST_SEARCHED = 1024
OTHER_TRAINING = ("pipedream", "inference")
"""Not proposed, and nothing in their place: what is trained is not the same."""


class Change(NamedTuple):
    """One change, simulated: `gain` is how much shorter the step gets, `peak` what the fullest rank then holds.

    The peak is in micro-batches of the size that the trace has; `assumes` is what the trace could not tell.
    """

    what: str
    trace: Trace
    gain: Number
    peak: Number
    assumes: str = ""


class Model(NamedTuple):
    """What a trace tells of the model and the machine: the rows, the work of each stage, and the messages."""

    schedule: Schedule
    work: dict[str, list[Number]]
    hops: dict[Value, Number]

    def costs(self, placement: Placement, parts: int = 1) -> Costs:
        """The costs of the model, cut into as many stages as this placement has, each micro-batch into `parts`."""
        work = {
            kind: [share(time, parts) for time in recut(times, placement.stages)] for kind, times in self.work.items()
        }
        costs = Costs.per_stage(**work, hop=middle([*self.hops.values()]) if self.hops else 0)
        return Costs(costs.work, self.hops) if placement == self.schedule.placement else costs


def changes(steps: Steps, replays: Replays) -> tuple[tuple[Change, ...], tuple[str, ...]]:
    """Every change that was tried, the one that helps most first, and notes on what could not be tried.

    The gain is from the replay, so that jitter, which no change removes, is not counted as gain.

    >>> from pipelab import Costs, build, simulate
    >>> steps = Steps.of(simulate(build("1f1b", ranks=4, microbatches=8), Costs.uniform(hop=1)))
    >>> tried, notes = changes(steps, Replays.of(steps))
    >>> {change.what: change.gain for change in tried}["messages that take no time"]
    16
    """
    steady = replays.steady
    tried: list[Change] = []
    if replays.even.makespan != steady.makespan:
        tried.append(_change("stages of equal work", steady, replays.even))
    if hop_times(steps) and any(hop_times(steps).values()):
        tried.append(_change("messages that take no time", steady, steps.replay(own_times(steps), {})))
    notes: list[str] = []
    try:
        model = read_model(steps)
        if steps.trace.schedule in OTHER_TRAINING:
            raise ValueError(f"none of them trains as {steps.trace.schedule} does")
        tried += _more_microbatches(steady, model)
        tried += _other_schedules(steps, steady, model)
    except ValueError as error:
        notes.append(f"Other schedules were not tried: {error}.")
    tried.sort(key=lambda change: (-Fraction(change.gain), Fraction(change.peak)))
    return tuple(tried), tuple(notes)


def recut(times: Sequence[Number], stages: int) -> list[Number]:
    """The times of the same model in another number of stages: each old stage's work lies evenly over its depth.

    >>> recut([1, 1, 1, 2], 8)[-2:], recut([1, 3], 1)
    ([1, 1], [4])
    """
    old = len(times)
    cut = []
    for stage in range(stages):
        top, bottom = Fraction(stage * old, stages), Fraction((stage + 1) * old, stages)
        inside = range(int(top), min(old, int(bottom) + 1))
        cut.append(plain(sum((min(bottom, Fraction(k + 1)) - max(top, Fraction(k))) * times[k] for k in inside)))
    return cut


def rows_of(trace: Trace) -> Schedule:
    """The schedule that a trace ran: its rows, without what was recomputed, and its placement.

    >>> from pipelab import Costs, build, simulate
    >>> schedule = build("zb-v", ranks=2, microbatches=3)
    >>> rows_of(simulate(schedule, Costs.uniform())) == schedule
    True
    """
    rows = tuple(tuple(span.action for span in row if span.action[1] != R) for row in trace.compute)
    return Schedule.from_rows(trace.schedule, rows)


def read_model(steps: Steps) -> Model:
    """The work of each stage by F, I (with R) and W. Raises ValueError when the trace is not of a whole step."""
    schedule = rows_of(steps.trace)
    if schedule.forward_only or not complete(schedule):
        raise ValueError("the trace does not have a forward and a backward of every stage and micro-batch")
    if len(steps.spans) > MOST_ACTIONS:
        raise ValueError(f"the trace has more than {MOST_ACTIONS} actions")
    known, again = _known_times(steps), _recomputing(steps)
    work: dict[str, list[Number]] = {F: [], I: [], W: []}
    for stage in range(schedule.stages):
        forward, whole, half, weight = (known.get((stage, kind)) for kind in (F, B, I, W))
        if half is None or weight is None:
            if whole is None:
                raise ValueError(f"the trace does not tell how long a backward of stage {stage} takes by itself")
            half = weight = share(whole, 2)
        if forward is None:
            raise ValueError(f"the trace does not tell how long a forward of stage {stage} takes by itself")
        for kind, time in ((F, forward), (I, half + share(again[stage], schedule.microbatches)), (W, weight)):
            work[kind].append(time)
    return Model(schedule, work, hop_times(steps))


def _recomputing(steps: Steps) -> dict[int, Number]:
    """The time of all R of each stage."""
    total: dict[int, Number] = defaultdict(int)
    for span, time in zip(steps.spans, own_times(steps), strict=True):
        if isinstance(span.action, Action) and span.action.kind == R:
            total[span.action.stage] += time
    return total


def _known_times(steps: Steps) -> dict[Value, Number]:
    """The median time of each stage and kind; what occurs in pairs only, from a pair whose other half is known."""
    medians: dict[Element, Number] = {}
    for span, time in zip(steps.spans, own_times(steps), strict=True):
        medians[span.action] = time
    known: dict[Value, Number] = {a[:2]: time for a, time in medians.items() if isinstance(a, Action)}
    for element, time in medians.items():
        halves = [action[:2] for action in parts(element)]
        for own, other in ((halves[0], halves[-1]), (halves[-1], halves[0])):
            if own not in known and other in known:
                known[own] = max(time - known[other], 0)
    return known


def _change(what: str, steady: Trace, trace: Trace, size: int = 1, assumes: str = "") -> Change:
    peak = share(max(trace.peak_in_flight), size)
    return Change(what, trace, plain(steady.makespan - trace.makespan), peak, assumes)


def _more_microbatches(steady: Trace, model: Model) -> Iterator[Change]:
    """The same batch in twice as many micro-batches, where the rows are those of a name."""
    known = model.schedule
    if (schedule := resized(known, known.ranks, 2 * known.microbatches)) is not None:
        trace = simulate(schedule, model.costs(schedule.placement, parts=2))
        what = f"the same batch in {schedule.microbatches} micro-batches instead of {known.microbatches}"
        yield _change(what, steady, trace, 2, "half a micro-batch takes half the time")


def _other_schedules(steps: Steps, steady: Trace, model: Model) -> Iterator[Change]:
    known = model.schedule
    has_split = any(action.kind == I for _, _, action in known.actions())
    recomputes = bool(_recomputing(steps))
    chunks = known.stages // known.ranks
    for schedule in _schedules(steps, model, sorted({2, max(chunks, 2)})):
        if schedule.rows == known.rows or not complete(schedule):
            continue
        trace = simulate(schedule, model.costs(schedule.placement))
        splits = not has_split and any(action.kind == I for _, _, action in schedule.actions())
        new = schedule.stages // schedule.ranks
        needs = [f"{new} chunk{'s' * (new > 1)} a rank"] * (new != chunks) + ["the backward split"] * splits
        assumes = ["stages can be cut in equal parts"] * (new > chunks) + [
            "B splits into equal halves at no cost"
        ] * splits
        assumes += ["what is recomputed is recomputed right before its backward"] * recomputes
        what = schedule.name + f" ({', '.join(needs)})" * bool(needs)
        yield _change(what, steady, trace, 1, " and ".join(assumes))


def _schedules(steps: Steps, model: Model, many: Sequence[int]) -> Iterator[Schedule]:
    """The named schedules of the same shape, with the same number of micro-batches."""
    P, M = model.schedule.ranks, model.schedule.microbatches
    for name in SCHEDULES:
        if name == "zb-auto":
            if P * M <= MOST_SEARCHED:
                costs = model.costs(Placement.loop(P))
                limit = max(1, *steps.trace.peak_in_flight)
                yield build(name, P, M, costs=costs, memory_limit=limit, objective="step")
        elif name not in OTHER_TRAINING:
            for chunks in many if chunks_of(name) == "any" else [None]:
                yield build(name, P, M, chunks)
