"""What `pipelab train` keeps and takes up again: --save, --save-every, --save-keep, --resume."""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from pipelab.cli.parser import CommandError, count

if TYPE_CHECKING:
    from pipelab.checkpoint import Saving
    from pipelab.state import State

T = TypeVar("T")


def add_keep(command: argparse.ArgumentParser) -> None:
    """The options --save, --save-every, --save-keep and --resume."""
    command.add_argument("--save", type=Path, metavar="DIR", help="save a checkpoint there after the last step")
    command.add_argument("--save-every", type=count, metavar="N", help="and after every N steps")
    command.add_argument("--save-keep", type=count, metavar="K", help="keep the newest K checkpoints only (all)")
    command.add_argument(
        "--resume", type=Path, metavar="DIR",
        help="go on from the newest checkpoint there, under any schedule; --steps counts the steps to come",
    )  # fmt: skip


def asked_start(options: argparse.Namespace, model: Any) -> "State | None":
    """The state that --resume means; None without it."""
    from pipelab.optimizer import adamw
    from pipelab.resume import starting_point

    return _named("--resume", lambda: starting_point(options.resume, model, adamw, options.seed))


def asked_saving(options: argparse.Namespace, start: int) -> "Saving | None":
    """Where and how often to save; None without --save."""
    from pipelab.checkpoint import Saving
    from pipelab.resume import saving_of

    for option in ("every", "keep"):
        if options.save is None and getattr(options, f"save_{option}") is not None:
            raise CommandError(f"--save-{option} says how to save; add --save with a folder")
    if options.save is None:
        return None
    return _named("--save", lambda: saving_of(Saving(options.save, options.save_every, options.save_keep), start))


def _named(option: str, work: Callable[[], T]) -> T:
    """What the work gives; a refusal has the option in front."""
    try:
        return work()
    except ValueError as error:
        raise CommandError(f"{option}: {error}") from error
