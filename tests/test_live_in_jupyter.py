"""Lab 00 in a real JupyterLab: sliders, steps, the builder, a trace that grows; twice, with a restart in between."""

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

playwright = pytest.importorskip("playwright.sync_api", reason="no playwright here: JupyterLab is not tried")
pytest.importorskip("jupyterlab", reason="no JupyterLab here")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here: JupyterLab is not tried")

ROOT = Path(__file__).resolve().parent.parent
GROWING = """
import time
import pipelab as pl
from pipelab.show.live.widget import Feed, Timeline
trace = pl.simulate(pl.build("zb-h1", 4, 8), pl.Costs.uniform())
growing = Timeline.growing("zb-h1", trace.chunks, "simulated")
growing
"""
GROW = """
half = sorted(trace.spans, key=lambda span: span.end)[:48]
with Feed(growing) as feed:
    for span in half:
        feed(span)
        time.sleep(0.01)
"""


def notebook():
    """Lab 00, and two cells in which a trace grows and stops half-way."""
    lab = json.loads((ROOT / "labs" / "00_playground.ipynb").read_text(encoding="utf-8"))
    for number, text in enumerate((GROWING, GROW)):
        cell = {"cell_type": "code", "id": f"grow-{number}", "metadata": {}, "outputs": [], "execution_count": None}
        lab["cells"].append(cell | {"source": text})
    return json.dumps(lab)


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    """A JupyterLab of its own with the notebook open in it; nothing of the user's is read or written."""
    home = tmp_path_factory.mktemp("jupyter")
    (home / "lab.ipynb").write_text(notebook(), encoding="utf-8")
    own = {"HOME": str(home), "JUPYTER_CONFIG_DIR": str(home / "config"), "JUPYTER_RUNTIME_DIR": str(home / "runtime")}
    environment = {**os.environ, **own, "IPYTHONDIR": str(home / "ipython"), "PYTHONPATH": str(ROOT)}
    environment.pop("PIPELAB_HEADLESS", None)
    options = ["--no-browser", "--allow-root", "--port=0", "--ip=127.0.0.1", "--IdentityProvider.token="]
    options += [f"--ServerApp.root_dir={home}", "--LabApp.expose_app_in_browser=True"]
    with (home / "log").open("w") as log:
        server = subprocess.Popen(
            [sys.executable, "-m", "jupyterlab", *options], env=environment, stdout=log, stderr=log
        )
        try:
            yield f"{_url(home / 'runtime', server)}lab/tree/lab.ipynb?reset"
        finally:
            server.terminate()
            server.wait(20)


def _url(folder, server):
    for _ in range(300):
        for file in folder.glob("jpserver-*.json"):
            return json.loads(file.read_text())["url"]
        assert server.poll() is None, "JupyterLab ended at once"
        time.sleep(0.1)
    raise AssertionError("JupyterLab did not start")


@pytest.fixture(scope="module")
def page(address):
    """The notebook in a browser; at the end nothing was fetched from elsewhere and no error was reported."""
    fetched, wrong = [], []
    root = ["--no-sandbox"] if hasattr(os, "geteuid") and os.geteuid() == 0 else []
    with playwright.sync_playwright() as driver:
        quiet = ["--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"]
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=quiet + root)
        shown = browser.new_page(viewport={"width": 1400, "height": 9000})  # all cells at once, or Lab hides some
        shown.set_default_timeout(60_000)
        shown.on("request", lambda request: fetched.append(request.url))
        shown.on("pageerror", lambda error: wrong.append(str(error)))
        shown.goto(address)
        shown.wait_for_function("window.jupyterapp?.shell.currentWidget?.context?.isReady")
        shown.wait_for_function("jupyterapp.shell.currentWidget.sessionContext?.session?.kernel?.status === 'idle'")
        run_all(shown)
        yield shown
        browser.close()
    here = address.split("/lab/")[0]
    assert not [url for url in fetched if not url.startswith((here, "data:", "blob:"))] and not wrong


def timelines(page):
    return page.locator(".pipelab-timeline")


def run_all(page):
    page.evaluate("jupyterapp.commands.execute('notebook:run-all-cells')")
    page.wait_for_function("document.querySelectorAll('.pipelab-timeline').length === 4")
    page.wait_for_function("[...document.querySelectorAll('.pipelab-timeline')].at(-1).dataset.bars === '48'")


def test_all_runs_and_a_run_that_stops_half_way_leaves_what_was_executed(page):
    bars = "[...document.querySelectorAll('.pipelab-timeline')].map((one) => one.dataset.bars)"
    assert page.evaluate(bars) == ["64", "18", "0", "48"]
    label = page.locator(".pipelab-stage").first.get_attribute("aria-label")
    assert label.startswith("1f1b: 27.3 % of the step is idle")


def test_a_slider_changes_the_timeline_and_the_table(page):
    page.locator(".widget-slider").nth(1).locator(".noUi-handle").focus()
    page.keyboard.press("ArrowRight")
    page.wait_for_function("document.querySelector('.pipelab-timeline').dataset.bars === '72'")
    assert "makespan 36" in timelines(page).first.locator(".pipelab-figures").inner_text()


def test_keys_within_the_timeline_are_not_the_notebooks(page):
    cells = page.evaluate("jupyterapp.shell.currentWidget.content.widgets.length")
    page.locator(".pipelab-stage").first.focus()
    for key in ("ArrowRight", "ArrowDown", "Enter", "b", "x", "m"):
        page.keyboard.press(key)
    assert page.locator(".pipelab-said").first.inner_text().startswith("1F0 selected")
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


def test_restart_and_run_all(page):
    page.evaluate("jupyterapp.shell.currentWidget.sessionContext.session.kernel.restart()")
    page.wait_for_function("jupyterapp.shell.currentWidget.sessionContext.session.kernel.status === 'idle'")
    page.evaluate("jupyterapp.commands.execute('notebook:clear-all-cell-outputs')")
    page.wait_for_function("document.querySelectorAll('.pipelab-timeline').length === 0")
    run_all(page)
    page.evaluate("document.body.dataset.jpThemeLight = 'false'")
    page.wait_for_function("document.querySelector('.pipelab-timeline').dataset.theme === 'dark'")
