"""Train a small GPT with a schedule, for real, and show where the time and the memory went."""

import argparse
import copy
import os
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelab.cli.checkpointing import add_checkpointing
from pipelab.cli.cut import Cut, add_cut, find_cut, memory_limit
from pipelab.cli.keep import add_keep, asked_saving, asked_start
from pipelab.cli.parser import (
    CommandError,
    add_explain,
    add_json,
    count,
    duration,
    print_explanation,
    print_json,
    seed,
    writable,
)
from pipelab.cli.shape import add_special, schedule_from_file, special
from pipelab.cli.trace_file import trace_text
from pipelab.cli.trained import figures, print_figures, summary, write_html
from pipelab.costs import Costs
from pipelab.explain import explain
from pipelab.interrupt import leaving_at_once
from pipelab.mesh import Mesh
from pipelab.recompute import NONE
from pipelab.schedule import Schedule
from pipelab.schedules import SCHEDULES, build
from pipelab.validate import validate

if TYPE_CHECKING:
    from pipelab.run import Run
    from pipelab.state import State

EXAMPLE = "pipelab train --schedule 1f1b --pp 4 --microbatches 8 --steps 5 --model tiny --check"
ROWS = {"tiny": 4, "small": 2, "gpt2": 1}
"""Sequences in a micro-batch of each preset, so that one action takes milliseconds on its usual machine."""
TOLERANCE = 1e-9
PASSED_ON = (
    "seed", "device", "transport", "clock", "comm", "checkpointing", "hoist", "watch", "zero", "sequence_parallel"
)  # fmt: skip
"""Options that `train` takes under the same name."""


def add_options(command: argparse.ArgumentParser) -> None:
    """The options of `pipelab train`."""
    command.add_argument("--schedule", metavar="NAME", help=f"one of {', '.join(SCHEDULES)}")
    command.add_argument("--file", type=Path, help="read the rows from this file instead, one line a rank")
    command.add_argument("--pp", type=count, metavar="N", help="number of pipeline ranks (1)")
    for axis, what in (("tp", "tensor shards"), ("dp", "replicas")):
        command.add_argument(f"--{axis}", type=count, default=1, metavar="N", help=f"number of {what} (1)")
    command.add_argument("--chunks", type=count, metavar="V", help="stages a rank, where the schedule takes it")
    add_special(command)
    command.add_argument("--microbatches", type=count, metavar="M", help="micro-batches a step")
    command.add_argument("--steps", type=count, default=20, help="counted steps, after one warm-up step (20)")
    command.add_argument("--model", choices=list(ROWS), default="small", help="size of the GPT (small)")
    command.add_argument("--layers", type=count, help="number of blocks, instead of the preset's own")
    command.add_argument("--rows", type=count, help="sequences in a micro-batch (tiny 4, small 2, gpt2 1)")
    command.add_argument(
        "--data", default="stdlib-docs", help="stdlib-docs, stdlib-source, arithmetic, or the path of a text file"
    )
    command.add_argument("--seed", type=seed, default=0, help="seed of parameters, batches and dropout (0)")
    command.add_argument("--dtype", choices=["float32", "float64", "bfloat16"], default="float32",
        help="bfloat16: weights in float32, autocast computes in bfloat16 (float32)")  # fmt: skip
    command.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    command.add_argument(
        "--transport", default="memory", metavar="NAME",
        help="memory: ranks are threads of one process; gloo: processes; nccl: processes with a GPU each (memory)",
    )  # fmt: skip
    command.add_argument("--comm", choices=["overlapped", "blocking"], default="overlapped",
        help="blocking: a rank waits until its message has arrived (overlapped)")  # fmt: skip
    command.add_argument("--clock", choices=["virtual", "wall"], help="virtual, for nccl wall, unless said otherwise")
    command.add_argument("--latency", type=duration, default=0, metavar="SECONDS", help="modelled, of each message (0)")
    command.add_argument("--bandwidth", type=duration, metavar="BYTES/S", help="modelled, of each link (unlimited)")
    command.add_argument("--ranks-per-host", type=count, metavar="N",
        help="modelled: hosts of N ranks; --latency and --bandwidth are then those between hosts")  # fmt: skip
    command.add_argument("--zero", action="store_true", help="replicas share the optimizer's state (ZeRO-1)")
    command.add_argument("--sequence-parallel", action="store_true", help="tensor shards share tokens, too")
    command.add_argument("--tie-embeddings", action="store_true", help="the head uses the embedding's matrix")
    command.add_argument("--clip", type=duration, metavar="NORM", help="largest norm of all gradients together")
    add_cut(command)
    add_keep(command)
    add_checkpointing(command)
    command.add_argument("--check", action="store_true", help="in float64, compare with the uncut model")
    command.add_argument("--watch", action="store_true", help="note norms, and name the first value that is not finite")
    command.add_argument("--live", action="store_true", help="show the timeline while it grows, on standard error")
    add_explain(command)
    command.add_argument("--html", type=writable, metavar="FILE", help="write a page with timeline and memory")
    command.add_argument("--trace", type=writable, metavar="FILE", help="write the trace as JSON")
    add_json(command)


