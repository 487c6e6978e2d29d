"""A launch gives what each rank returns; whatever happens, it names the culprit and leaves nothing behind."""

import gc
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch

import pipelab as pl
import pipelab.launcher
from pipelab.failure import RunError
from pipelab.launcher import _living_server, launch, post, recorder
from pipelab.launcher.server import Server

ROOT = Path(__file__).resolve().parent.parent
pytestmark = pytest.mark.usefixtures("travelling")


def gone(pid):
    """True once the process has ended (a zombie has); looks again for up to a minute."""
    until = time.monotonic() + 60
    while time.monotonic() < until:
        try:
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
                return True
            os.kill(pid, 0)
        except (ProcessLookupError, FileNotFoundError):
            return True
        time.sleep(0.01)
    return False


def together():
    """Join the others, as a rank of a training run does."""
    import torch.distributed

    torch.distributed.init_process_group("gloo")
    return torch.distributed.get_rank()


def store():
    """Where the ranks of a launch leave words for one another."""
    return torch.distributed.TCPStore(os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), is_master=False)


def wait_for_rank(peer):
    """Wait for a message of this rank, which never comes."""
    recorder().waiting(f"{os.environ['RANK']}RECV_F5", f"{peer}SEND_F5", (peer,))
    store().set(f"{os.environ['RANK']} waits", "yes")
    torch.distributed.recv(torch.ones(1), peer)


def until_wait(*ranks):
    """Until these ranks wait for a message; before that, what they are at would be chance."""
    store().wait([f"{rank} waits" for rank in ranks])


# --------------------------------------------------------------------------------------------- what it gives


def test_each_rank_returns_its_own_result_in_order():
    assert pl.launch(lambda x: (x, int(os.environ["RANK"])), "x", ranks=3) == [("x", 0), ("x", 1), ("x", 2)]


def test_a_rank_finds_what_torchrun_would_give_it():
    names = ["RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR"]
    assert launch(lambda: [os.environ[name] for name in names], ranks=2)[1] == ["1", "2", "1", "2", "127.0.0.1"]


def test_the_ranks_form_a_process_group():
    def total():
        value = torch.tensor([together() + 1.0])
        torch.distributed.all_reduce(value)
        torch.distributed.destroy_process_group()
        return value

    assert [tensor.item() for tensor in launch(total, ranks=3)] == [6.0] * 3


def test_results_of_any_size_and_kind_come_back():
    class Local:
        def __init__(self, value):
            self.value = value

    def make():
        return Local(torch.arange(2**20)), lambda x: x + 1

    (local, add), _ = launch(make, ranks=2)
    assert isinstance(local, Local) and local.value.equal(torch.arange(2**20)) and add(1) == 2


def test_the_environment_and_folder_are_those_of_the_call(monkeypatch, tmp_path):
    launch(int, ranks=1)  # the server is older than what follows
    monkeypatch.setenv("PIPELAB_TEST", "now")
    monkeypatch.chdir(tmp_path)
    assert launch(lambda: (os.environ["PIPELAB_TEST"], os.getcwd()), ranks=1) == [("now", str(tmp_path))]


def test_threads_share_the_cores():
    assert launch(torch.get_num_threads, ranks=1, threads=1) == [1]
    assert launch(torch.get_num_threads, ranks=64)[0] == 1 if os.cpu_count() < 64 else True


def test_it_works_from_another_thread():
    results = []
    thread = threading.Thread(target=lambda: results.extend(launch(os.getpid, ranks=2)))
    thread.start()
    thread.join()
    assert len(set(results)) == 2


# -------------------------------------------------------------------------------------------- what it shows


def test_output_is_shown_with_the_rank_in_front(capfd):
    def talk():
        print("one\ntwo", end="")
        print("progress 1\rprogress 2", file=sys.stderr)
        os.write(2, b"from compiled code\n")

    launch(talk, ranks=1)
    said = capfd.readouterr()
    assert said.out == "[rank 0] one\n[rank 0] two\n"
    assert said.err == "[rank 0] progress 2\n[rank 0] from compiled code\n"


