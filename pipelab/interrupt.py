"""What does Ctrl-C do while modules are loaded? It ends the process at once, with one line.

An import that is interrupted leaves half a module, and some (numpy's, torch's) swallow the interrupt and go on.
"""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn

STATUS = 130
"""The exit status of a command that was interrupted, as shells have it."""
LINE = "pipelab: interrupted"


@contextmanager
def leaving_at_once() -> Iterator[None]:
    """Within it, in the main thread, Ctrl-C ends the process; after it, Ctrl-C is a KeyboardInterrupt as before."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, _leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _leave(*_: object) -> NoReturn:
    os.write(2, f"{LINE}\n".encode())
    os._exit(STATUS)
