"""In which unit, and by which clock? Every time that is shown names both, and every bubble its definition."""

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from pipelab.action import parts
from pipelab.trace import BUBBLES, Number, Trace, number

CLOCK_NAMES = {"simulated": "simulated time", "virtual": "virtual time", "wall": "wall-clock time"}

BUBBLE_MEANINGS = {
    "step": "idle share of the whole step",
    "span": "idle share of the longest span, beside the busiest rank",
    "overhead": "makespan above the busiest rank's work",
}


class Unit(NamedTuple):
    """A time unit: its name ("" in simulated time) and how many of it are 1 in the trace."""

    name: str
    scale: int

    def of(self, value: Number) -> int | float:
        """A time of the trace in this unit.

        >>> Unit("ms", 1000).of(0.25)
        250.0
        """
        return number(value) * self.scale

    def text(self, value: Number) -> str:
        """A time of the trace in four digits, with the unit's name.

        >>> Unit("ms", 1000).text(0.0123456), Unit("", 1).text(28.5)
        ('12.35 ms', '28.5')
        """
        return f"{digits(self.of(value))} {self.name}".rstrip()


def time_unit(traces: Sequence[Trace]) -> Unit:
    """The unit for one or several traces on one axis: µs, ms or s, and no unit where all are simulated.

    A simulated trace beside a measured one is taken to be in seconds, as the costs are that were measured.

    >>> from pipelab import Costs, build, simulate
    >>> time_unit([simulate(build("gpipe", 2, 2), Costs.uniform())])
    Unit(name='', scale=1)
    """
    if all(trace.clock == "simulated" for trace in traces):
        return Unit("", 1)
    return unit_for(max((trace.makespan for trace in traces), key=float))


def unit_for(longest: Number) -> Unit:
    """The unit in which to tell seconds, of which this is the highest number.

    >>> unit_for(0.25)
    Unit(name='ms', scale=1000)
    """
    if longest >= 1:
        return Unit("s", 1)
    return Unit("ms", 1000) if longest >= 0.001 or not longest else Unit("µs", 1_000_000)


def origin(trace: Trace) -> Number:
    """The first start of any work: where the time axis begins.

    >>> origin(Trace("empty", "wall", (1,), ()))
    0
    """
    return min((row[0].start for row in trace.compute if row), default=0)


def digits(value: int | float) -> str:
    """A number in at least four digits, without the zeros that say nothing.

    >>> digits(33), digits(28.50), digits(123456.7), digits(1 / 3)
    ('33', '28.5', '123457', '0.3333')
    """
    return f"{value:.4g}" if abs(value) < 10_000 and not isinstance(value, int) else f"{value:.0f}"


def percent(share: Number) -> str:
    """A share as per cent, with one decimal.

    >>> percent(3 / 11)
    '27.3 %'
    """
    return f"{abs(round(100 * float(share), 1)):.1f} %"


def mebibytes(sizes: Iterable[int]) -> str:
    """Numbers of bytes, such as one a rank, in MiB.

    >>> mebibytes([2**20, 3 * 2**19])
    '1.00 1.50'
    """
    return " ".join(f"{size / 2**20:.2f}" for size in sizes)


def bubbles_text(trace: Trace) -> str:
    """The three bubbles, each with its name.

    >>> from pipelab import Costs, build, simulate
    >>> bubbles_text(simulate(build("1f1b", ranks=4, microbatches=8), Costs.uniform()))
    'step 27.3 %, span 27.3 %, overhead 37.5 %'
    """
    return ", ".join(f"{kind} {percent(trace.bubble(kind))}" for kind in BUBBLES)


def figures_text(trace: Trace, unit: Unit | None = None) -> str:
    """The clock, the makespan and the three bubbles in one line.

    >>> from pipelab import Costs, build, simulate
    >>> figures_text(simulate(build("1f1b", ranks=4, microbatches=8), Costs.uniform()))
    'simulated time: makespan 33; bubbles: step 27.3 %, span 27.3 %, overhead 37.5 %'
    """
    unit = unit or time_unit([trace])
    clock = CLOCK_NAMES.get(trace.clock, trace.clock)
    return f"{clock}: makespan {unit.text(trace.makespan)}; bubbles: {bubbles_text(trace)}"


def time_label(clocks: Iterable[str], unit: Unit) -> str:
    """The words at a time axis: its clocks and its unit.

    >>> time_label(["simulated"], Unit("", 1)), time_label(["virtual", "wall"], Unit("ms", 1000))
    ('simulated time (in the unit of the costs)', 'virtual time and wall-clock time (ms)')
    """
    names = dict.fromkeys(CLOCK_NAMES.get(clock, clock) for clock in clocks)
    return f"{' and '.join(names)} ({unit.name or 'in the unit of the costs'})"


def finding(trace: Trace) -> str:
    """What a timeline shows, in one sentence.

    >>> from pipelab import Costs, build, simulate
    >>> finding(simulate(build("1f1b", ranks=4, microbatches=8), Costs.uniform()))
    '1f1b: 27.3 % of the step is idle'
    """
    return f"{trace.schedule}: {percent(trace.bubble('step'))} of the step is idle"


def chunk_of(trace: Trace) -> dict[int, int]:
    """For each stage the index of the chunk that it is on its rank.

    >>> from pipelab import Costs, build, simulate
    >>> chunk_of(simulate(build("interleaved", ranks=2, microbatches=2, chunks=2), Costs.uniform()))
    {0: 0, 2: 1, 1: 0, 3: 1}
    """
    stages = ({action.stage for span in row for action in parts(span.action)} for row in trace.compute)
    return {stage: chunk for held in stages for chunk, stage in enumerate(sorted(held))}


def rank_of(trace: Trace) -> dict[int, int]:
    """For each stage the rank that works on it.

    >>> from pipelab import Costs, build, simulate
    >>> rank_of(simulate(build("gpipe", ranks=2, microbatches=1), Costs.uniform()))
    {0: 0, 1: 1}
    """
    return {action.stage: span.rank for row in trace.compute for span in row for action in parts(span.action)}


def pipelines(trace: Trace) -> list[int]:
    """For each rank, to which of several like pipelines it belongs: so many ranks before it begin as it does. On a mesh
    there are as many as replicas and shards, else one.

    >>> from pipelab import Costs, build, simulate
    >>> pipelines(simulate(build("gpipe", ranks=2, microbatches=1), Costs.uniform()))
    [0, 0]
    """
    before: Counter[int] = Counter()
    found = []
    for row in trace.compute:
        stage = parts(row[0].action)[0].stage if row else -1
        found.append(before[stage])
        before[stage] += stage >= 0
    return found


def homes(trace: Trace) -> list[dict[int, int]]:
    """For each rank, the ranks of its own pipeline, by stage.

    >>> from pipelab import Costs, build, simulate
    >>> homes(simulate(build("gpipe", ranks=2, microbatches=1), Costs.uniform()))
    [{0: 0, 1: 1}, {0: 0, 1: 1}]
    """
    of = pipelines(trace)
    found: dict[int, dict[int, int]] = {pipeline: {} for pipeline in of}
    for row in trace.compute:
        for span in row:
            found[of[span.rank]].update((action.stage, span.rank) for action in parts(span.action))
    return [found[pipeline] for pipeline in of]


def listed(names: Sequence[str]) -> str:
    """Names in a sentence.

    >>> listed(["gpipe", "1f1b", "zb-h1"])
    'gpipe, 1f1b and zb-h1'
    """
    return " and ".join(filter(None, [", ".join(names[:-1]), *names[-1:]]))
