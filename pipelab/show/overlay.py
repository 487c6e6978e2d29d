"""Where do two traces of one schedule differ, and what is the gap made of? Both on one axis, by action and by term."""

import textwrap
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, NamedTuple

from pipelab.action import parts
from pipelab.explain import TERMS, Explanation
from pipelab.show.bars import INSIDE, THICKNESS, bars_of, timeline_traces
from pipelab.show.palette import CAUSES, CHANGES, hatched
from pipelab.show.text import timeline_text
from pipelab.show.timeline import height_of, panels, rank_axis, style, time_axis
from pipelab.trace import Number, Span, Trace, plain
from pipelab.units import Unit, figures_text, origin, pipelines, time_unit

if TYPE_CHECKING:
    import plotly.graph_objects as go

    from pipelab.show.chart import Chart

WORTH_SHOWING = 0.05
"""A change below this share of what it changes is not shown."""

LONGER, SHORTER, IDLE_LONGER = CHANGES
GAP, BARS, MOST_LETTERS = 40, 74, 400


class Term(NamedTuple):
    """What a makespan is made of, as a piece of the time axis; a negative term goes back (`end` before `start`)."""

    name: str
    start: Number
    end: Number


def both_of(explanation: Explanation) -> tuple[Trace, Trace]:
    """The trace that was compared with, and the trace. Raises ValueError for an explanation of one trace alone."""
    if explanation.against is None:
        raise ValueError("an overlay shows two traces: explain(trace, against=another)")
    if explanation.against.ranks != explanation.trace.ranks:
        counts = f"{explanation.against.ranks} and {explanation.trace.ranks}"
        raise ValueError(f"an overlay shows two traces of as many ranks: got {counts}")
    return explanation.against, explanation.trace


def names_of(against: Trace, trace: Trace) -> tuple[str, str]:
    """What tells the two apart: the clock, or else the schedule, or else only their places.

    >>> from pipelab import Costs, build, simulate
    >>> names_of(*(simulate(build(name, 2, 2), Costs.uniform()) for name in ("gpipe", "1f1b")))
    ('gpipe', '1f1b')
    """
    for one, other in ((against.clock, trace.clock), (against.schedule, trace.schedule)):
        if one != other:
            return one, other
    return "there", "here"


def changes(trace: Trace, against: Trace) -> list[Span]:
    """What takes longer or shorter in `trace` (kinds "+" and "-"), and where it is idle for longer before an action
    ("w"); each span waits for the action that it tells of. Actions that are in one of the two only are left out.

    >>> from pipelab import Costs, build, simulate
    >>> schedule = build("1f1b", ranks=2, microbatches=2)
    >>> slow, fast = (simulate(schedule, Costs.uniform(F=F)) for F in (2, 1))
    >>> [str(span.action) for span in changes(slow, fast)]
    ['0+0', '0+1', '0w1', '1w0', '1+0', '1+1']
    """
    there, here = pipelines(against), pipelines(trace)  # each replica is compared with itself
    known = {(there[span.rank], span.action): (span.end - span.start, pause) for span, pause in _with_pauses(against)}
    found = []
    for span, pause in _with_pauses(trace):
        if (here[span.rank], span.action) not in known:
            continue
        about = parts(span.action)[0]
        length, before = known[here[span.rank], span.action]
        more, idle = span.end - span.start - length, pause - before
        if idle > WORTH_SHOWING * max(length, before):
            named = about._replace(kind=IDLE_LONGER)
            found.append(Span(span.rank, "compute", named, span.start - idle, span.start, about))
        if max(more, -more) > WORTH_SHOWING * length:
            named = about._replace(kind=LONGER if more > 0 else SHORTER)
            found.append(Span(span.rank, "compute", named, span.start, span.end, about))
    return found


def _with_pauses(trace: Trace) -> list[tuple[Span, Number]]:
    """Each span of work with how long its rank was idle before it."""
    first = origin(trace)
    return [
        (span, span.start - before)
        for row in trace.compute
        for span, before in zip(row, [first, *(span.end for span in row)], strict=False)
    ]


def terms_of(terms: Mapping[str, Number]) -> list[Term]:
    """The terms of a makespan one behind the other; those of no length are left out.

    >>> terms_of({"work": 24, "order": 9, "communication": 0, "imbalance": 2, "jitter": -1})[-1]
    Term(name='jitter', start=35, end=34)
    """
    made, end = [], 0
    for name, length in terms.items():
        start, end = end, plain(end + length)  # type: ignore[assignment]
        if length:
            made.append(Term(name, start, end))
    return made


def terms_of_both(explanation: Explanation) -> tuple[list[Term], list[Term]]:
    """The terms of the trace that was compared with, and of the trace."""
    assert explanation.difference is not None
    here, gap = explanation.makespan, explanation.difference
    return terms_of({term: plain(here[term] - gap[term]) for term in TERMS}), terms_of(here)