def test_posts_arrive_in_order_while_the_function_runs():
    heard = []

    def count():
        for number in range(3):
            post((number, torch.ones(2)))
        return "done"

    def hear(rank, value):
        heard.append((rank, value[0]))

    assert launch(count, ranks=2, on_post=hear) == ["done"] * 2
    assert [number for rank, number in heard if rank == 1] == [0, 1, 2] and len(heard) == 6


def test_a_post_never_waits_for_the_caller_and_drops_the_oldest(tmp_path):
    def flood():
        from pipelab.launcher import rank

        data = "x" * 1000
        for number in range(20_000):
            post((number, data))
        dropped = rank._link.dropped
        (tmp_path / "all posted").touch()
        return dropped

    heard = []

    def slow(rank, value):
        until = time.monotonic() + 120
        while not (tmp_path / "all posted").exists() and time.monotonic() < until:
            time.sleep(0.01)  # meanwhile the socket fills up, then the queue
        heard.append(value[0])

    (dropped,) = launch(flood, ranks=1, on_post=slow)
    assert dropped > 0 and len(heard) == 20_000 - dropped and heard == sorted(heard) and heard[-1] == 19_999


def test_post_outside_a_rank_is_refused():
    with pytest.raises(RuntimeError, match="call it in a function that"):
        post(1)


# ------------------------------------------------------------------------------------------------- failures


def test_an_exception_is_told_with_the_line_that_raised_it():
    def fail():
        if os.environ["RANK"] == "2":
            raise ValueError("boom")  # this line
        time.sleep(300)

    with pytest.raises(
        RunError, match=r"^rank 2 \(pid \d+\) raised ValueError while running fail on host .*: boom$"
    ) as e:
        launch(fail, ranks=3)
    assert 'raise ValueError("boom")  # this line' in e.value.traceback
    assert "pipelab/launcher" not in e.value.traceback
    assert "this line" in str(e.value.__cause__)
    assert e.value._render_traceback_()[-1].startswith("RunError: rank 2")


def test_a_killed_rank_is_named_with_its_action_and_who_waited_for_it():
    def train():
        rank = together()
        if rank == 1:
            until_wait(0, 2)
            recorder().running("1F5")
            os.kill(os.getpid(), signal.SIGKILL)
        wait_for_rank(1)

    with pytest.raises(RunError) as e:
        launch(train, ranks=3)
    assert re.match(r"rank 1 \(pid \d+\) was killed by signal 9 while running 1F5 on host \S+$", e.value.sentence)
    assert re.search(r"rank 2: .*waiting for 1SEND_F5 of rank 1", e.value.report)
    assert "last actions of rank 1: 1F5" in e.value.report
    assert "closed by peer" not in str(e.value)


@pytest.mark.parametrize(
    ("leave", "said"),
    [
        (lambda: os._exit(0), "left early, with exit status 0, while running leaving"),
        (lambda: os._exit(5), "left early, with exit status 5, while running leaving"),
        (lambda: sys.exit(3), r"left early, by sys.exit\(3\), while running leaving"),
        (lambda: os.kill(os.getpid(), signal.SIGSEGV), "was killed by signal 11 while running leaving"),
    ],
    ids=["os._exit(0)", "os._exit(5)", "sys.exit(3)", "segmentation fault"],
)
def test_a_rank_that_leaves_early_is_named_not_those_that_lose_their_connections(leave, said):
    def leaving():
        if together() == 1:
            until_wait(0, 2)
            leave()
        wait_for_rank(1)

    with pytest.raises(RunError, match=rf"^rank 1 \(pid \d+\) {said}"):
        launch(leaving, ranks=3)


def test_a_crash_leaves_its_stack():
    def crash():
        import ctypes

        ctypes.string_at(0)

    with pytest.raises(RunError, match="Segmentation fault") as e:
        launch(crash, ranks=1)
    assert re.search(r"test_launcher.py\", line \d+ in crash", e.value.report)


def test_a_rank_that_returns_before_its_time_is_told():
    def returning():
        if together() == 1:
            until_wait(0)
            return
        wait_for_rank(1)

    with pytest.raises(
        RunError, match=r"^rank 0 .* lost its connections while waiting for 1SEND_F5 of rank 1 .*; rank 1 had"
    ):
        launch(returning, ranks=2)


