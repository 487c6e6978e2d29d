"""A timeline shows every span at its place, names clock and bubbles, and needs neither colour nor network."""

import itertools
import json
import re
import subprocess
import sys
from fractions import Fraction
from html.parser import HTMLParser
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelab import Action, Costs, Pair, Schedule, Span, Trace, build, explain, lower, simulate
from pipelab.explain import CAUSES, TERMS
from pipelab.show import (
    compare,
    idle_chart,
    idle_text,
    in_flight_curve,
    report_html,
    timeline,
    timeline_text,
    write_report,
)
from pipelab.show.memory import memory_panel
from pipelab.show.palette import CAUSES as LOOKS_OF_CAUSES
from pipelab.show.palette import INK, LOOKS, lighter
from pipelab.show.raster import majority
from pipelab.simulate import simulate_program
from pipelab.units import Unit

# plotly 6's own templates use what it deprecates
pytestmark = pytest.mark.filterwarnings("ignore:.*scattermapbox:DeprecationWarning")

UNIT = Costs.uniform(F=1, I=1, W=1)
SECONDS = Costs.uniform(F=0.0101, I=0.0123, W=0.0117, hop=0.0009)
OVERLAP = "0F0 0F1 0F2 0B0+0F3 0B1 0B2 0B3\n1F0 1B0 1F1 1B1 1F2 1B2 1F3 1B3"


def step(name="1f1b", ranks=4, microbatches=8, costs=UNIT, clock="simulated", **options) -> Trace:
    trace = simulate(build(name, ranks, microbatches, **options), costs)
    return Trace(trace.schedule, clock, trace.chunks, trace.spans)


def lines(text: str) -> str:
    """A golden timeline, indented as the test is."""
    return "\n".join(line.strip() for line in text.strip().splitlines())


# ---- as text


def test_1f1b_at_100_columns():
    assert timeline_text(step()) == lines("""
        rank 0  F0F1F2F3············B0==F4B1==F5B2==F6B3==F7B4==··B5==··B6==··B7==
        rank 1  ··F0F1F2········B0==F3B1==F4B2==F5B3==F6B4==F7B5==··B6==··B7==····
        rank 2  ····F0F1····B0==F2B1==F3B2==F4B3==F5B4==F6B5==F7B6==··B7==········
        rank 3  ······F0B0==F1B1==F2B2==F3B3==F4B4==F5B5==F6B6==F7B7==············
        time    0         5         10        15        20        25        30
        F forward   B full backward   · idle
        1f1b, simulated time: makespan 33; bubbles: step 27.3 %, span 27.3 %, overhead 37.5 %
    """)


def test_a_split_backward_has_its_own_letters():
    assert timeline_text(step("zb-h1", 2, 3), width=80) == lines("""
        rank 0  F0-----F1-----·······I0~~~~~W0+++++F2-----I1~~~~~W1+++++I2~~~~~W2+++++
        rank 1  ·······F0-----I0~~~~~F1-----I1~~~~~W0+++++F2-----I2~~~~~W1+++++W2+++++
        time    0             2             4             6             8             10
        F forward   I input gradient   W weight gradient   · idle
        zb-h1, simulated time: makespan 10; bubbles: step 10.0 %, span 10.0 %,
        overhead 11.1 %
    """)


def test_chunks_are_told_apart_by_case():
    assert timeline_text(step("interleaved", 2, 2, chunks=2), width=60) == lines("""
        rank 0  F0-F1-f0-f1-······b0====···b1====B0====B1====
        rank 1  ···F0-F1-f0-b0====f1-b1====B0====B1====······
        time    0           2           4           6
        F forward   B full backward   · idle
        lower case: the rank's second chunk
        interleaved, simulated time: makespan 7.5; bubbles:
        step 20.0 %, span 20.0 %, overhead 25.0 %
    """)


