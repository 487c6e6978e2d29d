"""The still picture of a chart shows all of its data, in its places; what it cannot show, it does not draw at all."""

import datetime
from xml.etree import ElementTree

import numpy as np
import pytest

pytest.importorskip("plotly", reason="no plotly here: no chart is drawn")

import plotly.graph_objects as go
from test_show_charts import CHARTS, drawn, step

import pipelab as pl
from pipelab.show import bubble_chart, holdings_chart, memory_chart, overlay, waiting
from pipelab.show.forms import mode_of
from pipelab.show.plain import MOST_MARKS, chart_svg
from pipelab.show.strokes import words

pytestmark = pytest.mark.filterwarnings("ignore:.*scattermapbox:DeprecationWarning")

KIB = 1024


def slow_and_fast():
    slow = pl.simulate(pl.build("1f1b", 4, 8), pl.Costs.uniform(hop=1))
    return overlay(pl.explain(slow, against=step()))


def held():
    import torch

    model = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.Linear(64, 64))
    batch = torch.ones(4, 64), torch.zeros(4, dtype=torch.int64)
    return holdings_chart({name: pl.train(model, [batch], pl.build(name, 2, 4)) for name in ("gpipe", "zb-h1")})


MORE = {
    "overlay": slow_and_fast,
    "holdings": held,
    "many bubbles": lambda: bubble_chart(["gpipe", "1f1b", "interleaved", "zb-h1"], 4, [1, 2, 4, 8, 16, 32], chunks=2),
    "out of order": lambda: waiting(pl.Schedule.from_text("0B0 0F0\n1F0 1B0")),
}


@pytest.fixture(scope="module", params=[*CHARTS, *MORE])
def picture(request):
    """A chart, and its picture as a tree."""
    figure = MORE[request.param]() if request.param in MORE else drawn(request.param)
    svg = chart_svg(figure)
    assert len(svg) < 60 * KIB, "an executed notebook stays small"
    return figure, ElementTree.fromstring(svg.replace(' xmlns="http://www.w3.org/2000/svg"', ""))


def test_every_bar_and_every_mark_is_drawn_once(picture):
    figure, root = picture
    bars = [bar for bar in figure.data if bar.type == "bar"]
    lines = [line for line in figure.data if line.type == "scatter" and line.visible is not False]
    panels = root.findall("./svg")
    assert len(panels) == sum(trace.visible in (None, True) for trace in figure.data)
    assert len(root.findall("./svg/g/rect")) == sum(len([x for x in bar.x if x is not None]) for bar in bars)
    points = sum(len([y for y in line.y if y is not None]) for line in lines if "markers" in mode_of(line))
    signs = sum("markers" in mode_of(line) and line.name is not None and line.showlegend is not False for line in lines)
    legend = signs if figure.layout.showlegend is not False and len(figure.data) > 1 else 0
    assert len(root.findall("./g/*")) == points + legend


def test_title_axes_and_legend_are_said(picture):
    figure, root = picture
    said = "\n".join("\n".join(text.itertext()) for text in root.iter("text"))
    assert figure.layout.title.text.split("<br>")[0][:60] in said
    for axis in [*figure.select_xaxes(), *figure.select_yaxes()]:
        for line in (axis.title.text or "").split("<br>"):
            assert line in said
    for trace in figure.data:
        if trace.name and trace.showlegend and trace.visible is not False and trace.visible != "legendonly":
            assert trace.name in said


def test_lines_keep_their_dashes_and_bars_their_hatches(picture):
    figure, root = picture
    hatched = {(bar.marker.color, bar.marker.pattern.shape) for bar in figure.data if bar.type == "bar"}
    areas = {(area.fillcolor, area.fillpattern.shape) for area in figure.data if area.type == "scatter"}
    looks = {look for look in hatched | areas if look[1]}
    assert len(root.findall("./defs/pattern")) == len(looks)
    dashes = {line.line.dash for line in figure.data if line.type == "scatter" and "lines" in mode_of(line)}
    dashes |= {shape.line.dash for shape in figure.layout.shapes}
    assert len(root.findall(".//*[@stroke-dasharray]")) >= len(dashes - {None, "solid"})


