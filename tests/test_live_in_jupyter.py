"""Lab 00 in a real JupyterLab: sliders, steps, the builder, runs that are watched; twice, with a restart in between."""

import json
import re
import time

import pytest
from browsers import CHROMIUM, KERNEL, NONE, ROOT, RUN_ALL, chromium, jupyterlab, open_notebook

playwright = pytest.importorskip("playwright.sync_api", reason="no playwright here: JupyterLab is not tried")
pytest.importorskip("jupyterlab", reason="no JupyterLab here")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason=f"{NONE}: JupyterLab is not tried")

PREPARE = """
import time
from pathlib import Path
import torch
import pipelab as pl
from pipelab.show import live

class Stops(torch.nn.Module):
    def __init__(self, name, calls=None):
        super().__init__()
        self.name, self.calls = name, calls

    def forward(self, x):  # notes each call; one of them waits until there is a file
        with Path(self.name).open("a") as file:
            file.write("x")
        if Path(self.name).stat().st_size == self.calls:
            Path(self.name + " stopped").touch()
            while not Path(self.name + " go on").exists():
                time.sleep(0.01)
        return x

def train(transport, feed, calls=8 + 3):  # after a warm-up of 8 micro-batches the third
    layers = torch.nn.Linear(4, 4), Stops(transport + " 0"), torch.nn.Linear(4, 4), Stops(transport + " 1", calls)
    batch = torch.ones(8, 4), torch.zeros(8, dtype=torch.int64)
    run = pl.train(torch.nn.Sequential(*layers), [batch] * 3, pl.build("gpipe", 2, 8), feed=feed, transport=transport)
    Path(transport + " done").write_text(f"{len(run.traces[-1].spans)} {run.losses[-1]:.4g}")
"""
TRANSPORTS = ("memory", "gloo")
WATCH = "watch_{0} = live.watch()\nwatch_{0}"
TRAIN = "train('{0}', watch_{0})"
OVERLAY = """
one, other = (pl.simulate(pl.build("gpipe", 2, 2), pl.Costs.uniform(hop=hop)) for hop in (0, 1))
live.overlay(pl.explain(other, against=one))
"""


def notebook():
    """Lab 00, for each transport a cell with a watch and one that trains and stops half-way, and an overlay."""
    lab = json.loads((ROOT / "labs" / "00_playground.ipynb").read_text(encoding="utf-8"))
    texts = [PREPARE, *(text.format(transport) for transport in TRANSPORTS for text in (WATCH, TRAIN))]
    texts.append(OVERLAY)
    for number, text in enumerate(texts):
        cell = {"cell_type": "code", "id": f"run-{number}", "metadata": {}, "outputs": [], "execution_count": None}
        lab["cells"].append(cell | {"source": text})
    return json.dumps(lab)


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """The folder of JupyterLab, and of the files that stop a run and let it go on."""
    return tmp_path_factory.mktemp("jupyter")


@pytest.fixture(scope="module")
def page(home):
    """The notebook in a browser; at the end nothing was fetched from elsewhere and no error was reported."""
    fetched, wrong = [], []
    (home / "lab.ipynb").write_text(notebook(), encoding="utf-8")
    playwright.expect.set_options(timeout=180_000)
    with jupyterlab(home) as url, chromium() as browser:
        shown = browser.new_page(viewport={"width": 1400, "height": 9000})  # all cells at once, or Lab hides some
        shown.set_default_timeout(180_000)
        shown.on("request", lambda request: fetched.append(request.url))
        shown.on("pageerror", lambda error: wrong.append(str(error)))
        shown.on("console", lambda message: wrong.append(message.text) if message.type == "error" else None)
        open_notebook(shown, url, "lab.ipynb")
        shown.evaluate(RUN_ALL)
        yield shown
    assert not [address for address in fetched if not address.startswith((url, "data:", "blob:"))] and not wrong


def timelines(page):
    return page.locator(".pipelab-timeline")


def until(condition):
    for _ in range(3600):
        if found := condition():
            return found
        time.sleep(0.05)
    raise AssertionError("it never came true")


BARS = "[...document.querySelectorAll('.pipelab-timeline')].map((one) => one.dataset.bars)"
COMPUTE = """(place) => { const { bars } = document.querySelectorAll('.pipelab-timeline')[place].timeline;
  return [0, 1].flatMap((rank) => bars.row(rank).map((bar) => bars.name(bar))); }"""


