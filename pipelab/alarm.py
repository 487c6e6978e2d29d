"""How do ranks without a common parent learn that one has failed? Each holds a line to rank 0, which watches them all.

Under torchrun, on one host or many, nobody sees every process. So rank 0 listens on a port (the others find it in the
run's store), and each rank keeps a connection to it: a rank that dies closes its line, at once and without a word; one
that fails says so; one that hangs stops counting. Then rank 0 asks all for their last notes (those of its own host it
reads itself, of the dead too), prints the one report, and tells the others to end. `launch` needs none of this: there
the caller watches. Read next: `failure`.
"""

import contextlib
import json
import os
import secrets
import socket
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from pipelab.failure import LAST_ACTIONS, Fate, RunError, describe, failure, hang
from pipelab.flight_recorder import SIZE, FlightRecorder, Note, attached
from pipelab.launcher import recorder as recorder_of_a_launch
from pipelab.transport import Aborted

BEAT = 0.5
"""Seconds between two signs of life of a rank."""

ANSWER = 0.5
"""Seconds in which the ranks give their notes, once one has failed."""

AFTER = 0.3
"""Seconds by which the others outlive the culprit: torchrun takes the first that ends for the cause."""

GRACE = 5.0
"""Seconds by which a rank outwaits the watch, which knows more."""

KEY = "pipelab/alarm"


@contextlib.contextmanager
def watched(timeout: float = 60.0) -> Iterator[FlightRecorder]:
    """Within it, this rank is watched, and watches; gives the flight recorder that it is to write.

    One call at the start of a rank, after `init_process_group`. Under `launch` the caller does the watching. Else no
    rank goes on before all are watched; when any rank fails, dies, or none makes progress for `timeout` seconds, every
    rank ends within two seconds with a sentence that names the culprit, and rank 0 prints the whole report; the exit
    status is 1.
    """
    if (own := recorder_of_a_launch()) is not None:
        yield own
        return
    line = _Line(timeout)
    try:
        yield line.recorder
    except BaseException as error:
        line.fail(error)
        raise
    line.leave()


class _Line:
    """This rank's end of its line to rank 0; on rank 0 there is the watch as well."""

    def __init__(self, timeout: float) -> None:
        from torch.distributed import TCPStore

        self._ring = ring = tempfile.NamedTemporaryFile(prefix="pipelab-notes-")  # noqa: SIM115 (closed when all are here)
        ring.truncate(SIZE)
        self.recorder = attached(ring.fileno(), rank=0, ranks=1)
        rank, ranks = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
        address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        self._me = Fate(rank, os.getpid(), socket.gethostname())
        self._watch: _Watch | None = None
        self._all_here = threading.Event()
        self._over = threading.Event()
        self._lock = threading.Lock()
        self._store = store = TCPStore(address, port, is_master=False)
        if rank == 0:
            listening = socket.create_server(("", 0), backlog=ranks)
            password = secrets.token_hex(16)
            self._watch = _Watch(listening, password, ranks, timeout)
            self._watch.start()
            store.set(KEY, f"{listening.getsockname()[1]} {password}")
        there, password = store.get(KEY).decode().split()
        try:
            self._socket = socket.create_connection(("localhost" if rank == 0 else address, int(there)), timeout)
        except OSError as error:
            ring.close()
            what = f"rank {rank} cannot reach rank 0 at {address}, port {there}: {error}"
            raise RunError(f"{what}; either rank 0 has ended, or a firewall closes its ports") from error
        self._socket.settimeout(None)
        self._say(password=password, ring=ring.name, rank=rank, pid=self._me.pid, host=self._me.host)
        for work in (self._listen, self._beat):
            threading.Thread(target=work, name="alarm", daemon=True).start()
        if not self._all_here.wait(timeout + GRACE):  # a watch that finds one missing speaks before that
            raise RunError(f"rank {rank} waited {timeout:g} s for all ranks to be watched; has one not started?")
        ring.close()

    def fail(self, error: BaseException) -> None:
        """Tell what this rank has raised, and stay until the report is out."""
        cause = error.__cause__ if isinstance(error, RunError) and error.__cause__ is not None else error
        text = "".join(traceback.format_exception(cause))
        self._say(error=type(cause).__name__, message=str(cause), traceback=text, time=time.time(), notes=self._notes())
        if self._over.wait(3 * ANSWER) and isinstance(cause, Aborted):
            time.sleep(2 * AFTER)  # and it ends here: what a rank has lost says nothing about why

    def leave(self) -> None:
        """Say that this rank has done its work; rank 0 stays until all have."""
        self._over.set()
        self._say(returned=True)
        if self._watch is not None:
            self._watch.join()
            self._store.delete_key(KEY)  # the next run of these processes has a port of its own
            if self._watch.error is not None:
                raise self._watch.error

    def _notes(self) -> list[Note]:
        return self.recorder.notes()[-LAST_ACTIONS:]

    def _say(self, **what: Any) -> None:
        with self._lock, contextlib.suppress(OSError):
            self._socket.sendall(json.dumps(what).encode() + b"\n")

    def _beat(self) -> None:
        while not self._over.wait(BEAT):
            self._say(count=self.recorder.count, notes=self._notes())

    def _listen(self) -> None:
        """Answer when rank 0 asks; end when it says so, or when it has gone."""
        verdict: dict[str, Any] = {}
        with contextlib.suppress(OSError), self._socket.makefile("r", encoding="utf-8") as lines:
            for line in lines:
                said = json.loads(line)
                if "sentence" in said:
                    verdict = said
                    break
                if "all_here" in said:
                    self._all_here.set()
                else:
                    self._say(answer=True, notes=self._notes())
        if not verdict:
            own = describe([replace(self._me, notes=self._notes())])
            verdict = {"sentence": f"rank 0 ended without a word\n{own}", "rank": 0}
        returned = self._over.is_set()
        self._over.set()
        if verdict["rank"] != self._me.rank and not returned:
            _print(f"{self._me.name}{self._me.place} ends: {verdict['sentence']}")
            time.sleep(AFTER)
            self._ring.close()
            os._exit(1)


