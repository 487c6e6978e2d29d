"""The wait-for graph finds the circle of a deadlock, or the rank that holds the others up."""

import itertools

from hypothesis import given
from hypothesis import strategies as st

import pipelab as pl
from pipelab.flight_recorder import TURN, Note
from pipelab.lower import lower
from pipelab.wait_for import cycle, holding_up, wait_for_graph


def waiting(action, awaited, *peers):
    return Note(0.0, "waiting", action, awaited, peers)


def running(action):
    return Note(0.0, "running", action)


def test_a_chain_ends_at_the_rank_that_works():
    graph = wait_for_graph(
        {0: waiting("0RECV_B0", "1SEND_B0", 1), 1: waiting("1RECV_B0", "2SEND_B0", 2), 2: running("2F0")}
    )
    assert graph == {0: (1,), 1: (2,)}
    assert (cycle(graph), holding_up(graph)) == ((), (2,))


def test_a_message_under_way_is_no_circle():
    """Under a rendezvous the sender waits too: both are there, and neither holds the other up."""
    graph = wait_for_graph({0: waiting("0SEND_F0", "1RECV_F0", 1), 1: waiting("1RECV_F0", "0SEND_F0", 0)})
    assert graph == {0: (), 1: ()} and cycle(graph) == ()


def test_two_ranks_that_both_send_first_are_a_deadlock():
    graph = wait_for_graph({0: waiting("0SEND_F1", "1RECV_F1", 1), 1: waiting("1SEND_B0", "0RECV_B0", 0)})
    assert cycle(graph) == (0, 1)


def test_a_collective_waits_for_those_that_have_not_come():
    everyone = (0, 1, 2)
    graph = wait_for_graph(
        {0: waiting("0REDUCE", "0REDUCE", *everyone), 1: waiting("0REDUCE", "0REDUCE", *everyone), 2: running("0W3")}
    )
    assert graph == {0: (2,), 1: (2,)} and holding_up(graph) == (2,)


def test_a_rank_that_most_wait_for_comes_first():
    graph = {0: (1,), 1: (2,), 3: (4,)}
    assert holding_up(graph) == (2, 4)


@given(st.dictionaries(st.integers(0, 6), st.lists(st.integers(0, 6), max_size=3).map(tuple), max_size=7))
def test_a_circle_is_found_exactly_when_there_is_one(graph):
    found = cycle(graph)
    for rank, peer in zip(found, (*found[1:], *found[:1]), strict=True):
        assert peer in graph[rank]
    left = dict(graph)  # take away, again and again, the ranks that wait for nobody who waits
    while free := [rank for rank, peers in left.items() if not any(peer in left for peer in peers)]:
        for rank in free:
            del left[rank]
    assert bool(found) == bool(left)


def test_in_every_moment_of_a_legal_program_somebody_works():
    """Whatever ranks have been stopped where: there is no circle in a schedule that passed the validator."""
    program = lower(pl.build("1f1b", ranks=3, microbatches=4))
    rank_of = program.placement.rank_of
    positions = [[0] + [n + 1 for n, step in enumerate(row) if step.kind.startswith("RECV")] for row in program.rows]
    for stop in itertools.product(*positions):
        last = {}
        for rank, position in enumerate(stop):
            step = program.rows[rank][max(position - 1, 0)]
            peer = program.peer(step) if step.kind.startswith("RECV") else None
            sent = peer is not None and peer in program.rows[rank_of[peer.stage]][: stop[rank_of[peer.stage]]]
            last[rank] = waiting(str(step), str(peer), rank_of[peer.stage]) if peer and not sent else running(str(step))
        graph = wait_for_graph(last)
        assert cycle(graph) == ()
        assert not graph or holding_up(graph)


def test_who_waits_for_its_turn_waits_for_the_rank_that_runs():
    # In virtual time ranks compute one at a time: rank 2 hangs in the midst of its work, and rank 1 would have more.
    last = {0: waiting("0RECV_B0", "1SEND_B0", 1), 1: waiting("1B0", TURN), 2: running("2F3")}
    assert wait_for_graph(last) == {0: (1,), 1: (2,)}
    assert holding_up(wait_for_graph(last)) == (2,)
