"""How does one thing depend on another? Curves of one's own, with words for whoever does not see them."""

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from pipelab.show.palette import line_look
from pipelab.show.table import columns

if TYPE_CHECKING:
    from pipelab.show.chart import Chart


def curves_chart(title: str, curves: Mapping[str, Iterable[tuple[Any, ...]]], *, x: str, y: str) -> "Chart":
    """Each curve, by name, through its points (x, y); points (x, y, word) are marks with a word each, and no line.

    `title` says what is seen; `x` and `y` name the axes, with unit and clock. Raises ValueError without any point.

    >>> figure = curves_chart("an 8th of the hop", {"1f1b": [(0, 33), (1, 47)]}, x="hop", y="makespan, simulated")
    >>> print(figure.text)
    an 8th of the hop
    hop  1f1b
    0      33
    1      47
    makespan, simulated
    """
    from pipelab.show.chart import chart

    drawn = {name: list(points) for name, points in curves.items()}
    if not any(drawn.values()):
        raise ValueError("there is no point to draw; give at least one curve, as in {'1f1b': [(0, 33), (1, 47)]}")
    figure = chart(title, _text(drawn, x, y), height=440)
    for turn, (name, points) in enumerate(drawn.items()):
        line = line_look(turn)
        named = any(len(point) > 2 for point in points)
        figure.add_scatter(
            x=[float(point[0]) for point in points], y=[float(point[1]) for point in points], name=name,
            mode="markers+text" if named else "lines+markers",
            text=[point[2] for point in points] if named else None, textposition="top center",
            line=line, marker={"color": line["color"], "size": 9 if named else 6},
            hovertemplate="%{text} %{y:.4g} at %{x:.4g}<extra></extra>" if named else None,
        )  # fmt: skip
    figure.update_layout(showlegend=len(drawn) > 1)
    figure.update_xaxes(title_text=x)
    figure.update_yaxes(title_text=y)
    return figure


def _text(drawn: Mapping[str, list[tuple[Any, ...]]], x: str, y: str) -> str:
    """A line for each x, with the y of every curve; a line for each point with a word."""
    lines = {name: {p[0]: p[1] for p in points} for name, points in drawn.items() if all(len(p) == 2 for p in points)}
    places = sorted({place for of in lines.values() for place in of})
    table = [[_short(place), *(_short(of[place]) if place in of else "-" for of in lines.values())] for place in places]
    marks = [f"{p[2]}: {_short(p[1])} at {_short(p[0])}" for points in drawn.values() for p in points if len(p) > 2]
    return "\n".join([*([columns([[x, *lines], *table])] if lines else [f"at {x}"]), *marks, y])


def _short(value: Any) -> str:
    return f"{float(value):.4g}"
