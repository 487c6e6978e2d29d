"""What `pipelab train` recomputes: --checkpointing, --hoist, and what came of it."""

import argparse
from typing import TYPE_CHECKING, Any

from pipelab.cli.parser import count_or_none
from pipelab.recompute import NONE, WORDS, check_policy
from pipelab.units import mebibytes

if TYPE_CHECKING:
    from pipelab.run import Run


def add_checkpointing(command: argparse.ArgumentParser) -> None:
    """The options --checkpointing and --hoist."""
    command.add_argument(
        "--checkpointing", type=_policies, default=NONE, metavar="POLICY",
        help=f"what is recomputed: {WORDS}; or one a stage, with commas (none)",
    )  # fmt: skip
    command.add_argument(
        "--hoist", type=count_or_none, default=0, metavar="N", help="put R before the N-th wait in front of it (0)"
    )


def recomputed_figures(options: argparse.Namespace, run: "Run") -> dict[str, Any]:
    """For --json, where something may be recomputed."""
    return {} if options.checkpointing == NONE else {"peak_recomputed_bytes": run.memory.rebuilt}


def recomputed_rows(run: "Run") -> list[tuple[str, str]]:
    """For the terminal and the page."""
    return [("recomputed", f"{mebibytes(run.memory.rebuilt)} MiB of them at most")] if any(run.memory.rebuilt) else []


def _policies(text: str) -> str | list[str]:
    """A policy, or one a stage."""
    try:
        words = [check_policy(word) for word in text.split(",")]
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    return words if len(words) > 1 else words[0]
