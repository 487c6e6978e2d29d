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
from pipelab.failure import RunError
from pipelab.launcher import launch

ROOT = Path(__file__).resolve().parent.parent


def on_their_own(part):
    """A function for `launch` in which ranks do `part(rank, recorder)` as if nobody had launched them."""

    def rank():
        import pipelab.launcher.rank

        pipelab.launcher.rank._link = None
        with watched(timeout=1.0) as recorder:
            return part(int(os.environ["RANK"]), recorder)

    return rank


def wait_for_rank_1(rank, recorder):
    recorder.waiting(f"{rank}RECV_F5", "1SEND_F5", [1])
    time.sleep(60)


@pytest.fixture(autouse=True)
def functions_of_this_file_travel_by_value():
    import cloudpickle

    cloudpickle.register_pickle_by_value(sys.modules[__name__])
    yield
    cloudpickle.unregister_pickle_by_value(sys.modules[__name__])


def test_ranks_that_do_well_leave_one_by_one():
    def part(rank, recorder):
        time.sleep(0.1 * rank)
        return rank

    assert launch(on_their_own(part), ranks=3) == [0, 1, 2]


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
    ("failing", "guilty", "said"),
    [
        (refuse, 1, "raised ValueError while running 1F5 on host .*: boom"),
        (die, 1, "ended without a word while running 1F5"),
        (lambda rank, recorder: time.sleep(60), 1, "gave no sign of life for 1 s while running 1F5"),
    ],
    ids=["raises", "dies", "hangs"],
)
def test_all_ranks_end_and_name_the_one_that_failed(capfd, failing, guilty, said):
    def part(rank, recorder):
        recorder.running(f"{rank}F5")
        if rank == guilty:
            time.sleep(0.7)  # a beat
            failing(rank, recorder)
        wait_for_rank_1(rank, recorder)

    with pytest.raises(RunError):
        launch(on_their_own(part), ranks=3)
    printed = capfd.readouterr().err
    assert re.search(rf"^\[rank 0\] rank 1 \(pid \d+\) {said}", printed, re.M)
    assert re.search(r"^\[rank 0\]   rank 2: waiting for 1SEND_F5 of rank 1, for \d", printed, re.M)


def test_when_rank_0_dies_the_others_end_too(capfd):
    def part(rank, recorder):
        if rank == 0:
            time.sleep(0.1)
            os._exit(5)
        time.sleep(60)

    with pytest.raises(RunError, match=r"rank 0 .* left early, with exit status 5"):
        launch(on_their_own(part), ranks=2)


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
    said = [host.communicate(timeout=120)[1] for host in hosts]
    assert all(host.returncode for host in hosts)
    assert re.search(r"^rank 1 \(pid \d+\) ended without a word while ", said[0], re.M)
    assert re.search(r"^rank 0 \(pid \d+\) on host \S+ ends: rank 1 \(pid \d+\) ended without a word", said[0], re.M)
