"""How can a step be seen? As text, as a figure, as a page. Plotly is loaded when a figure or a page is made.

Read in this order: `text`, `units`, `palette`, `raster`; then `timeline`, `bars`, `memory`, `waiting`; then `report`.
"""

from pipelab.show.memory import in_flight_curve
from pipelab.show.report import report_html, write_report
from pipelab.show.text import timeline_text
from pipelab.show.timeline import compare, timeline
from pipelab.show.waiting import waiting

__all__ = ["compare", "in_flight_curve", "report_html", "timeline", "timeline_text", "waiting", "write_report"]