def overlay_text(explanation: Explanation, width: int = 100) -> str:
    """Both timelines as text, and the difference in words."""
    words = textwrap.fill(str(explanation), width)
    return "\n\n".join([*(timeline_text(trace, width) for trace in both_of(explanation)), words])


def overlay(explanation: Explanation) -> "Chart":
    """The two traces of `explain(trace, against=other)` one below the other, what differs, and what the gap is made of.

    Raises ValueError when the explanation is of one trace only.

    >>> from pipelab import Costs, build, explain, simulate
    >>> one, other = (simulate(build("1f1b", ranks=4, microbatches=8), Costs.uniform(hop=hop)) for hop in (0, 1))
    >>> overlay(explain(other, against=one)).layout.title.text
    'here is 16 longer than there: communication 16'
    """
    against, trace = both_of(explanation)
    unit, names = time_unit([against, trace]), names_of(against, trace)
    most = 560 // 3
    heights = [height_of(against, most), height_of(trace, most), height_of(trace, most), BARS]
    captions = [
        f"<b>{name}</b>, {figures_text(each, unit)}" for name, each in zip(names, (against, trace), strict=True)
    ]
    captions += [f"<b>what differs</b>, {names[1]} beside {names[0]}", "<b>what both are made of</b>"]
    title = gap_text(explanation)
    figure = panels(title, overlay_text(explanation), f"{title}. {explanation}", heights, GAP, captions)
    length = max(against.makespan, trace.makespan)
    for row, each in enumerate((against, trace), start=1):
        figure.add_traces(timeline_traces(each, unit, length), rows=row, cols=1)
    figure.add_traces(list(_change_bars(changes(trace, against), trace, unit)), rows=3, cols=1)
    figure.add_traces(list(_term_bars(terms_of_both(explanation), names, unit)), rows=4, cols=1)
    style(figure)
    for row in (1, 2, 3):
        rank_axis(figure, trace.ranks, row)
    figure.update_yaxes(autorange="reversed", fixedrange=True, showgrid=False, row=4, col=1)
    time_axis(figure, [against, trace], length, 4)
    return figure


def gap_text(explanation: Explanation) -> str:
    """The difference of the makespans and what it is made of, the largest first."""
    against, trace = both_of(explanation)
    unit, (there, here) = time_unit([against, trace]), names_of(against, trace)
    gap = plain(trace.makespan - against.makespan)
    terms = sorted((explanation.difference or {}).items(), key=lambda term: max(term[1], -term[1]), reverse=True)
    worth = [f"{name} {unit.text(time)}" for name, time in terms if max(time, -time) > 0.01 * trace.makespan]
    much = f"{unit.text(max(gap, -gap))} {'longer' if gap > 0 else 'shorter'} than" if gap else "as long as"
    return f"{here} is {much} {there}" + (f": {', '.join(worth)}" if worth else "")


def _change_bars(found: list[Span], trace: Trace, unit: Unit) -> Iterator["go.Bar"]:
    for kind, seen in CHANGES.items():
        spans = [(span, span.waiting_for) for span in found if parts(span.action)[0].kind == kind if span.waiting_for]
        if spans:
            letters = [f"{about.kind}{about.microbatch}" for _, about in spans]
            yield bars_of(
                ((span.rank, span.start, span.end) for span, _ in spans), unit, origin(trace), width=THICKNESS,
                text=letters if len(found) < MOST_LETTERS else None,
                customdata=[[str(about), unit.text(span.end - span.start)] for span, about in spans],
                hovertemplate=f"%{{customdata[0]}}: {seen.words} (%{{customdata[1]}})<extra></extra>",
                marker=hatched(seen.colour, seen.hatch), name=f"{kind} {seen.words}", legendrank=2000, showlegend=True,
                **INSIDE,
            )  # fmt: skip


def _term_bars(both: tuple[list[Term], list[Term]], names: tuple[str, str], unit: Unit) -> Iterator["go.Bar"]:
    for name in TERMS:
        rows = [(row, term) for row, terms in zip(names, both, strict=True) for term in terms if term.name == name]
        if rows:
            yield bars_of(
                ((row, term.start, term.end) for row, term in rows), unit, text=[name] * len(rows),
                customdata=[unit.text(term.end - term.start) for _, term in rows],
                hovertemplate=f"%{{y}}: {name} %{{customdata}}<br>{TERMS[name]}<extra></extra>",
                marker=hatched(CAUSES[name].colour, CAUSES[name].hatch), name=name, legendrank=2500, showlegend=True,
                **INSIDE,
            )  # fmt: skip
