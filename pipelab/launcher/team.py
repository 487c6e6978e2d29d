"""How does the caller follow its ranks? One loop listens to all of them, and ends all when one fails."""

import contextlib
import os
import selectors
import socket
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

from pipelab.failure import RunError
from pipelab.flight_recorder import Recorders
from pipelab.launcher import frames
from pipelab.launcher.member import Member
from pipelab.launcher.server import Server

FAREWELL = 10.0
"""Seconds within which killed ranks must have gone."""

LOOK = 0.5
"""Seconds between two looks at what the ranks have recorded."""


class Team:
    """The ranks of one launch, their store and their flight recorders; a context, so that all are given back."""

    def __init__(
        self, server: Server, ranks: int, timeout: float | None, on_post: Callable[[int, Any], None] | None
    ) -> None:
        self.ranks = ranks
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
            member.order(frames.pickled(**order, environment=self._environment(member.rank)))
        quiet_since, signs = time.monotonic(), -1
        while not all(member.settled for member in self.members):
            self._listen(LOOK)
            if any(member.failed for member in self.members):
                raise self._failure()
            if all(member.result is not None for member in self.members):
                for member in self.members:
                    member.release()
            if (now := self._signs()) != signs:
                quiet_since, signs = time.monotonic(), now
            elif self.timeout is not None and time.monotonic() - quiet_since > self.timeout:
                raise RunError(f"no rank gave a sign of life for {self.timeout:g} s; raise timeout= for slow work")
        if any(member.failed for member in self.members):
            raise self._failure()
        return [member.result or b"" for member in self.members]

    def _failure(self) -> RunError:
        member = next(member for member in self.members if member.failed)
        where = f"rank {member.rank} (pid {member.pid})"
        if member.error is not None:
            return RunError(
                f"{where} raised {member.error['name']}: {member.error['message']}", "", member.error["traceback"]
            )
        return RunError(f"{where} ended with code {member.code}")

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
