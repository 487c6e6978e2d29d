"""The live timeline in a browser: what is painted, what pointer and keys do, what the script knows of dataflow."""

import json
from base64 import b64encode
from itertools import pairwise

import pytest
from browsers import CHROMIUM, NONE, chromium
from live_page import overlay_page_html, page_html

import pipelab as pl
from pipelab.dependencies import GIVES, needs
from pipelab.show.live.columns import TimeAxis, block_of, shape, trace_block
from pipelab.show.overlay import changes
from pipelab.show.palette import CHANGES, DARK, LANES, LIGHT, LOOKS
from pipelab.show.report import write_report
from pipelab.simulate import simulate_program
from pipelab.trace import in_flight
from pipelab.units import Unit

pytest.importorskip("playwright.sync_api", reason="no playwright here: the browser tests are left out")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason=f"{NONE}: the browser tests are left out")

UNIT = pl.Costs.uniform(F=1, I=1, W=1)


def step(name="1f1b", ranks=4, microbatches=8, costs=UNIT, **options):
    return pl.simulate(pl.build(name, ranks, microbatches, **options), costs)


@pytest.fixture(scope="module")
def browser():
    with chromium() as running:
        yield running


@pytest.fixture
def open_page(browser, tmp_path):
    """Opens a trace in a page of its own; at the end nothing was fetched and nothing went wrong."""
    fetched, wrong, contexts = [], [], []

    def open_one(trace, scheme="light", **options):
        contexts.append(browser.new_context(viewport={"width": 1100, "height": 700}, color_scheme=scheme))
        page = contexts[-1].new_page()
        page.set_default_timeout(180_000)
        page.on("request", lambda request: fetched.append(request.url))
        page.on("console", lambda message: wrong.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: wrong.append(str(error)))
        file = tmp_path / "page.html"
        html = page_html(trace, **options) if isinstance(trace, pl.Trace) else overlay_page_html(trace)
        file.write_text(html, encoding="utf-8")
        page.goto(file.as_uri())
        until(page, "window.timeline && timeline.painted > 0 && !timeline.due")
        return page

    yield open_one
    for context in contexts:
        context.close()
    assert not [url for url in fetched if not url.startswith(("file:", "data:"))] and not wrong


def until(page, condition):
    """Wait for it; the page's own policy forbids Playwright's way of waiting."""
    for _ in range(3600):
        if page.evaluate(condition):
            return
        page.wait_for_timeout(50)
    raise AssertionError(f"never came true: {condition}")


def colour_at(page, time, rank, canvas="ground"):
    """The colour of the pixel in the middle of a rank's row at a time, as #RRGGBB."""
    script = """([time, rank, canvas]) => { const { frame } = timeline, g = timeline[canvas].getContext("2d");
      const [r, g2, b] = g.getImageData(frame.x(time), frame.y(rank) + 4, 1, 1).data;
      return "#" + [r, g2, b].map((value) => value.toString(16).padStart(2, "0")).join("").toUpperCase(); }"""
    return page.evaluate(script, [time, rank, canvas])


def point_at(page, time, rank):
    """Put the pointer there and give what the tip says, "" if it is hidden."""
    script = """([time, rank]) => { const box = timeline.stage.getBoundingClientRect(), { frame } = timeline;
      return [box.left + frame.x(time), box.top + frame.y(rank) + frame.bar / 2]; }"""
    page.evaluate("moved = false; addEventListener('pointermove', () => { moved = true; }, { once: true })")
    page.mouse.move(*page.evaluate(script, [time, rank]))
    until(page, "moved")
    return page.locator(".pipelab-tip").inner_text() if page.locator(".pipelab-tip").is_visible() else ""


def press(page, *keys):
    page.focus(".pipelab-stage")
    for key in keys:
        page.keyboard.press(key)
    return page.locator(".pipelab-said").inner_text()


# -------------------------------------------------------------------------------------------------- what is seen


@pytest.mark.parametrize(("scheme", "ground"), [("light", LIGHT), ("dark", DARK)])
def test_bars_and_idle_time_have_the_colours_of_the_palette(open_page, scheme, ground):
    page = open_page(step("zb-h1"), scheme)
    for row in step("zb-h1").compute:
        assert colour_at(page, float(row[0].start) + 0.2, row[0].rank) == LOOKS["F"].colour
    assert colour_at(page, 6, 0) == ground.idle
    paper = page.evaluate("getComputedStyle(timeline.root).backgroundColor")
    assert paper == "rgb({}, {}, {})".format(*(int(ground.paper[at : at + 2], 16) for at in (1, 3, 5)))


