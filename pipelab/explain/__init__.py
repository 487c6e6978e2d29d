"""Where does the time go? `explain` splits a step's idle time into causes, exactly, and says what would help most.

A trace is its own schedule: the same rows can be played again with other times. So every cause is measured by taking it
away, one after another, always with the same rows:

    seen      the trace itself                                               what is lost at each step down is called
    steady    every action lasts the median of its stage and kind                jitter
    even      and all stages have the mean work                                  imbalance
    alone     and messages take no time                                          communication
              and what is left, the order of the work itself forces

**The makespan** is a sum of what each replay adds (`TERMS`). `work` is what an average rank does, and `order` what
`alone` takes longer than that; `communication` is what `even` adds to `alone`, `imbalance` what `steady` adds to
`even`, `jitter` what the trace adds to `steady`. A term can be negative, if rarely: unequal stages may happen to suit
an order.

**Idle time** of a rank is the step, from the first start to the last end of any work, without the rank's own work. (An
action counts whole: the collectives of tensor shards within it are work here, and not busy time in `Trace.busy`.) It
consists of pauses, and each pause has its twin in every replay. Going down the list, a cause is charged with the part
of the pause that its replay does not have. What is left in the end is called by its place in the rank's row: warm-up
before its first action, cool-down after its last one, dependency in between, where it waits for a result that
`Pause.waiting_for` names (`CAUSES`). So no part is negative, and the parts of a rank sum to its idle time.

Causes can hide one another (a late message before a slow stage), so the order of taking away is part of the
definition: jitter first, then imbalance, then communication. Of a rank without any work all the time is imbalance.
With a real clock, jitter holds also what a program does between two actions; in simulated time it is 0.

**The critical path** is a chain of actions and hops that starts and ends with the step, each begun when the one
before was done, so their lengths sum to the makespan. There may be several as long; one is shown.

Read in this order: `replay`, `times`, `path`, `idle`, `advice`, `words`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from pipelab.explain.advice import Change, changes
from pipelab.explain.idle import CAUSES, TERMS, Pause, Replays, idle_by_cause, makespan_terms, pauses
from pipelab.explain.path import Leg, critical_path
from pipelab.explain.replay import Steps
from pipelab.explain.words import idle_table, paragraph
from pipelab.trace import Number, Trace, plain

__all__ = ["CAUSES", "TERMS", "Change", "Explanation", "Leg", "Pause", "Replays", "explain"]


@dataclass(frozen=True, repr=False)
class Explanation:
    """Why a step takes as long as it does; `str()` says it in a paragraph.

    `makespan` is the sum of terms (`TERMS`) that the step is made of, `idle` has the idle time of each rank by cause
    (`CAUSES`), `pauses` are the same in the order of time, with what was waited for. `critical_path` are the legs whose
    lengths sum to the makespan. `difference` is, term by term, by how much the step is longer than that of `against`.
    `replays` are the traces behind it all, and `advice` are the changes that were simulated.
    """

    trace: Trace
    makespan: Mapping[str, Number]
    idle: tuple[Mapping[str, Number], ...]
    pauses: tuple[Pause, ...]
    critical_path: tuple[Leg, ...]
    replays: Replays
    against: Trace | None = None
    difference: Mapping[str, Number] | None = None

    @property
    def advice(self) -> tuple[Change, ...]:
        """Every change that was tried, the best first; they are simulated when they are first asked for."""
        return self._tried[0]

    @property
    def notes(self) -> tuple[str, ...]:
        """What could not be tried, and why."""
        return self._tried[1]

    @cached_property
    def _tried(self) -> tuple[tuple[Change, ...], tuple[str, ...]]:
        return changes(Steps.of(self.trace), self.replays)

    def __str__(self) -> str:
        return paragraph(self)

    def __repr__(self) -> str:
        return f"<Explanation of {self.trace!r}>"

    def _repr_markdown_(self) -> str:
        """The paragraph and the idle time by rank and cause, for notebooks."""
        return f"{self}\n\n{idle_table(self)}"

    def as_dict(self) -> dict[str, Any]:
        """All of it in lists and dicts, as the command line prints it; times as they are, actions as text.

        >>> from pipelab import Costs, build, simulate
        >>> explain(simulate(build("gpipe", ranks=1, microbatches=1), Costs.uniform())).as_dict()["critical_path"][0]
        {'kind': 'work', 'rank': 0, 'action': '0F0', 'start': 0, 'end': 1}
        """
        return {
            "text": str(self),
            "makespan": dict(self.makespan),
            "idle": [dict(causes) for causes in self.idle],
            "critical_path": [leg._asdict() | {"action": str(leg.action)} for leg in self.critical_path],
            "advice": [
                {"change": change.what, "makespan": change.trace.makespan, "gain": change.gain, "peak": change.peak}
                for change in self.advice
            ],
            "difference": None if self.difference is None else dict(self.difference),
        }


def explain(trace: Trace, against: Trace | None = None) -> Explanation:
    """Why a step takes as long as it does: idle time by cause, the critical path, and the change that would help most.

    The trace may be of any clock, one of one's own schedule, or one read from JSON; its schedule is read off its spans.
    With `against`, the difference of the two makespans is split in the same way: of a measured step and its simulation,
    of two schedules, of two clocks (both in one unit of time).

    What each word means: `pipelab.explain.CAUSES` and `TERMS`, and the text at the top of that file. Raises ValueError,
    with the reason, when the trace is empty, holds an action twice, or lets a rank do two things at a time.

    >>> from pipelab import Costs, build, simulate
    >>> one = explain(simulate(build("gpipe", ranks=2, microbatches=2), Costs.uniform()))
    >>> one.makespan["work"], one.makespan["order"], one.idle[1]["warm-up"], one.idle[1]["cool-down"]
    (6, 3, 1, 2)
    >>> slow = simulate(build("gpipe", ranks=2, microbatches=2), Costs.uniform(hop=1))
    >>> explain(slow, against=one.trace).difference
    {'work': 0, 'order': 0, 'communication': 2, 'imbalance': 0, 'jitter': 0}
    """
    for given in [trace] if against is None else [trace, against]:
        if not isinstance(given, Trace):
            raise ValueError(f"explain takes a trace, as of simulate(schedule, costs) or a run: got {given!r:.80}")
    steps = Steps.of(trace)
    replays = Replays.of(steps)
    terms = makespan_terms(replays)
    found = pauses(steps, replays)
    difference = None
    if against is not None:
        others = makespan_terms(Replays.of(Steps.of(against)))
        difference = {term: plain(time - others[term]) for term, time in terms.items()}
    return Explanation(
        trace=trace,
        makespan=terms,
        idle=idle_by_cause(found, trace.ranks),
        pauses=found,
        critical_path=critical_path(steps),
        replays=replays,
        against=against,
        difference=difference,
    )
