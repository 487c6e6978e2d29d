"""The live timeline without a notebook: a page that holds all it needs, for tests in a browser."""

import json
from base64 import b64encode
from collections.abc import Sequence
from html import escape

from pipelab.explain import Explanation
from pipelab.show.live.columns import RULE, STYLE, trace_block
from pipelab.show.live.overlaid import overlay_block
from pipelab.show.live.script import script, stylesheet
from pipelab.show.memory import Curve
from pipelab.show.overlay import gap_text, overlay_text
from pipelab.show.report import NOTHING_IS_FETCHED
from pipelab.show.text import timeline_text
from pipelab.trace import Trace
from pipelab.units import finding

START = """
const bytes = (text) => Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
const given = JSON.parse(document.getElementById("data").textContent);
window.events = [];
window.timeline = new Timeline(document.getElementById("timeline"), {
  style: given.style,
  rule: given.rule,
  tell: (event) => { window.events.push(event); if (event.type === "text") timeline.text.textContent = given.text; },
});
timeline.show(bytes(given.block));
"""


def overlay_page_html(explanation: Explanation) -> str:
    """Two traces as an HTML page: `explain(trace, against=other)` as an interactive timeline."""
    return _page(gap_text(explanation), overlay_block(explanation), overlay_text(explanation))


def page_html(trace: Trace, memory: Sequence[Curve] | None = None, limit=None) -> str:
    """One step as a page; arguments as for `Timeline`. It forbids all fetching, and keeps its events."""
    return _page(finding(trace), trace_block(trace, memory, limit), timeline_text(trace))


def _page(title: str, block: bytes, text: str) -> str:
    data = {"style": STYLE, "rule": RULE, "block": b64encode(block).decode(), "text": text}
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{NOTHING_IS_FETCHED}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n<link rel="icon" href="data:,">\n'
        f"<title>{escape(title)}</title>\n<style>{stylesheet()}\n"
        ":root { color-scheme: light dark } body { margin: 0 }</style>\n</head>\n"
        f'<body>\n<main id="timeline"></main>\n<noscript><pre>{escape(text)}</pre></noscript>\n'
        '<script type="application/json" id="data">'
        f"{json.dumps(data).replace('<', chr(92) + 'u003c')}</script>\n"
        f'<script type="module">\n{script()}{START}</script>\n</body>\n</html>\n'
    )
