"""Measure pipelab beside its peers."""

import argparse

from pipelab.cli.parser import add_json, count, print_json

EXAMPLE = "pipelab bench simulate --actions 100000"


def add_options(command: argparse.ArgumentParser) -> None:
    """The options of `pipelab bench`."""
    command.add_argument("what", choices=["simulate"], help="simulate: actions a second of the simulators")
    command.add_argument("--actions", type=count, default=100_000, help="actions of each schedule (100000)")
    add_json(command)


def run(options: argparse.Namespace) -> None:
    """Print one row a case."""
    from pipelab.bench.simulate import compare_simulators

    rows = compare_simulators(options.actions)
    if options.json:
        print_json({"rows": rows})
        return
    print("actions a second (processor time)")
    print(f"{'schedule':<12} {'ranks':>5} {'ours':>12} {'torch':>12} {'dictionary':>12} {'bytes/action':>13}")
    for row in rows:
        torch = "absent" if row["torch"] is None else f"{row['torch']:,}"
        rates = f"{row['ours']:>12,} {torch:>12} {row['dictionary']:>12,}"
        print(f"{row['schedule']:<12} {row['ranks']:>5} {rates} {row['bytes_per_action']:>13,}")
