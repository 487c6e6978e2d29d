"""Python's cyclic garbage collector: less of it, for work that makes many small values and no cycles."""

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


@contextmanager
def heap_set_aside() -> Iterator[None]:
    """What exists by now is not gone through by the collections within: torch and its modules alone are some 100,000
    values, and the spans that a run keeps would bring on a look at all of them every few dozen steps.

    >>> with heap_set_aside():
    ...     gc.get_freeze_count() > 0
    True
    """
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()