def test_a_hang_names_the_rank_that_does_not_wait_and_shows_where_it_is():
    def hang():
        rank = together()
        if rank == 1:
            until_wait(0, 2)
            recorder().running("1F2")
            time.sleep(300)
        wait_for_rank(rank - 1 if rank else 1)

    with pytest.raises(RunError) as e:
        launch(hang, ranks=3, timeout=4)
    assert re.match(r"rank 1 \(pid \d+\) gave no sign of life for 4 s while running 1F2 on host", e.value.sentence)
    assert "rank 2: waiting for 1SEND_F5 of rank 1" in e.value.report
    assert re.search(r"test_launcher.py\", line \d+ in hang", e.value.report)


def test_a_deadlock_is_told_as_its_cycle():
    def deadlock():
        wait_for_rank((together() + 1) % 3)

    with pytest.raises(RunError) as e:
        launch(deadlock, ranks=3, timeout=4)
    assert e.value.sentence.startswith(
        "deadlock: rank 0 waits at 0RECV_F5 for 1SEND_F5 of rank 1, rank 1 waits at 1RECV_F5 for 2SEND_F5 of rank 2, "
        "rank 2 waits at 2RECV_F5 for 0SEND_F5 of rank 0"
    )


def test_work_that_shows_signs_of_life_is_no_hang():
    def work():
        begin = time.monotonic()
        while time.monotonic() < begin + 4:
            time.sleep(0.05)
            recorder().running("0F0")
        return "done"

    assert launch(work, ranks=1, timeout=3) == ["done"]


def test_a_result_that_cannot_be_sent_is_told():
    with pytest.raises(RunError, match=r"rank 0 .* raised TypeError while running <lambda>.*: cannot pickle"):
        launch(lambda: threading.Lock(), ranks=1)


@pytest.mark.parametrize("ranks", [0, -1, 257])
def test_a_number_of_ranks_out_of_bounds_is_refused(ranks):
    with pytest.raises(ValueError, match=f"from 1 to 256: got {ranks}"):
        launch(int, ranks=ranks)


def test_a_timeout_that_is_over_at_once_is_refused():
    with pytest.raises(ValueError, match="above 0: got -1"):
        launch(int, ranks=2, timeout=-1)


def test_what_cannot_be_sent_is_refused_before_any_rank_starts():
    lock = threading.Lock()
    with pytest.raises(ValueError, match=r"cannot be sent to the ranks \(cannot pickle.*make what they need inside"):
        launch(lambda: lock, ranks=2)


def test_without_cloudpickle_a_function_of_a_notebook_is_refused_and_an_importable_one_runs(monkeypatch):
    monkeypatch.setitem(sys.modules, "cloudpickle", None)
    with pytest.raises(ValueError, match="cannot be sent to the ranks without cloudpickle: pip install"):
        launch(lambda: 1, ranks=1)
    assert launch(os.path.join, "a", "b", ranks=1) == ["a/b"]


# ------------------------------------------------------------------------------------------ nothing is left


def fail_somehow(how):
    def failing():
        child = subprocess.Popen(["sleep", "300"])
        post((os.getpid(), child.pid, os.environ["MASTER_PORT"]))
        if os.environ["RANK"] == "1":
            if how == "raise":
                raise ValueError("boom")
            if how == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
        if how != "return":
            time.sleep(300)

    return failing


@pytest.mark.parametrize("how", ["return", "raise", "kill"])
def test_no_process_port_file_or_descriptor_is_left(how):
    launch(int, ranks=3)
    gc.collect()
    before, threads = set(os.listdir("/proc/self/fd")), threading.active_count()
    heard = []
    try:
        launch(fail_somehow(how), ranks=3, on_post=lambda rank, value: heard.append(value))
        assert how == "return"
    except RunError as error:
        assert error.rank == 1
    assert heard and all(gone(pid) for *pids, _ in heard for pid in pids)
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", int(heard[0][-1])))
    gc.collect()
    assert set(os.listdir("/proc/self/fd")) <= before and threading.active_count() <= threads
    written = {int(number) for name in os.listdir("/dev/shm") for number in re.findall(r"\d+", name)}
    assert not written & {pid for *pids, _ in heard for pid in pids}
    assert launch(lambda: 1, ranks=2) == [1, 1]  # and the next launch works at once