def test_bars_stand_where_their_values_are():
    figure = go.Figure(layout={"barmode": "stack", "yaxis_range": [0, 4]})
    figure.add_bar(x=["a", "b"], y=[1, 2]).add_bar(x=["a", "b"], y=[2, 1])
    root = ElementTree.fromstring(chart_svg(figure).replace(' xmlns="http://www.w3.org/2000/svg"', ""))
    tall = float(root.find("./svg").get("height"))
    places = [(float(bar.get("y")), float(bar.get("height"))) for bar in root.iter("rect") if bar.get("y")]
    top = float(root.find("./svg").get("y"))
    assert [(round(4 * (y - top) / tall, 2), round(4 * height / tall, 2)) for y, height in places] == [
        (3, 1), (2, 2), (1, 2), (1, 1),
    ]  # fmt: skip


def test_a_limit_that_nobody_reaches_is_still_in_the_picture():
    figure = memory_chart(step(), limit=20)
    root = ElementTree.fromstring(chart_svg(figure).replace(' xmlns="http://www.w3.org/2000/svg"', ""))
    (limit,) = [text for text in root.iter("text") if text.text == "limit 20"]
    assert float(root.find("./svg").get("y")) <= float(limit.get("y")) + 12


@pytest.mark.parametrize(
    "figure",
    [
        go.Figure(),
        go.Figure(go.Heatmap(z=[[1]])),
        go.Figure(go.Scatter(x=[1], y=[1], fill="tozeroy")),
        go.Figure(go.Scatter(x=[1], y=[1], marker={"symbol": "bowtie"})),
        go.Figure(go.Bar(x=[1], y=[1], marker={"pattern": {"shape": "+"}})),
        go.Figure(go.Scatter(x=[1], y=[1]), layout={"xaxis": {"type": "date"}}),
        go.Figure(go.Scatter(x=[1], y=[1], yaxis="y2"), layout={"yaxis2": {"overlaying": "y", "side": "right"}}),
        go.Figure(go.Scatter(x=[datetime.date(2020, 1, 1)], y=[1])),
        go.Figure(go.Scatter(x=[1, 2], y=[1, 2], marker={"size": [3, 4]})),
        go.Figure(go.Scatter(x=[1, 2], y=[1, 2], marker={"color": [3, 4]})),
        go.Figure(go.Scatter(x=list(range(MOST_MARKS + 1)), y=[0] * (MOST_MARKS + 1))),
    ],
)
def test_what_is_not_known_or_too_much_is_not_drawn(figure):
    assert chart_svg(figure) is None


def test_names_stay_words():
    figure = go.Figure(layout={"title": "</title><script>", "showlegend": True})
    figure.add_scatter(x=[0, 1], y=[1, 2], name="</text><script>")
    svg = chart_svg(figure)
    assert "<script" not in svg and ElementTree.fromstring(svg) is not None
    assert "&lt;/text&gt;" in words(0, 0, "</text>")


def test_arrays_are_drawn_as_lists_are():
    numbers, colours, said = [1.0, 2.0], ["#000000", "#FF0000"], ["one", "two"]
    drawn = []
    for kind in (list, np.array):
        data = {"x": kind(numbers), "y": kind(numbers), "text": kind(said), "marker": {"color": kind(colours)}}
        drawn.append(chart_svg(go.Figure(go.Scatter(**data, mode="lines+markers+text", name="a", showlegend=True))))
    assert drawn[0] == drawn[1] and "#FF0000" in drawn[0] and ">two<" in drawn[0]


def test_gaps_stay_gaps_and_logarithms_have_no_zero():
    figure = go.Figure(go.Scatter(x=[1, 2, None, 4, 8, 0], y=[1, 2, 3, 4, 5, 6], mode="lines+markers"))
    figure.update_xaxes(type="log")
    root = ElementTree.fromstring(chart_svg(figure).replace(' xmlns="http://www.w3.org/2000/svg"', ""))
    assert root.find("./svg/path").get("d").count("M") == 2 and len(root.findall(".//circle")) == 4