def test_a_change_of_the_readers_colours_is_followed(open_page):
    page = open_page(step())
    page.emulate_media(color_scheme="dark")
    until(page, "timeline.dark && !timeline.stale")
    assert colour_at(page, 6, 0) == DARK.idle


def test_ten_thousand_bars_and_more_are_painted_and_idle_time_stays_visible(open_page):
    page = open_page(step("gpipe", 8, 640))
    assert page.evaluate("timeline.bars.count") == 10240
    assert colour_at(page, 2, 0) == LOOKS["F"].colour
    idle = page.evaluate("timeline.bars.end") / 2
    last = step("gpipe", 8, 640).compute[0]
    gap = max(pairwise(last), key=lambda pair: pair[1].start - pair[0].end)
    assert gap[0].end < idle and colour_at(page, float(gap[0].end + gap[1].start) / 2, 0) == LIGHT.idle


def test_the_page_says_in_words_what_it_shows(open_page):
    page = open_page(step())
    label = page.locator(".pipelab-stage").get_attribute("aria-label")
    assert label.startswith("1f1b: 27.3 % of the step is idle. simulated time: makespan 33;")
    assert page.locator(".pipelab-legend").inner_text().split("\n")[:2] == ["F forward", "B full backward"]
    page.click(".pipelab-summary")
    until(page, "timeline.text.textContent.startsWith('rank 0')")


# --------------------------------------------------------------------------------------- the pointer and the keys


def test_hover_tells_a_bar_and_the_cause_of_idle_time(open_page):
    page = open_page(step())
    assert point_at(page, 9, 1).split("\n") == [
        "1B0 full backward", "rank 1, stage 1, micro-batch 0", "8 to 10: 2", "1B0 waited 4 for 2B0 on rank 2",
    ]  # fmt: skip
    assert point_at(page, 6, 1).split("\n") == ["rank 1 idle 4", "1B0 waited 4 for 2B0 on rank 2"]
    assert point_at(page, 32, 3).split("\n")[0] == "rank 3 idle: its work is done"
    assert page.locator(".pipelab-readout").inner_text().endswith("by rank: 1  0  0  0")


def test_the_halves_of_a_pair_are_told_apart(open_page):
    page, trace = open_page(step("dualpipe-v")), step("dualpipe-v")
    pair = next(span for span in trace.compute[0] if isinstance(span.action, pl.Pair))
    time = float(pair.start + pair.end) / 2
    for half, action in ((0.25, pair.action.first), (0.75, pair.action.second)):
        hit = """([time, half]) => { const { frame, bars } = timeline;
          return bars.name(timeline.hit(frame.x(time), frame.top + half * frame.bar).bar); }"""
        assert page.evaluate(hit, [time, half]) == str(action)


def test_keys_go_from_action_to_action_and_light_what_depends_on_it(open_page):
    page = open_page(step())
    assert press(page, "ArrowRight").startswith("0F0 forward. rank 0, stage 0, micro-batch 0. 0 to 1: 1")
    assert press(page, "ArrowDown").startswith("1F0 forward")
    assert press(page, "End").startswith("1B7 full backward")
    assert press(page, "Enter") == "1B7 selected: it needs 1F7, 2B7; it is needed by 0B7"
    assert page.evaluate("events.at(-1)") == {"type": "select", "action": "1B7"}
    assert press(page, "Escape") == "" and page.evaluate("timeline.selected") == -1


def test_what_is_read_off_is_of_the_data_that_is_shown(open_page):
    page = open_page(step())
    press(page, "ArrowRight")
    until(page, "timeline.readout.textContent.startsWith('time 0   in flight, by rank: 1  0')")
    page.evaluate("timeline.cursor = 10; timeline.fresh()")
    assert page.locator(".pipelab-readout").inner_text().startswith("time 10   in flight, by rank: 4")
    block = b64encode(trace_block(step("inference"))).decode()
    page.evaluate("(text) => timeline.show(Uint8Array.from(atob(text), (c) => c.charCodeAt(0)))", block)
    assert page.locator(".pipelab-readout").inner_text() == "time 10   in flight, by rank: 0  0  0  1"
    page.evaluate("timeline.cursor = 99; timeline.fresh()")
    assert page.locator(".pipelab-readout").inner_text() == ""


def test_zoom_keeps_the_window_within_the_step(open_page):
    page = open_page(step())
    press(page, "ArrowRight", "+", "+", "Shift+ArrowLeft")
    start, end = page.evaluate("[timeline.from, timeline.to]")
    assert start == 0 and end == pytest.approx(33 / 1.5**2)
    press(page, "-", "-", "-")
    assert page.evaluate("[timeline.from, timeline.to]") == [0, 33]
    page.mouse.move(500, 150)
    page.keyboard.down("Control")
    page.mouse.wheel(0, -300)
    page.keyboard.up("Control")
    until(page, "timeline.to - timeline.from < 20")
    press(page, "0")
    assert page.evaluate("timeline.fitted")


