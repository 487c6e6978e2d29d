"""How long until new data is painted? Our timeline beside plotly's, in one Chromium: python benchmarks/draw.py [--json]

In a page: from handing over all-new data until the next frame of the screen is painted (`floor` is that without data).
In JupyterLab as `make lab` starts it: from a key on a slider, by way of the kernel, until it is painted. Each figure is
the best of several and, in brackets, the median, in milliseconds; the load of the machine is told with them. Needs
playwright and a Chromium.
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))
from browsers import RUN_ALL, chromium, jupyterlab, open_notebook

import pipelab as pl

SIZES = {1_000: 64, 10_000: 640, 50_000: 3200}  # about so many bars: micro-batches of gpipe on 8 ranks
TURNS = {1_000: 12, 10_000: 8, 50_000: 2}
CONTENDERS = ("ours", "go.Bar", "FigureWidget")

FIGURES = """
import plotly.graph_objects as go
import pipelab as pl
from pipelab.show.palette import LOOKS
def traces(microbatches, count=2):
    schedule = pl.build("gpipe", 8, microbatches)
    return [pl.simulate(schedule, pl.Costs.uniform(F=1 + turn)) for turn in range(count)]
def columns(trace, kind):
    bars = [span for row in trace.compute for span in row if span.action.kind == kind]
    return {"y": [span.rank for span in bars], "x": [float(span.end - span.start) for span in bars],
            "base": [float(span.start) for span in bars]}
def bars(trace):
    looks = {kind: {"name": kind, "marker_color": LOOKS[kind].colour} for kind in "FB"}
    return [go.Bar(orientation="h", **look, **columns(trace, kind)) for kind, look in looks.items()]
LAYOUT = {"barmode": "overlay", "width": 1100, "height": 420, "showlegend": True}
"""
PREPARE = {
    "ours": """from pipelab.show.live.widget import Timeline
both = traces({microbatches})
view = Timeline(both[0])
def show(turn):
    view.show(both[turn % 2])""",
    "FigureWidget": """both = traces({microbatches})
