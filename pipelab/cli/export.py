"""Write a schedule for other tools: as text rows, as JSON, or as the CSV that PyTorch's pipeline runtime loads."""

import argparse
import json
from collections.abc import Callable

from pipelab.cli.parser import writable
from pipelab.cli.shape import add_shape, asked_schedule
from pipelab.schedule import Schedule
from pipelab.validate import validate

EXAMPLE = "pipelab export zb-h1 --ranks 4 --microbatches 8 --format torch-csv --out zb-h1.csv"


def _json(schedule: Schedule) -> str:
    """The schedule as one JSON object, with the fields of `pipelab simulate --json` that hold no time."""
    fields = {
        "schedule": schedule.name,
        "ranks": schedule.ranks,
        "stages": schedule.stages,
        "microbatches": schedule.microbatches,
        "stage_to_rank": schedule.placement.rank_of,
        "rows": schedule.to_text().splitlines(),
    }
    return json.dumps(fields) + "\n"


FORMATS: dict[str, Callable[[Schedule], str]] = {
    "text": lambda schedule: schedule.to_text() + "\n",
    "json": _json,
    "torch-csv": Schedule.to_csv,
}


def add_options(command: argparse.ArgumentParser) -> None:
    """The options of `pipelab export`."""
    add_shape(command)
    command.add_argument("--format", required=True, choices=list(FORMATS), help="what to write")
    command.add_argument("--out", type=writable, metavar="FILE", help="write to this file instead of standard output")


def run(options: argparse.Namespace) -> None:
    """Write one valid schedule in one format."""
    text = FORMATS[options.format](validate(asked_schedule(options)))
    if options.out is not None:
        options.out.write_text(text, encoding="utf-8")
    else:
        print(text, end="")