def test_a_pair_shows_both_actions():
    text = timeline_text(simulate(Schedule.from_text(OVERLAP), UNIT), width=80)
    assert text.splitlines()[0] == "rank 0  F0--F1--F2--····B0+F3#######B1======····B2======····B3======"
    assert "F+B# two at once" in text


def test_bars_shorter_than_a_column_give_way_to_the_majority():
    text = timeline_text(step(ranks=2, microbatches=30), width=60)
    rows = text.splitlines()
    assert set(rows[0].removeprefix("rank 0  ")) == {"F", "B", "·"}
    assert max(map(len, rows)) == 60
    assert "each column: the kind that fills most of it" in text


def test_measured_times_have_units():
    assert "ms" in timeline_text(step(costs=SECONDS, clock="virtual")).splitlines()[4]
    assert "1f1b, virtual time: makespan 389.5 ms" in timeline_text(step(costs=SECONDS, clock="virtual"))
    long = timeline_text(step(costs=Costs.uniform(F=1.0, I=2.0, W=0.5), clock="wall"))
    assert "wall-clock time: makespan 38.5 s; bubbles: step" in long


def test_equal_bars_have_equal_lengths_also_in_floats_and_fractions():
    rows = timeline_text(step()).splitlines()[:4]
    for costs in (Costs.uniform(0.1, 0.1, 0.1), Costs.uniform(*[Fraction(1, 7)] * 3)):
        assert timeline_text(step(costs=costs)).splitlines()[:4] == rows


AWKWARD = {
    "no rank works": Trace("idle", "wall", (1, 1), ()),
    "a rank has no spans": Trace("half", "wall", (1, 1), (Span(0, "compute", Action(0, "F", 0), 3.5, 4.5),)),
    "no time passes": step(costs=Costs.uniform(0, 0, 0)),
    "some work takes no time": step("zb-h1", costs=Costs.uniform(F=1, I=0, W=1)),
    "one very long action": step(costs=Costs.uniform(F=1e-6, I=1, W=1e-9), clock="wall"),
    "recompute": Trace("r", "virtual", (1,), (Span(0, "compute", Action(0, "R", 12), 0.1, 0.2),)),
    "messages only": Trace("m", "virtual", (1,), (Span(0, "send", Action(0, "SEND_F", 0), 0.1, 0.2),)),
    "pairs": simulate(Schedule.from_text(OVERLAP), UNIT),
    "a pair of no length": Trace(
        "p", "wall", (1,), (Span(0, "compute", Pair(Action(0, "F", 1), Action(0, "B", 0)), 2, 2),)
    ),
    "a late clock": Trace("w", "wall", (1,), (Span(0, "compute", Action(0, "F", 0), 1.7e9, 1.7e9 + 1e-4),)),
}


@pytest.mark.parametrize("trace", AWKWARD.values(), ids=AWKWARD)
@pytest.mark.parametrize("width", [20, 33, 100])
def test_awkward_traces_are_drawn_all_the_same(trace, width):
    rows = timeline_text(trace, width).splitlines()
    assert [row.split("  ")[0] for row in rows[: trace.ranks]] == [f"rank {rank}" for rank in range(trace.ranks)]
    assert max(map(len, rows)) <= width
    assert timeline(trace).to_json() and compare([trace, trace]).to_json()


numbers = st.one_of(st.integers(0, 9), st.fractions(0, 9, max_denominator=12), st.floats(0, 9))


