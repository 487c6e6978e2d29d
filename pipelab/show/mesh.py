"""Which global rank sits where, and who talks to whom? The three axes of a mesh, drawn."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from pipelab.mesh import Mesh
from pipelab.show.palette import INK, PAPER, RANK_COLOURS

if TYPE_CHECKING:
    from pipelab.show.chart import Chart

AXES = {
    "tp": ("shards of one layer", "solid"),
    "pp": ("stages of one model", "dash"),
    "dp": ("copies of one stage", "dot"),
}
"""What the ranks of a group are, and how their line is drawn."""

MOST_RANKS = 128
"""Of a larger mesh only as many replicas are drawn as have room, at least one."""

BESIDE = 0.16  # how far the line of a dp group swings out


def mesh_chart(mesh: Mesh) -> "Chart":
    """The global ranks as squares: stages to the right, tensor shards downwards, replicas below one another.

    A line joins the ranks of each group: full along tp, dashed along pp, dotted along dp. Axes of size 1 have none.

    >>> mesh_chart(Mesh(dp=2, pp=4, tp=2))
    <chart: 16 ranks = dp 2 x pp 4 x tp 2: partners are 1 apart along tp, 2 along pp, 8 along dp>
    """
    from pipelab.show.chart import chart

    replicas = max(min(mesh.dp, MOST_RANKS // (mesh.pp * mesh.tp)), 1)
    rows = replicas * (mesh.tp + 1) - 1
    title = _finding(mesh)
    figure = chart(title, str(mesh), height=150 + 62 * rows, showlegend=True)
    figure.update_layout(width=max(190 + 90 * mesh.pp, 860), margin_l=120)
    for turn, (axis, (words, dash)) in enumerate(AXES.items()):
        if getattr(mesh, axis) > 1:
            shape = "spline" if axis == "dp" else "linear"
            across, down = zip(*_lines(mesh, axis, replicas), strict=True)
            figure.add_scatter(
                x=across, y=down, mode="lines", name=f"{axis}: {words}", hoverinfo="skip",
                line={"color": RANK_COLOURS[turn], "width": 3, "dash": dash, "shape": shape},
            )  # fmt: skip
    ranks = range(replicas * mesh.pp * mesh.tp)
    across, down = zip(*(_place(mesh, rank) for rank in ranks), strict=True)
    figure.add_scatter(
        x=across, y=down, mode="markers+text", text=[f"<b>{rank}</b>" for rank in ranks], showlegend=False,
        hovertext=[_about(mesh, rank) for rank in ranks], hoverinfo="text", textfont={"color": INK},
        marker={"symbol": "square", "size": 34, "color": PAPER, "line": {"width": 2, "color": INK}},
    )  # fmt: skip
    figure.update_xaxes(
        title_text="stage along pp", tickvals=list(range(mesh.pp)), range=[-0.5, mesh.pp - 0.5 + BESIDE], showgrid=False
    )
    shards = [(dp, tp) for dp in range(replicas) for tp in range(mesh.tp)]
    figure.update_yaxes(
        title_text="replica along dp, shard along tp", range=[rows - 0.5, -0.6], showgrid=False,
        tickvals=[dp * (mesh.tp + 1) + tp for dp, tp in shards], ticktext=[f"dp {dp}, tp {tp}" for dp, tp in shards],
    )  # fmt: skip
    return figure


def _place(mesh: Mesh, rank: int) -> tuple[float, float]:
    dp, pp, tp = mesh.coordinates(rank)
    return pp, dp * (mesh.tp + 1) + tp


def _lines(mesh: Mesh, axis: str, replicas: int) -> Iterator[tuple[float | None, float | None]]:
    """The points of all groups along an axis, with a gap after each; those along dp swing past what lies between."""
    shown = replicas * mesh.pp * mesh.tp
    for group in mesh.groups(axis):
        places = [_place(mesh, rank) for rank in group if rank < shown]
        for turn, (x, y) in enumerate(places):
            if axis == "dp" and turn:
                yield x + 2 * BESIDE, (y + places[turn - 1][1]) / 2
            yield x, y
        yield None, None


def _about(mesh: Mesh, rank: int) -> str:
    dp, pp, tp = mesh.coordinates(rank)
    talks = (
        f"{axis}: {', '.join(str(other) for other in mesh.group(axis, rank) if other != rank) or 'nobody'}"
        for axis in AXES
    )
    return "<br>".join([f"<b>rank {rank}</b>: dp {dp}, pp {pp}, tp {tp}", *talks])


def _finding(mesh: Mesh) -> str:
    """The shape, and how far apart the numbers of those who talk to each other are."""
    steps = {"tp": 1, "pp": mesh.tp, "dp": mesh.pp * mesh.tp}
    used = [(axis, step) for axis, step in steps.items() if getattr(mesh, axis) > 1]
    said = [f"{step} {'apart ' * (not turn)}along {axis}" for turn, (axis, step) in enumerate(used)]
    shape = f"{mesh.size} rank{'s' * (mesh.size != 1)} = dp {mesh.dp} x pp {mesh.pp} x tp {mesh.tp}"
    return f"{shape}: {'partners are ' + ', '.join(said) if said else 'nobody talks to anybody'}"
