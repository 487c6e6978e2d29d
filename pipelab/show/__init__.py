"""How can a step be seen? As text, as a figure, as a page. Plotly is loaded when a figure or a page is made.

Read in this order: `text`, `table`, `palette`, `raster`; then `chart`, `timeline`, `bars`, `memory`, `holdings`,
`waiting`, `overlay`; then `idle`, `bubble`, `frontier`, `balance`, `microbatch`, `curves`, `losses`, `continued`,
`mesh`, `traffic`; then `strokes`, `axis`, `forms` and `plain`, which draw where no script runs; then `perfetto` and
`report`.
"""

from pipelab.show.balance import balance_chart
from pipelab.show.bubble import bubble_chart
from pipelab.show.continued import continued_chart
from pipelab.show.curves import curves_chart
from pipelab.show.frontier import frontier_chart
from pipelab.show.holdings import holdings_chart
from pipelab.show.idle import idle_chart, idle_text
from pipelab.show.losses import loss_chart
from pipelab.show.memory import in_flight_curve, memory_chart
from pipelab.show.mesh import mesh_chart
from pipelab.show.microbatch import microbatch_chart
from pipelab.show.overlay import overlay
from pipelab.show.perfetto import perfetto_json
from pipelab.show.report import report_html, write_report
from pipelab.show.text import timeline_text
from pipelab.show.timeline import compare, timeline
from pipelab.show.traffic import traffic_chart
from pipelab.show.waiting import waiting

__all__ = [
    "balance_chart",
    "bubble_chart",
    "compare",
    "continued_chart",
    "curves_chart",
    "frontier_chart",
    "holdings_chart",
    "idle_chart",
    "idle_text",
    "in_flight_curve",
    "loss_chart",
    "memory_chart",
    "mesh_chart",
    "microbatch_chart",
    "overlay",
    "perfetto_json",
    "report_html",
    "timeline",
    "timeline_text",
    "traffic_chart",
    "waiting",
    "write_report",
]