columns_of = [[columns(trace, kind) for kind in "FB"] for trace in both]
view = go.FigureWidget(bars(both[0]), LAYOUT)
def show(turn):
    with view.batch_update():
        for bar, new in zip(view.data, columns_of[turn % 2]):
            bar.update(new)""",
}
SLIDER = """import ipywidgets
slider = ipywidgets.IntSlider(0, 0, 100)
slider.observe(lambda change: show(change.new), names="value")
ipywidgets.VBox([slider, view])"""
PLAYGROUND = "from pipelab.show import live\nlive.playground(schedule='1f1b', ranks=8, microbatches=32)"

AFTER_PAINT = """const afterPaint = () => new Promise((done) => requestAnimationFrame(() => {
  const { port1, port2 } = new MessageChannel();  // a task posted in a frame runs when that frame has been painted
  port1.onmessage = done;
  port2.postMessage(0);
}));"""
PAINTED = """async (show) => {
  AFTER_PAINT
  await afterPaint();
  const begun = performance.now();
  await show();
  await afterPaint();
  return performance.now() - begun;
}""".replace("AFTER_PAINT", AFTER_PAINT)
KEY = """(ours) => new Promise((done) => {
  AFTER_PAINT
  const view = document.querySelector(".pipelab-timeline")?.timeline, plot = document.querySelector(".js-plotly-plot");
  const before = ours ? view.painted : 0;
  let begun, drawn = false;
  if (!ours) plot.once("plotly_afterplot", () => { drawn = true; });
  const look = () => {
    if (ours ? view.painted > before && !view.due : drawn) done(performance.now() - begun);
    else afterPaint().then(look);
  };
  const handle = document.querySelectorAll(".noUi-handle")[window.slider || 0];
  handle.focus();
  begun = performance.now();
  handle.dispatchEvent(new KeyboardEvent("keydown", { key: "ArrowRight", bubbles: true }));
  look();
})""".replace("AFTER_PAINT", AFTER_PAINT)


def in_a_page(browser):
    """New data to paint without a kernel, by contender and size; and the floor."""
    import base64

    import plotly
    from plotly.offline import get_plotlyjs

    from pipelab.show.live.columns import RULE, STYLE, trace_block
    from pipelab.show.live.script import script, stylesheet

    space: dict[str, object] = {}
    exec(FIGURES, space)
    page = browser.new_page(viewport={"width": 1140, "height": 800})
    page.set_default_timeout(120_000)
    page.set_content(f"<style>{stylesheet()}</style><div id=ours></div><div id=plot></div>")
    page.add_script_tag(content=get_plotlyjs())
    given = json.dumps({"style": STYLE, "rule": RULE})
    page.add_script_tag(
        type="module", content=f"{script()}\nwindow.ours = new Timeline(document.getElementById('ours'), {given});"
    )
    page.wait_for_function("window.ours")
    page.evaluate("window.bytes = (text) => Uint8Array.from(atob(text), (c) => c.charCodeAt(0))")
    found = {("floor", 0): times(page, "() => {}", 8)}
    for size, microbatches in SIZES.items():
        both = space["traces"](microbatches)  # type: ignore[operator]
        page.evaluate("blocks => { window.blocks = blocks.map(bytes); }",
                      [base64.b64encode(trace_block(trace)).decode() for trace in both])  # fmt: skip
        page.evaluate("turn = 0")
        found["ours", size] = times(page, "() => ours.show(blocks[turn++ % 2])", TURNS[size])
        figures = [plotly.graph_objects.Figure(space["bars"](trace), space["LAYOUT"]).to_json() for trace in both]  # type: ignore[operator]
        page.evaluate("figures => { window.figures = figures.map(JSON.parse); }", figures)
        react = "() => { const { data, layout } = figures[turn++ % 2]; return Plotly.react(plot, data, layout); }"
        found["go.Bar", size] = times(page, react, TURNS[size])
        page.evaluate("Plotly.purge(plot)")
    page.close()
    return found


def times(page, show, turns):
    """Milliseconds of each turn; the first is not counted."""
    return [page.evaluate(f"() => ({PAINTED})({show})") for _ in range(turns + 1)][1:]


def in_jupyterlab(browser):
    """From a key on a slider to paint, by way of the kernel."""
    found = {}
    notebooks = {
        (name, size): [FIGURES, text.format(microbatches=microbatches) if "{m" in text else text, SLIDER]
        for size, microbatches in SIZES.items()
        for name, text in PREPARE.items()
    }
    notebooks["playground", 512] = [PLAYGROUND]
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        with jupyterlab(home) as url:
            for turn, ((name, size), cells) in enumerate(notebooks.items()):
                (home / f"{turn}.ipynb").write_text(notebook(cells), encoding="utf-8")
                page = browser.new_page(viewport={"width": 1300, "height": 1000})
                page.set_default_timeout(180_000)
                open_notebook(page, url, f"{turn}.ipynb")
                page.evaluate(RUN_ALL)
                plotly = name == "FigureWidget"
                page.wait_for_selector(".js-plotly-plot .bars" if plotly else ".pipelab-timeline[data-bars]")
                page.wait_for_timeout(1500)
                if name == "playground":
                    page.evaluate("window.slider = 1")  # micro-batches
                presses = [page.evaluate(KEY, not plotly) for _ in range(TURNS.get(size, 12) + 1)]
                found[name, size] = presses[1:]
                page.evaluate("jupyterapp.shell.currentWidget.sessionContext.shutdown()")
                page.close()
    return found


def notebook(cells):
    made = [{"cell_type": "code", "id": f"c{n}", "metadata": {}, "outputs": [], "execution_count": None, "source": text}
            for n, text in enumerate(cells)]  # fmt: skip
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    return json.dumps({"cells": made, "metadata": {"kernelspec": kernel}, "nbformat": 4, "nbformat_minor": 5})


def rows(where, found, load):
    """One row a case."""
    for (name, size), took in found.items():
        best, middle = round(min(took), 1), round(statistics.median(took), 1)
        yield {"where": where, "what": name, "bars": size, "best_ms": best, "median_ms": middle, "load": load}


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--json", action="store_true", help="one JSON object")
    options = parser.parse_args()
    made = []
    with chromium() as browser:
        for where, measure in (("page", in_a_page), ("jupyterlab", in_jupyterlab)):
            load = round(os.getloadavg()[0], 1)
            made += rows(where, measure(browser), load)
    if options.json:
        print(json.dumps({"cores": os.cpu_count(), "pipelab": pl.__version__, "rows": made}, indent=1))
        return
    for row in made:
        print(f"{row['where']:<11} {row['what']:<13} {row['bars']:>6} bars {row['best_ms']:>8.1f} ms"
              f" ({row['median_ms']:.1f}), load {row['load']}")  # fmt: skip


if __name__ == "__main__":
    main()
