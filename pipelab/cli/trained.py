"""What did a run measure? As JSON, as lines to read, and as a page."""

import argparse
from typing import TYPE_CHECKING, Any

from pipelab.cli.checkpointing import recomputed_figures, recomputed_rows
from pipelab.cli.cut import Cut
from pipelab.trace import BUBBLES
from pipelab.units import mebibytes, percent

if TYPE_CHECKING:
    from pipelab.collectives import Traffic
    from pipelab.run import Run
    from pipelab.weight_versions import Versions


def figures(options: argparse.Namespace, result: "Run", difference: float | None) -> dict[str, Any]:
    mesh = result.mesh
    watched = {"norms": {"activations": _norms(result, "F"), "gradients": _norms(result, "I")}} if options.watch else {}
    sent = {"sent": [_sent(result.sent(rank)) for rank in range(mesh.size)]} if mesh.size > mesh.pp else {}
    versions = {} if result.versions is None else {"versions": _version_figures(result.versions)}
    return {
        "schedule": result.schedule.name,
        "mesh": {"pp": mesh.pp, "tp": mesh.tp, "dp": mesh.dp},
        "transport": options.transport,
        "device": options.device,
        "clock": result.clock,
        "pids": result.pids,
        "losses": result.losses,
        "step_seconds": result.step_seconds,
        "bubble": result.bubbles(),
        "peak_activation_bytes": result.memory.peaks,
        "max_parameter_difference": difference,
        **sent,
        **recomputed_figures(options, result),
        **watched,
        **versions,
    }


def _sent(traffic: "Traffic") -> dict[str, dict[str, dict[str, int]]]:
    """What a rank sent in the last step: by axis and kind how often, and how many bytes."""
    figures: dict[str, dict[str, dict[str, int]]] = {}
    for (axis, kind), volume in sorted(traffic.items()):
        figures.setdefault(axis, {})[kind.lower()] = {"times": volume.times, "bytes": volume.nbytes}
    return figures


def _version_figures(versions: "Versions") -> dict[str, Any]:
    """For each stage the most updates that came between a forward and its own; bytes and seconds for each rank."""
    return {
        "staleness": [max(of_stage) for of_stage in versions.staleness],
        "peak_weight_bytes": versions.peaks,
        "weight_bytes": versions.weights,
        "update_seconds": versions.update_seconds,
    }


def summary(result: "Run", difference: float | None, cut: Cut | None) -> list[tuple[str, str]]:
    """What a person wants to read, as (what, figure) with the unit and the clock."""
    bubbles, mesh = result.bubbles(), result.mesh
    rows = [("loss", f"{result.losses[0]:.3f} in the first step, {result.losses[-1]:.3f} in the last")]
    rows.append(("step", f"{1e3 * result.step_seconds:.1f} ms ({result.clock_label}, median)"))
    for kind in BUBBLES:
        shown = [f"{percent(figures[kind])} {how}" for how, figures in bubbles.items() if figures]
        rows.append((f"bubble {kind}", ", ".join(shown) + (" (median over the steps)" if kind == "step" else "")))
    if bubbles["formula"] is None:
        rows.append(("formula", "these values lie outside its domain"))
    rows.append(("peak activations", f"{mebibytes(result.memory.peaks)} MiB by rank"))
    totals = f"{mebibytes(result.memory.totals)} MiB by rank"
    rows.append(("peak, all causes", f"{totals}, with parameters, gradients, optimizer and messages"))
    rows += recomputed_rows(result)
    for axis in ("pp", "tp", "dp", "tie"):
        nbytes = [sum(v.nbytes for (on, _), v in result.sent(rank).items() if on == axis) for rank in range(mesh.size)]
        if any(nbytes):
            rows.append((f"sent, {axis}", f"{' '.join(f'{n / 2**20:.3g}' for n in nbytes)} MiB by rank, a step"))
    if result.gradient_norms:
        rows.append(("gradient norm", f"{result.gradient_norms[-1]:.3g} in the last step, before clipping"))
    for kind, what in (("F", "activations"), ("I", "gradients")):
        if norms := _norms(result, kind):
            rows.append((f"norm, {what}", f"{' '.join(f'{norm:.3g}' for norm in norms)} by stage, last step"))
    if result.versions is not None:
        rows += _version_rows(result, result.versions)
    rows += cut.summary(result) if cut else []
    if difference is not None:
        against = "the uncut model" + ("" if result.versions is None else " with the same delays")
        rows.append(("check", f"parameters differ from {against} by at most {difference:g}"))
    return rows


def _norms(result: "Run", kind: str) -> list[float]:
    """Of a watched run: each stage's largest norm in the last step; the first stage gives no gradient."""
    largest: dict[int, float] = {}
    for action, norm in result.norms[-1].items():
        if action.kind == kind:
            largest[action.stage] = max(norm, largest.get(action.stage, 0.0))
    return [largest[stage] for stage in sorted(largest)]


def _version_rows(result: "Run", versions: "Versions") -> list[tuple[str, str]]:
    stale = " ".join(str(max(of_stage)) for of_stage in versions.staleness)
    times = " ".join(f"{peak / (one or 1):.3g}" for peak, one in zip(versions.peaks, versions.weights, strict=True))
    spent = 1e3 * max(versions.update_seconds) / len(result.losses)
    counted = "virtual time does not count them" if result.clock == "virtual" else "counted in the step"
    return [
        ("staleness", f"{stale} updates at most, by stage"),
        ("peak weights", f"{mebibytes(versions.peaks)} MiB by rank, {times} times the weights themselves"),
        ("updates", f"{spent:.1f} ms a step on the busiest rank; {counted}"),
    ]


def print_figures(rows: list[tuple[str, str]], result: "Run") -> None:
    from pipelab.show.text import timeline_text

    print(timeline_text(result.trace))
    for what, figure in rows:
        print(f"{what:<17} {figure}")


def write_html(options: argparse.Namespace, rows: list[tuple[str, str]], result: "Run") -> None:
    from pipelab.show.losses import loss_chart
    from pipelab.show.mesh import mesh_chart
    from pipelab.show.report import write_report
    from pipelab.show.traffic import traffic_chart

    charts = {"Loss": loss_chart({result.schedule.name: result.losses})}
    if result.mesh.size > result.mesh.pp:
        charts |= {"Mesh": mesh_chart(result.mesh), "Bytes by axis": traffic_chart(result.sent())}
    write_report(options.html, result.trace, result.memory.curves, rows, charts)
