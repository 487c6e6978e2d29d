"""Measure pipelab: its simulator beside its peers, its virtual time beside the replay, its launches beside torchrun."""

import argparse
import sys
from importlib import import_module
from typing import Any

from pipelab.cli.parser import add_json, count, print_json
from pipelab.show.table import columns

EXAMPLE = "pipelab bench simulate --actions 100000"

BENCHES = {
    "simulate": "actions a second of the simulators",
    "replay": "measured bubble beside the replayed one",
    "launch": "seconds until all ranks have met",
    "runtime": "step time of torch's runtime over ours",
    "split": "(I + W) / B",
    "recorder": "a recorded step over an unrecorded one",
    "memory": "predicted and tracked peak bytes of every rank",
}
"""The modules of `pipelab.bench`; they load torch, so only the one that is asked for is imported."""


def add_options(command: argparse.ArgumentParser) -> None:
    """The options of `pipelab bench`."""
    what = "; ".join(f"{name}: {told}" for name, told in BENCHES.items())
    command.add_argument("what", choices=list(BENCHES), help=what)
    command.add_argument("--actions", type=count, default=100_000, help="simulate: of each schedule (100000)")
    command.add_argument("--steps", type=count, default=5, help="replay: counted steps of each run (5)")
    command.add_argument("--quick", action="store_true", help="runtime: four schedules, two ranks, few steps")
    add_json(command)


def run(options: argparse.Namespace) -> None:
    """Print one row a case."""
    from tqdm import tqdm

    bench = import_module(f"pipelab.bench.{options.what}").BENCH
    rows, total = bench.measure(options)
    rows = list(tqdm(rows, total=total, unit="row", file=sys.stderr, delay=2))
    if options.json:
        print_json({"rows": rows})
        return
    cells = [[_cell(row[name], written) for name, written in bench.columns.items()] for row in rows]
    print(bench.title, columns([list(bench.columns), *cells]), *bench.summary(rows), sep="\n")


def _cell(value: Any, written: str) -> str:
    return "absent" if value is None else written.format(value)
