"""Every chart says what it shows: a title that is true of its data, units, clock, a text twin, more than colour."""

import copy
import functools
import json
import re
from base64 import b64decode
from html import unescape
from xml.etree import ElementTree

import pytest

pytest.importorskip("plotly", reason="no plotly here: no chart is drawn")

import plotly.graph_objects as go
import plotly.io as pio

import pipelab as pl
from pipelab.collectives import Volume
from pipelab.mesh import Mesh
from pipelab.microbatch import Sweep
from pipelab.show import (
    balance_chart,
    bubble_chart,
    curves_chart,
    frontier_chart,
    idle_chart,
    loss_chart,
    memory_chart,
    mesh_chart,
    microbatch_chart,
    traffic_chart,
    waiting,
)
from pipelab.show.plain import MOST_MARKS
from pipelab.units import percent

pytestmark = pytest.mark.filterwarnings("ignore:.*scattermapbox:DeprecationWarning")


def step(name="1f1b", ranks=4, microbatches=8, clock="simulated", **options):
    trace = pl.simulate(pl.build(name, ranks, microbatches, **options), pl.Costs.uniform())
    return pl.Trace(trace.schedule, clock, trace.chunks, trace.spans)


CHARTS = {
    "timeline": lambda: pl.timeline(step()),
    "compare": lambda: pl.compare([step(), step("zb-h1")]),
    "memory": lambda: memory_chart(step(), limit=3),
    "bytes": lambda: memory_chart(step(ranks=2, clock="virtual"), [[(0, 0), (1, 4096)], [(2, 2048)]]),
    "bubble": lambda: bubble_chart(["gpipe", "1f1b"], 4, [1, 8], measured=[step(clock="virtual")]),
    "frontier": lambda: frontier_chart({"none": (8192, 0.033), "full": (2048, 0.044)}, "virtual", model=[(1, 1)]),
    "traffic": lambda: traffic_chart({("tp", "all_reduce"): Volume(3, 3072), ("pp", "SEND_F"): Volume(1, 1024)}),
    "curves": lambda: curves_chart(
        "1f1b is the shortest of both",
        {"gpipe": [(0, 33), (1, 47)], "1f1b": [(0, 33)], "best": [(1, 36, "M = 8")]},
        x="hop (slots)",
        y="simulated (slots)",
    ),
    "losses": lambda: loss_chart({"gpipe": [5.5, 4.0], "pipedream": [5.5, 4.5]}),
    "mesh": lambda: mesh_chart(Mesh(dp=2, pp=4, tp=2)),
    "idle": lambda: idle_chart(pl.explain(step())),
    "balance": lambda: balance_chart(
        [1, 1, 1, 3], "EttH", {"even": [2], "good": [3]}, (0, 1), {"even": 1.0, "good": 0.8}
    ),
    "microbatch": lambda: microbatch_chart([Sweep(2, {2: 0.004, 4: 0.003}, {4: 0.0031})]),
    "waiting": lambda: waiting(pl.Schedule.from_text("0F0 0B0 0F1 0B1\n1F0 1F1 1B0 1B1")),
}
SENT = {
    ("tp", "all_gather"): Volume(1, 2048),
    ("tp", "all_reduce"): Volume(1, 1024),
    ("dp", "all_gather"): Volume(1, 1024),
}
CLOCKS = ("simulated", "virtual time", "counted")


@functools.cache
def drawn(name):
    return CHARTS[name]()


@pytest.fixture(params=CHARTS)
def chart(request):
    return drawn(request.param)


# ---- what all have


def test_every_chart_has_a_title_and_the_same_in_words(chart):
    title = chart.layout.title.text.replace("<br>", " ")
    assert len(title) > 20 and repr(chart) == f"<chart: {title}>"
    assert len(chart.text.splitlines()) >= 2 and "<" not in chart.text
    assert {float(f) for f in re.findall(r"\d+\.\d+", title)} <= {float(f) for f in re.findall(r"\d+\.\d+", chart.text)}


