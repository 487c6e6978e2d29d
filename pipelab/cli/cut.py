"""Where `pipelab train` cuts the model: --balance, --layout, and what came of it."""

import argparse
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from pipelab.cli.parser import CommandError, duration
from pipelab.mesh import Mesh
from pipelab.recompute import NONE, policies
from pipelab.schedule import Schedule

if TYPE_CHECKING:
    from pipelab.balance import Balance
    from pipelab.costs import Link
    from pipelab.data import Batches
    from pipelab.profile import Profile
    from pipelab.run import Run

POLICIES = ("uniform", "parameters", "time", "memory", "optimal")
MEASURED = ("time", "memory", "optimal")


@dataclass(frozen=True)
class Cut:
    """A cut that was asked for, what was predicted of it, and of what layers; None where some are recomputed."""

    layout: str
    predicted: "Balance"
    profile: "Profile | None"

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
        if self.profile is None:
            return rows
        return [*rows, ("suggestion", str(self._move(run) or "no move of one layer makes the step shorter"))]

    def _move(self, run: "Run") -> Any:
        from pipelab.rebalance import suggest_move

        return None if self.profile is None else suggest_move(run, self.profile)


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


def find_cut(
    options: argparse.Namespace, model: Any, batches: "Batches", schedule: Schedule, mesh: Mesh, link: "Link",
    autocast: Any,
) -> Cut | None:  # fmt: skip
    """The cut that the options ask for, and what it is predicted to take; None where they ask for none.

    The step is predicted from a profile of the layers, or, where something is recomputed, of the policies; what each
    rank holds is predicted as that of any run.
    """
    _refuse(options)
    if options.balance is None and options.layout is None:
        return None
    from pipelab.balance import Balance, balance, predict
    from pipelab.frontier import profile_policies
    from pipelab.layout import layout_text
    from pipelab.memory_prediction import predict_memory
    from pipelab.profile import profile
    from pipelab.stage import Stage

    def held(at: tuple[int, ...]) -> tuple[int, ...]:
        return predict_memory(
            model, schedule, batches[0], mesh, at=at, zero=options.zero, sequence_parallel=options.sequence_parallel,
            checkpointing=options.checkpointing, hoist=options.hoist, device=options.device,
            transport=options.transport, make_stage=partial(Stage, lower_precision=autocast),
        ).totals  # fmt: skip

    inputs, targets = (tensor[: batches.rows] for tensor in batches[0])
    microbatch = inputs, targets
    if options.balance is not None:
        layers = profile(model, microbatch, device=options.device)
        limit = memory_limit(options) or float("inf")
        found = balance(options.balance, layers, schedule, link=link, limit=limit, held=held)
        return Cut(layout_text(model, found.at), found, layers)
    at = _boundaries(options, model, schedule)
    if options.checkpointing == NONE:
        layers = profile(model, microbatch, device=options.device)
        found = replace(predict("layout", at, layers, schedule, link=link), bytes=held(at))
        return Cut(layout_text(model, at), found, layers)
    by_stage = policies(options.checkpointing, schedule.stages)
    costs = profile_policies(model, microbatch, schedule, tried=by_stage, device=options.device, link=link, at=list(at))
    found = Balance("layout", at, costs.predict(by_stage, options.hoist).step, held(at))
    return Cut(layout_text(model, at), found, None)


def _boundaries(options: argparse.Namespace, model: Any, schedule: Schedule) -> tuple[int, ...]:
    """Where --layout cuts the model."""
    from pipelab.layout import LayoutError, layout_boundaries

    try:
        return tuple(layout_boundaries(options.layout, model, schedule.stages))
    except LayoutError as error:
        name = "pipelab train: "  # what stands before each error
        raise CommandError(error.under(f"{name}--layout ").removeprefix(name)) from None


def memory_limit(options: argparse.Namespace) -> float | None:
    """The bytes of --memory-cap, if it is given."""
    return None if options.memory_cap is None else float(options.memory_cap) * 2**20


def _refuse(options: argparse.Namespace) -> None:
    from pipelab.world import is_rank

    if options.balance is not None and options.layout is not None:
        raise CommandError("--balance and --layout both say where to cut; leave out one of them")
    if options.balance is not None and options.checkpointing != NONE:
        raise CommandError(
            "--balance predicts a step without recomputation; leave --checkpointing out, and then give it together with"
            " the --layout that is printed"
        )
    if options.memory_cap == 0:
        raise CommandError("--memory-cap must be positive: got 0; leave it out for no limit")
    if options.balance in MEASURED and is_rank():
        raise CommandError(
            f"--balance {options.balance} measures, and every process would measure something else;"
            " find the cut without torchrun and give the --layout that it prints"
        )
