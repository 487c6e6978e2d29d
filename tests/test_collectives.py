"""Ranks of one axis meet: sums, gathers and shares are torch's, virtual time waits for the last, nobody hangs."""

import threading
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import pytest
import torch

from pipelab.clock import Turn, VirtualClock
from pipelab.collectives import ALL_GATHER, ALL_REDUCE, REDUCE_SCATTER, Group, Volume, traffic_of
from pipelab.costs import Link, Network
from pipelab.launcher import launch
from pipelab.randomness import Randomness
from pipelab.transport import Aborted
from pipelab.transport.meetings import Meetings, Seat
from pipelab.transport.process_groups import ProcessGroup


def seats(size, link=None, meetings=None):
    meetings, turn, members = meetings or Meetings(timeout=120), Turn(torch.device("cpu")), tuple(range(size))
    return [Group("tp", members, i, Seat(meetings, "tp", i, size), VirtualClock(turn), link or Link()) for i in members]


def on_all(groups, work):
    """Run `work(group)` on every seat at once, each within its clock's `run`."""
    with ThreadPoolExecutor(len(groups)) as pool:
        futures = [pool.submit(lambda g=group: g.clock.run(partial(work, g))[0]) for group in groups]
        return [future.result(timeout=120) for future in futures]


def brought(index, rows=6):
    return torch.arange(rows * 2, dtype=torch.float64).view(rows, 2) * (index + 1)


@pytest.mark.parametrize("size", [1, 2, 3])
def test_every_member_gets_what_torch_computes_from_all_tensors(size):
    groups, all_of_them = seats(size), [brought(i) for i in range(size)]
    for total in on_all(groups, lambda g: g.all_reduce(brought(g.index))):
        assert torch.equal(total, torch.stack(all_of_them).sum(0))
    for largest in on_all(groups, lambda g: g.all_reduce(-brought(g.index), largest=True)):
        assert torch.equal(largest, -all_of_them[0])
    for dim in (0, 1):
        for gathered in on_all(groups, lambda g, d=dim: g.all_gather(brought(g.index), d)):
            assert torch.equal(gathered, torch.cat(all_of_them, dim))
    parts = on_all(groups, lambda g: g.reduce_scatter(brought(g.index), 0))
    assert torch.equal(torch.cat(parts), torch.stack(all_of_them).sum(0))


def test_in_virtual_time_all_go_on_when_the_last_has_come_and_the_ring_is_done():
    link = Link(latency=50, bytes_per_second=0.96)  # beside which the little that a rank computes is nothing
    groups = seats(4, link)
    for late, group in enumerate(groups):
        group.clock.now = 100.0 * late
    on_all(groups, lambda g: g.all_reduce(brought(g.index)))
    ring = 2 * 3 * (50 + brought(0).nbytes / 4 / 0.96)
    for late, group in enumerate(groups):
        (meeting,) = group.taken()
        assert meeting.start == pytest.approx(100 * late, abs=20)
        assert meeting.end == pytest.approx(300 + ring, abs=20)
        assert meeting.nbytes == 2 * 3 * brought(0).nbytes // 4


def test_what_is_started_goes_on_beside_the_work_one_after_the_other():
    groups = seats(2, Link(latency=1.0))

    def work(group):
        first, second = (group.start(ALL_REDUCE, brought(group.index)) for _ in range(2))
        assert group.taken() == []
        assert torch.equal(group.finish(first), group.finish(second))
        return [(m.start, m.end) for m in group.taken()]

    with ThreadPoolExecutor(2) as pool:
        both = list(pool.map(work, groups))
    for (start, end), (then, at_last) in both:
        assert end - start == pytest.approx(2.0) and then == end and at_last == pytest.approx(end + 2.0)


