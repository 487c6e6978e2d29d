"""What does a rank do from its first to its last breath? It takes its order, runs the function, sends the result."""

import contextlib
import faulthandler
import linecache
import os
import pickle
import select
import signal
import socket
import sys
import threading
import time
import traceback
from collections import deque
from typing import Any, NoReturn, TextIO

from pipelab.failure import RunError
from pipelab.flight_recorder import FlightRecorder, attached
from pipelab.launcher import frames

WAITING_POSTS = 1024
"""Posts that may wait for a slow caller; then the oldest is dropped, for a rank never waits."""

LINGER = 1.0
"""Seconds that a finished rank stays for the others' sake: one that leaves closes its connections."""


class Link:
    """This rank's line to its caller."""

    def __init__(self, channel: socket.socket, recorder: FlightRecorder) -> None:
        self.channel = channel
        self.recorder = recorder
        self.dropped = 0
        self._posts: deque[bytes] = deque()
        self._changed = threading.Condition()
        self._closing = False
        self._sender: threading.Thread | None = None

    def post(self, value: Any) -> None:
        """Put a value where the sender finds it."""
        data = frames.pack_for_caller(value)
        with self._changed:
            if len(self._posts) >= WAITING_POSTS:
                self._posts.popleft()
                self.dropped += 1
            self._posts.append(data)
            self._changed.notify()
        if self._sender is None:
            self._sender = threading.Thread(target=self._send, name="posts", daemon=True)
            self._sender.start()

    def _send(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._posts or self._closing)
                if not self._posts:
                    return
                data = self._posts.popleft()
            frames.send(self.channel, frames.POST, data)

    def finish(self, kind: bytes, data: bytes) -> None:
        """After all posts the last word: the result, or what went wrong."""
        if self._sender is not None:
            with self._changed:
                self._closing = True
                self._changed.notify()
            self._sender.join()
        frames.send(self.channel, kind, data)


_link: Link | None = None  # a process is one rank, as it has one process group


def post(value: Any) -> None:
    """Send a value to the caller's `on_post` while the function still runs; call it inside a rank.

    It returns at once: values wait in a queue of 1024, and if the caller is slower than that, the oldest are dropped.
    Raises RuntimeError outside a rank that `launch` has started.
    """
    if _link is None:
        raise RuntimeError("post sends from a rank to its caller; call it in a function that pl.launch runs")
    _link.post(value)


def recorder() -> FlightRecorder | None:
    """The flight recorder of this rank, which its caller reads; None outside a launched rank."""
    return _link.recorder if _link is not None else None


def main(channel: int, output: int, errors: int, recorder: int) -> NoReturn:
    """The life of a rank, on the descriptors that the server was given for it."""
    line = socket.socket(fileno=channel)
    _set_streams(output, errors)
    order = pickle.loads(frames.receive(line)[1])
    os.environ.clear()
    os.environ.update(order["environment"])
    sys.path[:] = order["path"]
    with contextlib.suppress(OSError):
        os.chdir(order["folder"])
    linecache.cache.update(order["sources"])
    rank = int(os.environ["RANK"])
    global _link
    _link = Link(line, attached(recorder, rank, int(os.environ["WORLD_SIZE"])))
    os.close(recorder)
    released = threading.Event()
    threading.Thread(target=_watch_caller, args=(line, released), name="caller", daemon=True).start()
    code = _run(order, _link)
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    if code == 0:
        released.wait(LINGER)
    os._exit(code)


def _run(order: dict[str, Any], link: Link) -> int:
    import torch

    torch.set_num_threads(order["threads"])
    try:
        function, arguments = frames.unpack(order.pop("call"))  # it is large, and kept once
        result = frames.pack_for_caller(function(*arguments))
    except BaseException as error:
        link.finish(frames.ERROR, pickle.dumps({**_told(error), "time": time.time()}))
        return 1
    link.recorder.finished()
    link.finish(frames.RESULT, result)
    return 0


def _told(error: BaseException) -> dict[str, Any]:
    """An error as plain text, without the launcher's own frames; of a RunError, what was behind it."""
    if isinstance(error, RunError) and error.__cause__ is not None:
        error = error.__cause__
    frame = error.__traceback__
    while frame is not None and frame.tb_frame.f_code.co_filename in (__file__, frames.__file__):
        frame = frame.tb_next
    text = "".join(traceback.format_exception(type(error), error, frame))
    return {"error": type(error).__name__, "message": str(error), "traceback": text}


def _set_streams(output: int, errors: int) -> None:
    """Standard output and errors go to the caller, whoever writes them; a crash leaves its stack there."""
    nowhere = os.open(os.devnull, os.O_RDONLY)
    for ours, standard in ((nowhere, 0), (output, 1), (errors, 2)):
        os.dup2(ours, standard)
        os.close(ours)
    sys.stdin = open(0, closefd=False)  # noqa: SIM115
    sys.stdout, sys.stderr = (_text_to(descriptor) for descriptor in (1, 2))
    sys.__stdin__, sys.__stdout__, sys.__stderr__ = sys.stdin, sys.stdout, sys.stderr  # type: ignore
    faulthandler.enable(sys.stderr, all_threads=False)
    faulthandler.register(signal.SIGUSR2, sys.stderr, all_threads=False)


def _text_to(descriptor: int) -> TextIO:
    return open(descriptor, "w", buffering=1, encoding="utf-8", errors="backslashreplace", closefd=False)


def _watch_caller(line: socket.socket, released: threading.Event) -> None:
    """Wait for the caller's word that all are done; if the caller has gone, end with all that this rank has started."""
    while True:
        with contextlib.suppress(OSError):
            select.select([line], [], [])
            if line.recv(1):
                return released.set()
        os.killpg(os.getpgid(0), signal.SIGKILL)
