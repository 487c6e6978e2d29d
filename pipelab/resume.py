"""How does a run go on where another stopped? From its state, with the batches that it has not seen.

Read first: `state` (what is carried over), `checkpoint` (the same on disk); then `reshaping` (live, in one session).
"""

import itertools
import os
from collections.abc import Iterable, Iterator
from typing import Any

from torch import nn

from pipelab.checkpoint import Saving, read
from pipelab.optimizer import Optimizer
from pipelab.run import Run
from pipelab.state import State, refuse_what_does_not_fit
from pipelab.world import is_first, is_rank

Resume = str | os.PathLike[str] | Run | State
"""A folder of checkpoints, one checkpoint, a run of this session, or a state."""


def starting_point(resume: Resume | None, model: nn.Module, optimizer: Optimizer, seed: int) -> State | None:
    """The state that is meant, or None for a start from the beginning.

    Raises ValueError where there is none, or one of another model, optimizer or seed.
    """
    if resume is None:
        return None
    if isinstance(resume, Run) and is_rank():
        raise ValueError("the state of a run under torchrun is on rank 0 only; save it, and resume from the folder")
    if isinstance(resume, Run):
        if resume.state is None:
            raise ValueError(f"a run of {resume.schedule.name} cannot go on: it has no state between its steps")
        resume = resume.state
    state = resume if isinstance(resume, State) else read(resume)
    refuse_what_does_not_fit(state, model, optimizer, seed)
    return state


def saving_of(save: str | os.PathLike[str] | Saving | None, start: int) -> Saving | None:
    """Where to save. Raises ValueError where a run that begins at step `start` cannot."""
    saving = save if save is None or isinstance(save, Saving) else Saving(save)
    if saving is not None and is_first():
        saving.prepare(start)
    return saving


def continued(batches: Iterable[Any], start: int) -> Iterator[Any]:
    """The batches from number `start` on, of what can be indexed; an iterator is taken as what is yet to come.

    Raises ValueError where what can be indexed ends before.

    >>> list(continued("abcd", 2)), list(continued(iter("cd"), 2))
    (['c', 'd'], ['c', 'd'])
    """
    if start == 0 or not hasattr(batches, "__getitem__"):
        return iter(batches)
    left = _from(batches, start)
    for first in left:
        return itertools.chain([first], left)
    raise ValueError(
        f"the batches end before number {start}, where training goes on; give more of them,"
        " or only those that are yet to come as iter(batches)"
    )


def _from(batches: Any, number: int) -> Iterator[Any]:
    for later in itertools.count(number):
        try:
            batch = batches[later]
        except IndexError:
            return
        yield batch