def run(options: argparse.Namespace) -> int:
    """Train, print what was measured, and give 1 when --check found a difference."""
    schedule = _asked_schedule(options)
    if schedule.forward_only:
        option = "--schedule" if options.file is None else "--file"
        raise CommandError(f"{option} {options.schedule or options.file} has no backward, so nothing is learned")
    _refuse_what_is_not_there(options)
    run_, difference, cut = _train(options, schedule)
    if not run_.first:
        return 0  # of several processes one tells what all have measured
    if options.trace:
        options.trace.write_text(trace_text(run_.trace, run_.memory.curves))
    if options.html:
        write_html(options, summary(run_, difference, cut), run_)
    explanation = explain(run_.trace, against=run_.replay()) if options.explain else None
    if options.json:
        more = {"explanation": explanation.as_dict()} if explanation else {}
        print_json(figures(options, run_, difference) | (cut.figures(run_) if cut else {}) | more)
    else:
        print_figures(summary(run_, difference, cut), run_)
        print_explanation(explanation)
    if difference is not None and not difference <= TOLERANCE:
        print(f"pipelab train: --check: parameters differ from the uncut model by {difference:g}", file=sys.stderr)
        return 1
    return 0


def _asked_schedule(options: argparse.Namespace) -> Schedule:
    """The schedule by name, or from a file, which then says pp and micro-batches too."""
    if options.file is not None:
        schedule = validate(schedule_from_file(options))
        options.pp, options.microbatches = schedule.ranks, schedule.microbatches
        return schedule
    for option in ("schedule", "microbatches"):
        if getattr(options, option) is None:
            raise CommandError(f"--{option} is missing; as in: {EXAMPLE}")
    options.pp = options.pp or 1
    more = special(options, options.schedule, Costs.uniform())
    return build(options.schedule, options.pp, options.microbatches, options.chunks, **more)


def _refuse_what_is_not_there(options: argparse.Namespace) -> None:
    with leaving_at_once():
        import torch

        from pipelab.refusals import CLOCKS

    if options.transport not in CLOCKS:
        raise CommandError(f"--transport {options.transport} is not there; it is one of {', '.join(CLOCKS)}")
    if options.transport == "nccl" and options.device == "cpu":
        raise CommandError("--transport nccl moves data between GPUs; add --device cuda, or use --transport gloo")
    if options.device == "cuda" and not torch.cuda.is_available():
        raise CommandError("--device cuda: torch sees no CUDA device here; use --device cpu")
    if options.html and find_spec("plotly") is None:
        raise CommandError("--html draws with plotly, which is not installed: pip install plotly, or leave it out")
    if options.hoist and options.checkpointing == NONE:
        raise CommandError("--hoist puts recomputation forward, and there is none: add --checkpointing")
    for option, without in (("bandwidth", "an unlimited one"), ("clip", "no clipping")):
        if getattr(options, option) == 0:
            raise CommandError(f"--{option} must be positive: got 0; leave it out for {without}")
    for option, axis, what in (("zero", "dp", "replicas"), ("sequence_parallel", "tp", "tensor shards")):
        if getattr(options, option) and getattr(options, axis) == 1:
            raise CommandError(f"--{option.replace('_', '-')} needs {what}: add --{axis} 2, or leave it out")


