"""The options that say which schedule is meant: a name and its shape, or a file of one's own rows."""

import argparse
from pathlib import Path

from pipelab.cli.parser import CommandError, count
from pipelab.schedule import Schedule
from pipelab.schedules import SCHEDULES, build

SHAPE = ("schedule", "ranks", "microbatches", "chunks")


def add_shape(command: argparse.ArgumentParser) -> None:
    """SCHEDULE, --file, --ranks, --microbatches and --chunks."""
    command.add_argument("schedule", nargs="?", metavar="SCHEDULE", help=f"one of {', '.join(SCHEDULES)}")
    command.add_argument("--file", type=Path, help="read the rows from this file instead, one line a rank")
    command.add_argument("--ranks", type=count, metavar="P", help="number of ranks")
    command.add_argument("--microbatches", type=count, metavar="M", help="number of micro-batches")
    command.add_argument("--chunks", type=count, metavar="V", help="stages a rank, where the schedule takes it")


def asked_schedule(options: argparse.Namespace) -> Schedule:
    """The schedule that the options name, or that the file holds."""
    if options.file is not None:
        refuse_shape(options, "--file")
        return Schedule.from_text(read_text("--file", options.file), name=options.file.stem)
    if options.schedule is None:
        raise CommandError(f"name a schedule ({', '.join(SCHEDULES)}), or give --file")
    for option in ("ranks", "microbatches"):
        if getattr(options, option) is None:
            raise CommandError(f"--{option} is missing; as in: {options.schedule} --ranks 4 --microbatches 8")
    return build(options.schedule, options.ranks, options.microbatches, options.chunks)


def refuse_shape(options: argparse.Namespace, source: str) -> None:
    """Raise CommandError when a shape is given beside a file that says it all."""
    for option in SHAPE:
        if getattr(options, option) is not None:
            named = f"the name {options.schedule}" if option == "schedule" else f"--{option}"
            raise CommandError(f"{source} says all about the schedule; leave out {named}")


def read_text(option: str, path: Path) -> str:
    """The text of a file. Raises CommandError that names the option and the file."""
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise CommandError(f"{option} {path} cannot be read: {reason}") from None
