"""Measure pipelab: its simulator beside its peers, its virtual time beside the replay, its launches beside torchrun."""

import argparse
import sys
from collections.abc import Iterable
from typing import Any

from pipelab.cli.parser import add_json, count, print_json

EXAMPLE = "pipelab bench simulate --actions 100000"


def add_options(command: argparse.ArgumentParser) -> None:
    """The options of `pipelab bench`."""
    what = (
        "simulate: actions a second of the simulators; replay: measured bubble beside the replayed one;"
        " launch: seconds until all ranks have met; runtime: step time of torch's runtime over ours;"
        " split: (I + W) / B; recorder: a recorded step over an unrecorded one;"
        " memory: predicted and tracked peak bytes of every rank"
    )
    command.add_argument("what", choices=list(BENCHES), help=what)
    command.add_argument("--actions", type=count, default=100_000, help="simulate: of each schedule (100000)")
    command.add_argument("--steps", type=count, default=5, help="replay: counted steps of each run (5)")
    command.add_argument("--quick", action="store_true", help="runtime: four schedules, two ranks, few steps")
    add_json(command)


Rows = tuple[Iterable[dict[str, Any]], int | None]
"""The rows of a benchmark as they come, and how many there will be (None: it is not known)."""


def run(options: argparse.Namespace) -> None:
    """Print one row a case."""
    from tqdm import tqdm

    measure, print_rows = BENCHES[options.what]
    rows, total = measure(options)
    rows = list(tqdm(rows, total=total, unit="row", file=sys.stderr, delay=2))
    if options.json:
        print_json({"rows": rows})
    else:
        print_rows(rows)


def _simulators(options: argparse.Namespace) -> Rows:
    from pipelab.bench.simulate import compare_simulators

    rows = compare_simulators(options.actions)
    return rows, len(rows)


def _replays(options: argparse.Namespace) -> Rows:
    from pipelab.bench.replay import SCHEDULES, SHAPES, compare_with_replay

    return compare_with_replay(options.steps), len(SCHEDULES) * len(SHAPES)


def _launches(options: argparse.Namespace) -> Rows:
    from pipelab.bench.launch import RANKS, time_launches

    return time_launches(), len(RANKS)


def _runtimes(options: argparse.Namespace) -> Rows:
    from pipelab.bench.runtime import QUICK, SCHEDULES, WORKS, compare_runtimes

    cases = len(QUICK) if options.quick else 2 * len(SCHEDULES)
    return compare_runtimes(quick=options.quick), len(WORKS) * cases


def _splits(options: argparse.Namespace) -> Rows:
    from pipelab.bench.split import SHAPES, compare_splits

    return compare_splits(), len(SHAPES)


def _recorders(options: argparse.Namespace) -> Rows:
    from pipelab.bench.recorder import SCHEDULES, compare_recording, switches

    return compare_recording(), len(switches()) * len(SCHEDULES)


def _memories(options: argparse.Namespace) -> Rows:
    from pipelab.bench.memory import compare_memory

    return compare_memory(), None


def _print_memories(rows: list[dict[str, Any]]) -> None:
    print("peak bytes of each rank in use at once: predicted from shapes, and tracked operator by operator (MiB)")
    mesh = f"{'mesh':<18} {'checkpointing':<13}"
    print(f"{'schedule':<12} {mesh} {'rank':>4} {'predicted':>9} {'tracked':>9} {'error':>7}")
    for row in rows:
        case = f"{row['schedule']:<12} {row['mesh']:<18} {row['checkpointing']:<13} {row['rank']:>4}"
        sizes = " ".join(f"{row[what] / 2**20:>9.3f}" for what in ("predicted", "tracked"))
        print(f"{case} {sizes} {100 * row['error']:>+6.2f}%")


