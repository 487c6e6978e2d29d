"""What does the caller know of one rank? Its process id, its exit code, its last lines, its result or its error."""

import codecs
import contextlib
import os
import pickle
import re
import selectors
import signal
import socket
from collections import deque
from collections.abc import Callable
from typing import Any, TextIO

from pipelab.failure import Fate
from pipelab.flight_recorder import Note
from pipelab.launcher import frames
from pipelab.launcher.server import REPORT, Server

TAIL = 60
"""Lines of a rank that are kept for the report of a failure: a whole stack."""

LONGEST_LINE = 2**16

LONGEST_ORDER = 120.0
"""Seconds in which a rank must have started to take its order."""

OURS = re.compile(r' *File "(<string>|.*[/\\]pipelab[/\\]launcher[/\\]\w+\.py)", line \d+ in |Extension modules: ')
"""Lines of a stack that say nothing of the function that was launched."""


class Member:
    """One rank, seen from its caller: four descriptors, and what has come through them."""

    def __init__(
        self, rank: int, server: Server, recorder: int, selector: selectors.BaseSelector,
        out: TextIO, err: TextIO, on_post: Callable[[int, Any], None] | None,
    ) -> None:  # fmt: skip
        self.rank = rank
        self.pid: int | None = None
        self.code: int | None = None
        self.result: bytes | None = None
        self.error: dict[str, Any] | None = None
        self.tail: deque[str] = deque(maxlen=TAIL)
        self.signs = 0
        self._on_post = on_post
        self._inbox = frames.Inbox()
        self._reports = bytearray()
        self._selector = selector
        self.control, control = socket.socketpair()
        self.channel, channel = socket.socketpair()
        (self._output, output), (self._errors, errors) = os.pipe(), os.pipe()
        self._open: dict[Any, Callable[[], None]] = {}
        try:
            server.fork([control.fileno(), channel.fileno(), output, errors, recorder])
        finally:
            for ours in (control, channel):
                ours.close()
            for descriptor in (output, errors):
                os.close(descriptor)
            self._listen(self.control, self._hear_control)
            self._listen(self.channel, self._hear_channel)
            self._listen(self._output, _Lines(self, self._output, out).hear)
            self._listen(self._errors, _Lines(self, self._errors, err).hear)

    def _listen(self, source: Any, hear: Callable[[], bool]) -> None:
        def heard() -> None:
            self.signs += 1
            if not hear():
                self._selector.unregister(source)
                del self._open[source]

        self._open[source] = heard
        self._selector.register(source, selectors.EVENT_READ, heard)

    @property
    def settled(self) -> bool:
        """It has ended, and everything that it sent has been read."""
        return not self._open

    def fate(self, notes: list[Note], task: str) -> Fate:
        """What is known of it, for a report."""
        settled = self.result is None and self.settled
        return Fate(
            self.rank, self.pid, socket.gethostname(), exit_code=self.code if settled else None,
            returned=self.result is not None, notes=notes, lines=tuple(self.tail), task=task,
            **(self.error or {}),
        )  # fmt: skip

    def show_stack(self) -> None:
        """Have it print where it is; a rank that is stuck in compiled code does so too."""
        if self.pid is not None and self.code is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGUSR2)

    def order(self, data: bytes) -> None:
        """Tell it what to do."""
        self.channel.settimeout(LONGEST_ORDER)
        with contextlib.suppress(BrokenPipeError, ConnectionResetError, TimeoutError):  # what is wrong will be heard
            frames.send(self.channel, frames.ORDER, data)

    def release(self) -> None:
        """Tell it that all are done."""
        with contextlib.suppress(OSError):
            self.channel.send(b".")

    def kill(self) -> None:
        """Have it killed, with everything that it has started; that it has ended is heard later, its posts no more."""
        self._on_post = None
        with contextlib.suppress(OSError):
            self.control.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        """Let go of the descriptors; a rank that lives still is killed by the server, which sees it."""
        for source in list(self._open):
            self._selector.unregister(source)
        self._open.clear()
        self.control.close()
        self.channel.close()
        os.close(self._output)
        os.close(self._errors)

    def _hear_control(self) -> bool:
        try:
            piece = self.control.recv(64)
        except ConnectionResetError:
            piece = b""
        self._reports += piece
        numbers = [number for (number,) in REPORT.iter_unpack(self._reports[: len(self._reports) // 4 * 4])]
        self.pid = numbers[0] if numbers else None
        self.code = numbers[1] if len(numbers) > 1 else None
        if not piece and self.code is None:
            self.code = UNKNOWN
        return self.code is None

    def _hear_channel(self) -> bool:
        try:
            piece = self.channel.recv(2**20)
        except ConnectionResetError:
            piece = b""
        for kind, data in self._inbox.feed(piece):
            if kind == frames.POST and self._on_post is not None:
                self._on_post(self.rank, frames.unpack(data))
            elif kind == frames.RESULT:
                self.result = data
            elif kind == frames.ERROR:
                self.error = pickle.loads(data)
        return bool(piece)


UNKNOWN = 2**20
"""In place of an exit code that nobody can know: the server, which would report it, has ended."""


class _Lines:
    """What a rank prints, line by line, each with the rank in front; of a progress bar, its last state."""

    def __init__(self, member: Member, descriptor: int, to: TextIO) -> None:
        self._member = member
        self._descriptor = descriptor
        self._to = to
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._rest = ""

    def hear(self) -> bool:
        """Pass on the lines that are whole; False at the end."""
        piece = os.read(self._descriptor, 2**16)
        *lines, self._rest = (self._rest + self._decoder.decode(piece, final=not piece)).split("\n")
        if self._rest and (not piece or len(self._rest) > LONGEST_LINE):
            lines, self._rest = [*lines, self._rest], ""
        shown = [line.rstrip("\r").rpartition("\r")[2] for line in lines if not OURS.match(line)]
        if shown:
            self._member.tail.extend(shown)
            self._to.write("".join(f"[rank {self._member.rank}] {line}\n" for line in shown))
            self._to.flush()
        return bool(piece)
