"""From a real kernel: functions of cells run, the stop button is obeyed, a killed kernel leaves nothing."""

import json
import os
import re
import signal
import time
from pathlib import Path

import pytest

pytest.importorskip("ipykernel", reason="no ipykernel here: nothing is launched from a notebook")

from jupyter_client.manager import KernelManager

ROOT = Path(__file__).resolve().parent.parent
PATIENCE = 300

CELL = """
import os, time
import pipelab as pl
from pipelab.launcher import _living_server, post

def heard(rank, value):
    print(value, flush=True)
"""


@pytest.fixture
def kernel(tmp_path):
    """A kernel as the notebook's server starts it, and its client, after the first cell."""
    manager = KernelManager(kernel_name="python3")
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "IPYTHONDIR": str(tmp_path)}
    manager.start_kernel(env=environment, extra_arguments=["--log-level=CRITICAL"])
    client = manager.blocking_client()
    client.start_channels()
    client.wait_for_ready(PATIENCE)
    try:
        run(client, CELL)
        yield manager, client
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)


def run(client, code, on_text=lambda text: None):
    """Execute a cell; gives what it printed, and the error as Jupyter shows it ("" if there was none)."""
    request, printed, shown = client.execute(code), "", ""
    while True:
        message = client.get_iopub_msg(timeout=PATIENCE)
        if message["parent_header"].get("msg_id") != request:
            continue
        content = message["content"]
        if message["msg_type"] == "stream":
            printed += content["text"]
            on_text(printed)
        elif message["msg_type"] == "error":
            shown = "\n".join(content["traceback"])
        elif message["msg_type"] == "status" and content["execution_state"] == "idle":
            return printed, re.sub(r"\x1b\[[\d;]*m", "", shown)


def gone(pid):
    """True once the process has ended; looks again for up to a minute."""
    until = time.monotonic() + 60
    while time.monotonic() < until:
        stat = Path(f"/proc/{pid}/stat")
        try:
            if stat.read_text().rpartition(")")[2].split()[0] == "Z":
                return True
        except (FileNotFoundError, ProcessLookupError):
            return True
        time.sleep(0.01)
    return False


def test_a_function_of_a_cell_runs_prints_in_the_cell_and_shows_its_own_line_when_it_fails(kernel):
    _, client = kernel
    defined = """
def work(limit):
    rank = int(os.environ["RANK"])
    print("hello")
    if rank >= limit:
        raise ValueError(rank)  # the guilty line
    return rank
"""
    assert run(client, defined) == ("", "")
    printed, error = run(client, "print(pl.launch(work, 4, ranks=2))")
    assert sorted(printed.splitlines()) == ["[0, 1]", "[rank 0] hello", "[rank 1] hello"] and error == ""
    printed, error = run(client, "pl.launch(work, 1, ranks=2)")
    assert "raise ValueError(rank)  # the guilty line" in error
    assert re.search(r"RunError: rank 1 \(pid \d+\) raised ValueError while running work on host \S+: 1\n", error)
    assert "launcher" not in error
    printed, _ = run(client, "import torch; print(torch.cuda.is_initialized(), pl.launch(int, ranks=2))")
    assert printed == "False [0, 0]\n"


@pytest.mark.parametrize("transport", ["memory", "gloo"])
def test_training_with_a_layer_of_a_cell_that_fails_shows_the_line_of_that_cell(kernel, transport):
    _, client = kernel
    defined = """
import torch
from torch import nn

class Broken(nn.Module):
    def forward(self, x):
        raise ValueError("no such luck")  # the guilty line

layers = nn.Sequential(nn.Linear(2, 2), Broken())
batch = torch.ones(2, 2), torch.zeros(2, dtype=torch.int64)
"""
    assert run(client, defined) == ("", "")
    code = f"pl.train(layers, [batch], pl.build('1f1b', 2, 2), transport='{transport}')"
    _, error = run(client, code)
    assert 'raise ValueError("no such luck")  # the guilty line' in error
    assert re.search(r"RunError: rank 1 .*1F0.*: no such luck", error)


def test_a_class_of_a_cell_comes_back_as_itself_and_keeps_seeing_the_notebook(kernel):
    _, client = kernel
    defined = """
FACTOR = 1

class Scale:
    def of(self, number):
        return number * FACTOR

scales = pl.launch(Scale, ranks=2)
FACTOR = 5
print([type(scale) is Scale for scale in scales], scales[0].of(2), Scale().of(2))
"""
    assert run(client, defined) == ("[True, True] 10 10\n", "")


WAIT = """
def wait():
    post([os.getpid(), os.getppid()])
    time.sleep(300)

pl.launch(wait, ranks=2, on_post=heard)
"""


def test_the_stop_button_ends_all_ranks_and_the_next_cell_launches_again(kernel):
    manager, client = kernel
    pressed = []

    def stop(printed):
        if printed.count("]\n") == 2 and not pressed:
            pressed.append(True)
            manager.interrupt_kernel()

    printed, error = run(client, WAIT, stop)
    assert "KeyboardInterrupt" in error and "RunError" not in error
    pids = [json.loads(line) for line in printed.splitlines()]
    assert len(pids) == 2 and all(gone(pid) for pid, _ in pids)
    printed, error = run(client, "print(pl.launch(int, ranks=2), _living_server().pid)")
    assert (printed, error) == (f"[0, 0] {pids[0][1]}\n", "")  # the same server


@pytest.mark.parametrize("how", ["killed", "restarted"])
def test_a_kernel_that_ends_leaves_no_process(kernel, how):
    manager, client = kernel
    pids = []

    def end(printed):
        if printed.count("]\n") == 2 and not pids:
            pids.extend(pid for line in printed.splitlines() for pid in json.loads(line))
            if how == "killed":
                os.kill(manager.provisioner.pid, signal.SIGKILL)
            else:
                manager.restart_kernel(now=True)
            raise InterruptedError

    with pytest.raises(InterruptedError):
        run(client, WAIT, end)
    assert len(pids) == 4 and all(gone(pid) for pid in pids)
