"""Options that the commands share, and an argparse that answers wrong input in one line."""

import argparse
import difflib
import json
import math
import re
import sys
import tempfile
import textwrap
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from pipelab.trace import number

if TYPE_CHECKING:
    from pipelab.explain import Explanation

LONGEST_TIME = 10**99
_TIME = re.compile(r"\d{1,40}/\d{1,40}|(\d{1,40}(\.\d{0,40})?|\.\d{1,40})(e[+-]?\d{1,2})?", re.ASCII | re.IGNORECASE)
"""What `duration` reads: never so long that its exact fraction is a large one."""


class CommandError(Exception):
    """Bad input on the command line, said in one sentence that names it and the remedy."""


class Parser(argparse.ArgumentParser):
    """argparse without the usage text before an error, and with the command's own name in every one."""

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """As argparse does, but here nothing may stay unknown."""
        namespace, unknown = super().parse_known_args(args, namespace)
        if unknown:
            close = difflib.get_close_matches(unknown[0], self._option_string_actions, n=1)
            self.error(f"there is no {unknown[0]}" + (f", did you mean {close[0]}?" if close else ""))
        return namespace, unknown

    def error(self, message: str) -> NoReturn:
        """Print one line and leave with status 2."""
        print(f"{self.prog}: {message} ({self.prog} --help shows the options)", file=sys.stderr)
        raise SystemExit(2)


def count(text: str) -> int:
    """A whole number of at least 1."""
    return _whole(text, 1, 10**12)


def count_or_none(text: str) -> int:
    """A whole number of at least 0."""
    return _whole(text, 0, 10**12)


def seed(text: str) -> int:
    """A whole number that torch takes as a seed."""
    return _whole(text, 0, 2**63 - 1)


def _whole(text: str, least: int, most: int) -> int:
    digits = text if text.isascii() and text.isdigit() and len(text) <= 40 else "-1"
    if not least <= int(digits) <= most:
        raise argparse.ArgumentTypeError(f"must be a whole number from {least} to {most}: got {_shortened(text)}")
    return int(digits)


def duration(text: str) -> int | Fraction:
    """A time (or a rate) of at least 0: a whole number, a decimal or a fraction such as 1/3, kept exact."""
    try:
        value = Fraction(text if _TIME.fullmatch(text) else -1)
    except ZeroDivisionError:
        value = Fraction(-1)
    if not 0 <= value <= LONGEST_TIME:
        wanted = "must be a number from 0 to 1e99, such as 2, 0.5 or 1/3"
        raise argparse.ArgumentTypeError(f"{wanted}: got {_shortened(text)}")
    return value.numerator if value.denominator == 1 else value


def _shortened(text: str) -> str:
    return repr(text if len(text) <= 60 else f"{text[:57]}...")


def writable(text: str) -> Path:
    """A file that can be written: its folder takes files. Asked before any work, so that none is lost."""
    path = Path(text)
    if path.is_dir():
        raise argparse.ArgumentTypeError(f"{text} is a folder; give the name of a file")
    if not path.absolute().parent.is_dir():
        raise argparse.ArgumentTypeError(f"the folder of {text} does not exist; make it first")
    try:
        tempfile.TemporaryFile(dir=path.absolute().parent).close()
    except OSError as error:
        reason = f"the folder of {text} takes no files ({error.strerror}); choose another"
        raise argparse.ArgumentTypeError(reason) from None
    return path


def add_json(command: argparse.ArgumentParser) -> None:
    """The option --json."""
    command.add_argument("--json", action="store_true", help="one JSON object on standard output, nothing else")


def add_explain(command: argparse.ArgumentParser) -> None:
    """The option --explain."""
    what = "say where the time goes, and which change would help most"
    command.add_argument("--explain", action="store_true", help=what)


def print_explanation(explanation: "Explanation | None") -> None:
    """The paragraph, in lines, and the idle time by rank and cause; nothing without an explanation."""
    if explanation is not None:
        from pipelab.show.idle import idle_text

        print()
        print(textwrap.fill(str(explanation), 100, break_on_hyphens=False, break_long_words=False))
        print()
        print(idle_text(explanation))


def print_json(value: Any) -> None:
    """Print one JSON object; fractions as integers where exact, else as floats, and null for what is no number."""
    print(json.dumps(_plain(value), allow_nan=False))


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, Fraction):
        return number(value)
    return None if isinstance(value, float) and not math.isfinite(value) else value
