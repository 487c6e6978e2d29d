"""Where do ranks come from? A small process that has torch loaded forks one when asked: milliseconds, not seconds.

It is not the notebook's kernel that forks: a fork would copy its threads' locks, its widgets and, worst, its CUDA. The
server has one thread and never does a computation, so its copies are clean. It lives as long as its caller: when the
caller's socket closes, for whatever reason, it kills the ranks that are left and ends.

The protocol is one byte with five descriptors a rank: [control, channel, output, errors, flight recorder]. On `control`
the server answers with the process id and, when the rank has ended, with its exit code (negative: a signal); when the
caller closes its end, the server kills the rank with everything that the rank has started.
"""

import contextlib
import ctypes
import gc
import importlib
import os
import selectors
import signal
import socket
import struct
import subprocess
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

REPORT = struct.Struct("<i")
LENGTH = struct.Struct("<I")
DESCRIPTORS = 5
ENDS_WITH_PARENT = 1
"""Linux's PR_SET_PDEATHSIG: the signal that a process gets when its parent dies."""


class Server:
    """The server as its caller sees it."""

    def __init__(self) -> None:
        own, theirs = socket.socketpair()
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-c", f"from pipelab.launcher.server import serve; serve({theirs.fileno()})"],
                env={**os.environ, "PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path)},
                pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                start_new_session=True,  # Ctrl-C and the stop button are the caller's to obey
            )  # fmt: skip
        self._socket = own
        self._loaded: set[str] = set()
        self.owner = os.getpid()

    @property
    def alive(self) -> bool:
        """False once it has ended, and in a process that the caller has forked."""
        return self.owner == os.getpid() and self._process.poll() is None

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    def fork(self, descriptors: list[int]) -> None:
        """Ask for one more rank, which gets these descriptors."""
        socket.send_fds(self._socket, [b"+"], descriptors)

    def load(self, modules: Sequence[str]) -> None:
        """Have it import modules once, so that its ranks find them loaded; returns when it has."""
        if news := [name for name in modules if name not in self._loaded]:
            names = ",".join(news).encode()
            self._socket.sendall(b"=" + LENGTH.pack(len(names)) + names)
            self._socket.recv(1)
            self._loaded.update(news)

    def epitaph(self) -> str:
        """Why it is no longer there, in a sentence."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout=1)
        if (self._process.returncode or -1) < 0:
            return "the server that starts the ranks was killed; launch again"
        remedy = f"does `{sys.executable} -c 'import torch, pipelab'` work?"
        return f"the server that starts the ranks ended with status {self._process.returncode}; {remedy}"

    def close(self) -> None:
        """End it, and with it every rank that is left."""
        self._socket.close()
        if self.owner == os.getpid():
            try:
                self._process.wait(timeout=1)
            except subprocess.TimeoutExpired:  # interrupted in the middle of a long import; its ranks end with it
                self._process.kill()
                self._process.wait()


def serve(descriptor: int) -> NoReturn:
    """The server's own program: fork on request, report who has ended, end with the caller."""
    import torch.distributed

    from pipelab.launcher import rank

    assert torch.get_num_threads()  # torch is here and no thread of it has been started
    gc.freeze()  # what is loaded is never looked at again by a collection, so the ranks go on sharing it
    _Forks(socket.socket(fileno=descriptor), rank.main).run()
    os._exit(0)


class _Forks:
    """The ranks of a server: by control socket while they live."""

    def __init__(self, requests: socket.socket, main: Any) -> None:
        self._requests = requests
        self._main = main
        self._caller = os.getppid()
        self._controls: dict[int, socket.socket] = {}  # by process id
        self._wakes, self._wake = socket.socketpair()
        for end in (self._wakes, self._wake):
            end.setblocking(False)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(self._wake.fileno(), warn_on_full_buffer=False)
        self._selector = selectors.DefaultSelector()
        self._selector.register(requests, selectors.EVENT_READ)
        self._selector.register(self._wakes, selectors.EVENT_READ)

    def run(self) -> None:
        """Until the caller has gone."""
        while os.getppid() == self._caller:  # a socket can outlive its owner in a process that the owner forked
            for key, _ in self._selector.select(timeout=1.0):
                if key.fileobj is self._requests:
                    message, descriptors, _, _ = socket.recv_fds(self._requests, 1, DESCRIPTORS)
                    if not message:
                        return self._end_all()
                    if message == b"=":
                        self._load()
                    else:
                        self._fork(descriptors)
                elif key.fileobj is self._wakes:
                    with contextlib.suppress(BlockingIOError):
                        self._wakes.recv(4096)
                else:
                    self._end(key.data)
            self._reap()
        self._end_all()

    def _load(self) -> None:
        (length,) = LENGTH.unpack(self._requests.recv(LENGTH.size, socket.MSG_WAITALL))
        for name in self._requests.recv(length, socket.MSG_WAITALL).decode().split(","):
            with contextlib.suppress(ImportError):  # the rank that needs it will say so
                importlib.import_module(name)
        gc.freeze()
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # nobody waits for it any more
            self._requests.sendall(b"=")

    def _fork(self, descriptors: list[int]) -> None:
        control, *rest = descriptors
        server = os.getpid()
        pid = os.fork()
        if pid == 0:
            self._become_rank(server, control, rest)
        os.setpgid(pid, pid)
        for descriptor in rest:
            os.close(descriptor)
        self._controls[pid] = socket.socket(fileno=control)
        self._selector.register(control, selectors.EVENT_READ, pid)
        self._tell(pid, pid)

    def _become_rank(self, server: int, control: int, rest: list[int]) -> NoReturn:
        """In the new process: let go of what is the server's, and start as a rank."""
        try:
            os.setpgid(0, 0)
            _end_with_parent(server)
            signal.set_wakeup_fd(-1)
            for number in (signal.SIGINT, signal.SIGCHLD):
                signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
            self._selector.close()
            for one in (self._requests, self._wake, self._wakes, *self._controls.values()):
                one.close()
            os.close(control)
            self._main(*rest)
        finally:
            os._exit(70)  # reached only if the rank's own main could not start

    def _reap(self) -> None:
        for pid in list(self._controls):
            ended, status = os.waitpid(pid, os.WNOHANG)
            if ended:
                self._kill_group(pid)  # what the rank has started and left behind
                self._tell(pid, os.waitstatus_to_exitcode(status))
                control = self._controls.pop(pid)
                with contextlib.suppress(KeyError):
                    self._selector.unregister(control)
                control.close()

    def _end(self, pid: int) -> None:
        """The caller has closed its end: the rank must go. Its exit is still reported."""
        if pid in self._controls:
            self._selector.unregister(self._controls[pid])
            self._kill_group(pid)

    def _end_all(self) -> None:
        for pid in self._controls:
            self._kill_group(pid)

    def _kill_group(self, pid: int) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(pid, signal.SIGKILL)

    def _tell(self, pid: int, report: int) -> None:
        with contextlib.suppress(OSError):  # the caller has gone, and the next look at its socket will show it
            self._controls[pid].sendall(REPORT.pack(report))


def _end_with_parent(parent: int) -> None:
    """On Linux: should the server be killed, the kernel ends its ranks."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(ENDS_WITH_PARENT, signal.SIGKILL)
        if os.getppid() != parent:  # it died before the call
            os._exit(70)
