"""How long does a schedule take? Each action starts when its rank is free and what it needs has arrived.

`simulate` reads the compute rows and treats hops as edges; `simulate_program` plays the lowered program, message by
message. A test holds the two equal.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from fractions import Fraction
from itertools import chain
from math import lcm
from numbers import Rational

from pipelab.action import REDUCE, Action, Element, U, parts
from pipelab.costs import Costs, Durations
from pipelab.dependencies import carried_over, dataflow, gives
from pipelab.engine import CarriedOver, Inputs, Stuck, play
from pipelab.lower import CARRIES, RECEIVED_FROM, Program, message_flow
from pipelab.placement import Placement
from pipelab.schedule import Schedule
from pipelab.trace import Number, Span, Trace, in_time
from pipelab.validate import complete, validate

LANES_ASIDE = {U: "memory", REDUCE: "collective"}


def simulate(schedule: Schedule, costs: Costs) -> Trace:
    """The trace of one step in simulated time, exact when the costs are.

    Raises ScheduleError when the schedule cannot run, ValueError when the costs do not fit it.

    >>> from pipelab import build
    >>> simulate(build("gpipe", ranks=4, microbatches=8), Costs.uniform(F=1, I=1, W=1)).makespan
    33
    """
    if not complete(schedule):
        validate(schedule)
    inputs = arrivals(schedule.placement, costs, schedule.groups)
    durations, carried = costs.durations(schedule.placement), carried_over(schedule.stages, schedule.groups)
    try:
        rows, ticks = _play_in_ticks(schedule.rows, inputs, durations, schedule.microbatches, carried)
    except Stuck:
        validate(schedule)
        raise
    return Trace(schedule.name, "simulated", schedule.placement.chunks_per_rank(), tuple(chain(*rows)), ticks)


def arrivals(placement: Placement, costs: Costs, groups: int = 0) -> Inputs:
    """For each (stage, kind) what it needs, and how long that is on its way: a hop between ranks, nothing within one.

    >>> arrivals(Placement.loop(2), Costs.uniform(hop=3))[1, "B"]
    [((1, 'F'), 0)]
    """
    rank_of = placement.rank_of
    return {
        (stage, kind): [
            (source, 0 if rank_of[source[0]] == rank_of[stage] else costs.latency(source)) for source in sources
        ]
        for (stage, kind), sources in dataflow(placement.stages, groups).items()
    }


def simulate_program(program: Program, costs: Costs) -> Trace:
    """The trace of a lowered program: a send departs when it is reached, a receive waits until it has arrived."""
    schedule = program.schedule
    inputs = {
        value: [(send, costs.latency((send[0], CARRIES[send[1]]))) for send in sends]
        for value, sends in message_flow(schedule).items()
    }
    beside = {*CARRIES, *RECEIVED_FROM, U, REDUCE}
    instant = {(stage, kind): 0 for stage, kind in inputs if kind in beside}
    durations = Durations({**costs.durations(schedule.placement), **instant})
    rows, ticks = _play_in_ticks(program.rows, inputs, durations, schedule.microbatches)
    givers = dict(chain(*(_givers(row, schedule) for row in program.rows)))
    spans = tuple(chain(*(_in_lanes(in_time(row, ticks), givers, costs) for row in rows)))
    return Trace(schedule.name, "simulated", schedule.placement.chunks_per_rank(), spans)


def _givers(row: Sequence[Element], schedule: Schedule) -> Iterator[tuple[Action, Action]]:
    """For each send of a row, the action whose result it carries."""
    made: dict[Action, Action] = {}
    for action in chain(*map(parts, row)):
        if action.kind in CARRIES:
            yield action, made.pop(Action(action.stage, CARRIES[action.kind], action.microbatch))
        else:
            made[gives(action, schedule.stages, schedule.groups)] = action


def _in_lanes(row: Iterable[Span], givers: Mapping[Action, Action], costs: Costs) -> Iterator[Span]:
    """Messages in lanes of their own: a send lasts until it arrives, a receive as long as its rank waited.

    So are updates and reductions, which take no time here.
    """
    clock: Number = 0
    waited: Action | None = None
    for span in row:
        step = span.action
        if isinstance(step, Action) and step.kind in RECEIVED_FROM:
            giver = None if span.waiting_for is None else givers[span.waiting_for]
            waited = giver or waited
            yield span._replace(lane="recv", start=clock, waiting_for=giver)
        elif isinstance(step, Action) and step.kind in CARRIES:
            yield span._replace(lane="send", end=span.end + costs.latency((step.stage, CARRIES[step.kind])))
        elif isinstance(step, Action) and step.kind in LANES_ASIDE:
            yield span._replace(lane=LANES_ASIDE[step.kind])
        else:
            yield span._replace(waiting_for=waited)
            waited = None
        clock = span.end


def _play_in_ticks(
    rows: Sequence[Sequence[Element]], inputs: Inputs, durations: Durations, microbatches: int,
    carried: CarriedOver = {},  # noqa: B006 (read only)
) -> tuple[list[list[Span]], int]:  # fmt: skip
    """`play`, with exact fractions counted in ticks, so many to one unit of time: whole numbers are much faster."""
    times = [*durations.values(), *(latency for needed in inputs.values() for _, latency in needed)]
    exact = all(isinstance(time, Rational) for time in times)
    ticks = lcm(*(Fraction(time).denominator for time in times)) if exact else 1
    if ticks > 1:
        durations = Durations({value: int(time * ticks) for value, time in durations.items()})
        inputs = {value: [(need, int(delay * ticks)) for need, delay in needed] for value, needed in inputs.items()}
    return play(rows, inputs, durations, microbatches, carried), ticks