@pytest.mark.parametrize(("place", "transport"), [(3, "memory"), (4, "gloo")])
def test_a_run_that_stops_half_way_shows_exactly_what_was_executed(page, home, place, transport):
    until((home / f"{transport} 1 stopped").exists)
    forwards = (home / f"{transport} 0").stat().st_size - 8
    executed = [f"0F{m}" for m in range(forwards)] + ["1F0", "1F1"]
    until(lambda: len(page.evaluate(COMPUTE, place)) >= len(executed))
    time.sleep(0.3)
    assert page.evaluate(COMPUTE, place) == executed
    title = timelines(page).nth(place).locator(".pipelab-title")
    playwright.expect(title).to_have_text("gpipe: step 0 goes on")
    (home / f"{transport} 1 go on").touch()
    until((home / f"{transport} done").exists)
    spans, loss = (home / f"{transport} done").read_text().split()
    until(lambda: page.evaluate(BARS)[place] == spans)
    playwright.expect(title).to_contain_text("of the step is idle")
    figures = timelines(page).nth(place).locator(".pipelab-figures").inner_text()
    assert all(word in figures for word in ("loss", "tokens/s", "bubbles: step", "span", "overhead", "MiB by rank"))
    said = timelines(page).nth(place).locator(".pipelab-loss")
    playwright.expect(said).to_have_attribute("aria-label", re.compile(rf"^loss: .*{re.escape(loss)} in the last$"))
    assert page.evaluate(f"document.querySelectorAll('.pipelab-timeline')[{place}].timeline.bars.curves.length") == 2


def test_all_cells_of_the_lab_are_there(page):
    until(lambda: len(page.evaluate(BARS)) == 6 and page.evaluate(BARS)[:3] == ["64", "18", "0"])
    title = timelines(page).last.locator(".pipelab-title")
    playwright.expect(title).to_have_text("here is 2 longer than there: communication 2")
    label = page.locator(".pipelab-stage").first.get_attribute("aria-label")
    assert label.startswith("1f1b: 27.3 % of the step is idle")


def test_a_slider_changes_the_timeline_and_the_table(page):
    page.locator(".widget-slider").nth(1).locator(".noUi-handle").focus()
    page.keyboard.press("ArrowRight")
    page.wait_for_function("document.querySelector('.pipelab-timeline').dataset.bars === '72'")
    playwright.expect(timelines(page).first.locator(".pipelab-figures")).to_contain_text("makespan 36")


def test_keys_within_the_timeline_are_not_the_notebooks(page):
    cells = page.evaluate("jupyterapp.shell.currentWidget.content.widgets.length")
    page.locator(".pipelab-stage").first.focus()
    for key in ("ArrowRight", "ArrowDown", "Enter", "b", "x", "m"):
        page.keyboard.press(key)
    playwright.expect(page.locator(".pipelab-said").first).to_have_text(re.compile("^1F0 selected"))
    assert page.evaluate("jupyterapp.shell.currentWidget.content.widgets.length") == cells


def test_step_by_step_says_what_is_blocked(page):
    page.locator("text=step by step >> visible=true").locator("xpath=self::button").nth(1).click()
    for _ in range(6):
        page.locator("button:has-text('next') >> visible=true").first.click()
    page.wait_for_selector("text=rank 0: blocked: 0B0 needs 1B0")


def test_the_builder_refuses_and_accepts(page):
    stage, said = timelines(page).nth(2).locator(".pipelab-stage"), timelines(page).nth(2).locator(".pipelab-said")
    stage.focus()
    page.keyboard.press("b")
    playwright.expect(said).to_have_text(
        "refused: rank 0, position 0: 0B0 needs 0F0, which is not placed yet; place it on rank 0 first"
    )
    page.keyboard.press("f")
    playwright.expect(said).to_have_text("placed 0F0")
    middle = "(stage) => { const { frame } = stage.parentElement.timeline; return [frame.x(0) + 18, frame.y(1) + 10]; }"
    x, y = stage.evaluate(middle)
    stage.click(position={"x": x, "y": y})  # the outline of 1F0
    playwright.expect(said).to_have_text("placed 1F0")


def test_restart_and_run_all(page, home):
    for transport in TRANSPORTS:
        (home / f"{transport} done").unlink()
    page.evaluate(f"{KERNEL}.restart()")
    page.wait_for_function(f"{KERNEL}.status === 'idle'")
    page.evaluate("jupyterapp.commands.execute('notebook:clear-all-cell-outputs')")
    page.wait_for_function("document.querySelectorAll('.pipelab-timeline').length === 0")
    page.evaluate(RUN_ALL)
    until((home / "gloo done").exists)
    counts = ["64", "18", "0", *((home / f"{transport} done").read_text().split()[0] for transport in TRANSPORTS)]
    until(lambda: page.evaluate(BARS)[:5] == counts)
    page.evaluate("document.body.dataset.jpThemeLight = 'false'")
    page.wait_for_function("document.querySelector('.pipelab-timeline').dataset.theme === 'dark'")


def test_closing_the_tab_does_not_disturb_a_run(page, home):
    for what in ("0", "1", "1 stopped", "1 go on", "done"):
        (home / f"memory {what}").unlink(missing_ok=True)
    page.evaluate(f"void {KERNEL}.requestExecute({{code: {json.dumps(TRAIN.format('memory'))}}})")
    until((home / "memory 1 stopped").exists)
    page.close()
    (home / "memory 1 go on").touch()
    until((home / "memory done").exists)
