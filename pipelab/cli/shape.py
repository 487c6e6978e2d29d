"""The options that say which schedule is meant: a name and its shape, or a file of one's own rows."""

import argparse
from pathlib import Path
from typing import Any

from pipelab.cli.parser import CommandError, count, duration
from pipelab.costs import Costs
from pipelab.schedule import Schedule
from pipelab.schedules import SCHEDULES, build, options_of

SPECIAL = ("memory_limit", "weight_memory", "objective", "backward_order", "groups")
SHAPE = ("schedule", "ranks", "pp", "microbatches", "chunks", *SPECIAL)


def add_shape(command: argparse.ArgumentParser) -> None:
    """SCHEDULE, --file, --ranks, --microbatches and --chunks."""
    command.add_argument("schedule", nargs="?", metavar="SCHEDULE", help=f"one of {', '.join(SCHEDULES)}")
    command.add_argument("--file", type=Path, help="read the rows from this file instead, one line a rank")
    command.add_argument("--ranks", type=count, metavar="P", help="number of ranks")
    command.add_argument("--microbatches", type=count, metavar="M", help="number of micro-batches")
    command.add_argument("--chunks", type=count, metavar="V", help="stages a rank, where the schedule takes it")
    add_special(command)


def add_special(command: argparse.ArgumentParser) -> None:
    """The options that only some schedules take."""
    command.add_argument("--memory-limit", type=_limits, metavar="L", help="zb-auto: micro-batches a rank may hold")
    command.add_argument("--weight-memory", type=duration, metavar="SHARE", help="zb-auto: held from I to W (1)")
    command.add_argument("--objective", choices=["span", "step"], help="zb-auto: what shall be short (span)")
    command.add_argument("--backward-order", choices=["fifo", "lifo"], help="gpipe: of the backwards (fifo)")
    command.add_argument("--groups", type=count, metavar="G", help="inference: generate, G groups taking turns")


def special(options: argparse.Namespace, name: str, costs: Costs) -> dict[str, Any]:
    """What was given of `add_special`, for a schedule that takes it, and the costs for one that plans by them."""
    given = {option: value for option in SPECIAL if (value := getattr(options, option)) is not None}
    takes = options_of(name) if name in SCHEDULES else ()
    for option in given:
        if option not in takes:
            raise CommandError(f"--{option.replace('_', '-')} is not for {name}; leave it out")
    return {**given, "costs": costs} if "costs" in takes else given


def asked_schedule(options: argparse.Namespace, costs: Costs) -> Schedule:
    """The schedule that the options name, or that the file holds; `costs` are for those that plan by them."""
    if options.file is not None:
        return schedule_from_file(options)
    if options.schedule is None:
        raise CommandError(f"name a schedule ({', '.join(SCHEDULES)}), or give --file")
    for option in ("ranks", "microbatches"):
        if getattr(options, option) is None:
            raise CommandError(f"--{option} is missing; as in: {options.schedule} --ranks 4 --microbatches 8")
    more = special(options, options.schedule, costs)
    return build(options.schedule, options.ranks, options.microbatches, options.chunks, **more)


def described(schedule: Schedule) -> dict[str, Any]:
    """What a schedule is, for --json: all that holds no time."""
    return {
        "schedule": schedule.name,
        "ranks": schedule.ranks,
        "stages": schedule.stages,
        "microbatches": schedule.microbatches,
        "stage_to_rank": schedule.placement.rank_of,
        "rows": [" ".join(map(str, row)) for row in schedule.rows],
    }


def schedule_from_file(options: argparse.Namespace) -> Schedule:
    """The rows of --file, which say all about the shape. Raises CommandError for a shape given beside it."""
    refuse_shape(options, "--file")
    stem = options.file.stem
    name = f"{stem} (file)" if stem in SCHEDULES else stem  # not taken for the published one, whose formula it has not
    return Schedule.from_text(read_text("--file", options.file), name=name)


def refuse_shape(options: argparse.Namespace, source: str) -> None:
    """Raise CommandError when a shape is given beside a file that says it all."""
    for option in SHAPE:
        if getattr(options, option, None) is not None:
            named = f"the name {options.schedule}" if option == "schedule" else f"--{option.replace('_', '-')}"
            raise CommandError(f"{source} says all about the schedule; leave out {named}")


def read_text(option: str, path: Path) -> str:
    """The text of a file. Raises CommandError that names the option and the file."""
    try:
        return path.read_text(encoding="utf-8-sig")  # some editors begin a file with a byte order mark
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise CommandError(f"{option} {path} cannot be read: {reason}") from None


def _limits(text: str) -> Any:
    """A memory limit for all ranks, or one for each, separated by commas."""
    limits = [duration(part) for part in text.split(",")]
    return limits[0] if len(limits) == 1 else limits
