"""The report of a failed run names the culprit, not who suffered from it."""

import pytest
import torch
from torch import nn

import pipelab as pl
from pipelab.failure import Fate, RunError, culprit, describe, failure, hang
from pipelab.flight_recorder import Note

CLOSED = "[pair.cc:553] Connection closed by peer [127.0.0.1]:416"


def lost(rank, time, message=CLOSED, **more):
    return Fate(rank, pid=100 + rank, error="RuntimeError", message=message, time=time, **more)


def test_a_killed_rank_is_the_culprit_though_others_were_heard_of_before():
    fates = [lost(0, 1.0), Fate(1, pid=4242, exit_code=-9, time=2.0, notes=[Note(0.5, "running", "1F2")]), lost(2, 1.1)]
    error = failure(fates)
    assert error.sentence == "rank 1 (pid 4242) was killed by signal 9 while running 1F2" and error.rank == 1
    assert "closed by peer" not in str(error)


@pytest.mark.parametrize(
    "message",
    [
        CLOSED,
        "[pair.cc] Connection reset by peer",
        "Broken pipe",
        "Timed out waiting 60000ms for recv operation to complete",
        "NCCL error: remote process exited or there was a network error",
        "wait timeout after 60000ms, keys: /0",
    ],
)
def test_an_error_that_another_rank_caused_is_secondary(message):
    assert culprit([lost(0, 1.0, message), Fate(1, error="ValueError", message="boom", time=3.0)]).rank == 1


def test_of_two_that_failed_by_themselves_the_first_is_the_culprit():
    fates = [Fate(0, error="ValueError", time=2.0), Fate(1, error="KeyError", time=1.0)]
    assert culprit(fates).rank == 1


def test_where_only_connections_were_lost_the_sentence_says_who_had_gone():
    error = failure([lost(0, 1.0, task="train"), Fate(1, returned=True)])
    assert error.sentence == (
        "rank 0 (pid 100) lost its connections while running train; rank 1 had returned and could not answer"
    )
    assert CLOSED in error.report


def test_the_report_has_the_others_the_last_actions_and_the_last_lines():
    notes = [Note(1.0, "waiting", "1RECV_F0", "0SEND_F0", (0,)), Note(2.0, "running", "1F0")]
    error = failure([Fate(0, returned=True), Fate(1, exit_code=-11, notes=notes, lines=["good bye"], host="here")])
    assert error.sentence == "rank 1 was killed by signal 11 while running 1F0 on host here"
    assert error.report.splitlines() == [
        "  rank 0: had returned",
        "last actions of rank 1: 1RECV_F0 1F0",
        "it crashed in compiled code; the last lines show where",
        "last lines of rank 1:",
        "  good bye",
    ]


def test_who_stands_at_a_collective_is_told_with_whom_it_waits_for():
    notes = [Note(1.0, "waiting", "REDUCE", "REDUCE", (0, 2))]
    assert describe([Fate(1, notes=notes)], now=2.0) == "  rank 1: waiting at REDUCE for ranks 0, 2, for 1.0 s"


def test_a_hang_is_the_fault_of_who_does_not_wait():
    waits = [Note(1.0, "waiting", "0RECV_B0", "1SEND_B0", (1,))]
    error = hang([Fate(0, notes=waits), Fate(1, notes=[Note(1.0, "running", "1F0")])], 60.0)
    assert error.sentence.startswith("rank 1 gave no sign of life for 60 s while running 1F0") and error.rank == 1


def test_waiting_for_a_rank_that_has_returned_is_told_as_that():
    waits = [Note(1.0, "waiting", "0RECV_B0", "1SEND_B0", (1,))]
    error = hang([Fate(0, notes=waits), Fate(1, returned=True)], 60.0)
    assert error.sentence.startswith("rank 1 had returned, and others wait for it")


def test_many_ranks_are_not_all_described():
    lines = describe([Fate(rank) for rank in range(40)], now=0.0).splitlines()
    assert len(lines) == 17 and lines[-1] == "  ... and 24 more ranks"


def test_a_time_out_of_virtual_ranks_tells_who_waited_for_whom(given_up):
    class Slow(nn.Module):
        def forward(self, x):
            given_up()
            return x

    model = nn.Sequential(nn.Linear(2, 2), Slow())
    batch = torch.ones(2, 2), torch.zeros(2, dtype=torch.int64)
    with pytest.raises(RunError, match=r"^rank 1 gave no sign of life for 3 s while running 1F0") as e:
        pl.train(model, [batch], pl.build("1f1b", 2, 1), timeout=3)
    assert "rank 0: waiting for 1SEND_B0 of rank 1" in e.value.report
    assert e.value.rank == 1 and "1SEND_B0 did not come within 3 s" in str(e.value.__cause__)


def test_of_a_stack_the_innermost_calls_are_shown_and_else_the_last_lines():
    stack = ["before", "Current thread 0x1 (most recent call first):", *(f'  File "{n}.py"' for n in range(30))]
    shown = failure([Fate(0, exit_code=-11, lines=stack)]).report
    assert '"0.py"' in shown and '"29.py"' not in shown
    printed = failure([Fate(0, exit_code=-9, lines=[f"line {n}" for n in range(30)])]).report
    assert "line 29" in printed and "line 5\n" not in printed


def test_what_a_rank_tells_as_a_run_error_stands_for_itself():
    sentence = "step 0: the first value that is not finite is nan"
    fates = [Fate(rank, error="RunError", message=sentence, time=float(rank)) for rank in (1, 0)]
    assert failure(fates).sentence == sentence
