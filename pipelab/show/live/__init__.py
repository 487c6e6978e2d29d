"""How can a step be explored? With the pointer, with keys, with sliders, and while it happens.

`explore`, `playground` and `builder` give widgets in a notebook. With `PIPELAB_HEADLESS=1`, or where there is no
notebook, they give the figure of `show.timeline` and the step as text. `watch` gives a listener of the feed, which
shows a run while it goes on; `overlay` shows two traces on one axis. anywidget is loaded on first use.

Read in this order: `columns` and `timeline.js` (the picture), `overlaid`, `widget`, `watched`; then
`question`, `steps`, `sliders`, `draft`, `build_mode`; then `still` and `prompt`.
"""

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from pipelab.costs import Costs
from pipelab.explain import Explanation
from pipelab.show.live.question import Question, answer
from pipelab.show.live.still import Still, in_a_notebook, still
from pipelab.show.live_text import LiveText
from pipelab.show.memory import Curve
from pipelab.show.overlay import gap_text, overlay_text
from pipelab.show.overlay import overlay as still_overlay
from pipelab.trace import Number, Trace

if TYPE_CHECKING:
    from pipelab.show.live.build_mode import Builder
    from pipelab.show.live.sliders import Playground
    from pipelab.show.live.watched import Watch
    from pipelab.show.live.widget import Overlay, Timeline

__all__ = ["Question", "Still", "answer", "builder", "explore", "overlay", "playground", "watch"]


def explore(
    trace: Trace,
    memory: Sequence[Curve] | None = None,
    limit: "Number | Sequence[Number] | None" = None,
) -> "Timeline | Still":
    """The step as an interactive timeline: zoom, pan, hover, select an action and see what it needs.

    `memory` holds one curve of (time, bytes) a rank (as `Run.memory.curves`); `limit` draws a line, one number or one
    a rank, in bytes if `memory` is given, else in micro-batches.
    Raises ValueError when `memory` or `limit` does not fit the ranks.

    >>> from pipelab import Costs, build, simulate
    >>> explore(simulate(build("1f1b", ranks=4, microbatches=8), Costs.uniform()))
    <the timeline of 1f1b, as a figure and as text>
    """
    if not in_a_notebook():
        return still(trace, memory, limit)
    from pipelab.show.live.widget import Timeline

    return Timeline(trace, memory, limit)


def overlay(explanation: Explanation) -> "Overlay | Still":
    """Two traces on one axis, what differs between them, and what the gap is made of; of `explain(trace, against=...)`.

    Raises ValueError when the explanation is of one trace only.

    >>> from pipelab import Costs, build, explain, simulate
    >>> one, other = (simulate(build("1f1b", ranks=4, microbatches=8), Costs.uniform(hop=hop)) for hop in (0, 1))
    >>> overlay(explain(other, against=one))
    <here is 16 longer than there: communication 16, as a figure and as text>
    """
    if not in_a_notebook():
        return Still(gap_text(explanation), still_overlay(explanation), overlay_text(explanation))
    from pipelab.show.live.widget import Overlay

    return Overlay(explanation)


def watch(limit: "Number | Sequence[Number] | None" = None) -> "Watch | LiveText":
    """A listener to watch a run with: display it, then `train(..., feed=it)`; without a notebook it prints each step.

    It never holds the run up. `.live` is what is known of the run (`pipelab.live`); `limit` is in bytes, one number or
    one a rank.

    >>> watch()
    <prints each step of a run>
    """
    if not in_a_notebook():
        return LiveText(sys.stdout)
    from pipelab.show.live.watched import Watch

    return Watch(limit)


def playground(**question: Any) -> "Playground | Still":
    """Sliders beside a timeline; the arguments are the fields of a `Question`, from which it starts.

    >>> playground(schedule="zb-h1", ranks=4, microbatches=8)
    <the timeline of zb-h1, as a figure and as text>
    """
    asked = Question(**question)
    if not in_a_notebook():
        found = answer(asked)
        return still(found.trace, limit=asked.limit or None, rows=found.rows)
    from pipelab.show.live.sliders import Playground

    return Playground(asked)


def builder(ranks: int = 3, microbatches: int = 4, costs: Costs | None = None) -> "Builder | Still":
    """Build a schedule by click or key, one stage a rank; without a notebook you see 1f1b, which you could build.

    >>> builder(ranks=3, microbatches=4)
    <the timeline of 1f1b, as a figure and as text>
    """
    if not in_a_notebook():
        return still(answer(Question("1f1b", ranks, microbatches)).trace)
    from pipelab.show.live.build_mode import Builder

    return Builder(ranks, microbatches, costs)
