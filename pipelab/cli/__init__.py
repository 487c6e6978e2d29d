"""The command `pipelab`: one file a command, one sentence an error.

Exit status: 0 done, 1 a failed run, 2 bad input, 130 interrupted. With --json standard output holds one JSON object and
nothing else.
"""

import argparse
import sys
import traceback
from collections.abc import Sequence

from pipelab.cli import bench, doctor, export, labs, schedules, simulate, train
from pipelab.cli.parser import CommandError, Parser
from pipelab.interrupt import LINE, STATUS, leaving_at_once

COMMANDS = {
    "schedules": schedules,
    "simulate": simulate,
    "train": train,
    "labs": labs,
    "doctor": doctor,
    "export": export,
    "bench": bench,
}


def build_parser() -> Parser:
    """The parser of the whole command line; each command's module adds its own options."""
    parser = Parser(prog="pipelab", description=(__doc__ or "").splitlines()[0])
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", parser_class=Parser)
    for name, module in COMMANDS.items():
        summary = (module.__doc__ or "").splitlines()[0]
        command = commands.add_parser(
            name, help=summary, description=module.__doc__, epilog=f"Example:\n{module.EXAMPLE}",
            formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False,
        )  # fmt: skip
        module.add_options(command)
        command.add_argument("--debug", action="store_true", help="show the traceback of an error")
        command.set_defaults(run=module.run)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and give its exit status."""
    with leaving_at_once():
        options = build_parser().parse_args(arguments)
    if options.command is None:
        print(f"pipelab: choose a command: {', '.join(COMMANDS)} (pipelab COMMAND --help tells more)", file=sys.stderr)
        return 2
    try:
        return int(options.run(options) or 0)
    except KeyboardInterrupt:
        print(LINE, file=sys.stderr)
        return STATUS
    except BrokenPipeError:
        sys.stderr.close()  # the reader of our output has gone; there is nobody left to tell
        return 1
    except Exception as error:
        if options.debug:
            traceback.print_exc()
        if isinstance(error, ModuleNotFoundError) and error.name:
            package = error.name.partition(".")[0]
            error = CommandError(f"this needs {package}, which is not installed: pip install {package}")
        status = 2 if isinstance(error, (ValueError, CommandError)) else 1
        known = isinstance(error, (ValueError, CommandError, RuntimeError, OSError))
        sentence = str(error) if known else f"{type(error).__name__}: {error}"
        print(f"pipelab {options.command}: {sentence}", file=sys.stderr)
        return status