def test_a_rank_that_waits_gives_its_turn_and_the_generators_to_the_others():
    """Otherwise two shards of a layer that draws random numbers would wait for one another for ever."""
    torch.manual_seed(5)
    before = torch.get_rng_state()
    groups, randomness = seats(2), [Randomness(0), Randomness(0)]

    def layer(group, x):
        first = torch.rand(3)
        group.all_reduce(x)
        return torch.cat([first, torch.rand(3)])

    drawn = on_all(groups, lambda g: randomness[g.index].run("0", partial(layer, g), torch.ones(2), 0, 0))
    alone = Randomness(0).run("0", lambda x: torch.rand(6), torch.ones(2), 0, 0)
    assert torch.equal(drawn[0], drawn[1]) and torch.equal(drawn[0][:3], alone[:3])
    assert torch.equal(torch.get_rng_state(), before)


def test_one_that_does_not_come_is_named_and_an_abort_wakes_all():
    meetings = Meetings(timeout=0.05)
    (group, _) = seats(2, meetings=meetings)
    with pytest.raises(TimeoutError, match=r"members \[1\]"):
        group.clock.run(lambda: group.all_reduce(torch.ones(1)))
    meetings = Meetings(timeout=60)
    (group, _) = seats(2, meetings=meetings)
    threading.Timer(0.05, meetings.abort).start()
    with pytest.raises(Aborted):
        group.clock.run(lambda: group.all_reduce(torch.ones(1)))


def test_bytes_are_those_of_the_textbook_ring():
    groups = seats(4)
    whole = brought(0, rows=8).nbytes

    def work(group):
        group.all_reduce(brought(0, rows=8))
        group.all_gather(brought(0, rows=2))
        group.reduce_scatter(brought(0, rows=8))
        return traffic_of(group.taken())

    for traffic in on_all(groups, work):
        assert traffic == {
            ("tp", ALL_REDUCE): Volume(1, 2 * 3 * whole // 4),
            ("tp", ALL_GATHER): Volume(1, 3 * whole // 4),
            ("tp", REDUCE_SCATTER): Volume(1, 3 * whole // 4),
        }


def test_a_link_between_hosts_is_as_fast_as_its_slowest_part():
    network = Network((0, 0, 1), Link(1.0), Link(5.0))
    assert network.among([0, 1]) == Link(1.0) and network.among([0, 1, 2]) == Link(5.0)
    assert Link(2.0).among([0, 9]) == Link(2.0)
    with pytest.raises(ValueError, match="host_of"):
        Network((), Link(), Link())


def of_processes():
    import torch.distributed as dist

    dist.init_process_group("gloo")
    rank, size = dist.get_rank(), dist.get_world_size()
    clock = VirtualClock(Turn(torch.device("cpu")))
    carrier = ProcessGroup(dist.group.WORLD, size, 120, stamped=True)
    group = Group("dp", tuple(range(size)), rank, carrier, clock, Link(100.0))
    clock.now = 100.0 * rank

    started = group.start(ALL_REDUCE, brought(rank))

    def work():
        return [
            group.all_reduce(brought(rank)), group.all_reduce(-brought(rank), largest=True),
            group.all_gather(brought(rank), 1), group.reduce_scatter(brought(rank)),
        ]  # fmt: skip

    results = [*clock.run(work)[0], group.finish(started)]
    dist.destroy_process_group()
    return results, group.taken()


def test_processes_get_the_same_as_threads_at_the_same_virtual_time():
    groups = seats(2)
    for (results, meetings), ours in zip(launch(of_processes, ranks=2), groups, strict=True):
        assert torch.equal(results[0], torch.stack([brought(0), brought(1)]).sum(0))
        assert torch.equal(results[1], -brought(0))
        assert torch.equal(results[2], torch.cat([brought(0), brought(1)], 1))
        assert torch.equal(results[3], results[0].chunk(2)[ours.index])
        assert torch.equal(results[4], results[0])
        assert meetings[-1].end == pytest.approx(300, abs=30)  # the later came at 100, and a ring of two takes 200
