"""How long does a schedule take? Each action starts when its rank is free and what it needs has arrived.

`simulate` reads the compute rows and treats hops as edges; `simulate_program` plays the lowered program, message by
message. A test holds the two equal.
"""

from pipelab.action import Action, parts
from pipelab.costs import Costs
from pipelab.dependencies import GIVES, Stuck, Value, dataflow, walk
from pipelab.lower import CARRIES, RECEIVED_FROM, Program, message_flow
from pipelab.schedule import Schedule
from pipelab.trace import Number, Span, Trace
from pipelab.validate import validate


def simulate(schedule: Schedule, costs: Costs) -> Trace:
    """The trace of one step in simulated time, exact when the costs are.

    Raises ScheduleError when the schedule cannot run, ValueError when the costs do not fit it.

    >>> from pipelab import build
    >>> simulate(build("gpipe", ranks=4, microbatches=8), Costs.uniform(F=1, I=1, W=1)).makespan
    33
    """
    duration = costs.durations(schedule.placement)
    flow = dataflow(schedule.stages)
    finished: dict[Value, list[Number]] = {value: [0] * schedule.microbatches for value in flow}
    giver: dict[Value, list[Action | None]] = {value: [None] * schedule.microbatches for value in flow}
    hop = _hops(schedule, costs)
    clock: list[Number] = [0] * schedule.ranks
    spans = []
    try:
        for rank, element in walk(schedule.rows, flow, schedule.microbatches):
            start, waiting_for = clock[rank], None
            length: Number = 0
            for stage, kind, microbatch in parts(element):
                length += duration[stage, kind]
                for source in flow[stage, kind]:
                    arrival = finished[source][microbatch] + hop[stage, kind, source]
                    if arrival > start:
                        start, waiting_for = arrival, giver[source][microbatch]
            end = clock[rank] = start + length
            for action in parts(element):
                given = GIVES.get(action.kind, action.kind)
                finished[action.stage, given][action.microbatch] = end
                giver[action.stage, given][action.microbatch] = action
            spans.append(Span(rank, "compute", element, start, end, waiting_for))
    except Stuck:
        validate(schedule)
        raise
    return Trace(schedule.name, "simulated", schedule.placement.chunks_per_rank(), tuple(spans))


def simulate_program(program: Program, costs: Costs) -> Trace:
    """The trace of a lowered program: a send departs when it is reached, a receive waits until it has arrived."""
    duration = costs.durations(program.placement)
    clock: list[Number] = [0] * program.placement.ranks
    latest: dict[tuple[int, str], Action] = {}
    flying: dict[Action, tuple[Number, Action]] = {}
    waited: dict[int, Action] = {}
    spans = []
    for rank, step in walk(program.rows, message_flow(program.schedule), program.schedule.microbatches):
        now = clock[rank]
        if isinstance(step, Action) and step.kind in RECEIVED_FROM:
            arrival, giver = flying.pop(program.peer(step))
            if arrival > now:
                clock[rank], waited[rank] = arrival, giver
            spans.append(Span(rank, "recv", step, now, clock[rank], waited.get(rank)))
        elif isinstance(step, Action) and step.kind in CARRIES:
            value = step.stage, CARRIES[step.kind]
            flying[step] = now + costs.latency(value), latest[value]
            spans.append(Span(rank, "send", step, now, flying[step][0]))
        else:
            clock[rank] = now + sum(duration[action.stage, action.kind] for action in parts(step))
            latest |= {(action.stage, GIVES.get(action.kind, action.kind)): action for action in parts(step)}
            spans.append(Span(rank, "compute", step, now, clock[rank], waited.pop(rank, None)))
    return Trace(program.schedule.name, "simulated", program.placement.chunks_per_rank(), tuple(spans))


def _hops(schedule: Schedule, costs: Costs) -> dict[tuple[int, str, Value], Number]:
    """The latency between each (stage, kind) and each value it needs: none within a rank."""
    rank_of = schedule.placement.rank_of
    return {
        (stage, kind, source): 0 if rank_of[source[0]] == rank_of[stage] else costs.latency(source)
        for (stage, kind), sources in dataflow(schedule.stages).items()
        for source in sources
    }