def _print_runtimes(rows: list[dict[str, Any]]) -> None:
    from pipelab.bench.runtime import MICROBATCHES, WORKS, geometric_mean

    print("step time of torch.distributed.pipelining over ours, same processes, in turn (wall clock, median)")
    for name, work in WORKS.items():
        print(f"{name}: {work}, {MICROBATCHES} micro-batches")
    print(f"{'schedule':<15} {'ranks':>5} {'work':<5} {'torch/ours':>10}")
    for row in rows:
        print(f"{row['schedule']:<15} {row['ranks']:>5} {row['work']:<5} {row['torch_over_ours']:>10.2f}")
    for what, chosen in {
        "tiny": [row for row in rows if row["work"] == "tiny"],
        "lab": [row for row in rows if row["work"] == "lab"],
        "zero bubble": [row for row in rows if row["schedule"] in ("interleaved-zb", "zb-v")],
    }.items():
        print(f"{what:<27} {geometric_mean([row['torch_over_ours'] for row in chosen]):>10.2f} (geometric mean)")


def _print_splits(rows: list[dict[str, Any]]) -> None:
    print("(I + W) / B (processor time, median), and bytes held between I and W over those held after F")
    print(f"{'blocks':<6} {'ours':>6} {'torch':>6} {'ours held':>10} {'torch held':>11}")
    for row in rows:
        held = f"{row['ours_held']:>10.2f} {row['torch_held']:>11.2f}"
        print(f"{row['work']:<6} {row['ours']:>6.2f} {row['torch']:>6.2f} {held}")


def _print_recorders(rows: list[dict[str, Any]]) -> None:
    print("processor time of a recorded step over an unrecorded one, in turn (median, and quartiles of the pairs)")
    for row in rows:
        low, high = row["quartiles"]
        print(f"{row['schedule']:<6} {row['what']:<6} {row['on_over_off']:.4f}   {low:.4f} to {high:.4f}")


def _print_simulators(rows: list[dict[str, Any]]) -> None:
    print("actions a second (processor time)")
    peers = f"{'ours':>12} {'torch':>12} {'dictionary':>12}"
    print(f"{'schedule':<12} {'ranks':>5} {'costs':>10} {peers} {'bytes/action':>13}")
    for row in rows:
        torch = "absent" if row["torch"] is None else f"{row['torch']:,}"
        rates = f"{row['ours']:>12,} {torch:>12} {row['dictionary']:>12,}"
        print(f"{row['schedule']:<12} {row['ranks']:>5} {row['costs']:>10} {rates} {row['bytes_per_action']:>13,}")


def _print_replays(rows: list[dict[str, Any]]) -> None:
    print("step bubble in virtual time (median of the steps), and replayed with the run's median times")
    print(f"{'schedule':<12} {'ranks':>5} {'micro-batches':>13} {'measured':>9} {'replayed':>9} {'difference':>10}")
    for row in rows:
        shape = f"{row['schedule']:<12} {row['ranks']:>5} {row['microbatches']:>13}"
        difference = row["measured"] - row["replayed"]
        print(f"{shape} {row['measured']:>9.4f} {row['replayed']:>9.4f} {difference:>+10.4f}")


def _print_launches(rows: list[dict[str, Any]]) -> None:
    print("seconds until all ranks have met (wall clock): pipelab's first launch and later ones, spawn, torchrun")
    print(f"{'ranks':>5} {'first':>8} {'later':>8} {'spawn':>8} {'torchrun':>9}")
    for row in rows:
        ours = f"{row['ranks']:>5} {row['cold_seconds']:>8.2f} {row['warm_seconds']:>8.3f}"
        print(f"{ours} {row['spawn_seconds']:>8.2f} {row['torchrun_seconds']:>9.2f}")


BENCHES = {
    "simulate": (_simulators, _print_simulators),
    "replay": (_replays, _print_replays),
    "launch": (_launches, _print_launches),
    "runtime": (_runtimes, _print_runtimes),
    "split": (_splits, _print_splits),
    "recorder": (_recorders, _print_recorders),
    "memory": (_memories, _print_memories),
}
"""For each `what`: how its rows are measured, and printed."""
