"""Python's cyclic garbage collector: a pause for work that makes many small values and no cycles."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def collector_at_rest() -> Iterator[None]:
    """No cyclic collection within: one full collection takes as long as thousands of actions of a schedule.

    >>> with collector_at_rest():
    ...     gc.isenabled()
    False
    """
    collecting = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collecting:
            gc.enable()