@settings(max_examples=60)
@given(
    st.sampled_from(["naive", "gpipe", "1f1b", "interleaved", "zb-h1"]),
    st.tuples(st.integers(1, 12), st.integers(1, 20)),
    st.tuples(numbers, numbers, numbers, numbers),
    st.integers(20, 150),
    st.sampled_from(["simulated", "virtual", "wall"]),
)
def test_no_line_is_too_long_and_no_bar_is_lost(name, size, costs, width, clock):
    trace = step(name, *size, costs=Costs.uniform(*costs), clock=clock)
    text = timeline_text(trace, width)
    assert max(map(len, text.splitlines())) <= width
    for word in ("step", "span", "overhead", "makespan", "time"):
        assert word in text.replace("\n", "")  # a line takes no overhead of a thousand million per cent
    if "each column" not in " ".join(text.split()):
        shortest = min(span.end - span.start for row in trace.compute for span in row)
        if shortest * (width - 9) > trace.makespan:  # each bar has a column at least
            for row, drawn in zip(trace.compute, text.splitlines(), strict=False):
                letters = re.sub(r"[^A-Z]", "", drawn.removeprefix("rank"))
                assert letters == "".join(span.action.kind for span in row)


def test_a_column_goes_to_what_fills_most_of_it():
    assert majority([("F", 0.2, 0.9), ("B", 0.9, 1.6), ("W", 3.4, 3.6)], 4, ".") == ["F", "B", ".", "."]


def test_too_narrow_is_refused_with_the_remedy():
    with pytest.raises(ValueError, match="at least 20 columns: got 10"):
        timeline_text(step(), width=10)


