"""Launch again and again, with ranks that are killed, raise, leave or return at random: is anything ever left?

    python tools/soak.py [launches] [seed]

Prints a line a launch and a summary; ends with status 1 at the first fault: a wrong culprit, a process that lives on, a
port that still answers, a new file in /dev/shm or a temporary folder, a descriptor or thread more than before.
"""

import collections
import contextlib
import gc
import io
import os
import random
import re
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from typing import Any

from pipelab.failure import RunError
from pipelab.launcher import launch, post

FATES = ("return", "raise", "kill", "exit", "leave", "interrupt")
"""How the chosen rank of a launch ends; at `interrupt` it is the caller who stops all."""


def work(victim: int, how: str, step: int) -> str:
    """A few steps round a ring of ranks; at one of them the victim meets its fate. It has a child, as loaders do."""
    import torch
    import torch.distributed as dist

    child = subprocess.Popen(["sleep", "300"])
    dist.init_process_group("gloo")
    rank, ranks = dist.get_rank(), dist.get_world_size()
    post((os.getpid(), child.pid, int(os.environ["MASTER_PORT"])))
    token = torch.zeros(1)
    for number in range(6):
        if number == step and rank == victim:
            end(how)
        sent = dist.isend(token, (rank + 1) % ranks)
        dist.recv(token, (rank - 1) % ranks)
        if sent is not None:
            sent.wait()
    if how == "interrupt":
        time.sleep(300)
    dist.barrier()
    return "done"


def end(how: str) -> None:
    """The fate of the victim."""
    if how == "raise":
        raise ValueError("at random")
    if how == "kill":
        os.kill(os.getpid(), random.choice([signal.SIGKILL, signal.SIGSEGV, signal.SIGABRT]))
    if how == "exit":
        os._exit(random.choice([0, 3]))
    if how == "leave":
        sys.exit("at random")


def one_launch(chance: random.Random) -> tuple[str, float]:
    """One launch with one fate; gives it and the seconds it took. Raises AssertionError at a fault."""
    ranks = chance.choice([2, 3, 4])
    victim, how, step = chance.randrange(ranks), chance.choice(FATES), chance.randrange(6)
    seen: list[tuple[int, int, int]] = []

    def hear(_: int, value: tuple[int, int, int]) -> None:
        seen.append(value)
        if how == "interrupt" and len(seen) == ranks:
            os.kill(os.getpid(), signal.SIGINT)

    begin = time.perf_counter()
    with contextlib.redirect_stderr(io.StringIO()):  # the stacks of crashes
        try:
            results = launch(work, victim, how, step, ranks=ranks, timeout=120, on_post=hear)
            assert how == "return" and results == ["done"] * ranks, f"{how} gave {results}"
        except RunError as error:
            assert how in ("raise", "kill", "exit", "leave"), f"{how} gave: {error}"
            assert error.rank == victim, f"rank {victim} was to {how}, and the error says: {error}"
        except KeyboardInterrupt:
            assert how == "interrupt", "an interrupt that nobody sent"
    seconds = time.perf_counter() - begin
    for *pids, port in seen:
        assert all(map(has_gone, pids)), f"after {how}, one of {pids} lives on"
        shared = [name for name in shared_memory() if any(str(pid) in re.findall(r"\d+", name) for pid in pids)]
        assert not shared, f"after {how}, shared memory is left: {shared}"
        with contextlib.suppress(ConnectionRefusedError), socket.create_connection(("127.0.0.1", port), timeout=5):
            raise AssertionError(f"after {how}, port {port} still answers")
    return how, seconds


def has_gone(pid: int) -> bool:
    """The process has ended (perhaps the system has not yet cleared it away); looks again for up to a minute."""
    until = time.monotonic() + 60
    while time.monotonic() < until:
        state = subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True).stdout
        if not state.strip() or state.startswith("Z"):
            return True
        time.sleep(0.01)
    return False


def shared_memory() -> list[str]:
    """The names in /dev/shm; torch puts the process into its own."""
    return os.listdir("/dev/shm") if os.path.isdir("/dev/shm") else []


def belongings() -> dict[str, Any]:
    """What this process and its launches hold: descriptors, threads, temporary files."""
    gc.collect()
    return {
        "descriptors": len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0,
        "threads": threading.active_count(),
        "files": set(os.listdir(tempfile.gettempdir())),
    }


@contextlib.contextmanager
def own_temporary_folder() -> Iterator[None]:
    """Here and in the ranks, so that what others leave is not taken for ours."""
    before = os.environ.get("TMPDIR")
    with tempfile.TemporaryDirectory() as folder:
        os.environ["TMPDIR"], tempfile.tempdir = folder, None
        try:
            yield
        finally:
            tempfile.tempdir = None
            if before is None:
                del os.environ["TMPDIR"]
            else:
                os.environ["TMPDIR"] = before


def soak(launches: int, seed: int) -> dict[str, Any]:
    """Many launches; gives how often each fate was met and the seconds. Raises AssertionError at the first fault."""
    chance, fates, seconds = random.Random(seed), collections.Counter[str](), []
    with own_temporary_folder():
        launch(os.getpid, ranks=2)
        before = belongings()
        for number in range(launches):
            how, took = one_launch(chance)
            after = belongings()
            more = [what for what in before if not after[what] <= before[what]]  # less may be: what others had before
            assert not more, f"launch {number} ({how}) has left {' and '.join(more)}: {before} -> {after}"
            fates[how] += 1
            seconds.append(took)
            print(f"{number + 1:>4} of {launches}  {how:<10} {took:.2f} s", file=sys.stderr)
    return {"launches": launches, "fates": dict(fates), "median": statistics.median(seconds), "longest": max(seconds)}


if __name__ == "__main__":
    try:
        launches, seed = [*map(int, sys.argv[1:]), *[200, 0][len(sys.argv) - 1 :]]
        print(soak(launches, seed))
    except AssertionError as fault:
        sys.exit(f"soak: {fault}")
