"""How do two traces become one timeline? A row each for every rank, one for what differs, and what both are made of."""

from pipelab.action import Action
from pipelab.explain import Explanation
from pipelab.show.live.columns import TimeAxis, block_of, by_stage, shape
from pipelab.show.overlay import Term, both_of, changes, gap_text, names_of, terms_of_both
from pipelab.trace import Number, Span, Trace
from pipelab.units import CLOCK_NAMES, chunk_of, origin, time_unit

THERE, HERE, NEITHER = 0, 1, -1
"""The side of a row: of the trace that was compared with, of the trace, of none of them."""


def overlay_block(explanation: Explanation) -> bytes:
    """Both traces as one block: for each rank a row of `against`, one of the trace and one of what differs."""
    against, trace = both_of(explanation)
    unit, (there, here) = time_unit([against, trace]), names_of(against, trace)
    rows = [
        *(span for side, each in ((THERE, against), (HERE, trace)) for span in _rows(each, side)),
        *(_moved(span, 3 * span.rank + 2, origin(trace)) for span in changes(trace, against)),
        *(
            span
            for side, terms in enumerate(terms_of_both(explanation))
            for span in _pieces(terms, 3 * trace.ranks + side)
        ),
    ]
    names = [f"rank {rank} {of}" for rank in range(trace.ranks) for of in (there, here, "differs")]
    names += [f"{of}, in all" for of in (there, here)]
    header = shape(trace.schedule, trace.clock, (1,) * len(names), unit)
    header |= {"title": gap_text(explanation), "figures": explanation_line(against, trace), "memory": False}
    header |= {"length": unit.of(max(against.makespan, trace.makespan)), "names": names, "sayings": [there, here]}
    header["clock"] = " and ".join(dict.fromkeys(CLOCK_NAMES[each.clock] for each in (against, trace)))
    header |= {"sides": [THERE, HERE, NEITHER] * trace.ranks + [NEITHER] * 2}
    header["chunk"] = by_stage(chunk_of(trace) | chunk_of(against))
    return block_of(header, rows, TimeAxis(unit))


def explanation_line(against: Trace, trace: Trace) -> str:
    """What is beside what, in one line.

    >>> from pipelab import Costs, build, simulate
    >>> explanation_line(*(simulate(build(name, 2, 2), Costs.uniform()) for name in ("gpipe", "1f1b")))
    'gpipe (gpipe, makespan 9) and 1f1b (1f1b, makespan 9), both from their first action on'
    """
    unit = time_unit([against, trace])
    there, here = (
        f"{name} ({each.schedule}, makespan {unit.text(each.makespan)})"
        for name, each in zip(names_of(against, trace), (against, trace), strict=True)
    )
    return f"{there} and {here}, both from their first action on"


def _rows(trace: Trace, side: int) -> list[Span]:
    first = origin(trace)
    return [_moved(span, 3 * span.rank + side, first) for row in trace.compute for span in row]


def _moved(span: Span, row: int, first: Number) -> Span:
    return span._replace(rank=row, start=span.start - first, end=span.end - first)


def _pieces(terms: list[Term], row: int) -> list[Span]:
    return [Span(row, "compute", Action(0, name, 0), min(start, end), max(start, end)) for name, start, end in terms]
