"""How many compute actions a second does the simulator play, beside PyTorch's and beside a plain dictionary?

All three are given the same valid schedule; ours and the dictionary give every start and end, with a hop between ranks,
while PyTorch's counts steps over rows that already hold the messages.
"""

import time
import tracemalloc
from collections.abc import Callable, Iterator
from fractions import Fraction
from functools import partial

from pipelab.action import Action, Pair, parts
from pipelab.bench import Bench, Row
from pipelab.costs import Costs
from pipelab.dependencies import needs
from pipelab.schedule import Schedule
from pipelab.schedules import build
from pipelab.simulate import simulate
from pipelab.trace import Number

COSTS = Costs.uniform(F=1, I=1, W=1, hop=1)
FRACTIONS = Costs.uniform(F=Fraction(1, 3), I=Fraction(2, 7), W=Fraction(3, 11), hop=Fraction(1, 13))
CASES = (
    ("1f1b", 8, None, "whole", COSTS),
    ("interleaved", 8, 2, "whole", COSTS),
    ("zb-h1", 8, None, "whole", COSTS),
    ("naive", 8, None, "whole", COSTS),  # every rank waits for every action
    ("dualpipe-v", 8, None, "whole", COSTS),  # two actions in a slot
    ("1f1b", 8, None, "fractions", FRACTIONS),
)
"""Schedule, ranks, chunks and the kind of number that the costs are."""


def compare_simulators(actions: int = 100_000, peer_actions: int = 5_000) -> Iterator[Row]:
    """One row a schedule: actions a second of each simulator, and our bytes an action.

    The peers are given smaller schedules, for their time grows faster than the number of actions. A peer that this
    PyTorch does not have, or that cannot play the schedule, is None.
    """
    for name, ranks, chunks, numbers, costs in CASES:
        large, small = (_schedule(name, ranks, chunks, wanted) for wanted in (actions, peer_actions))
        yield {
            "schedule": name, "ranks": ranks, "costs": numbers, "actions": _count(large),
            "ours": _rate(large, partial(simulate, costs=costs)),
            "torch": _torch_rate(small),
            "dictionary": _rate(small, partial(dictionary_makespan, costs=costs)),
            "bytes_per_action": _bytes(small, costs),
        }  # fmt: skip


def dictionary_makespan(schedule: Schedule, costs: Costs) -> Number:
    """What one would write in a notebook: look at every rank in turn until all is done; gives the makespan."""
    end: dict[Action, Number] = {}
    position = [0] * schedule.ranks
    clock: dict[int, Number] = dict.fromkeys(range(schedule.ranks), 0)
    rank_of, durations = schedule.placement.rank_of, costs.durations(schedule.placement)
    while any(position[rank] < len(row) for rank, row in enumerate(schedule.rows)):
        for rank, row in enumerate(schedule.rows):
            if position[rank] == len(row):
                continue
            actions = parts(row[position[rank]])
            wanted = [need for action in actions for need in needs(action, schedule.stages)]
            met = {need: end.get(need, end.get(need._replace(kind="B"))) for need in wanted}
            if None in met.values():
                continue
            hops = {need: 0 if rank_of[need.stage] == rank else costs.latency((need.stage, need.kind)) for need in met}
            arrivals = [done + hops[need] for need, done in met.items() if done is not None]
            clock[rank] = max([clock[rank], *arrivals]) + sum(durations[action[:2]] for action in actions)
            end.update(dict.fromkeys(actions, clock[rank]))
            position[rank] += 1
    return max(clock.values())


def _schedule(name: str, ranks: int, chunks: int | None, actions: int) -> Schedule:
    each = _count(build(name, ranks, 1, chunks))
    return build(name, ranks, max(1, actions // each), chunks)


def _count(schedule: Schedule) -> int:
    return sum(1 for _ in schedule.actions())


def _rate(schedule: Schedule, play: Callable[[Schedule], object]) -> int:
    """Actions a second of processor time, the better of two runs."""
    seconds = []
    for _ in range(2):
        begin = time.process_time()
        play(schedule)
        seconds.append(time.process_time() - begin)
    return round(_count(schedule) / max(min(seconds), 1e-9))


def _bytes(schedule: Schedule, costs: Costs) -> int:
    """The most that is allocated for each action while its schedule is simulated, beside the schedule itself."""
    tracemalloc.start()
    simulate(schedule, costs)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return round(peak / _count(schedule))


def _torch_rate(schedule: Schedule) -> int | None:
    """PyTorch's own simulator (a private name, so it may be absent); it plays no pairs."""
    try:
        from torch.distributed.pipelining.schedules import _Action, _add_send_recv, _simulate_comms_compute
    except ImportError:
        return None
    rank_of = schedule.placement.rank_of.__getitem__
    if any(isinstance(element, Pair) for row in schedule.rows for element in row):
        return None
    rows = {rank: [_Action.from_str(str(each)) for each in row] for rank, row in enumerate(schedule.rows)}
    program = _add_send_recv(rows, rank_of, schedule.stages)
    return _rate(schedule, lambda _: _simulate_comms_compute(program, rank_of, schedule.stages))


BENCH = Bench(
    "actions a second (processor time)",
    {"schedule": "{}", "ranks": "{}", "costs": "{}", "ours": "{:,}", "torch": "{:,}", "dictionary": "{:,}",
     "bytes_per_action": "{:,}"},
    lambda options: (compare_simulators(options.actions), len(CASES)),
)  # fmt: skip
