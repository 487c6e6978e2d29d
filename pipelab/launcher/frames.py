"""How do the caller and a rank talk? Frames on a socket: a letter, a length, the bytes."""

import io
import operator
import pickle
import socket
import struct
import sys
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

ORDER, POST, RESULT, ERROR = b"O", b"P", b"R", b"E"
"""What a frame holds: the work (to a rank); an object on the way, the result, what went wrong (from a rank)."""

_HEADER = struct.Struct("<cQ")


def pickler() -> Any:
    """cloudpickle, which takes functions and classes of a notebook too; where it is missing, Python's own."""
    try:
        import cloudpickle
    except ModuleNotFoundError:
        return pickle
    return cloudpickle


def pack(value: Any, pickle_module: Any = None) -> bytes:
    """Any value as bytes."""
    import torch

    buffer = io.BytesIO()
    torch.save(value, buffer, pickle_module=pickle_module or pickler())
    return buffer.getvalue()


def pack_for_caller(value: Any) -> bytes:
    """A value of a rank as bytes; a class that came from the caller's notebook or script goes back by its name.

    Were it sent whole, cloudpickle would find that the caller has this class, and give it the methods that the rank
    had, with the globals of that moment.
    """
    base = pickler().Pickler

    class ByName(base):  # type: ignore[misc, valid-type]
        def reducer_override(self, value: Any) -> Any:
            if isinstance(value, type) and value.__module__ == "__main__" and "<" not in value.__qualname__:
                return _of_main, (value.__qualname__,)
            return base.reducer_override(self, value) if hasattr(base, "reducer_override") else NotImplemented

    return pack(value, SimpleNamespace(__name__=__name__, Pickler=ByName))


def _of_main(name: str) -> Any:
    return operator.attrgetter(name)(sys.modules["__main__"])


def unpack(data: bytes) -> Any:
    """The value again, its tensors on the CPU: a notebook that gets a result never starts CUDA for it."""
    import torch

    return torch.load(io.BytesIO(data), map_location="cpu", weights_only=False)


def send(channel: socket.socket, kind: bytes, data: bytes) -> None:
    """Send one frame; waits until the channel has taken it."""
    channel.sendall(_HEADER.pack(kind, len(data)))
    channel.sendall(data)


def receive(channel: socket.socket) -> tuple[bytes, bytes]:
    """Wait for one frame. Raises EOFError when the other side has gone."""
    kind, length = _HEADER.unpack(_receive_all(channel, _HEADER.size))
    return kind, bytes(_receive_all(channel, length))


def _receive_all(channel: socket.socket, length: int) -> bytearray:
    data = bytearray()
    while len(data) < length:
        piece = channel.recv(min(length - len(data), 2**20))
        if not piece:
            raise EOFError("the other side has gone")
        data += piece
    return data


class Inbox:
    """Frames out of the pieces in which they arrive."""

    def __init__(self) -> None:
        self._data = bytearray()

    def feed(self, piece: bytes) -> Iterator[tuple[bytes, bytes]]:
        """The frames that are whole now."""
        self._data += piece
        while len(self._data) >= _HEADER.size:
            kind, length = _HEADER.unpack_from(self._data)
            end = _HEADER.size + length
            if len(self._data) < end:
                return
            frame = bytes(memoryview(self._data)[_HEADER.size : end])
            del self._data[:end]
            yield kind, frame
