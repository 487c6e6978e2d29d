"""How can a step be seen? As text, as a figure, as a page. Plotly is loaded when a figure or a page is made.

Read in this order: `text`, `palette`, `raster`; then `timeline`, `bars`, `memory`, `waiting`; then `idle`,
`balance`, `microbatch`, `perfetto` and `report`.
"""

from pipelab.show.balance import balance_chart
from pipelab.show.idle import idle_chart, idle_text
from pipelab.show.memory import in_flight_curve
from pipelab.show.microbatch import microbatch_chart
from pipelab.show.perfetto import perfetto_json
from pipelab.show.report import report_html, write_report
from pipelab.show.text import timeline_text
from pipelab.show.timeline import compare, timeline
from pipelab.show.waiting import waiting

__all__ = [
    "balance_chart",
    "compare",
    "idle_chart",
    "idle_text",
    "in_flight_curve",
    "microbatch_chart",
    "perfetto_json",
    "report_html",
    "timeline",
    "timeline_text",
    "waiting",
    "write_report",
]
