"""Why does it take so long? The explanation in sentences, each of them short, true and about this trace."""

from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import TYPE_CHECKING

from pipelab.explain.advice import Change
from pipelab.explain.idle import (
    CAUSES,
    COMMUNICATION,
    COOL_DOWN,
    DEPENDENCY,
    IMBALANCE,
    JITTER,
    ORDER,
    WARM_UP,
    WORK,
    Pause,
)
from pipelab.explain.path import Leg
from pipelab.trace import Number, Trace, number, plain, ratio
from pipelab.units import CLOCK_NAMES, Unit, digits, listed, percent, rank_of, time_unit

if TYPE_CHECKING:
    from pipelab.explain import Explanation

WORTH_SAYING = 0.0005  # of the makespan: less does not show in four digits
MOST_STAYS = 9
MOST_NAMED = 4

OF_TERM = {
    WORK: "work of an average rank",
    ORDER: "waiting that this order forces",
    COMMUNICATION: "messages",
    IMBALANCE: "unequal stages",
    JITTER: "jitter or overhead",
}
OF_CAUSE = {
    WARM_UP: "before a rank's first action (warm-up)",
    COOL_DOWN: "after its last one (cool-down)",
    DEPENDENCY: "for results of other ranks (dependency)",
    COMMUNICATION: "for messages (communication)",
    IMBALANCE: "because stages are unequal (imbalance)",
    JITTER: "by chance or overhead (jitter)",
}


def paragraph(explanation: "Explanation") -> str:
    """All sentences about one trace, or about the difference of two."""
    trace, against = explanation.trace, explanation.against
    unit = time_unit([trace] if against is None else [trace, against])
    said = [] if against is None else [_difference(trace, against, explanation.difference or {}, unit)]
    said += [_makespan(trace, explanation.makespan, unit), _meetings(trace, unit), _idle(trace, explanation.idle, unit)]
    said += [_longest(trace, explanation.pauses, unit), _path(explanation.critical_path, unit)]
    said += [_advice(explanation, unit), *explanation.notes]
    return " ".join(filter(None, said))


def idle_table(explanation: "Explanation") -> str:
    """The idle time of each rank by cause, as a table in Markdown.

    >>> from pipelab import Costs, build, explain, simulate
    >>> print(idle_table(explain(simulate(build("gpipe", ranks=2, microbatches=2), Costs.uniform()))))
    | rank | warm-up | cool-down | dependency | idle |
    |---|---|---|---|---|
    | 0 | 0 | 0 | 3 | 3 |
    | 1 | 1 | 2 | 0 | 3 |
    | all | 1 | 2 | 3 | 6 |
    """
    unit = time_unit([explanation.trace])
    rows = [(str(rank), causes) for rank, causes in enumerate(explanation.idle)]
    total = {cause: plain(sum(causes[cause] for _, causes in rows)) for cause in CAUSES}
    causes = [cause for cause in CAUSES if total[cause] > WORTH_SAYING * explanation.trace.makespan]
    lines = [["rank", *causes, "idle"], ["---"] * (len(causes) + 2)]
    for name, row in [*rows, ("all", total)]:
        lines.append([name, *(unit.text(row[cause]) for cause in causes), unit.text(plain(sum(row.values())))])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines).replace("| --- ", "|---").replace("--- |", "---|")


def _makespan(trace: Trace, terms: Mapping[str, Number], unit: Unit) -> str:
    clock = CLOCK_NAMES[trace.clock]
    ranks = f"{trace.ranks} rank{'s' * (trace.ranks != 1)}"
    return f"{trace.schedule} on {ranks} takes {unit.text(trace.makespan)} in {clock}: {_sum(terms, trace, unit)}."


def _sum(terms: Mapping[str, Number], trace: Trace, unit: Unit) -> str:
    """24 (work of a rank) + 9 (waiting that this order forces)"""
    least = WORTH_SAYING * trace.makespan
    shown = [(term, time) for term, time in terms.items() if max(time, -time) > least]
    of = OF_TERM | {WORK: "work of each rank"} if len(set(trace.busy)) == 1 else OF_TERM
    words = [f"{'+' if time > 0 else '-'} {unit.text(max(time, -time))} ({of[term]})" for term, time in shown]
    return " ".join(words).removeprefix("+ ")


def _difference(trace: Trace, against: Trace, terms: Mapping[str, Number], unit: Unit) -> str:
    one, other = (f"{each.schedule} in {CLOCK_NAMES[each.clock]}" for each in (trace, against))
    other = "the one it is compared with" if other == one else other
    gap = plain(trace.makespan - against.makespan)
    if max(gap, -gap) <= WORTH_SAYING * trace.makespan:
        compared = f"as long as {other}"
    else:
        compared = f"{unit.text(max(gap, -gap))} {'longer' if gap > 0 else 'shorter'} than {other}"
    parts = _sum(terms, trace, unit)
    of = f", and the difference is made of {parts}" if parts else ""
    return f"{one} takes {unit.text(trace.makespan)}, {compared} ({unit.text(against.makespan)}){of}."


