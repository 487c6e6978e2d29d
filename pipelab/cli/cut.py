"""Where `pipelab train` cuts the model: --balance, --layout, and what came of it."""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pipelab.cli.parser import CommandError, duration
from pipelab.schedule import Schedule

if TYPE_CHECKING:
    from pipelab.balance import Balance
    from pipelab.costs import Link
    from pipelab.profile import Profile
    from pipelab.run import Run

POLICIES = ("uniform", "parameters", "time", "memory", "optimal")
MEASURED = ("time", "memory", "optimal")


@dataclass(frozen=True)
class Cut:
    """A cut that was asked for, what was predicted of it, and of what layers."""

    layout: str
    predicted: "Balance"
    profile: "Profile"

    def figures(self, run: "Run") -> dict[str, Any]:
        """For --json."""
        move = self._move(run)
        suggestion = None
        if move is not None:
            suggestion = {"text": str(move), "layer": move.layer, "at": move.at, "predicted_change": move.change}
        return {
            "balance": self.predicted.policy,
            "layout": self.layout,
            "at": self.predicted.at,
            "exact": self.predicted.exact,
            "predicted_step_seconds": self.predicted.step,
            "predicted_bytes": self.predicted.bytes,
            "suggestion": suggestion,
        }

    def summary(self, run: "Run") -> list[tuple[str, str]]:
        """For the terminal and the page."""
        predicted = self.predicted
        how = f"by {predicted.policy}" + ", not proved the best" * (not predicted.exact)
        steps = (
            f"predicted {1e3 * predicted.step:.1f} ms (simulated from a profile), measured {1e3 * run.step_seconds:.1f}"
        )
        rows = [("cut", f"{self.layout} ({how})"), ("step of the cut", f"{steps} ms ({run.clock_label})")]
        return [*rows, ("suggestion", str(self._move(run) or "no move of one layer makes the step shorter"))]

    def _move(self, run: "Run") -> Any:
        from pipelab.rebalance import suggest_move

        return suggest_move(run, self.profile)


def add_cut(command: argparse.ArgumentParser) -> None:
    """The options --balance, --layout and --memory-cap."""
    command.add_argument(
        "--balance", choices=POLICIES, help="profile the layers, cut the model by this, predict the step"
    )
    command.add_argument(
        "--layout", metavar="TEXT", help="cut by hand: E embedding, t block, H head, as Et*5|(tt|)*5tH"
    )
    command.add_argument(
        "--memory-cap", type=duration, metavar="MIB",
        help="what any rank may hold: a bound for --balance, else a run that is predicted to need more is refused",
    )  # fmt: skip


def find_cut(options: argparse.Namespace, model: Any, microbatch: Any, schedule: Schedule, link: "Link") -> Cut | None:
    """The cut that the options ask for, predicted from a profile of the layers; None where they ask for none."""
    _refuse(options)
    if options.balance is None and options.layout is None:
        return None
    from pipelab.balance import balance, predict
    from pipelab.layout import LayoutError, layout_boundaries, layout_text
    from pipelab.profile import profile

    at: Sequence[int] | None = None
    if options.layout is not None:
        try:
            at = layout_boundaries(options.layout, model, schedule.stages)
        except LayoutError as error:
            name = "pipelab train: "  # what stands before each error
            raise CommandError(error.under(f"{name}--layout ").removeprefix(name)) from None
    layers = profile(model, microbatch, device=options.device)
    limit = memory_limit(options) or float("inf")
    if at is not None:
        found = predict("layout", tuple(at), layers, schedule, link=link, limit=limit)
    else:
        found = balance(options.balance, layers, schedule, link=link, limit=limit)
    return Cut(layout_text(model, found.at), found, layers)


def memory_limit(options: argparse.Namespace) -> float | None:
    """The bytes of --memory-cap, if it is given."""
    return None if options.memory_cap is None else float(options.memory_cap) * 2**20


def _refuse(options: argparse.Namespace) -> None:
    from pipelab.world import is_rank

    if options.balance is not None and options.layout is not None:
        raise CommandError("--balance and --layout both say where to cut; leave out one of them")
    if options.memory_cap == 0:
        raise CommandError("--memory-cap must be positive: got 0; leave it out for no limit")
    if options.balance in MEASURED and is_rank():
        raise CommandError(
            f"--balance {options.balance} measures, and every process would measure something else;"
            " find the cut without torchrun and give the --layout that it prints"
        )
