"""How long does it take until a function runs on N ranks? Ours, beside spawned processes and torchrun.

Every launcher gets the same work: import torch, form a gloo group, meet at a barrier. Seconds are of the wall clock,
each measured in a fresh Python, so that the first launch is a cold one.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from pipelab.bench import Bench, Row

RANKS = (1, 2, 4, 8)
WARM = 5
"""Launches after the first, of which the median is told."""

_MEET = """
def meet(*_):
    import torch.distributed as dist
    dist.init_process_group("gloo")
    dist.barrier()
    dist.destroy_process_group()
"""

_OURS = (
    _MEET
    + """
import json, statistics, sys, time
import pipelab as pl
def timed():
    begin = time.perf_counter()
    pl.launch(meet, ranks={ranks})
    return time.perf_counter() - begin
first = timed()
print(json.dumps([first, statistics.median(timed() for _ in range({warm}))]))
"""
)

_SPAWN = (
    """
import os
def rank(number, ranks):
    os.environ |= {{"RANK": str(number), "WORLD_SIZE": str(ranks), "MASTER_ADDR": "127.0.0.1"}}
    meet()
"""
    + _MEET
    + """
if __name__ == "__main__":
    import json, socket, time
    with socket.create_server(("127.0.0.1", 0)) as free:
        os.environ["MASTER_PORT"] = str(free.getsockname()[1])
    import torch.multiprocessing
    begin = time.perf_counter()
    torch.multiprocessing.spawn(rank, ({ranks},), nprocs={ranks})
    print(json.dumps(time.perf_counter() - begin))
"""
)


def time_launches(ranks: tuple[int, ...] = RANKS) -> Iterator[Row]:
    """One row a number of ranks, in seconds of the wall clock: ours first (cold) and later (warm), and the peers."""
    with tempfile.TemporaryDirectory() as folder:
        for number in ranks:
            cold, warm = json.loads(_run(folder, _OURS.format(ranks=number, warm=WARM)))
            yield {
                "ranks": number, "cold_seconds": cold, "warm_seconds": warm,
                "spawn_seconds": float(_run(folder, _SPAWN.format(ranks=number))),
                "torchrun_seconds": _torchrun(folder, number),
            }  # fmt: skip


def _torchrun(folder: str, ranks: int) -> float:
    begin = time.perf_counter()
    command = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"]
    _run(folder, _MEET + "meet()", *command)
    return time.perf_counter() - begin


def _run(folder: str, source: str, *command: str) -> str:
    """Run a script in a fresh Python, perhaps by a launcher; give what it prints."""
    script = Path(folder) / "script.py"
    script.write_text(source, encoding="utf-8")
    package = str(Path(__file__).resolve().parent.parent.parent)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([package, os.environ.get("PYTHONPATH", "")])}
    ended = subprocess.run(
        [sys.executable, *command, str(script)], capture_output=True, text=True, timeout=300, env=environment
    )
    if ended.returncode:
        raise RuntimeError(f"a launch to be timed has failed: {ended.stderr.strip().splitlines()[-1:]}")
    return ended.stdout


BENCH = Bench(
    "seconds until all ranks have met (wall clock): pipelab's first launch and later ones, spawn, torchrun",
    {"ranks": "{}", "cold_seconds": "{:.2f}", "warm_seconds": "{:.3f}", "spawn_seconds": "{:.2f}",
     "torchrun_seconds": "{:.2f}"},
    lambda _: (time_launches(), len(RANKS)),
)  # fmt: skip
