"""What does a process know of the other processes of its run? Who they are, where they are, and when they meet.

The variables that torchrun sets tell a process which of them it is. Small things (a loss, the records of a run) go
through one gloo group of all; the messages of a step do not, see `transport.processes`.
"""

import os
import socket
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from pipelab.alignment import measure_offset
from pipelab.clock import FileLock
from pipelab.outline import Number
from pipelab.transport import Aborted

VARIABLES = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


def is_rank(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether this process was started as one rank of several, as torchrun starts them. Raises ValueError where the
    variables make no sense.

    >>> is_rank({}), is_rank({"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": "29500"})
    (False, True)
    """
    found = [environment.get(name) for name in VARIABLES]
    if not all(found):
        return False
    rank, size, _, port = map(str, found)
    if not (rank.isdecimal() and size.isdecimal() and port.isdecimal() and int(rank) < int(size)):
        raise ValueError(
            f"RANK={rank}, WORLD_SIZE={size} and MASTER_PORT={port} do not say which rank this process is; start it"
            " with torchrun, or unset them"
        )
    return True


def is_first() -> bool:
    """Whether this process is the one that tells of a run: the only one, or rank 0 of several."""
    return not is_rank() or os.environ["RANK"] == "0"


class World:
    """All processes of a run, as one of them sees it: `rank` of `size`, with every rank's host and process id.

    `offset` is what this host's `time.perf_counter` lacks to rank 0's (0 on its host), `residual` how far that may be
    wrong, both in seconds. Raises ValueError when another number of processes was started than asked for.
    """

    def __init__(self, size: int, timeout: float) -> None:
        started = int(os.environ["WORLD_SIZE"])
        if started != size:
            raise ValueError(f"the mesh has {size} global ranks and {started} processes were started; make them equal")
        self.timeout = timedelta(seconds=timeout)
        if not dist.is_initialized():  # and the process stays a member: one that joins twice finds its own old address
            dist.init_process_group("gloo", init_method="env://", timeout=self.timeout)
        self.rank, self.size = dist.get_rank(), size
        self._groups: list[Any] = []
        self._pairs = 0
        self.control = self.group(range(size))
        self.hosts, self.pids = zip(*self.everybody((socket.gethostname(), os.getpid())), strict=True)
        self.offset, self.residual = self._align()

    def group(self, ranks: Any, backend: str = "gloo", **options: Any) -> Any:
        """A process group of these global ranks, given back with the world; every rank makes all, in one order."""
        group = dist.new_group(list(ranks), backend=backend, timeout=self.timeout, **options)
        if self.rank in ranks:
            self._groups.append(group)
        return group

    def pair(self, ends: tuple[int, int]) -> Any:
        """A gloo connection between two global ranks, as one of them sees it (None: it is none of them); every rank
        makes all, in one order.

        It is the bare backend, without torch's dispatcher, and one thread of this process watches all its connections;
        with a thread for each, much of a short step goes into waking threads.
        """
        self._pairs += 1
        if self.rank not in ends:
            return None
        gloo: Any = dist.ProcessGroupGloo
        options = gloo._Options()
        options._devices = self.control._get_backend(torch.device("cpu")).options._devices
        options._timeout = self.timeout
        store = dist.PrefixStore(f"{self.control.group_name}/{self._pairs}", dist.distributed_c10d._get_default_store())
        return gloo(store, sorted(ends).index(self.rank), 2, options)

    def everybody(self, mine: Any) -> list[Any]:
        """What every rank says, in the order of the ranks."""
        said: list[Any] = [None] * self.size
        with _others():
            dist.all_gather_object(said, mine, group=self.control)
        return said

    def gather(self, mine: Any) -> list[Any] | None:
        """What every rank says, in the order of the ranks, on rank 0; None on the others."""
        said: list[Any] | None = [None] * self.size if self.rank == 0 else None
        with _others():
            dist.gather_object(mine, said, 0, group=self.control)
        return said

    def meet(self, *numbers: Number) -> tuple[list[list[float]], float]:
        """Wait for everybody: gives each rank's numbers, and when the last one came, by this host's `perf_counter`."""
        mine = torch.tensor([*numbers, time.perf_counter() + self.offset], dtype=torch.float64)
        everyone = [torch.empty_like(mine) for _ in range(self.size)]
        with _others():
            dist.all_gather(everyone, mine, group=self.control)
        said = torch.stack(everyone).tolist()
        return [theirs[:-1] for theirs in said], max(stamp for *_, stamp in said) - self.offset

    def share(self, owner: int, tensors: list[Tensor]) -> None:
        """Copy tensors from the rank `owner` to all others, byte by byte."""
        under_way = []
        with torch.no_grad(), _others():
            for tensor in tensors:
                data = tensor.detach().cpu().contiguous()
                flat = data.flatten().view(torch.uint8)
                under_way.append((tensor, data, dist.broadcast(flat, owner, group=self.control, async_op=True)))
            for tensor, data, work in under_way:
                work.wait()
                if self.rank != owner:
                    tensor.copy_(data)

    def turn(self) -> FileLock:
        """The lock with which the ranks of one host take turns: a file that is gone as soon as all have opened it."""
        with tempfile.NamedTemporaryFile(prefix="pipelab-turn-") as file:
            lock = FileLock(self.everybody(file.name)[self.hosts.index(self.hosts[self.rank])])
            self.everybody(None)
        return lock

    def close(self, *failure: object) -> None:
        """Leave all groups; whoever still waits for this rank learns it at once. After a failure those of NCCL are left
        to the end of the process: they would first wait for messages that nobody sends."""
        for group in reversed(self._groups):
            if not any(failure) or dist.get_backend(group) != "nccl":
                dist.destroy_process_group(group)
        self._groups.clear()

    def _align(self) -> tuple[float, float]:
        offset, residual = 0.0, 0.0
        for rank in range(1, self.size):
            if self.hosts[rank] != self.hosts[0] and self.rank in (0, rank):
                measured = measure_offset(self.control, 0, rank)
                offset, residual = measured if self.rank == rank else (0.0, 0.0)
        return offset, max(self.everybody(residual))


@contextmanager
def _others() -> Iterator[None]:
    """Within it, what gloo says of a lost connection becomes Aborted."""
    try:
        yield
    except RuntimeError as error:
        raise Aborted("another rank has gone") from error
