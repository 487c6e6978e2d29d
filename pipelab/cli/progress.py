"""A sign of life on standard error for work that does not count its steps."""

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def elapsed(what: str) -> Iterator[None]:
    """Show, on a terminal, how long `what` has been going on; quick work shows nothing."""
    from tqdm import tqdm

    done = threading.Event()

    def watch() -> None:
        if done.wait(1.0):
            return
        with tqdm(desc=what, bar_format="{desc}: {elapsed}", file=sys.stderr, disable=None, leave=False) as bar:
            while not done.wait(0.5):
                bar.refresh()

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield
    finally:
        done.set()
        watcher.join()
