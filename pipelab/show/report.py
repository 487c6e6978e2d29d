"""How is a step handed on? As one HTML file that needs no network: figures, the timeline, and its text."""

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING

from pipelab.show.memory import Curve
from pipelab.show.timeline import timeline
from pipelab.trace import Trace
from pipelab.units import BUBBLE_MEANINGS, CLOCK_NAMES, finding, percent, time_unit

if TYPE_CHECKING:
    from pipelab.show.chart import Chart

NOTHING_IS_FETCHED = "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data: blob:"
FETCHED = re.compile(r'<script\b[^>]*\bsrc="https?:[^>]*>\s*</script>')
"""What would fetch a script: nbconvert and plotly write such for formulas, which the labs do not have."""

FITS_THE_PAPER = """<script>
for (const [event, width, size] of [["beforeprint", 700, 15], ["afterprint", null, 20]]) addEventListener(event, () => {
  for (const one of document.querySelectorAll(".js-plotly-plot"))
    Plotly.relayout(one, { width, autosize: !width, "title.font.size": size });
});
</script>"""
"""Plotly draws for the width of the window: without this a figure on paper is cut off."""

STYLE = """
:root { color-scheme: light dark }
body { font: 16px/1.5 Helvetica, Arial, sans-serif; max-width: 1400px; margin: 2rem auto; padding: 0 1rem }
h1 { font-size: 1.6rem; line-height: 1.25 } h2 { font-size: 1.15rem; margin: 2rem 0 .5rem }
table { border-collapse: collapse } caption { text-align: left }
th, td { border-bottom: 1px solid #8888; padding: .3rem 1.5rem .3rem 0; text-align: left }
th { font-weight: normal } td { font-variant-numeric: tabular-nums; font-weight: bold }
figure { margin: 0; background: #fff; border-radius: 6px; overflow: hidden }
pre { font: 13px/1.35 "DejaVu Sans Mono", Menlo, Consolas, monospace; overflow-x: auto; padding: .8rem;
  border: 1px solid #8888; border-radius: 6px }
@media print { body { max-width: none; margin: 0 } pre { font-size: 8px; overflow: hidden }
  figure, pre, table { break-inside: avoid } h2 { break-after: avoid } }
"""

WITHOUT_SCRIPTS = """<noscript><style>div:has(> .plotly-graph-div) { display: none }
noscript > svg { display: block; max-width: 100%; height: auto }</style></noscript>"""
"""The still picture takes the place of the empty figure."""


def write_report(
    path: str | os.PathLike[str],
    trace: Trace,
    memory: Sequence[Curve] | None = None,
    summary: Sequence[tuple[str, str]] = (),
    figures: "Mapping[str, Chart]" = MappingProxyType({}),
) -> Path:
    """Write the report of one step as a single HTML file, and return its path.

    `summary` adds rows (what, figure with its unit) to the table, `figures` charts under their headings; `memory` is as
    `timeline` takes it. An older file is replaced at once, when the new one is complete. Raises ValueError when the
    folder does not exist.

    >>> from pipelab import Costs, build, simulate
    >>> trace = simulate(build("1f1b", ranks=2, microbatches=2), Costs.uniform())
    >>> from tempfile import TemporaryDirectory
    >>> with TemporaryDirectory() as folder:
    ...     write_report(Path(folder) / "step.html", trace).name
    'step.html'
    """
    target = Path(path)
    if not target.parent.is_dir():
        raise ValueError(f"there is no folder {str(target.parent)!r} to write {target.name} to; make it first")
    if target.is_dir():
        raise ValueError(f"{str(target)!r} is a folder; name a file, such as {str(target / 'report.html')!r}")
    page = report_html(
        finding(trace),
        table_section("Figures", [*_figures(trace), *summary]),
        figure_section("Timeline", timeline(trace, memory), "timeline"),
        *(figure_section(heading, figure, f"figure{place}") for place, (heading, figure) in enumerate(figures.items())),
    )
    draft = target.with_name(f".{target.name}.{os.getpid()}.part")
    try:
        draft.write_text(page, encoding="utf-8")
        draft.replace(target)
    finally:
        draft.unlink(missing_ok=True)
    return target


def report_html(title: str, *sections: str) -> str:
    """A whole HTML page from sections: `table_section`, `figure_section` or your own HTML.

    The page holds all it needs, plotly.js once if there is a figure, and forbids the browser to fetch more.

    >>> page = report_html("A step", table_section("Figures", [("makespan", "33")]))
    >>> page.count("<script"), "A step" in page
    (0, True)
    """
    script = ""
    if any("Plotly.newPlot" in section for section in sections):
        from plotly.offline import get_plotlyjs

        script = f"<script>{get_plotlyjs()}</script>\n{FITS_THE_PAPER}\n"
    body = "\n".join(sections)
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{NOTHING_IS_FETCHED}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<link rel="icon" href="data:,">\n'
        f"<title>{escape(title)}</title>\n<style>{STYLE}</style>\n"
        f"{WITHOUT_SCRIPTS}\n{script}</head>\n"
        f"<body>\n<main>\n<h1>{escape(title)}</h1>\n{body}\n</main>\n</body>\n</html>\n"
    )


def table_section(heading: str, rows: Iterable[tuple[str, str]]) -> str:
    """A table of figures, each with what it is.

    >>> "<td>33</td>" in table_section("Figures", [("makespan", "33")])
    True
    """
    lines = "\n".join(f'<tr><th scope="row">{escape(what)}</th><td>{escape(figure)}</td></tr>' for what, figure in rows)
    return _section(heading, f"<table>\n{lines}\n</table>")


def figure_section(heading: str, figure: "Chart", name: str) -> str:
    """A chart under the fixed id `name`, and below it the same as text; without scripts its still picture."""
    drawn = figure.to_html(
        full_html=False, include_plotlyjs=False, include_mathjax=False, div_id=name,
        config={"displaylogo": False, "responsive": True},
    )  # fmt: skip
    words = f"{figure.layout.meta['alt']} The text below shows the same."
    drawn += "" if figure.svg is None else f"\n<noscript>{figure.svg}</noscript>"
    label = escape(f"{heading}, as text")
    text = f'<pre tabindex="0" aria-label="{label}">{escape(figure.text)}</pre>'
    return _section(heading, f'<figure role="img" aria-label="{escape(words)}">\n{drawn}\n</figure>\n{text}')


def _section(heading: str, content: str) -> str:
    return f"<section>\n<h2>{escape(heading)}</h2>\n{content}\n</section>"


def _figures(trace: Trace) -> list[tuple[str, str]]:
    unit = time_unit([trace])
    rows = [("schedule", f"{trace.schedule} on {trace.ranks} rank{'s' * (trace.ranks != 1)}")]
    rows.append((f"makespan, {CLOCK_NAMES.get(trace.clock, trace.clock)}", unit.text(trace.makespan)))
    rows += [(f"bubble, {kind}: {words}", percent(trace.bubble(kind))) for kind, words in BUBBLE_MEANINGS.items()]
    peaks = " ".join(f"{float(peak):g}" for peak in trace.peak_in_flight)
    return [*rows, ("most micro-batches in flight, by rank", peaks)]
