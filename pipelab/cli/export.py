"""Write a schedule or a trace for other tools: text, JSON, the CSV of PyTorch's pipeline runtime, or for Perfetto.

With --trace FILE it writes what a run measured (`pipelab train --trace FILE`), else what the simulator makes of the
schedule with F = I = W = 1: text is then the timeline, torch-csv the order that was executed.
"""

import argparse
import json
from collections.abc import Callable
from pathlib import Path

from pipelab.cli.parser import CommandError, writable
from pipelab.cli.shape import add_shape, asked_schedule, described, refuse_shape
from pipelab.cli.trace_file import TraceFile, read_trace, rows_of, trace_text
from pipelab.costs import Costs
from pipelab.lower import lower
from pipelab.schedule import Schedule
from pipelab.show.perfetto import perfetto_json
from pipelab.show.text import timeline_text
from pipelab.simulate import simulate_program
from pipelab.validate import validate

EXAMPLE = "pipelab export 1f1b --ranks 4 --microbatches 8 --format perfetto --out 1f1b.json"


OF_A_SCHEDULE: dict[str, Callable[[Schedule], str]] = {
    "text": lambda schedule: schedule.to_text() + "\n",
    "json": lambda schedule: json.dumps(described(schedule)) + "\n",
    "torch-csv": Schedule.to_csv,
    "perfetto": lambda schedule: perfetto_json(simulate_program(lower(schedule), Costs.uniform())) + "\n",
}
OF_A_TRACE: dict[str, Callable[[TraceFile], str]] = {
    "text": lambda file: timeline_text(file.trace) + "\n",
    "json": lambda file: trace_text(*file),
    "torch-csv": lambda file: validate(rows_of(file.trace)).to_csv(),
    "perfetto": lambda file: perfetto_json(*file) + "\n",
}


def add_options(command: argparse.ArgumentParser) -> None:
    """The options of `pipelab export`."""
    add_shape(command)
    command.add_argument("--trace", type=Path, metavar="FILE", help="export this trace of a run, not a schedule")
    command.add_argument("--format", default="text", choices=list(OF_A_SCHEDULE), help="what to write (text)")
    command.add_argument("--out", type=writable, metavar="FILE", help="write to this file instead of standard output")


def run(options: argparse.Namespace) -> None:
    """Write one valid schedule, or one trace, in one format."""
    if options.trace is None:
        text = OF_A_SCHEDULE[options.format](validate(asked_schedule(options, Costs.uniform())))
    elif options.file is not None:
        raise CommandError("--trace and --file are two sources; give one of them")
    else:
        refuse_shape(options, "--trace")
        text = OF_A_TRACE[options.format](read_trace(options.trace))
    if options.out is not None:
        options.out.write_text(text, encoding="utf-8")
    else:
        print(text, end="")
