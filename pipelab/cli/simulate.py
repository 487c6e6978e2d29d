"""Simulate a named schedule, or one of your own from a file.

A file has one line a rank, actions separated by blanks, as in: 0F0 0F1 0B0 0B1
"""

import argparse
from typing import Any

from pipelab.cli.parser import add_explain, add_json, duration, print_explanation, print_json
from pipelab.cli.progress import elapsed
from pipelab.cli.shape import add_shape, asked_schedule, described, special
from pipelab.costs import Costs
from pipelab.explain import explain
from pipelab.formulas import formula
from pipelab.schedule import Schedule
from pipelab.simulate import simulate
from pipelab.trace import BUBBLES, Trace, number

HINTED = 1000
"""Ranks times micro-batches up to which zb-auto looks whether two stages a rank are shorter: a moment's work."""

EXAMPLE = "pipelab simulate 1f1b --ranks 4 --microbatches 8 --F 1 --I 1 --W 1"


def add_options(command: argparse.ArgumentParser) -> None:
    """The options of `pipelab simulate`."""
    add_shape(command)
    for kind, what in (("F", "forward"), ("I", "input gradient"), ("W", "weight gradient")):
        command.add_argument(f"--{kind}", type=duration, default=1, metavar="TIME", help=f"{what} of a rank (1)")
    command.add_argument("--hop", type=duration, default=0, metavar="TIME", help="latency between ranks (0)")
    add_explain(command)
    add_json(command)


def run(options: argparse.Namespace) -> None:
    """Print the rows, the time, the bubbles and the peak of one schedule."""
    costs = Costs.uniform(F=options.F, I=options.I, W=options.W, hop=options.hop)
    with elapsed("simulating"):
        schedule = asked_schedule(options, costs)
        trace = simulate(schedule, costs)
    closed_form = None if options.file or schedule.groups else _formula(options, schedule)
    with elapsed("explaining"):
        explanation = explain(trace) if options.explain else None
    if options.json:
        more = {"explanation": explanation.as_dict()} if explanation else {}
        figures = {
            "makespan": number(trace.makespan),
            "span": number(trace.span),
            "bubble": trace.bubbles(),
            "formula": closed_form,
            "peak_in_flight": trace.peak_in_flight,
            "peak_until_input": trace.peak_until_input,
        }
        print_json(described(schedule) | figures | _found(options, costs, trace) | more)
    else:
        _print_figures(schedule, trace, closed_form, _found(options, costs, trace), _hint(options, costs, trace))
        print_explanation(explanation)


def _formula(options: argparse.Namespace, schedule: Schedule) -> dict[str, Any] | None:
    shape = {"P": schedule.ranks, "M": schedule.microbatches, "V": schedule.stages // schedule.ranks}
    times = {"F": options.F, "I": options.I, "W": options.W, "hop": options.hop}
    try:
        return {kind: formula(schedule.name, f"bubble_{kind}", **shape, **times) for kind in BUBBLES}
    except ValueError:
        return None  # outside the domain of the closed form


def _found(options: argparse.Namespace, costs: Costs, trace: Trace) -> dict[str, Any]:
    """For the schedule that is searched for: the bound that no order can beat, and how far from it this one is."""
    if options.schedule != "zb-auto":
        return {}
    from pipelab.search import gap, lower_bound

    asked = special(options, options.schedule, costs)
    bound = lower_bound(options.ranks, options.microbatches, **asked, chunks=options.chunks or 1)
    length = trace.makespan if options.objective == "step" else trace.span
    return {"objective": options.objective or "span", "lower_bound": number(bound), "gap": number(gap(length, bound))}


def _hint(options: argparse.Namespace, costs: Costs, trace: Trace) -> str:
    """Where one stage a rank was searched for: are two, in a published order, shorter within the same limit?"""
    if options.schedule != "zb-auto" or options.chunks or options.ranks * options.microbatches > HINTED:
        return ""
    from pipelab.search import published

    asked = special(options, options.schedule, costs)
    two = published(options.ranks, options.microbatches, **asked, chunks=2)
    length = trace.makespan if options.objective == "step" else trace.span
    if two >= length:
        return ""
    return f"within the same limit, two stages a rank (--chunks 2) have a {options.objective or 'span'} of {two:.6g}\n"


def _print_figures(
    schedule: Schedule, trace: Trace, closed_form: dict[str, Any] | None, found: dict[str, Any], hint: str
) -> None:
    from pipelab.show.text import timeline_text
    from pipelab.units import percent

    print(timeline_text(trace))
    if closed_form:
        print("by formula: " + ", ".join(f"{kind} {percent(closed_form[kind])}" for kind in BUBBLES))
    if found:
        stages = "one stage" if schedule.stages == schedule.ranks else f"{schedule.stages // schedule.ranks} stages"
        least = f"lower bound of the {found['objective']}, with {stages} a rank: {found['lower_bound']:.6g}"
        print(f"{least}, gap {percent(found['gap'])}")
        print(hint, end="")
    held = " ".join(f"{float(peak):g}" for peak in trace.peak_in_flight)
    print(f"peak in flight by rank, in micro-batches: {held}")
