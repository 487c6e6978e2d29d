"""Who waits for whom? The ranks of a schedule that is stuck, and the cycle that no rank can leave, drawn."""

from collections.abc import Mapping, Sequence
from math import cos, pi, sin
from typing import TYPE_CHECKING

from pipelab.schedule import Schedule
from pipelab.show.palette import IDLE, INK, PAPER
from pipelab.validate import Wait, cycle, waits

if TYPE_CHECKING:
    from pipelab.show.chart import Chart

RED, GREY, NODE = "#D55E00", "#777777", 46
"""Okabe and Ito's vermilion for the cycle, grey for those who only wait for it; a node's diameter in pixels."""

MOST_RANKS = 16
"""With more ranks only those of the cycle are drawn."""


def waiting(schedule: Schedule) -> "Chart":
    """The figure of a deadlock: an arrow leads from each rank that is stuck to the rank that it waits for.

    The words on an arrow say what stands still and what it needs; the cycle, which makes it a deadlock, is red. A rank
    that waits for itself has its row out of order. Without any wait the figure says that all ranks reach their end.
    Raises ScheduleError for a schedule that is not complete: then the reasons say it all.

    >>> figure = waiting(Schedule.from_text("0F0 0B0 0F1 0B1\\n1F0 1F1 1B0 1B1"))
    >>> figure.layout.title.text
    'deadlock: rank 0 waits for rank 1, rank 1 for rank 0'
    """
    from pipelab.show.chart import chart

    found = waits(schedule)
    circle = cycle(found) if found else ()
    ranks = range(schedule.ranks) if schedule.ranks <= MOST_RANKS else [wait.rank for wait in circle]
    places = {rank: _place(turn, len(ranks)) for turn, rank in enumerate(ranks)}
    title = _finding(circle)
    words = [f"Rank {wait.rank}: {wait}" for wait in found]
    height = 520 if schedule.ranks > 2 else 340
    figure = chart(title, "\n".join(words), height=height, alt=". ".join([title, *words]), width=720)
    for wait in sorted(found, key=lambda wait: wait in circle):
        if wait.rank in places and wait.on in places:
            back = any((other.rank, other.on) == (wait.on, wait.rank) for other in found)
            _draw(figure, wait, places, RED if wait in circle else GREY, back)
    stuck, caught = {wait.rank for wait in found}, {wait.rank for wait in circle}
    figure.add_scatter(
        x=[x for x, _ in places.values()], y=[y for _, y in places.values()], mode="markers+text",
        text=[f"rank {rank}" for rank in ranks], textfont={"size": 11, "color": INK},
        hovertext=[_status(rank, schedule, found) for rank in ranks], hoverinfo="text",
        marker={
            "size": NODE, "color": [PAPER if rank in stuck else IDLE for rank in ranks],
            "line": {"width": 2, "color": [RED if rank in caught else GREY for rank in ranks]},
        },
    )  # fmt: skip
    hidden = {"visible": False, "fixedrange": True}
    figure.update_layout(
        margin={"l": 60, "r": 60, "t": 80, "b": 40},
        showlegend=False,
        xaxis={**hidden, "range": [-1.7, 1.7]},
        yaxis={**hidden, "range": [-1.45, 1.45] if schedule.ranks > 2 else [-0.8, 0.8]},
    )
    return figure


def _finding(circle: Sequence[Wait]) -> str:
    """What is seen, in one line."""
    if not circle:
        return "no deadlock: every rank gets to the end of its row"
    if len(circle) == 1:
        return f"out of order: rank {circle[0].rank} waits for itself"
    if len(circle) > 3:
        return f"deadlock: {len(circle)} ranks wait in a circle"
    first, *others = circle
    pairs = [f"rank {first.rank} waits for rank {first.on}", *(f"rank {w.rank} for rank {w.on}" for w in others)]
    return f"deadlock: {', '.join(pairs)}"


def _place(rank: int, ranks: int) -> tuple[float, float]:
    """On a circle, rank 0 at the left, clockwise."""
    angle = pi - 2 * pi * rank / ranks
    return (cos(angle), sin(angle)) if ranks > 1 else (0.0, 0.0)


def _status(rank: int, schedule: Schedule, found: Sequence[Wait]) -> str:
    stands = (f"rank {rank} stands at position {wait.position}: {wait}" for wait in found if wait.rank == rank)
    return next(stands, f"rank {rank} is done with its {len(schedule.rows[rank])} actions")


def _draw(figure: "Chart", wait: Wait, places: Mapping[int, tuple[float, float]], colour: str, back: bool) -> None:
    """An arrow a little beside the line between two ranks, so that one `back` has its own place; words outside."""
    (x0, y0), (x1, y1) = places[wait.rank], places[wait.on]
    words = f"<b>{wait.element}</b> needs <b>{wait.giver}</b>"
    label = {"text": words, "showarrow": False, "bgcolor": PAPER, "font": {"color": colour, "size": 13}}
    if wait.rank == wait.on:
        figure.add_shape(
            type="circle", x0=x0 - 0.18, x1=x0 + 0.18, y0=y0 + 0.1, y1=y0 + 0.5, line_color=colour, layer="below"
        )
        figure.add_annotation(x=x0, y=y0 + 0.6, **label)
        return
    length = ((x1 - x0) ** 2 + (y1 - y0) ** 2) ** 0.5
    right, up = (y1 - y0) / length, (x0 - x1) / length  # to the right of the arrow's direction
    if not back and (x0 + x1) * right + (y0 + y1) * up > 0:  # alone, it takes the outer side
        right, up = -right, -up
    aside = 0.09
    ends = {"ax": x0 - aside * right, "ay": y0 - aside * up, "x": x1 - aside * right, "y": y1 - aside * up}
    figure.add_annotation(
        **ends, xref="x", yref="y", axref="x", ayref="y", text="", showarrow=True, arrowhead=2, arrowsize=1.2,
        arrowwidth=2.5, arrowcolor=colour, standoff=NODE / 2 + 3, startstandoff=NODE / 2 + 3,
    )  # fmt: skip
    middle_x, middle_y = (ends["ax"] + ends["x"]) / 2, (ends["ay"] + ends["y"]) / 2
    anchor = "center" if abs(right) < 0.3 else "right" if right > 0 else "left"  # so that no words lie on the arrow
    figure.add_annotation(x=middle_x - 0.1 * right, y=middle_y - 0.14 * up, xanchor=anchor, **label)