def _idle(trace: Trace, idle: Sequence[Mapping[str, Number]], unit: Unit) -> str:
    total = plain(sum(sum(causes.values()) for causes in idle))
    if total <= WORTH_SAYING * trace.makespan * trace.ranks:
        return "No rank is ever idle."
    sums = {cause: plain(sum(causes[cause] for causes in idle)) for cause in CAUSES}
    shown = [f"{unit.text(time)} {OF_CAUSE[cause]}" for cause, time in sums.items() if time > WORTH_SAYING * total]
    share = percent(ratio(total, trace.ranks * trace.makespan))
    return f"All ranks together are idle for {unit.text(total)}, {share} of the step: {listed(shown)}."


def _meetings(trace: Trace, unit: Unit) -> str:
    """What of the work is none: `Trace.busy` leaves it out."""
    inside = plain(sum(span.end - span.start for row in trace.compute for span in row) - sum(trace.busy))
    if inside <= WORTH_SAYING * trace.makespan:
        return ""
    return f"Of the work of all ranks, {unit.text(inside)} are collectives within actions, where tensor shards meet."


def _longest(trace: Trace, pauses: Sequence[Pause], unit: Unit) -> str:
    """The longest pause between two actions of a rank, what it waited for, and why that was late."""
    inner = [pause for pause in pauses if pause.where == DEPENDENCY and pause.waiting_for is not None]
    if not inner or max(pause.length for pause in inner) < trace.makespan / 100:
        return ""
    pause = max(inner, key=lambda pause: pause.length)
    giver, home = pause.waiting_for, rank_of(trace)
    where = f" from rank {home[giver.stage]}" if giver and giver.stage in home else ""
    said = f"No pause between two actions is longer than rank {pause.rank}'s before {pause.before}, "
    said += unit.text(pause.length)
    return f"{said}: it waits for {pause.waiting_for}{where}, {_late(pause)}."


def _late(pause: Pause) -> str:
    """Why what was waited for was late: which is late because 3B0, 2B0 and 1B0 run one after another."""
    work = [leg for leg in pause.meanwhile if leg.kind == "work"]
    hops = sum(leg.kind == "hop" for leg in pause.meanwhile)
    if not work:
        return "which is on its way"
    if len(work) == 1:
        return "which is still running" + ", and then on its way" * (hops > 0)
    chain = f"{listed([str(leg.action) for leg in work])} run"
    if len(work) > MOST_NAMED:
        first, last = work[0], work[-1]
        chain = f"{len(work)} actions, {first.action} on rank {first.rank} to {last.action} on rank {last.rank}, run"
    return f"which is late because {chain} one after another" + f", with {_count(hops, 'hop')} between" * (hops > 0)


def _path(path: Sequence[Leg], unit: Unit) -> str:
    """The critical path, one word a stay on a rank."""
    hops = [leg for leg in path if leg.kind == "hop"]
    stays = [list(legs) for works, legs in groupby(path, key=_stay) if works is not None]
    between = f", and between them {_count(len(hops), 'hop')} ({unit.text(_length(hops))})" if hops else ""
    nothing = [leg for leg in path if leg.kind == "nothing"]
    if _length(nothing) > WORTH_SAYING * (path[-1].end - path[0].start):
        between += f" and {unit.text(_length(nothing))} in which the trace shows nothing"
    if len(stays) <= MOST_STAYS:
        return f"A critical path: {', '.join(_stay_words(stay, unit) for stay in stays)}{between}."
    ranks, actions = len({stay[0].rank for stay in stays}), sum(map(len, stays))
    longest = max(stays, key=_length)
    return (
        f"A critical path goes through {_count(actions, 'action')} on {_count(ranks, 'rank')}{between}; its longest"
        f" stay: {_stay_words(longest, unit)}."
    )


def _stay(leg: Leg) -> int | None:
    """Legs with the same rank are one stay; anything but work ends it."""
    return leg.rank if leg.kind == "work" else None


def _stay_words(stay: Sequence[Leg], unit: Unit) -> str:
    if len(stay) == 1:
        return f"{stay[0].action}"
    first, last = stay[0], stay[-1]
    return f"rank {first.rank} from {first.action} to {last.action} without a pause ({unit.text(_length(stay))})"


def _advice(explanation: "Explanation", unit: Unit) -> str:
    """The change that helps most, and the one that does so in the memory there is, if that is another."""
    tried = explanation.advice
    helps = [change for change in tried if change.gain > WORTH_SAYING * explanation.trace.makespan]
    if not helps:
        return f"None of {_count(len(tried), 'simulated change')} makes it shorter." if tried else ""
    peak = plain(max(explanation.trace.peak_in_flight))
    best, fits = helps[0], next((change for change in helps if change.peak <= peak), None)
    said = f"Of {_count(len(tried), 'simulated change')} none helps more than {_change(best, peak, unit)}"
    if best.peak <= peak:
        return f"{said}; it takes no more memory."
    if fits is None:
        return f"{said}. Within the memory that it takes now, none helps."
    return f"{said}. Within the memory that it takes now, none helps more than {_change(fits, peak, unit)}."


def _change(change: Change, peak: Number, unit: Unit) -> str:
    before = plain(change.trace.makespan + change.gain)
    said = f"{change.what}: {unit.text(change.trace.makespan)} instead of {unit.text(before)}"
    if change.peak > peak:
        said += f", with {digits(number(change.peak))} micro-batches in memory instead of {digits(number(peak))}"
    return said + (f", if {change.assumes}" if change.assumes else "")


def _length(legs: Sequence[Leg]) -> Number:
    return plain(sum(leg.length for leg in legs))


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'s' * (number != 1)}"
