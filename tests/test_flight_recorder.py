"""The flight recorder keeps the last notes, in memory that outlives who wrote them."""

import os
import signal

from pipelab.action import Action, parse_element
from pipelab.flight_recorder import ENTRIES, MOST_PEERS, FlightRecorder, Recorders, attached


def test_notes_come_back_as_they_were_written():
    recorder = FlightRecorder()
    assert recorder.last is None and recorder.notes() == []
    recorder.running(parse_element("2F5+3B1"))
    recorder.waiting(Action(2, "RECV_F", 5), Action(1, "SEND_F", 5), [1])
    recorder.meeting("REDUCE", [0, 2])
    recorder.finished()
    assert [note[1:] for note in recorder.notes()] == [
        ("running", "2F5+3B1", "", ()),
        ("waiting", "2RECV_F5", "1SEND_F5", (1,)),
        ("waiting", "REDUCE", "REDUCE", (0, 2)),
        ("finished", "", "", ()),
    ]
    times = [note.time for note in recorder.notes()]
    assert times == sorted(times) and recorder.count == 4


def test_the_ring_keeps_the_last_notes_and_counts_all():
    recorder = FlightRecorder()
    for number in range(ENTRIES + 10):
        recorder.running(f"0F{number}")
    assert [note.action for note in recorder.notes()] == [f"0F{n}" for n in range(10, ENTRIES + 10)]
    assert recorder.count == ENTRIES + 10


def test_long_texts_and_many_peers_are_cut_and_break_nothing():
    recorder = FlightRecorder()
    recorder.waiting("a" * 100, "é" * 100, range(40))
    assert recorder.last.action == "a" * 43
    assert recorder.last.peers == tuple(range(MOST_PEERS))


def test_notes_outlive_a_rank_that_is_killed_and_leave_no_file():
    with Recorders(ranks=2) as recorders:
        assert os.fstat(recorders.fileno()).st_nlink == 0
        child = os.fork()
        if child == 0:
            attached(recorders.fileno(), rank=1, ranks=2).running("1F3")
            os.kill(os.getpid(), signal.SIGKILL)
        os.waitpid(child, 0)
        assert recorders[1].last.action == "1F3" and recorders[0].last is None