def _train(options: argparse.Namespace, schedule: Schedule) -> tuple["Run", float | None, Cut | None]:
    """The run, with --check its largest difference from the uncut model, and the cut that was asked for."""
    import torch
    from tqdm import tqdm

    from pipelab.costs import Link, Network
    from pipelab.data import Batches, load_text
    from pipelab.models import build_model
    from pipelab.show.live_text import LiveText
    from pipelab.training import train
    from pipelab.world import is_rank

    autocast = torch.bfloat16 if options.dtype == "bfloat16" and not options.check else None
    dtype = torch.float64 if options.check else torch.float32 if autocast else getattr(torch, options.dtype)
    text = load_text(options.data)
    model = build_model(
        options.model, seed=options.seed, layers=options.layers, tied=options.tie_embeddings, dtype=dtype
    )
    start = asked_start(options, model)
    begin = 0 if start is None else start.step
    saving = asked_saving(options, begin)
    uncut = copy.deepcopy(model) if options.check else None
    batches = Batches(
        text=text, microbatches=options.dp * options.microbatches, rows=options.rows or ROWS[options.model],
        context=model.config.context, seed=options.seed, steps=begin + options.steps,
    )  # fmt: skip
    mesh = Mesh(dp=options.dp, pp=options.pp, tp=options.tp)
    link = Link(float(options.latency), float(options.bandwidth or "inf"))
    cut = find_cut(options, model, batches, schedule, mesh, link, autocast)
    hosts = tuple(rank // (options.ranks_per_host or mesh.size) for rank in range(mesh.size))
    quiet = is_rank() and os.environ["RANK"] != "0"
    with tqdm(
        total=options.steps, unit="step", desc=schedule.name, file=sys.stderr, delay=2, disable=quiet or options.live
    ) as bar:

        def on_step(step: int, loss: float) -> None:
            bar.set_postfix(loss=f"{loss:.3f}", refresh=False)
            bar.update()

        result = train(
            model,
            batches,
            schedule,
            mesh,
            link=Network(hosts, Link(), link) if options.ranks_per_host else link,
            at=None if cut is None else list(cut.predicted.at),
            memory_limit=memory_limit(options),
            on_step=on_step,
            feed=LiveText(sys.stderr) if options.live else None,
            autocast=autocast,
            clip=None if options.clip is None else float(options.clip),
            save=saving,
            resume=start,
            **{name: getattr(options, name) for name in PASSED_ON},
        )
    compare = uncut is not None and result.first
    return result, _difference(options, result, uncut, batches, start) if compare else None, cut


def _difference(options: argparse.Namespace, result: "Run", uncut: Any, batches: Any, start: "State | None") -> float:
    import torch

    from pipelab.reference import train_delayed, train_uncut
    from pipelab.resume import continued

    uncut.to(options.device)
    unseen = continued(batches, 0 if start is None else start.step)
    here = [tuple(tensor.to(options.device) for tensor in batch) for batch in unseen]
    if result.schedule.flush:
        clip = None if options.clip is None else float(options.clip)
        train_uncut(uncut, here, options.dp * options.microbatches, seed=options.seed, clip=clip, start=start)
    else:
        train_delayed(uncut, here, options.microbatches, result.schedule.stages, seed=options.seed)
    ours = result.parameters()
    apart = [(ours[name].cpu() - theirs.detach().cpu()).abs().max() for name, theirs in uncut.named_parameters()]
    return float(torch.stack(apart).max())  # NaN if any of them is, as Python's max() is not