@pytest.mark.parametrize("name", [name for name in CHARTS if name not in ("mesh", "waiting")])
def test_every_chart_of_amounts_names_its_clock_and_its_units(name):
    said = json.dumps(drawn(name).to_plotly_json(), default=str)
    assert any(clock in said for clock in CLOCKS)
    axes = {
        part["title"]["text"]
        for key, part in drawn(name).to_dict()["layout"].items()
        if "axis" in key and "text" in part.get("title", {})
    }
    assert any("(" in words or name == "compare" for words in axes)


def test_lines_and_bars_are_told_apart_without_colour(chart):
    named = [drawn for drawn in chart.data if drawn.name and drawn.showlegend is not False and drawn.name != "idle"]
    hatches = [str(bar.marker.pattern.shape) for bar in named if bar.type == "bar"]
    assert len(hatches) == len(set(hatches))
    looks = [(d.mode, d.line.dash, d.line.width, d.marker.symbol) for d in named if d.type == "scatter"]
    assert len(looks) == len(set(looks))


def test_a_chart_that_is_copied_or_read_back_keeps_its_words(chart):
    assert copy.deepcopy(chart).text == go.Figure(json.loads(chart.to_json())).layout.meta["text"] == chart.text


# ---- what a viewer gets


@pytest.fixture
def bundle(chart, monkeypatch):
    """What a notebook would store, with this renderer as the default."""

    def shown(renderer):
        monkeypatch.setattr(pio.renderers, "_default_renderers", [pio.renderers[name] for name in renderer.split("+")])
        monkeypatch.setattr(pio.renderers, "_to_activate", [])
        return chart._repr_mimebundle_()

    return shown


def test_a_viewer_of_plain_text_gets_the_words(chart, bundle):
    assert bundle("plotly_mimetype")["text/plain"] == chart.text


def test_a_viewer_without_scripts_gets_a_still_picture_and_the_words(chart, bundle):
    html = bundle("plotly_mimetype")["text/html"]
    assert "<script" not in html
    data = re.search(r'src="data:image/svg\+xml;base64,([^"]*)"', html).group(1)
    assert b64decode(data).decode() == bundle("plotly_mimetype")["image/svg+xml"] == chart.svg
    assert unescape(re.search(r'alt="([^"]*)"', html).group(1)) == chart.text


