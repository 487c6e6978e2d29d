"""Ranks without a common parent, as under torchrun, all end when one fails, and name it."""

import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pipelab.alarm import watched
from pipelab.launcher import launch

ROOT = Path(__file__).resolve().parent.parent
pytestmark = pytest.mark.usefixtures("travelling")


def on_their_own(part, ranks, timeout=120.0, late=0.0, too_late=0):
    """Do `part(rank, recorder)` in processes whose parent only waits; gives their exit codes by rank.

    `late` is by how many seconds the last rank starts after the others; the last `too_late` start when all others have
    ended.
    """

    def parent():
        import pipelab.launcher.rank

        pipelab.launcher.rank._link = None
        os.environ["WORLD_SIZE"] = str(ranks)
        return together(range(ranks - too_late)) + together(range(ranks - too_late, ranks))

    def together(some):
        return [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in [start(rank) for rank in some]]

    def start(rank):
        child = os.fork()
        if child == 0:
            os.environ["RANK"] = str(rank)
            code = 1
            try:
                time.sleep(late if rank == ranks - 1 else 0)
                with watched(timeout=timeout) as recorder:
                    part(rank, recorder)
                code = 0
            finally:
                os._exit(code)
        return child

    return launch(parent, ranks=1, timeout=300)[0]


def store():
    from torch.distributed import TCPStore

    return TCPStore(os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), is_master=False)


def test_ranks_that_do_well_leave_one_by_one():
    assert on_their_own(lambda rank, recorder: time.sleep(0.1 * rank), ranks=3) == [0, 0, 0]


def test_under_launch_the_caller_watches():
    def same():
        from pipelab.launcher import recorder

        with watched() as given:
            return given is recorder()

    assert launch(same, ranks=1) == [True]


def refuse(rank, recorder):
    raise ValueError("boom")


def die(rank, recorder):
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize(
    ("failing", "said", "code", "timeout"),
    [
        (refuse, "raised ValueError while running 1F5 on host .*: boom", 1, 120.0),
        (die, "ended without a word, last seen running 1F5", -signal.SIGKILL, 120.0),
        (lambda rank, recorder: time.sleep(300), "gave no sign of life for 4 s while running 1F5", 1, 4.0),
    ],
    ids=["raises", "dies", "hangs"],
)
def test_all_ranks_end_and_name_the_one_that_failed(capfd, failing, said, code, timeout):
    def part(rank, recorder):
        if rank == 1:
            store().wait(["0 waits", "2 waits"])
            recorder.running("1F5")
            failing(rank, recorder)
        recorder.waiting(f"{rank}RECV_F5", "1SEND_F5", [1])
        store().set(f"{rank} waits", "yes")
        time.sleep(300)

    assert on_their_own(part, ranks=3, timeout=timeout) == [1, code, 1]
    printed = capfd.readouterr().err
    assert re.search(rf"^\[rank 0\] rank 1 \(pid \d+\) {said}", printed, re.M)
    assert re.search(r"^\[rank 0\]   rank 2: waiting for 1SEND_F5 of rank 1, for \d", printed, re.M)
    assert re.search(rf"rank 2 \(pid \d+\) on host \S+ ends: rank 1 \(pid \d+\) {said}", printed)


@pytest.mark.parametrize("failing", [refuse, die], ids=["raises", "dies"])
def test_no_rank_goes_on_before_all_are_watched(capfd, failing):
    # Otherwise one that fails at once would be over and done with before the last knows of it.
    def part(rank, recorder):
        if rank == 1:
            failing(rank, recorder)
        time.sleep(300)

    assert on_their_own(part, ranks=3, late=1.0) == [1, 1 if failing is refuse else -signal.SIGKILL, 1]
    printed = capfd.readouterr().err
    assert re.search(r"rank 2 \(pid \d+\) on host \S+ ends: rank 1 \(pid \d+\) ", printed)


def test_a_rank_that_never_starts_is_named_and_nothing_is_left(capfd, monkeypatch, tmp_path):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    assert on_their_own(lambda rank, recorder: None, ranks=3, timeout=3.0, too_late=1) == [1, 1, 1]
    printed = capfd.readouterr().err
    assert re.search(r"^\[rank 0\] rank 2 has not started within 3 s$", printed, re.M)
    assert re.search(r"rank 1 \(pid \d+\) on host \S+ ends: rank 2 has not started", printed)
    assert not list(tmp_path.glob("pipelab-*"))


def test_when_rank_0_dies_the_others_end_too_and_say_what_they_were_at(capfd):
    def part(rank, recorder):
        if rank == 0:
            store().wait(["1 waits"])
            os._exit(5)
        recorder.waiting("1RECV_F5", "0SEND_F5", [0])
        store().set("1 waits", "yes")
        time.sleep(300)

    assert on_their_own(part, ranks=2) == [5, 1]
    printed = capfd.readouterr().err
    assert re.search(r"ends: rank 0 ended without a word\n.* rank 1: waiting for 0SEND_F5 of rank 0, for \d", printed)


SCRIPT = """
import os, signal, sys, torch
import torch.distributed as dist
from pipelab.alarm import watched

dist.init_process_group("gloo")
with watched() as recorder:
    if dist.get_rank() == 1:
        recorder.running("1F5")
        dist.barrier()
        os.kill(os.getpid(), signal.SIGKILL)
    recorder.waiting("0RECV_B5", "1SEND_B5", [1])
    dist.barrier()
    dist.recv(torch.ones(1), 1)
"""


def test_over_two_launchers_of_torchrun_the_survivor_names_the_dead_and_ends(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    hosts = [
        subprocess.Popen(
            [sys.executable, "-m", "torch.distributed.run", "--nnodes=2", "--nproc-per-node=1", f"--node-rank={host}",
             "--master-addr=127.0.0.1", f"--master-port={port}", str(script)],
            stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)},
        )
        for host in range(2)
    ]  # fmt: skip
    said = [host.communicate(timeout=600)[1] for host in hosts]
    assert all(host.returncode for host in hosts)
    assert re.search(r"^rank 1 \(pid \d+\) ended without a word, last seen ", said[0], re.M)
    assert re.search(r"^rank 0 \(pid \d+\) on host \S+ ends: rank 1 \(pid \d+\) ended without a word", said[0], re.M)
