"""What do all figures share? One look, a title that says what is seen, and the same in words.

In a notebook a chart is stored with something for every viewer: plotly's JSON, HTML, a still picture where there is
one, and plain text. Nothing of it is fetched from a network.
"""

import textwrap
from base64 import b64encode
from html import escape
from typing import Any

import plotly.graph_objects as go
import plotly.io as pio

from pipelab.show.palette import GRID, INK, PAPER
from pipelab.show.plain import chart_svg
from pipelab.show.report import FETCHED

WIDTH = 88  # letters of a title that have room in a line of a notebook


class Chart(go.Figure):
    """A plotly figure that comes with its words: `.text` says the same as the picture. `chart` makes one.

    >>> chart("a is longer than b", "a  2\\nb  1", height=300)
    <chart: a is longer than b>
    """

    @property
    def text(self) -> str:
        """The text twin: what the picture shows, for a terminal, a screen reader or a viewer without pictures."""
        return str((self.layout.meta or {}).get("text", ""))

    @property
    def svg(self) -> str | None:
        """The still picture, unless this chart has too many marks."""
        return chart_svg(self)

    def __repr__(self) -> str:
        return f"<chart: {str(self.layout.title.text).replace('<br>', ' ')}>"

    def without_scripts(self) -> str:
        """HTML for viewers that run no scripts: the still picture, or else the text."""
        svg = self.svg
        if svg is None:
            return f'<pre style="font-family: monospace">{escape(self.text)}</pre>'
        data = b64encode(svg.encode()).decode()
        return f'<img alt="{escape(self.text)}" src="data:image/svg+xml;base64,{data}">'

    def _repr_mimebundle_(self, *_: Any, **__: Any) -> dict[str, Any]:
        """What a notebook stores: plotly's own part as the renderer asks for it, then what needs no plotly."""
        bundle = dict(pio.renderers._build_mime_bundle(self.to_dict()))
        html = bundle.get("text/html", "")
        if any("plotly" in script for script in FETCHED.findall(html)):  # as Colab's renderer does
            html = self.to_html(full_html=False, include_plotlyjs=True)
        html = FETCHED.sub("", html)
        still, svg = self.without_scripts(), self.svg
        bundle["text/html"] = f"{html}\n<noscript>{still}</noscript>" if html else still
        bundle["text/plain"] = self.text
        return bundle if svg is None else {**bundle, "image/svg+xml": svg}

    def _ipython_display_(self) -> None:
        """Show the bundle in a notebook; elsewhere what plotly does, such as opening a browser."""
        if not pio.renderers._build_mime_bundle({}):
            super()._ipython_display_()
            return
        from IPython.display import display

        display(self._repr_mimebundle_(), raw=True)


def chart(title: str, text: str, *, height: int, alt: str | None = None, **layout: Any) -> Chart:
    """An empty chart: `title` says what is seen, `text` is the rest of its text twin. `layout` is plotly's.

    Colours are explicit, so that it is legible in a dark notebook and in print; the legend lies on top.
    """
    made, lines = Chart(), "<br>".join(textwrap.wrap(title, WIDTH))
    made.update_layout(
        template="plotly_white",
        title={"text": lines, "font": {"size": 20, "color": INK}, "x": 0, "xref": "paper"},
        height=height,
        margin={"l": 84, "r": 30, "t": 96, "b": 56},
        paper_bgcolor=PAPER,
        plot_bgcolor=PAPER,
        font={"family": "Helvetica, Arial, sans-serif", "size": 13, "color": INK},
        legend={"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom", "traceorder": "normal"},
        modebar={"remove": ["sendChartToCloud", "lasso2d", "select2d"]},  # nothing leaves this machine
        hoverlabel={"bgcolor": PAPER, "font": {"color": INK}, "align": "left"},
        meta={"alt": alt or title, "text": f"{title}\n{text}"},
    )
    style_axes(made)
    made.update_layout(**layout)
    return made


def style_axes(figure: Chart) -> None:
    """The look of all axes that there are by now."""
    words = {"gridcolor": GRID, "zeroline": False, "title_font_size": 13}
    figure.update_xaxes(title_standoff=8, ticklabelstandoff=3, **words)
    figure.update_yaxes(ticklabelstandoff=6, **words)