def test_a_viewer_without_scripts_gets_the_words_where_there_is_no_picture(monkeypatch):
    figure = pl.timeline(step(ranks=8, microbatches=1 + MOST_MARKS // 16))
    assert figure.svg is None and "rank 7" in figure.text
    monkeypatch.setattr(pio.renderers, "_default_renderers", [pio.renderers["plotly_mimetype"]])
    monkeypatch.setattr(pio.renderers, "_to_activate", [])
    bundle = figure._repr_mimebundle_()
    assert bundle["text/html"].startswith("<pre ") and "image/svg+xml" not in bundle


def test_a_viewer_with_plotly_gets_its_json(chart, bundle):
    shown = bundle("plotly_mimetype")["application/vnd.plotly.v1+json"]
    assert len(shown["data"]) == len(chart.data)


def test_the_page_of_an_executed_notebook_has_the_figure_and_without_scripts_the_rest(bundle):
    html = bundle("plotly_mimetype+notebook")["text/html"]
    assert "Plotly.newPlot" in html and "<noscript>" in html and len(html) < 200_000, "plotly itself comes once"
    assert not re.search(r"<script[^>]*\bsrc=", html)


def test_nothing_is_fetched_even_by_renderers_that_would():
    chart = drawn("losses")
    assert re.search(r"<script[^>]*\bsrc=", chart.to_html(include_plotlyjs="cdn"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pio.renderers, "_default_renderers", [pio.renderers["colab"]])
        patch.setattr(pio.renderers, "_to_activate", [])
        html = chart._repr_mimebundle_()["text/html"]
    assert "Plotly.newPlot" in html and not re.search(r"<script[^>]*\bsrc=", html)


def test_the_still_picture_has_a_bar_for_every_action_with_letter_and_hatch():
    trace = step("zb-h1")
    root = ElementTree.fromstring(pl.timeline(trace).svg)
    spaces = "{http://www.w3.org/2000/svg}"
    words = [text.text for text in root.iter(f"{spaces}text")]
    for row in trace.compute:
        for span in row:
            assert f"{span.action.kind}{span.action.microbatch}" in words
    filled = [part for part in root.iter() if part.get("fill", "").startswith("url(#h")]
    hatched = [bar for part in filled for bar in part.iter(f"{spaces}rect")]
    actions = sum(map(len, trace.compute))
    assert len(hatched) == actions * 2 // 3 + 2  # I and W, and two in the legend
    assert {"simulated time (in the unit of the costs)", "rank 3", "idle"} <= set(words)


def test_names_cannot_break_out_of_the_still_picture():
    trace = step()
    named = pl.Trace("</title><script>", "wall", trace.chunks, trace.spans)
    assert "<script" not in pl.timeline(named).svg and ElementTree.fromstring(pl.timeline(named).svg) is not None


# ---- what each one says


def test_memory_names_the_rank_that_holds_most_and_the_limit():
    figure = memory_chart(step(), limit=3)
    assert figure.layout.title.text == "1f1b: rank 0 holds the most, 4 micro-batches; rank 3 the least, 1"
    assert memory_chart(step("gpipe")).layout.title.text == "gpipe: every rank holds up to 8 micro-batches"
    assert figure.layout.annotations[0].text == "limit 3" and "limit 3 micro-batches" in figure.text
    assert "4 KiB" in drawn("bytes").layout.title.text
    assert [max(line.y) for line in figure.data] == [4, 3, 2, 1]


def test_the_bubbles_are_those_of_formula_simulator_and_run():
    figure = bubble_chart(["gpipe", "1f1b", "interleaved"], 4, [1, 4, 8], chunks=2, measured=[step(clock="virtual")])
    lines = {d.name: dict(zip(d.x, d.y, strict=True)) for d in figure.data}
    assert lines["1f1b, measured in virtual time"] == {8: pytest.approx(300 / 11)}
    assert lines["gpipe, simulated"][8] == lines["gpipe, formula"][8] == pytest.approx(300 / 11)
    assert lines["interleaved, simulated"][8] == pytest.approx(100 * 3 / 19)
    assert set(lines["gpipe, formula"]) == set(range(1, 9)) and list(lines["gpipe, simulated"]) == [1, 4, 8]
    words = figure.layout.title.text.replace("<br>", " ")
    assert "gpipe and 1f1b 75.0 % at M = 1, 27.3 % at M = 8; interleaved" in words
    assert "naive 75.0 % at every M" in bubble_chart(["naive"], 4, [2, 4]).layout.title.text
    overhead = bubble_chart(["gpipe"], 4, [8], "overhead")
    assert overhead.data[-1].y == (37.5,) and "above the busiest rank's work" in overhead.layout.yaxis.title.text


@pytest.mark.parametrize("wrong", [(["1f1b"], 4, []), ([], 4, [1]), (["1f1b"], 4, [1], "bubble"), (["2f2b"], 4, [1])])
def test_a_bubble_chart_of_nothing_or_of_an_unknown_name_is_refused(wrong):
    with pytest.raises(ValueError, match=r"needs schedules|2f2b"):
        bubble_chart(*wrong)


def test_the_frontier_is_of_those_that_no_other_beats():
    points = {"none": (8, 33), "selective": (5, 36), "every 2": (6, 40), "full": (2, 44), "again": (2, 44)}
    figure = frontier_chart(points, "simulated", memory="micro-batches")
    assert {d.name: d.text for d in figure.data} == {
        "on the frontier": ("none", "selective", "full"), "off the frontier": ("every 2", "again"),
    }  # fmt: skip
    assert figure.layout.title.text == "from none to full: 75.0 % less memory, a 33.3 % longer step"
    alone = frontier_chart({"a": (1, 1), "b": (2, 2)}, "simulated", memory="micro-batches")
    assert alone.layout.title.text == "a has the shortest step and the least memory"
    with pytest.raises(ValueError, match="clocks simulated, virtual and wall"):
        frontier_chart({"a": (1, 1)}, "sundial")


def test_bytes_add_up_by_axis():
    figure = traffic_chart(SENT)
    assert figure.layout.title.text == "tp moves the most: 3 of 4 KiB that all ranks send in a step, 75.0 %"
    assert {bar.name: bar.x for bar in figure.data} == {"all_gather": (2, 1), "all_reduce": (1, 0)}
    assert figure.text.splitlines()[2].split() == ["tp", "2,048", "1,024", "3,072"]
    with pytest.raises(ValueError, match="no byte"):
        traffic_chart({})


def test_losses_are_told_as_equal_only_where_they_are():
    def title(**runs):
        return loss_chart(runs).layout.title.text

    assert title(a=[2.0, 1.0], b=[2.0, 1.0]) == "a and b have the same losses, to the last digit"
    assert "up to rounding (1e-09)" in title(a=[2.0, 1.0], b=[2.0, 1.0 + 1e-9])
    assert (
        title(a=[2.0, 1.0], b=[2.0, 1.5, 0.5]) == "after 2 steps a has the lowest loss (1.000), b the highest (1.500)"
    )
    assert "but not in every step" in title(a=[2.0, 1.0], b=[3.0, 1.0])
    assert title(a=[2.0, 1.0]) == "a: loss 2.000 in the first step, 1.000 in the last of 2"
    with pytest.raises(ValueError, match="no loss"):
        loss_chart({"a": []})


@pytest.mark.parametrize(
    "mesh", [Mesh(2, 4, 2), Mesh(3, 2, 1), Mesh(1, 1, 1), Mesh(1, 8, 1), Mesh(64, 4, 2), Mesh(4, 1, 8)]
)
def test_the_mesh_shows_every_rank_once_and_joins_those_of_a_group(mesh):
    figure = mesh_chart(mesh)
    *lines, squares = figure.data
    shown = [int(text[3:-4]) for text in squares.text]
    assert shown == list(range(min(mesh.size, 128 // (mesh.pp * mesh.tp) * mesh.pp * mesh.tp)))
    places = dict(zip(shown, zip(squares.x, squares.y, strict=True), strict=True))
    assert len(set(places.values())) == len(shown)
    assert [line.name[:2] for line in lines] == [axis for axis in ("tp", "pp", "dp") if getattr(mesh, axis) > 1]
    for line in lines:
        if line.name[:2] != "dp":
            ends = [places[rank] for rank in shown for rank in [rank]]
            assert {(x, y) for x, y in zip(line.x, line.y, strict=True) if x is not None} <= set(ends)
    assert f"{mesh.size} rank" in figure.layout.title.text


def test_the_title_of_the_mesh_is_how_far_partners_are_apart():
    mesh = Mesh(2, 4, 2)
    assert "1 apart along tp, 2 along pp, 8 along dp" in mesh_chart(mesh).layout.title.text
    for axis, apart in (("tp", 1), ("pp", 2), ("dp", 8)):
        group = mesh.group(axis, 0)
        assert group[1] - group[0] == apart


def test_the_text_of_the_timeline_is_the_bubble_of_its_title():
    assert percent(step().bubble("step")) in drawn("timeline").text


def test_curves_are_told_by_x_and_marks_by_their_words():
    _, *lines = drawn("curves").text.splitlines()
    table = ["hop (slots)  gpipe  1f1b", "0               33    33", "1               47     -"]
    assert lines == [*table, "M = 8: 36 at 1", "simulated (slots)"]
    with pytest.raises(ValueError, match="at least one curve"):
        curves_chart("nothing", {"1f1b": []}, x="hop", y="simulated")