def test_a_click_selects_and_messages_are_drawn_on_demand(open_page):
    page = open_page(simulate_program(pl.lower(pl.build("1f1b", 4, 8)), pl.Costs.uniform(hop=1)))
    page.evaluate("before = timeline.above.toDataURL()")
    page.click("text=messages")
    until(page, "timeline.above.toDataURL() !== before")
    assert page.get_attribute("text=messages", "aria-pressed") == "true"
    point_at(page, 0.5, 0)
    page.mouse.down()
    page.mouse.up()
    until(page, "timeline.said.textContent !== ''")
    assert page.locator(".pipelab-said").inner_text() == "0F0 selected: it needs nothing; it is needed by 1F0, 0B0"


# ------------------------------------------------------------------------------------- what the script knows


@pytest.mark.parametrize("name", ["1f1b", "zb-h1", "interleaved", "dualpipe-v", "inference"])
def test_the_script_finds_the_needs_and_the_memory_that_python_finds(open_page, name):
    options = {"chunks": 2} if name == "interleaved" else {}
    schedule = pl.build(name, 4, 8, **options)
    trace = pl.simulate(schedule, UNIT)
    page = open_page(trace)
    names = """(ask) => { const { bars } = timeline, name = (bar) => bars.name(bar);
      return [...Array(bars.count).keys()].map((bar) => [name(bar), bars[ask](bar).map(name)]); }"""
    found = dict(page.evaluate(names, "needs"))
    written = {action for _, _, action in schedule.actions()}

    def giver(need):
        (found,) = (a for a in written if (a.stage, GIVES.get(a.kind, a.kind), a.microbatch) == need)
        return str(found)

    assert found == {str(a): [giver(need) for need in needs(a, schedule.stages)] for a in written}
    serves = dict(page.evaluate(names, "serves"))
    assert {(a, b) for a, list_ in found.items() for b in list_} == {
        (b, a) for a, list_ in serves.items() for b in list_
    }
    peaks = page.evaluate("timeline.bars.memory().map(([, amounts]) => Math.max(...amounts))")
    assert peaks == [float(peak) for peak in trace.peak_in_flight]
    ends = page.evaluate("timeline.bars.memory().map(([, amounts]) => amounts.at(-1))")
    assert ends == [0] * 4 == [list(in_flight(row))[-1][1] for row in trace.compute]


def test_a_trace_that_grew_is_painted_as_the_whole_is(open_page):
    trace = step("zb-h1")
    whole = open_page(trace).evaluate("timeline.ground.toDataURL()")
    page = open_page(step("gpipe", 2, 2))
    spans = sorted(trace.spans, key=lambda span: (span.end, span.rank))
    axis = TimeAxis(Unit("", 1))
    headers = [shape("zb-h1", "simulated", trace.chunks, axis.unit)]
    headers += [{"step": 0, "first": at} for at in range(10, len(spans), 10)]
    blocks = [block_of(header, spans[at * 10 : at * 10 + 10], axis) for at, header in enumerate(headers)]
    page.evaluate(
        """([first, ...others]) => { const bytes = (text) => Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
          timeline.show(bytes(first));
          timeline.append(bytes(others[1]));  // too early: what is missing is asked for
          for (const block of others) timeline.append(bytes(block)); }""",
        [b64encode(block).decode() for block in blocks],
    )
    until(page, f"timeline.root.dataset.bars === '{len(spans)}' && !timeline.due")
    assert page.evaluate("events") == [{"type": "missing", "from": 10}]
    assert page.evaluate("timeline.ground.toDataURL()") == whole


def test_two_traces_lie_on_one_axis_and_what_differs_is_told(open_page):
    one, other = step(ranks=2, microbatches=3), step(ranks=2, microbatches=3, costs=pl.Costs.uniform(F=2, hop=1))
    page = open_page(pl.explain(other, against=one))
    assert page.evaluate("timeline.bars.header.names").count("rank 1 differs") == 1
    assert page.locator(".pipelab-title").inner_text().startswith("here is 8 longer than there: communication 4")
    assert point_at(page, 1, 2).split("\n") == ["0F0 longer here", "there 1, here 2"]
    assert colour_at(page, 0.3, 2) in (CHANGES["+"].colour, CHANGES["+"].hatch_colour)
    idle = next(span for span in changes(other, one) if span.action.kind == "w")
    told = point_at(page, float(idle.start + idle.end) / 2, 3 * idle.rank + 2).split("\n")
    assert told == [
        f"{idle.waiting_for} idle longer here",
        f"the rank was idle {idle.end - idle.start} longer before it",
    ]
    assert point_at(page, 1, 7).split("\n")[0] == f"work: {pl.explain(other).makespan['work']}"
    point_at(page, 1, 1)
    page.mouse.down()
    page.mouse.up()
    until(page, "timeline.said.textContent !== ''")
    assert page.locator(".pipelab-said").inner_text() == "0F0 selected: it needs nothing; it is needed by 1F0, 0B0"
    lit = "timeline.bars.serves(timeline.selected).map((bar) => timeline.bars.side(bar))"
    assert page.evaluate(lit) == [1, 1], "within its own trace"
    assert "time" in page.locator(".pipelab-readout").inner_text()


