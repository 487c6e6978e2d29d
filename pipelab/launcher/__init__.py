"""Run a function as several real processes, from a notebook cell or a script, in a fraction of a second.

Reading order: `launch` here, `server` (where ranks come from), `rank` (what they do), `member` and `team` (how the
caller follows them), `pipelab.failure` (what it says when one fails).
"""

import atexit
import linecache
import os
import pickle
import sys
import threading
from collections.abc import Callable, Sequence
from typing import Any

from pipelab.host import cores
from pipelab.launcher import frames
from pipelab.launcher.rank import post, recorder
from pipelab.launcher.server import Server
from pipelab.launcher.team import Team

__all__ = ["launch", "post", "recorder"]

MOST_RANKS = 256

_server: Server | None = None
_lock = threading.Lock()


def launch(
    function: Callable[..., Any],
    *arguments: Any,
    ranks: int = 4,
    timeout: float | None = 60.0,
    threads: int | None = None,
    on_post: Callable[[int, Any], None] | None = None,
    preload: Sequence[str] = (),
) -> list[Any]:
    """Run `function(*arguments)` as `ranks` processes of this host, and give what each returns, by rank.

    Each process finds RANK, WORLD_SIZE and the rest of torchrun's variables: `init_process_group("gloo")` works in it.
    The function may be defined in a notebook cell. What the ranks print is shown as it comes, with the rank in front.
    `timeout` is how many seconds may pass without a sign of life of any rank (a recorded action, a post, a line):
    then the launch has failed; None waits for ever. `threads` is torch's threads in a rank (the cores, shared evenly).
    `preload` names modules that are slow to import: that is done once, not in every rank of every launch.
    `on_post(rank, value)` receives, in this thread, what a rank sends with `pipelab.launcher.post`.

    Raises RunError when a rank raises, is killed, leaves early or hangs; ValueError for what cannot be launched.
    However it ends, stop button included, no process, port or file is left.

    >>> def double(number):
    ...     import os
    ...     return number * 2, os.environ["RANK"]
    >>> launch(double, 21, ranks=2)
    [(42, '0'), (42, '1')]
    """
    if not 1 <= ranks <= MOST_RANKS:
        raise ValueError(f"ranks must be from 1 to {MOST_RANKS}: got {ranks}")
    if timeout is not None and not timeout > 0:
        raise ValueError(f"timeout is how many seconds may pass without a sign of life, above 0: got {timeout}")
    if os.name != "posix":
        raise ValueError("launch forks processes, which this system cannot; run the notebook under Linux, WSL or macOS")
    order = {
        "call": _packed(function, arguments),
        "path": [path or os.getcwd() for path in sys.path],
        "folder": os.getcwd(),
        "sources": _sources_without_files(),
        "threads": threads or max(1, cores() // ranks),
    }
    server = _living_server()
    server.load(preload)
    with Team(server, ranks, _name(function), timeout, on_post) as team:
        results = team.run(order)
    return [frames.unpack(result) for result in results]


def _name(function: Callable[..., Any]) -> str:
    return str(getattr(function, "__name__", type(function).__name__))


def _packed(function: Callable[..., Any], arguments: tuple[Any, ...]) -> bytes:
    if frames.pickler() is pickle and _is_of_a_notebook(function):
        raise ValueError(f"{_name(function)} cannot be sent to the ranks without cloudpickle: pip install cloudpickle")
    try:
        return frames.pack((function, arguments))
    except Exception as error:
        what = f"{_name(function)} and its arguments cannot be sent to the ranks"
        raise ValueError(f"{what} ({error}); make what they need inside the function") from error


def _is_of_a_notebook(function: Callable[..., Any]) -> bool:
    """Only a function that others can import is found by its name."""
    return function.__module__ == "__main__" or "<" in getattr(function, "__qualname__", "<")


def _sources_without_files() -> dict[str, Any]:
    """The source of notebook cells, so that a rank's traceback can show the line."""
    cells = {name: entry for name, entry in linecache.cache.items() if len(entry) > 1 and not os.path.exists(name)}
    return {name: (entry[0], None, entry[2], entry[3]) for name, entry in cells.items()}


def _living_server() -> Server:
    """The server of this process, started once; it ends with the process."""
    global _server
    with _lock:
        if _server is None or not _server.alive:
            _server = Server()
            atexit.register(_server.close)
        return _server
