"""Who waits for whom? From the last note of each rank: the wait-for graph, a deadlock's cycle, and who holds all up.

A rank at `1RECV_F2` waits for `0SEND_F2` of another rank. Follow such edges: they end at a rank that waits for nobody
(it works, hangs, is dead or has gone: the culprit), or they come round in a circle (a deadlock: no rank is to blame,
their orders do not fit together). Read next: `failure`.
"""

from collections.abc import Mapping
from graphlib import CycleError, TopologicalSorter

from pipelab.flight_recorder import RUNNING, TURN, WAITING, Note

Graph = Mapping[int, tuple[int, ...]]
"""For each waiting rank, the ranks that it waits for."""


def wait_for_graph(last: Mapping[int, Note | None]) -> Graph:
    """The edges between ranks, from what each noted last.

    A peer that itself stands at what is awaited has done its part (the message is under way, or it is at the same
    collective), so there is no edge to it. Who waits for its turn waits for whoever runs.

    >>> wait_for_graph({0: Note(0, "running", "0F1"), 1: Note(0, "waiting", "1RECV_F1", "0SEND_F1", (0,))})
    {1: (0,)}
    """
    graph = {}
    running = tuple(rank for rank, note in last.items() if note is not None and note.state == RUNNING)
    for rank, note in last.items():
        if note is not None and note.state == WAITING:
            peers = running if note.awaited == TURN else note.peers
            graph[rank] = tuple(peer for peer in peers if peer != rank and not _is_there(last.get(peer), note))
    return graph


def _is_there(peer: Note | None, note: Note) -> bool:
    return peer is not None and peer.state == WAITING and peer.action == note.awaited


def cycle(graph: Graph) -> tuple[int, ...]:
    """The ranks of a circle, from its lowest rank on, each waiting for the next; () where there is none.

    >>> cycle({0: (1,), 1: (2,), 2: (1,)})
    (1, 2)
    """
    sorter = TopologicalSorter[int](dict.fromkeys(sorted(graph), ()))
    for rank, peers in graph.items():
        for peer in peers:
            sorter.add(peer, rank)
    try:
        sorter.prepare()
    except CycleError as error:
        *found, _ = error.args[1]  # it ends where it begins
        first = found.index(min(found))
        return (*found[first:], *found[:first])
    return ()


def holding_up(graph: Graph) -> tuple[int, ...]:
    """The ranks that are waited for and wait for nobody, the one that most ranks wait for (through others too) first.

    >>> holding_up({0: (1,), 1: (2,), 3: (2,), 4: (5,)})
    (2, 5)
    """
    awaited = {peer for peers in graph.values() for peer in peers}
    roots = [rank for rank in awaited if not graph.get(rank)]
    behind = {rank: sum(rank in _reached(waiting, graph) for waiting in graph) for rank in roots}
    return tuple(sorted(roots, key=lambda rank: (-behind[rank], rank)))


def _reached(rank: int, graph: Graph) -> set[int]:
    reached, ahead = set(), [rank]
    while ahead:
        new = [peer for one in ahead for peer in graph.get(one, ()) if peer not in reached]
        reached.update(new)
        ahead = new
    return reached