def test_text_needs_no_plotly():
    code = "import sys; sys.modules['plotly'] = None\n" + (
        "import pipelab as pl; from pipelab.show import timeline_text\n"
        "print(timeline_text(pl.simulate(pl.build('1f1b', 2, 2), pl.Costs.uniform())))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "1f1b, simulated time" in done.stdout


# ---- as a figure


def bars(figure):
    """(rank, start, duration, action, hover) of every bar that is work."""
    for drawn in figure.data:
        if drawn.type == "bar" and drawn.name != "idle":
            for rank, start, length, hover in zip(drawn.y, drawn.base, drawn.x, drawn.customdata, strict=True):
                yield rank, start, length, hover[0], " ".join(map(str, hover))


@pytest.mark.parametrize(
    "trace",
    [
        step(),
        step("zb-h1"),
        step("interleaved", chunks=2),
        AWKWARD["pairs"],
        step(costs=SECONDS, clock="wall"),
    ],
    ids=["1f1b", "zb-h1", "interleaved", "pairs", "seconds"],
)
def test_every_span_is_a_bar_at_its_place(trace):
    scale = 1 if trace.clock == "simulated" else 1000
    expected = {
        (
            span.rank,
            str(action),
            round(float(span.start) * scale, 6),
            round(float(span.end - span.start) * scale, 6),
        )
        for row in trace.compute
        for span in row
        for action in (span.action if isinstance(span.action, Pair) else [span.action])
    }
    drawn = [
        (rank, action, round(start, 6), round(length, 6)) for rank, start, length, action, _ in bars(timeline(trace))
    ]
    assert set(drawn) == expected and len(drawn) == len(expected)


def test_the_two_actions_of_a_pair_share_the_height_of_the_row():
    drawn = {
        action[-2:]: (offset, height)
        for kind in timeline(AWKWARD["pairs"]).data
        if kind.type == "bar" and kind.name != "idle"
        for (action, *_), offset, height in zip(kind.customdata, kind.offset, kind.width, strict=True)
        if action in ("0B0", "0F3")
    }
    assert drawn == {"B0": (-0.4, 0.4), "F3": (0.0, 0.4)}


def test_hover_says_what_was_waited_for_and_how_long():
    hover = {action: words for *_, action, words in bars(timeline(step()))}
    assert "waited 6 for 1B0 on rank 1" in hover["0B0"] and "rank" not in hover["0F1"]
    for trace in (step("zb-h1"), step("interleaved", chunks=2)):
        hover = {action: words for *_, action, words in bars(timeline(trace))}
        for row in trace.compute:
            for span in row:
                assert (f"for {span.waiting_for} on rank" in hover[str(span.action)]) == (span.waiting_for is not None)


def test_on_a_mesh_a_rank_waits_for_one_of_its_own_replica():
    one = simulate_program(lower(build("1f1b", 2, 2)), Costs.uniform(hop=1))
    other = tuple(span._replace(rank=span.rank + 2) for span in one.spans)
    figure = timeline(Trace("1f1b", "virtual", (1,) * 4, one.spans + other))
    told = {rank: words for rank, *_, action, words in bars(figure) if action == "0B0"}
    assert told[0].endswith("for 1B0 on rank 1") and told[2].endswith("for 1B0 on rank 3")
    (drawn,) = (d for d in figure.data if d.name == "messages (click)")
    ends = {(start, end) for start, end in zip(drawn.y[::3], drawn.y[1::3], strict=True)}
    assert ends == {(0, 1), (1, 0), (2, 3), (3, 2)}


def test_kinds_differ_by_colour_hatch_and_letter():
    drawn = {d.name: d for d in timeline(step("zb-h1")).data if d.type == "bar" and d.name != "idle"}
    assert list(drawn) == ["F forward", "I input gradient", "W weight gradient"]
    assert len({d.marker.color for d in drawn.values()}) == len({d.marker.pattern.shape for d in drawn.values()}) == 3
    assert all(text.startswith(name[0]) for name, d in drawn.items() for text in d.text)
    assert len({seen.hatch for seen in LOOKS.values()}) == len({seen.fill for seen in LOOKS.values()}) == len(LOOKS)


def test_the_figure_names_its_finding_its_clock_and_its_units():
    layout = timeline(step()).layout
    assert layout.title.text == "1f1b: 27.3 % of the step is idle"
    assert layout.title.subtitle.text.startswith("simulated time: makespan 33; bubbles: step 27.3 %, span")
    assert layout.xaxis2.title.text == "simulated time (in the unit of the costs)"
    assert layout.yaxis2.title.text == "in flight<br>(micro-batches)"
    assert timeline(step(costs=SECONDS, clock="virtual")).layout.xaxis2.title.text == "virtual time (ms)"
    assert timeline(step(costs=SECONDS, clock="wall")).layout.xaxis2.title.text == "wall-clock time (ms)"
    assert timeline(step(), title="mine").layout.title.text == "mine"
    assert layout.yaxis.range[0] > layout.yaxis.range[1]  # rank 0 on top


def test_above_3000_bars_a_raster_of_the_same_lengths_takes_their_place():
    trace = step("zb-h1", 8, 160)
    figure = timeline(trace)
    (picture,) = (drawn for drawn in figure.data if drawn.type == "heatmap")
    columns = len(picture.text[0])
    for row, cells in zip(trace.compute, picture.text, strict=True):
        busy = sum(span.end - span.start for span in row) / trace.makespan
        assert columns - list(cells).count("idle") == pytest.approx(busy * columns, abs=0.02 * columns)
    assert [d.name for d in figure.data if d.type == "bar"] == [
        "F forward", "I input gradient", "W weight gradient", "idle",
    ]  # fmt: skip
    assert len(figure.to_json()) < 1_000_000


def test_collectives_are_a_strip_along_the_row_of_their_rank():
    work, inside = Span(1, "compute", Action(1, "F", 0), 0, 4), Span(1, "collective", Action(1, "F", 0), 1, 3)
    first = Span(0, "compute", Action(0, "F", 0), 0, 4)
    trace = Trace("mine", "simulated", (1, 1), (first, work, inside, inside._replace(start=4, end=4)))
    (strip,) = (bar for bar in timeline(trace).data if bar.name == "collective")
    assert (list(strip.y), list(strip.base), list(strip.x)) == ([1], [1], [2])
    assert "in 1F0" in strip.hovertemplate.replace("%{customdata[0]}", strip.customdata[0][0])
    assert not any(bar.name == "collective" for bar in timeline(step()).data)


def test_messages_are_lines_between_ranks_hidden_at_first():
    trace = simulate_program(lower(build("1f1b", 3, 2)), Costs.uniform(hop=1))
    (drawn,) = (d for d in timeline(trace).data if d.name == "messages (click)")
    assert drawn.visible == "legendonly"
    assert [abs(start - end) for start, end in zip(drawn.y[::3], drawn.y[1::3], strict=True)] == [1] * 8
    assert [end - start for start, end in zip(drawn.x[::3], drawn.x[1::3], strict=True)] == [1] * 8


# ---- memory


@pytest.mark.parametrize("name, options", [("gpipe", {}), ("1f1b", {}), ("zb-h1", {}), ("interleaved", {"chunks": 2})])
def test_the_curve_in_flight_reaches_the_peak_and_ends_at_zero(name, options):
    trace = step(name, **options)
    curves = [in_flight_curve(trace, rank) for rank in range(trace.ranks)]
    assert tuple(max(held for _, held in curve) for curve in curves) == trace.peak_in_flight
    assert all(curve[-1][1] == 0 and curve == sorted(curve, key=lambda point: point[0]) for curve in curves)


def test_the_peak_of_pairs_and_of_work_without_length_is_kept():
    for trace in (AWKWARD["pairs"], AWKWARD["no time passes"]):
        assert tuple(max(h for _, h in in_flight_curve(trace, r)) for r in range(trace.ranks)) == trace.peak_in_flight


def test_bytes_are_drawn_in_a_readable_unit_on_the_time_axis_of_the_bars():
    trace = step(ranks=2, microbatches=2, costs=SECONDS, clock="virtual")
    curves, title = memory_panel(trace, [[(0.0, 0), (0.0101, 3 * 2**20)], [(0.011, 2**20)]], Unit("ms", 1000))
    assert title == "activation<br>memory (MiB)"
    assert curves[0].x[:2] == (0, 10.1) and curves[0].y == (0, 3, 3)
    assert curves[1].x[:2] == (0, 11) and curves[1].y == (0, 1, 1), "nothing is held before the first byte"
    late, _ = memory_panel(AWKWARD["a late clock"], [[(1.7e9, 5)]], Unit("µs", 1_000_000))
    assert late[0].x[0] == 0 and late[0].y[0] == 5
    with pytest.raises(ValueError, match="one curve a rank, 2 in all: got 1"):
        timeline(trace, memory=[[]])


def test_ranks_differ_by_dash_as_well_as_colour_and_at_most_eight_are_drawn():
    curves, title = memory_panel(step(ranks=20, microbatches=2), None, Unit("", 1))
    assert [curve.name for curve in curves] == [f"rank {rank}" for rank in (0, 3, 5, 8, 11, 14, 16, 19)]
    assert len({curve.line.color for curve in curves}) == 8
    assert len({(curve.line.dash, curve.line.width) for curve in curves}) == 8
    assert title.endswith("8 of 20 ranks")


# ---- several steps


def test_steps_are_compared_on_one_axis_with_their_bubbles():
    traces = [step(name) for name in ("naive", "gpipe", "1f1b", "zb-h1")]
    figure = compare(traces)
    ranges = {figure.layout[axis].range for axis in ("xaxis", "xaxis2", "xaxis3", "xaxis4")}
    assert ranges == {(0, 96)}
    assert figure.layout.title.text == "shortest step: zb-h1 (27), longest: naive (96)"
    words = [note.text for note in figure.layout.annotations]
    assert words[3] == "<b>zb-h1</b>, simulated time: makespan 27; bubbles: step 11.1 %, span 11.1 %, overhead 12.5 %"
    shown = [drawn.name for drawn in figure.data if drawn.showlegend]
    assert len(shown) == len(set(shown))
    assert sum(1 for _ in bars(figure)) == sum(len(row) for trace in traces for row in trace.compute)


def test_a_replay_beside_a_measurement_has_both_clocks():
    figure = compare([step(costs=SECONDS), step(costs=SECONDS, clock="virtual")], ["replayed", "measured"])
    assert figure.layout.xaxis2.title.text == "simulated time and virtual time (ms)"
    assert figure.layout.title.text == "replayed and measured: a step of 389.5 ms"


def test_compare_refuses_nothing_and_wrong_titles():
    with pytest.raises(ValueError, match="at least one trace"):
        compare([])
    with pytest.raises(ValueError, match="one title a trace, 1 in all: got 2"):
        compare([step()], ["a", "b"])


# ---- colours


def linear(colour: str) -> list[float]:
    channels = [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]
    return [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]


def luminance(colour: str) -> float:
    return sum(w * c for w, c in zip((0.2126, 0.7152, 0.0722), linear(colour), strict=True))


def lab(rgb: list[float]) -> tuple[float, float, float]:
    """CIE Lab of linear RGB: distances below about 10 are hard to tell apart."""
    weights = ((0.4124, 0.3576, 0.1805), (0.2126, 0.7152, 0.0722), (0.0193, 0.1192, 0.9505))
    xyz = [sum(w * c for w, c in zip(row, rgb, strict=True)) for row in weights]
    x, y, z = (
        t ** (1 / 3) if t > 0.008856 else 7.787 * t + 16 / 116 for t in (xyz[0] / 0.9505, xyz[1], xyz[2] / 1.089)
    )
    return 116 * y - 16, 500 * (x - y), 200 * (y - z)


EYES = {  # Machado, Oliveira and Fernandes (2009), severity 1
    "normal": ((1, 0, 0), (0, 1, 0), (0, 0, 1)),
    "protanopia": ((0.152, 1.053, -0.205), (0.115, 0.786, 0.099), (-0.004, -0.048, 1.052)),
    "deuteranopia": ((0.367, 0.861, -0.228), (0.280, 0.673, 0.047), (-0.012, 0.043, 0.969)),
}


@pytest.mark.parametrize("eye", EYES)
def test_colours_are_distinct_for_every_eye(eye):
    def seen(colour):
        channels = (sum(w * c for w, c in zip(row, linear(colour), strict=True)) for row in EYES[eye])
        return lab([min(max(channel, 0), 1) for channel in channels])

    for a, b in itertools.combinations(LOOKS, 2):
        distance = sum((p - q) ** 2 for p, q in zip(seen(LOOKS[a].colour), seen(LOOKS[b].colour), strict=True)) ** 0.5
        assert distance > 15, (a, b)


def test_letters_are_legible_on_every_bar():
    for seen in LOOKS.values():
        for colour in (seen.colour, lighter(seen.colour)):
            assert (luminance(colour) + 0.05) / (luminance(INK) + 0.05) > 4.5  # WCAG AA


# ---- as a page


class Page(HTMLParser):
    """Every attribute that makes a browser fetch something, and the words beside a figure."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.fetched, self.labels, self.scripts = [], [], 0
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.scripts += tag == "script"
        for name, value in attributes:
            if name in ("src", "href", "srcset", "data", "poster", "action", "background"):
                self.fetched.append(value)
            if name == "aria-label":
                self.labels.append(value)


@pytest.fixture(scope="module")
def page(tmp_path_factory) -> str:
    trace = step("zb-h1", costs=SECONDS, clock="virtual")
    path = tmp_path_factory.mktemp("report") / "step.html"
    assert write_report(path, trace, summary=[("loss after 20 steps", "2.31 <nats>")]) == path
    assert [entry.name for entry in path.parent.iterdir()] == ["step.html"]
    return path.read_text(encoding="utf-8")


def test_the_page_fetches_nothing(page):
    assert Page(page).fetched == ["data:,"]
    assert not re.search(r"@import|url\(\s*['\"]?(https?:)?//", page.split("</style>")[0])
    assert "default-src 'none'" in page and "MathJax.js" not in page.split("<body>")[1]
    assert page.count("plotly.js v") == 1


def test_the_page_has_figures_words_and_text(page):
    body = page.split("<body>")[1]
    assert '<th scope="row">makespan, virtual time</th><td>' in body and "bubble, overhead: " in body
    assert "2.31 &lt;nats&gt;" in body
    assert "virtual time: makespan" in Page(page).labels[0]
    assert re.search(r"<pre[^>]*>zb-h1: \d+\.\d % of the step is idle\nrank 0  F0", body) and "<noscript><svg " in body


def test_the_same_trace_gives_the_same_page_and_figure(page, tmp_path):
    trace = step("zb-h1", costs=SECONDS, clock="virtual")
    again = write_report(tmp_path / "again.html", trace, summary=[("loss after 20 steps", "2.31 <nats>")])
    assert again.read_text(encoding="utf-8") == page
    assert timeline(trace).to_json() == timeline(trace).to_json()
    assert json.loads(timeline(trace).to_json())["layout"]["meta"]["alt"].startswith("zb-h1: ")


def test_a_page_without_a_figure_is_light_and_its_title_is_escaped():
    page = report_html("</title><script>", "<p>words</p>")
    assert len(page) < 3000 and "<script" not in page


def test_a_name_cannot_break_out_of_the_page(tmp_path):
    trace = Trace("</script><img src=x>", "wall", (1,), (Span(0, "compute", Action(0, "F", 0), 0.0, 1.0),))
    text = write_report(tmp_path / "name.html", trace).read_text(encoding="utf-8")
    assert Page(text).fetched == ["data:,"]


def test_a_missing_folder_is_refused_and_an_old_file_survives_a_failure(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match=r"there is no folder .*make it first"):
        write_report(tmp_path / "missing" / "step.html", step())
    with pytest.raises(ValueError, match="is a folder; name a file"):
        write_report(tmp_path, step())
    old = tmp_path / "step.html"
    old.write_text("old")
    with pytest.raises(ValueError, match="one curve a rank"):
        write_report(old, step(), memory=[])
    monkeypatch.setattr(Path, "replace", lambda draft, target: draft.mkdir())  # fails: the draft is there
    with pytest.raises(FileExistsError):
        write_report(old, step())
    assert old.read_text() == "old" and list(tmp_path.iterdir()) == [old]


# ---- idle time by cause


def test_the_bars_of_idle_time_are_the_explanation():
    why = explain(step("gpipe", costs=Costs.uniform(hop=1)))
    bars = {bar.name: list(bar.x) for bar in idle_chart(why).data}
    assert bars == {cause: [idle[cause] for idle in why.idle] for cause in CAUSES if any(i[cause] for i in why.idle)}
    for words in (CAUSES, TERMS):
        assert len({(LOOKS_OF_CAUSES[word].colour, LOOKS_OF_CAUSES[word].hatch) for word in words}) == len(words)


def test_idle_time_is_shown_with_the_unit_of_the_clock():
    why = explain(step(costs=SECONDS, clock="virtual"))
    assert "virtual time (ms)" in idle_chart(why).layout.xaxis.title.text
    assert all(" ms" in line for line in idle_text(why).splitlines()[1:])


def test_without_idle_time_there_are_no_bars():
    why = explain(step("gpipe", ranks=1))
    assert not idle_chart(why).data and idle_text(why).split() == ["idle", "all", "rank", "0", "0"]


def test_sums_of_gradients_after_all_work_are_within_the_axis():
    plain = simulate(build("gpipe", 2, 2), Costs.uniform())
    after = Span(0, "collective", Action.parse("0REDUCE0"), plain.makespan, plain.makespan + 5)
    trace = Trace(plain.schedule, plain.clock, plain.chunks, (*plain.spans, after))
    for figure in (timeline(trace), compare([plain, trace])):
        assert figure.layout.xaxis.range[1] == plain.makespan + 5