def test_an_interrupt_ends_all_ranks(interruptible):
    pids = []

    def interrupt(rank, pid):
        pids.append(pid)
        if len(pids) == 3:
            os.kill(os.getpid(), signal.SIGINT)

    def wait():
        post(os.getpid())
        time.sleep(300)

    with pytest.raises(KeyboardInterrupt):
        launch(wait, ranks=3, on_post=interrupt)
    assert all(gone(pid) for pid in pids)
    assert launch(lambda: 1, ranks=2) == [1, 1]


def test_an_error_of_on_post_ends_the_ranks_too():
    def refuse(rank, pid):
        raise ZeroDivisionError(pid)

    def wait():
        post(os.getpid())
        time.sleep(300)

    with pytest.raises(ZeroDivisionError) as e:
        launch(wait, ranks=2, on_post=refuse)
    assert gone(e.value.args[0])


def test_when_the_server_is_killed_the_ranks_end_and_the_next_launch_has_another():
    def kill_server(rank, pid):
        heard.append(pid)
        if len(heard) == 2:
            os.kill(_living_server().pid, signal.SIGKILL)

    def wait():
        post(os.getpid())
        time.sleep(300)

    heard = []
    with pytest.raises(RunError, match="the server that starts the ranks was killed; launch again"):
        launch(wait, ranks=2, on_post=kill_server)
    assert all(gone(pid) for pid in heard)
    assert launch(lambda: 1, ranks=2) == [1, 1]


def test_a_server_whose_caller_is_stopped_in_the_middle_of_an_import_ends_at_once_and_in_silence(
    monkeypatch, tmp_path, capfd, interruptible
):
    (tmp_path / "takes_long.py").write_text(f"open({str(tmp_path / 'begun')!r}, 'w')\nimport time\ntime.sleep(600)\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    server = Server()

    begun = threading.Thread(target=interrupt_when, args=(tmp_path / "begun",))
    begun.start()
    with pytest.raises(KeyboardInterrupt):
        server.load(["takes_long"])
    begun.join()
    server.close()  # raises if it takes long
    assert not server.alive
    assert capfd.readouterr().err == ""


def interrupt_when(there: Path) -> None:
    """Press the stop button as soon as this file is there."""
    while not there.exists():
        time.sleep(0.05)
    signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)


def test_a_server_that_cannot_start_is_told_with_the_remedy(monkeypatch, tmp_path, capfd):
    (tmp_path / "torch.py").write_text("raise ImportError('broken')")
    monkeypatch.setattr(pipelab.launcher, "_server", None)
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(RunError, match=r"ended with status 1; does `.* -c 'import torch, pipelab'` work\?"):
        launch(int, ranks=2)
    assert "ImportError: broken" in capfd.readouterr().err


SCRIPT = """
import os, signal, sys, time
import pipelab as pl
from pipelab.launcher import _living_server, post

def work():
    import subprocess
    child = subprocess.Popen(["sleep", "300"])
    post((os.getpid(), child.pid))
    if sys.argv[1:]:
        time.sleep(300)
    return "done"

def end(rank, pids):
    print(*pids, _living_server().pid, flush=True)
    if sys.argv[1:]:
        os.kill(os.getpid(), signal.SIGKILL)

sys.argv = %r
print(*pl.launch(work, ranks=2, on_post=end))
"""


@pytest.mark.parametrize("killed", [False, True], ids=["ended", "killed"])
def test_a_script_needs_no_guard_and_leaves_nothing_even_if_killed(tmp_path, killed):
    script = tmp_path / "script.py"
    script.write_text(SCRIPT % (["script.py", *["killed"] * killed],))
    ended = subprocess.run(
        [sys.executable, str(script)], capture_output=True, text=True, timeout=600,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert ended.stderr == "" and ended.returncode == (-signal.SIGKILL if killed else 0)
    assert killed or ended.stdout.endswith("done done\n")
    pids = [int(pid) for pid in re.findall(r"\d+", ended.stdout)]
    assert pids and all(gone(pid) for pid in pids)
