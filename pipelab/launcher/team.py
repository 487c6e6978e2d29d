"""How does the caller follow its ranks? One loop listens to all of them, and ends all when one fails."""

import contextlib
import os
import pickle
import selectors
import socket
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any

from pipelab.failure import Fate, RunError, failure, hang
from pipelab.flight_recorder import Recorders
from pipelab.launcher.member import UNKNOWN, Member
from pipelab.launcher.server import Server

FAREWELL = 10.0
"""Seconds within which killed ranks must have gone."""

LOOK = 0.5
"""Seconds between two looks at what the ranks have recorded."""


def _patience(fates: Sequence[Fate]) -> float:
    """Seconds to wait after a first failure for one that explains it: the one that died may be heard of last."""
    if any(fate.killed for fate in fates) or all(fate.failed or fate.returned for fate in fates):
        return 0.0
    return 1.5 if all(fate.secondary for fate in fates if fate.failed) else 0.2


class Team:
    """The ranks of one launch, their store and their flight recorders; a context, so that all are given back."""

    def __init__(
        self, server: Server, ranks: int, task: str, timeout: float | None, on_post: Callable[[int, Any], None] | None
    ) -> None:
        self.ranks = ranks
        self.task = task
        self.timeout = timeout
        self._server = server
        self._on_post = on_post
        self._resources = ExitStack()
        self.members: list[Member] = []

    def __enter__(self) -> "Team":
        with self._resources as cleanly:
            self._selector = cleanly.enter_context(selectors.DefaultSelector())
            self.recorders = cleanly.enter_context(Recorders(self.ranks))
            self._store, self.port = _store()
            cleanly.callback(self._end)
            self._resources = cleanly.pop_all()
        return self

    def __exit__(self, *exception: object) -> None:
        self._resources.close()

    def run(self, order: dict[str, Any]) -> list[bytes]:
        """Start the ranks, follow them, and give their results as bytes. Raises RunError when one fails."""
        for rank in range(self.ranks):
            self.members.append(
                Member(
                    rank, self._server, self.recorders.fileno(), self._selector, sys.stdout, sys.stderr, self._on_post
                )
            )
        for member in self.members:
            member.order(pickle.dumps({**order, "environment": self._environment(member.rank)}))
        self._follow()
        return [member.result or b"" for member in self.members]

    def _follow(self) -> None:
        """Listen until all have returned and gone; raise RunError as soon as it is known that, and why, they cannot."""
        moved, signs, first_failure = time.monotonic(), -1, None
        while not all(member.settled for member in self.members):
            self._listen(LOOK if first_failure is None else LOOK / 10)
            now = time.monotonic()
            if any(member.code == UNKNOWN for member in self.members):
                raise RunError(self._server.epitaph())
            fates = self._fates()
            if any(fate.failed for fate in fates):
                first_failure = first_failure or now
                if now - first_failure >= _patience(fates):
                    raise failure(fates)
            elif all(fate.returned for fate in fates):
                for member in self.members:
                    member.release()
            elif (latest := self._signs()) != signs:
                moved, signs = now, latest
            elif self.timeout is not None and now - moved > self.timeout:
                raise self._hang(self.timeout)
        if any(fate.failed for fate in self._fates()):
            raise failure(self._fates())

    def _hang(self, seconds: float) -> RunError:
        if all(member.pid is None for member in self.members):
            return RunError(f"no rank has started within {seconds:g} s; if importing torch is slow, raise the timeout")
        held_up_by = hang(self._fates(), seconds).rank or 0
        self.members[held_up_by].show_stack()
        until = time.monotonic() + LOOK
        while (left := until - time.monotonic()) > 0:
            self._listen(left)
        return hang(self._fates(), seconds)

    def _fates(self) -> list[Fate]:
        return [member.fate(self.recorders[member.rank].notes(), self.task) for member in self.members]

    def _signs(self) -> int:
        return sum(member.signs + self.recorders[member.rank].count for member in self.members)

    def _listen(self, seconds: float) -> None:
        for key, _ in self._selector.select(seconds):
            key.data()

    def _environment(self, rank: int) -> dict[str, str]:
        own = {
            "RANK": rank,
            "WORLD_SIZE": self.ranks,
            "LOCAL_RANK": rank,
            "LOCAL_WORLD_SIZE": self.ranks,
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": self.port,
            "TORCHELASTIC_USE_AGENT_STORE": True,
            "TORCHELASTIC_RESTART_COUNT": 0,
        }
        loopback = "lo0" if sys.platform == "darwin" else "lo"
        return {"GLOO_SOCKET_IFNAME": loopback, **os.environ, **{name: str(value) for name, value in own.items()}}

    def _end(self) -> None:
        """Kill what still lives, wait until it has gone, and let go of everything."""
        with contextlib.ExitStack() as closing:
            for member in self.members:
                closing.callback(member.close)
                member.kill()
            until = time.monotonic() + FAREWELL
            while any(member.code is None for member in self.members) and time.monotonic() < until:
                self._listen(until - time.monotonic())
        self._store = None


def _store() -> tuple[Any, int]:
    """The store at which the ranks meet, on a free port that only this host can reach."""
    from torch.distributed import TCPStore

    with socket.create_server(("127.0.0.1", 0), backlog=1024) as listening:
        port = listening.getsockname()[1]
        store = TCPStore("127.0.0.1", port, is_master=True, wait_for_workers=False, master_listen_fd=listening.fileno())
        listening.detach()  # the store closes it
    return store, port
