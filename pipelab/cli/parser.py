"""Options that the commands share, and an argparse that answers wrong input in one line."""

import argparse
import json
import sys
from fractions import Fraction
from pathlib import Path
from typing import Any, NoReturn

from pipelab.trace import number


class CommandError(Exception):
    """Bad input on the command line, said in one sentence that names it and the remedy."""


class Parser(argparse.ArgumentParser):
    """argparse without the usage text before an error."""

    def error(self, message: str) -> NoReturn:
        """Print one line and leave with status 2."""
        print(f"{self.prog}: {message} ({self.prog} --help shows the options)", file=sys.stderr)
        raise SystemExit(2)


def count(text: str) -> int:
    """A whole number of at least 1."""
    if not (text.isascii() and text.isdigit()) or int(text[:12]) < 1 or len(text) > 12:
        raise argparse.ArgumentTypeError(f"must be a whole number of at least 1: got {text!r}")
    return int(text)


def duration(text: str) -> int | Fraction:
    """A time of at least 0: a whole number, a decimal or a fraction such as 1/3, kept exact."""
    try:
        value = Fraction(text)
    except (ValueError, ZeroDivisionError):
        value = Fraction(-1)
    if value < 0:
        raise argparse.ArgumentTypeError(f"must be a time of at least 0, such as 2, 0.5 or 1/3: got {text!r}")
    return value.numerator if value.denominator == 1 else value


def writable(text: str) -> Path:
    """A file that can be written: its folder exists. Asked before any work, so that none is lost."""
    path = Path(text)
    if path.is_dir():
        raise argparse.ArgumentTypeError(f"{text} is a folder; give the name of a file")
    if not path.absolute().parent.is_dir():
        raise argparse.ArgumentTypeError(f"the folder of {text} does not exist; make it first")
    return path


def add_json(command: argparse.ArgumentParser) -> None:
    """The option --json."""
    command.add_argument("--json", action="store_true", help="one JSON object on standard output, nothing else")


def print_json(value: Any) -> None:
    """Print one JSON object; fractions as integers where exact, else as floats."""
    json.dump(value, sys.stdout, default=number)
    sys.stdout.write("\n")


def percent(bubble: Any) -> str:
    """A bubble for people."""
    return f"{100 * float(bubble):.1f} %"