class _Watch(threading.Thread):
    """On rank 0: what is known of all ranks, and what is done when one fails."""

    def __init__(self, listening: socket.socket, password: str, ranks: int, timeout: float) -> None:
        super().__init__(name="watch", daemon=True)
        self._listening, self._password, self._ranks, self._timeout = listening, password, ranks, timeout
        self._fates: dict[int, Fate] = {}
        self._lines: dict[int, socket.socket] = {}
        self._counts: dict[int, int] = {}
        self._answered: set[int] = set()
        self._rings: dict[int, FlightRecorder] = {}
        self._changed = threading.Condition()
        self._verdict: dict[str, Any] = {}
        self.error: RunError | None = None

    def run(self) -> None:
        """Until all have returned, or one has failed, or none goes on."""
        threading.Thread(target=self._accept, name="watch", daemon=True).start()
        moved, signs = time.monotonic(), (0, 0)
        with self._changed:
            while not any(fate.failed for fate in self._fates.values()):
                self._changed.wait(BEAT)
                if len(self._fates) == self._ranks and all(fate.returned for fate in self._fates.values()):
                    return
                if (latest := (len(self._fates), sum(self._counts.values()))) != signs:
                    moved, signs = time.monotonic(), latest
                elif time.monotonic() - moved > self._timeout:
                    break
            self._end()

    def _end(self) -> None:
        """Ask all for their last notes, say who it was, and have all end."""
        self._tell(self._lines, ask=True)
        until = time.monotonic() + ANSWER
        while self._unexplained() and (left := until - time.monotonic()) > 0:
            self._changed.wait(left)
        fates = [replace(self._fates[rank], notes=self._notes_of(rank)) for rank in sorted(self._fates)]
        failed = any(fate.failed for fate in fates)
        missing = [rank for rank in range(self._ranks) if rank not in self._fates]
        if missing and not failed:
            self.error = RunError(f"rank {missing[0]} has not started within {self._timeout:g} s", rank=missing[0])
        else:
            self.error = failure(fates) if failed else hang(fates, self._timeout)
        _print(str(self.error))
        self._verdict = {"sentence": self.error.sentence, "rank": self.error.rank if failed else None}
        self._tell(self._lines, **self._verdict)

    def _open(self, rank: int, ring: str, host: str) -> None:
        with contextlib.suppress(OSError):
            if host == socket.gethostname():
                with open(ring, "rb+") as file:
                    self._rings[rank] = attached(file.fileno(), rank=0, ranks=1)

    def _notes_of(self, rank: int) -> Sequence[Note]:
        ring = self._rings.get(rank)
        return ring.notes()[-LAST_ACTIONS:] if ring is not None else self._fates[rank].notes

    def _unexplained(self) -> bool:
        """Not all have answered, or nobody has said more than that others are gone."""
        failed = [fate for fate in self._fates.values() if fate.failed]
        return len(self._answered) < len(self._lines) or (bool(failed) and all(fate.secondary for fate in failed))

    def _accept(self) -> None:
        with self._listening, contextlib.suppress(OSError):
            for _ in range(self._ranks):
                line, _ = self._listening.accept()
                threading.Thread(target=self._hear, args=(line,), name="watch", daemon=True).start()

    def _hear(self, line: socket.socket) -> None:
        """All that one rank says, until its line closes."""
        rank = None
        with contextlib.suppress(OSError, ValueError), line.makefile("r", encoding="utf-8") as said:
            hello = json.loads(said.readline())
            if hello.pop("password") != self._password:
                return
            rank = hello["rank"]
            self._open(rank, hello.pop("ring"), hello["host"])
            self._learn(rank, line, Fate(**hello))
            for words in said:
                self._learn(rank, line, self._told(rank, json.loads(words)))
        if rank is not None:
            fate = self._fates[rank]
            self._learn(rank, None, replace(fate, vanished=not (fate.returned or fate.error)))

    def _told(self, rank: int, said: dict[str, Any]) -> Fate:
        self._counts[rank] = said.pop("count", self._counts.get(rank, 0))
        if said.pop("answer", False):
            self._answered.add(rank)
        notes = [Note._make([*note[:-1], tuple(note[-1])]) for note in said.pop("notes", ())]
        return replace(self._fates[rank], **said, notes=notes or self._fates[rank].notes)

    def _learn(self, rank: int, line: socket.socket | None, fate: Fate) -> None:
        with self._changed:
            if line is None:
                self._answered.add(rank)
            elif rank not in self._lines:
                self._lines[rank] = line
                if self._verdict:  # it comes too late
                    self._tell({rank: line}, **self._verdict)
                elif len(self._lines) == self._ranks:
                    self._tell(self._lines, all_here=True)
            self._fates[rank] = fate
            self._changed.notify_all()

    def _tell(self, lines: dict[int, socket.socket], **what: Any) -> None:
        for _, line in sorted(lines.items(), reverse=True):  # rank 0, which does this, last
            with contextlib.suppress(OSError):
                line.sendall(json.dumps(what).encode() + b"\n")


def _print(text: str) -> None:
    """In one piece, for all ranks of a host write to the same terminal."""
    sys.stderr.write(f"{text}\n")
    sys.stderr.flush()