def test_collectives_have_a_lane_and_do_not_hide_the_work_they_are_named_after(open_page):
    trace = step(ranks=2, microbatches=2)
    inside = [span._replace(lane="collective", start=span.start + 0.25, end=span.start + 0.75) for span in trace.spans]
    reduces = [pl.Span(rank, "collective", pl.Action(rank, "REDUCE", 1), 9, 10) for rank in (0, 1)]
    odd = [pl.Span(0, "compute", pl.Action(0, "R", 1), 9, 10), pl.Span(0, "compute", pl.Action(0, "Z", 0), 10, 11)]
    page = open_page(pl.Trace("mixed", "virtual", (1, 1), (*trace.spans, *inside, *reduces, *odd)))
    legend = page.locator(".pipelab-legend").inner_text()
    assert "R recompute" in legend and "Z z" in legend and "collective: " in legend and "REDUCE" not in legend
    script = """() => { const { bars, frame } = timeline, lane = bars.lanes.indexOf("collective");
      const [r, g, b] = timeline.ground.getContext("2d").getImageData(frame.x(0.5), frame.y(0, lane) + 1, 1, 1).data;
      const needs = bars.needs(bars.find(0, 1, "B", 0)).map((bar) => bars.column.lane[bar]);
      return [bars.row(0, lane).length, needs, [r, g, b]]; }"""
    count, lanes, colour = page.evaluate(script)
    assert (count, lanes) == (5, [0])
    assert max(abs(a - b) for a, b in zip(colour, bytes.fromhex(LANES["collective"].colour[1:]), strict=True)) < 40
    for time, words in ((0.5, "0F0 forward, collective"), (9.5, "0REDUCE1 reduce, collective")):
        hit = "([time]) => timeline.describe(timeline.hit(timeline.frame.x(time), timeline.frame.y(0, 3) + 1))[0]"
        assert page.evaluate(hit, [time]) == words


def test_a_limit_and_measured_memory_are_drawn(open_page):
    trace = step(ranks=2, microbatches=2)
    plain, other = open_page(trace), open_page(trace, limit=1)
    with_bytes = open_page(trace, memory=[[(0, 0), (1, 2**20), (9, 0)], [(0, 0)]], limit=2**21)
    pictures = {page.evaluate("timeline.ground.toDataURL()") for page in (plain, other, with_bytes)}
    assert len(pictures) == 3
    assert with_bytes.evaluate("timeline.bars.memory()[0].map((list) => [...list])") == [[0, 1, 9], [0, 2**20, 0]]


def test_data_of_a_page_cannot_end_its_script(open_page):
    trace = step(ranks=1, microbatches=1)
    odd = pl.Trace("</script><b>", trace.clock, trace.chunks, trace.counted, trace.ticks)
    page = open_page(odd)
    assert page.locator(".pipelab-title").inner_text().startswith("</script><b>: ")
    assert json.loads(page.evaluate("JSON.stringify(events)")) == [] and trace_block(odd)


def test_a_report_is_redrawn_for_paper_and_says_its_text_without_scripts(browser, tmp_path):
    file = write_report(tmp_path / "step.html", step())
    page = browser.new_context(viewport={"width": 1200, "height": 900}, offline=True).new_page()
    page.set_default_timeout(180_000)
    page.goto(file.as_uri())
    until(page, "document.querySelector('.main-svg') !== null")
    for event, width in (("beforeprint", 700), ("afterprint", 1168)):
        page.evaluate(f"dispatchEvent(new Event('{event}'))")
        until(page, f"document.querySelector('.main-svg').clientWidth === {width}")
    page.context.close()
    (tmp_path / "page.html").write_text(page_html(step()), encoding="utf-8")
    page = browser.new_context(java_script_enabled=False).new_page()
    page.set_default_timeout(180_000)
    for name, words in (("step.html", "1f1b, simulated time"), ("page.html", "rank 0  F0")):
        page.goto((tmp_path / name).as_uri())
        assert words in page.locator("body").inner_text()
    page.context.close()
