"""What was each rank doing when it failed? A small ring of its last actions, in memory that outlives the rank.

A rank notes what it is about to do: a microsecond, without a lock, a system call or a message. The ring lies in a
file without a name that the rank and its caller both have mapped: a rank that is killed leaves its notes, and when the
last process closes the file, nothing is left. Read next: `wait_for`.
"""

import mmap
import struct
import tempfile
import time
from array import array
from collections.abc import Sequence
from typing import Any, NamedTuple

RUNNING, WAITING, FINISHED = "running", "waiting", "finished"
_STATES = (RUNNING, WAITING, FINISHED)

TURN = "its turn"
"""What a rank waits for while another one computes: in virtual time they do so one at a time."""

ENTRIES = 63
"""How many notes a rank keeps."""

MOST_PEERS = 16
"""How many of the ranks that it waits for a note can name."""

_COUNT = struct.Struct("<Q")
_WORDS = struct.Struct(f"<BB{2 * MOST_PEERS}s43s43s")
_NOTE = struct.Struct(f"<d{_WORDS.size}s")
_PLACE = _NOTE.size
SIZE = _PLACE * (ENTRIES + 1)
"""Bytes of one rank's ring; in its first place is the number of notes ever written."""


class Note(NamedTuple):
    """What a rank was doing since `time` (of `time.time`, which hosts share): its state and its action.

    A rank that waits can go on when the ranks `peers` have done `awaited`, such as `0SEND_F2`.
    """

    time: float
    state: str
    action: str = ""
    awaited: str = ""
    peers: tuple[int, ...] = ()


class FlightRecorder:
    """One rank's ring of notes, written by the rank and read by whoever has the same memory.

    >>> recorder = FlightRecorder()
    >>> recorder.running("0F0")
    >>> recorder.waiting("0RECV_B0", awaited="1SEND_B0", peers=[1])
    >>> [(note.state, note.action, note.peers) for note in recorder.notes()]
    [('running', '0F0', ()), ('waiting', '0RECV_B0', (1,))]
    """

    def __init__(self, memory: memoryview | None = None) -> None:
        self._memory = memoryview(bytearray(SIZE)) if memory is None else memory
        self._written = self.count
        self._words: dict[tuple[object, ...], bytes] = {}  # a rank notes the same things in every step

    def running(self, action: object) -> None:
        """Note that the rank now does `action`."""
        self._write(0, action, "", ())

    def waiting(self, action: object, awaited: object = "", peers: Sequence[int] = ()) -> None:
        """Note that the rank stands at `action` until the (global) ranks `peers` have done `awaited`."""
        self._write(1, action, awaited, tuple(peers))

    def meeting(self, action: object, peers: Sequence[int]) -> None:
        """Note that at `action`, such as a collective, the rank waits until the ranks `peers` have come to it too."""
        self.waiting(action, action, peers)

    def queueing(self, action: object) -> None:
        """Note that the rank does `action` as soon as the machine lets it."""
        self.waiting(action, TURN)

    def finished(self) -> None:
        """Note that the rank has nothing left to do."""
        self._write(2, "", "", ())

    def _write(self, *note: Any) -> None:
        words = self._words.get(note)
        if words is None:
            words = self._words[note] = self._packed(*note)
        _NOTE.pack_into(self._memory, _PLACE * (1 + self._written % ENTRIES), time.time(), words)
        self._written += 1  # after the note: who reads meanwhile sees the notes before it
        _COUNT.pack_into(self._memory, 0, self._written)

    def _packed(self, state: int, action: object, awaited: object, peers: tuple[int, ...]) -> bytes:
        named = array("H", peers[:MOST_PEERS])
        return _WORDS.pack(state, len(named), named.tobytes(), str(action).encode(), str(awaited).encode())

    @property
    def count(self) -> int:
        """Notes ever written: it grows as long as the rank goes on."""
        return int(_COUNT.unpack_from(self._memory)[0])

    def notes(self) -> list[Note]:
        """The last notes, oldest first."""
        count = self.count
        return [self._read(index) for index in range(max(0, count - ENTRIES), count)]

    @property
    def last(self) -> Note | None:
        """What the rank noted last; None before its first note."""
        return self._read(self.count - 1) if self.count else None

    def _read(self, index: int) -> Note:
        offset = _PLACE * (1 + index % ENTRIES)
        moment, words = _NOTE.unpack_from(self._memory, offset)
        state, count, peers, action, awaited = _WORDS.unpack(words)
        return Note(moment, _STATES[state], _text(action), _text(awaited), tuple(array("H", peers)[:count]))


def _text(data: bytes) -> str:
    return data.rstrip(b"\0").decode(errors="replace")


class Recorders:
    """The rings of all ranks of one launch, in one unnamed file; `.fileno()` is what the ranks are given to map.

    >>> with Recorders(ranks=2) as recorders:
    ...     attached(recorders.fileno(), rank=1, ranks=2).running("1F0")
    ...     recorders[1].last.action
    '1F0'
    """

    def __init__(self, ranks: int) -> None:
        self.ranks = ranks
        self._file = tempfile.TemporaryFile()  # noqa: SIM115 (closed by __exit__)
        self._file.truncate(SIZE * ranks)
        self._all = [attached(self.fileno(), rank, ranks) for rank in range(ranks)]

    def __enter__(self) -> "Recorders":
        return self

    def __exit__(self, *exception: object) -> None:
        self._file.close()  # the mappings go with the recorders

    def fileno(self) -> int:
        """The file's descriptor."""
        return self._file.fileno()

    def __getitem__(self, rank: int) -> FlightRecorder:
        return self._all[rank]


def attached(descriptor: int, rank: int, ranks: int) -> FlightRecorder:
    """The ring of one rank in the file of `Recorders`."""
    mapping = memoryview(mmap.mmap(descriptor, SIZE * ranks))
    return FlightRecorder(mapping[SIZE * rank : SIZE * (rank + 1)])
