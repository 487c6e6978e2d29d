"""How many compute actions a second does the simulator play, beside PyTorch's and beside a plain dictionary?

All three are given the same valid schedule; ours and the dictionary give every start and end, with a hop between ranks,
while PyTorch's counts steps over rows that already hold the messages.
"""

import time
import tracemalloc
from collections.abc import Callable
from typing import Any

from pipelab.action import Action
from pipelab.costs import Costs
from pipelab.dependencies import needs
from pipelab.schedule import Schedule
from pipelab.schedules import build
from pipelab.simulate import simulate

SHAPES = (("1f1b", 8, 1), ("interleaved", 8, 2), ("zb-h1", 8, 1))
COSTS = Costs.uniform(F=1, I=1, W=1, hop=1)


def compare_simulators(actions: int = 100_000, peer_actions: int = 5_000) -> list[dict[str, Any]]:
    """One row a schedule: actions a second of each simulator, and our bytes an action.

    The peers are given smaller schedules, for their time grows faster than the number of actions. A peer that this
    PyTorch does not have is None.
    """
    rows = []
    for name, ranks, chunks in SHAPES:
        large, small = (_schedule(name, ranks, chunks, wanted) for wanted in (actions, peer_actions))
        rows.append(
            {
                "schedule": name,
                "ranks": ranks,
                "actions": _count(large),
                "ours": _rate(large, lambda schedule: simulate(schedule, COSTS)),
                "torch": _torch_rate(small),
                "dictionary": _rate(small, dictionary_makespan),
                "bytes_per_action": _bytes(small),
            }
        )
    return rows


def dictionary_makespan(schedule: Schedule, hop: int = 1) -> int:
    """What one would write in a notebook: look at every rank in turn until all is done; gives the makespan."""
    end: dict[Action, int] = {}
    position, clock = [0] * schedule.ranks, [0] * schedule.ranks
    rank_of = schedule.placement.rank_of
    while any(position[rank] < len(row) for rank, row in enumerate(schedule.rows)):
        for rank, row in enumerate(schedule.rows):
            if position[rank] == len(row):
                continue
            action: Any = row[position[rank]]
            met = {need: end.get(need, end.get(need._replace(kind="B"))) for need in needs(action, schedule.stages)}
            if None in met.values():
                continue
            arrivals = [done + hop * (rank_of[need.stage] != rank) for need, done in met.items() if done is not None]
            clock[rank] = max([clock[rank], *arrivals]) + (2 if action.kind == "B" else 1)
            end[action] = clock[rank]
            position[rank] += 1
    return max(clock)


def _schedule(name: str, ranks: int, chunks: int, actions: int) -> Schedule:
    kinds = 3 if name == "zb-h1" else 2
    return build(name, ranks, max(1, actions // (kinds * ranks * chunks)), chunks)


def _count(schedule: Schedule) -> int:
    return sum(map(len, schedule.rows))


def _rate(schedule: Schedule, play: Callable[[Schedule], object]) -> int:
    """Actions a second of processor time, the better of two runs."""
    seconds = []
    for _ in range(2):
        begin = time.process_time()
        play(schedule)
        seconds.append(time.process_time() - begin)
    return round(_count(schedule) / max(min(seconds), 1e-9))


def _bytes(schedule: Schedule) -> int:
    """What a trace holds for each action of its schedule, beside the schedule itself."""
    tracemalloc.start()
    trace = simulate(schedule, COSTS)
    held, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return round(held / len(trace.spans))


def _torch_rate(schedule: Schedule) -> int | None:
    """PyTorch's own simulator (a private name, so it may be absent)."""
    try:
        from torch.distributed.pipelining.schedules import _Action, _add_send_recv, _simulate_comms_compute
    except ImportError:
        return None
    rank_of = schedule.placement.rank_of.__getitem__
    rows = {rank: [_Action.from_str(str(each)) for each in row] for rank, row in enumerate(schedule.rows)}
    program = _add_send_recv(rows, rank_of, schedule.stages)
    return _rate(schedule, lambda _: _simulate_comms_compute(program, rank_of, schedule.stages))
