"""List the schedules that can be built."""

import argparse

from pipelab.cli.parser import add_json, print_json
from pipelab.schedules import SCHEDULES, chunks_of, options_of

EXAMPLE = "pipelab schedules --json"


def add_options(command: argparse.ArgumentParser) -> None:
    """The options of `pipelab schedules`."""
    add_json(command)


def run(options: argparse.Namespace) -> None:
    """Print every name with its description and what it takes."""
    entries = [
        {
            "name": name,
            "description": description,
            "chunks": chunks_of(name),
            "options": [option for option in options_of(name) if option != "chunks"],
        }
        for name, description in SCHEDULES.items()
    ]
    if options.json:
        print_json({"schedules": entries})
    else:
        width = max(len(name) for name in SCHEDULES)
        for name, description in SCHEDULES.items():
            print(f"{name:<{width}}  {description}")
