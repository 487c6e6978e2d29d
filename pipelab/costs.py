"""How long does an action take? Work per kind and stage, and the latency of a hop. Read next: `simulate`."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from numbers import Rational, Real
from statistics import median

from pipelab.action import WORK, Action, B, F, I, R, W
from pipelab.dependencies import Value
from pipelab.lower import CARRIES
from pipelab.placement import Placement
from pipelab.trace import Number, Trace, plain


@dataclass(frozen=True)
class Link:
    """An alpha-beta link: a message of n bytes arrives `latency` + n / `bytes_per_second` seconds after it left.

    Raises ValueError when the latency is negative or the bandwidth is not positive.

    >>> Link(latency=0.001, bytes_per_second=1e6).seconds(2000)
    0.003
    """

    latency: float = 0.0
    bytes_per_second: float = float("inf")

    def __post_init__(self) -> None:
        _refuse_negative("latency", self.latency)
        if not self.bytes_per_second > 0:
            raise ValueError(f"bytes_per_second must be positive: got {self.bytes_per_second}")

    def seconds(self, nbytes: float) -> float:
        """Seconds from departure to arrival of a message of `nbytes` bytes."""
        return self.latency + nbytes / self.bytes_per_second

    def among(self, ranks: Iterable[int]) -> "Link":
        """The link that these global ranks share: this one, whoever they are."""
        return self


@dataclass(frozen=True)
class Network:
    """Hosts with a fast link `inside` each and a slow one `between` them; `host_of` has the host of each global rank.

    Raises ValueError for no ranks.

    >>> network = Network((0, 0, 1, 1), inside=Link(bytes_per_second=1e9), between=Link(bytes_per_second=1e8))
    >>> network.among([0, 1]).bytes_per_second, network.among([1, 2]).bytes_per_second
    (1000000000.0, 100000000.0)
    """

    host_of: tuple[int, ...]
    inside: Link
    between: Link

    def __post_init__(self) -> None:
        if not self.host_of:
            raise ValueError("host_of must name the host of each global rank, as in (0, 0, 1, 1): got none")

    def among(self, ranks: Iterable[int]) -> Link:
        """The slowest link on the way around these global ranks."""
        return self.inside if len({self.host_of[rank] for rank in ranks}) == 1 else self.between


@dataclass(frozen=True)
class Costs:
    """The time of every action: F, I, W (and B = I + W), R, and `hop`, the latency between different ranks.

    Make one with `uniform`, `per_stage` or `measured`. A hop delays the receiver and occupies no device. R, where a
    lowered program recomputes, takes as long as F unless a time is given.
    """

    work: Mapping[str, Number | tuple[Number | None, ...]] = field(hash=False)
    hop: Number | Mapping[Value, Number] = field(default=0, hash=False)

    @classmethod
    def uniform(
        cls,
        F: Number = 1,
        I: Number = 1,  # noqa: E741
        W: Number = 1,
        hop: Number = 0,
        R: Number | None = None,
    ) -> "Costs":
        """Equal ranks: the work of one rank for one micro-batch, shared evenly by the stages on that rank.

        Raises ValueError for a negative or non-finite time.

        >>> Costs.uniform(F=1, I=1, W=1).durations(Placement.loop(2, chunks=2))[3, "B"]
        1
        """
        work = {"F": F, "I": I, "W": W} | ({} if R is None else {"R": R})
        for name, value in {**work, "hop": hop}.items():
            _refuse_negative(name, value)
        return cls(work, hop)

    @classmethod
    def per_stage(
        cls,
        F: Sequence[Number],
        I: Sequence[Number],  # noqa: E741
        W: Sequence[Number],
        hop: Number = 0,
        R: Sequence[Number] | None = None,
    ) -> "Costs":
        """Unequal stages: one time for each stage (not rank). Raises ValueError for unequal lengths.

        >>> Costs.per_stage(F=[1, 2], I=[1, 2], W=[1, 2]).durations(Placement.loop(2))[1, "B"]
        4
        """
        work = {"F": tuple(F), "I": tuple(I), "W": tuple(W)} | ({} if R is None else {"R": tuple(R)})
        if len({len(times) for times in work.values()}) != 1:
            lengths = ", ".join(f"{kind} {len(times)}" for kind, times in work.items())
            raise ValueError(f"F, I and W{' and R' if R else ''} need one time for each stage: got {lengths}")
        for kind, times in work.items():
            for value in times:
                _refuse_negative(kind, value)
        _refuse_negative("hop", hop)
        return cls(work, hop)

    @classmethod
    def measured(cls, traces: Trace | Iterable[Trace]) -> "Costs":
        """The median time of each stage and kind in one or several traces, and the median flight of each message.

        >>> from pipelab import build, simulate
        >>> Costs.measured(simulate(build("1f1b", 2, 5), Costs.uniform())).durations(Placement.loop(2))[0, "B"]
        2
        """
        times: dict[Value, list[Number]] = {}
        flights: dict[Value, list[Number]] = {}
        for trace in [traces] if isinstance(traces, Trace) else traces:
            for span in trace.spans:
                if not isinstance(span.action, Action):
                    continue  # a pair's time says nothing of its two halves
                stage, kind, _ = span.action
                if span.lane == "compute":
                    times.setdefault((stage, kind), []).append(span.end - span.start)
                elif span.lane == "send":
                    flights.setdefault((stage, CARRIES[kind]), []).append(span.end - span.start)
        if not times:
            raise ValueError("this trace has no compute spans to measure costs from")
        medians = {value: middle(values) for value, values in times.items()}
        return cls.by_value(medians, {value: middle(values) for value, values in flights.items()})

    @classmethod
    def by_value(cls, times: Mapping[Value, Number], hop: Number | Mapping[Value, Number] = 0) -> "Costs":
        """The time of each (stage, kind) that is known.

        >>> Costs.by_value({(0, "F"): 1, (1, "F"): 2, (1, "B"): 3}).work
        {'F': (1, 2), 'B': (None, 3)}
        """
        stages, kinds = range(1 + max(stage for stage, _ in times)), {kind for _, kind in times}
        return cls({kind: tuple(times.get((s, kind)) for s in stages) for kind in WORK if kind in kinds}, hop)

    def durations(self, placement: Placement) -> "Durations":
        """The time of every (stage, kind) under this placement.

        Raises ValueError when per-stage times are given for another number of stages, and, on look-up, for a kind
        that was not measured.
        """
        table = Durations()
        chunks = placement.chunks_per_rank()
        for kind, times in self.work.items():
            if isinstance(times, tuple):
                if len(times) != placement.stages:
                    raise ValueError(
                        f"the costs have {len(times)} stages and the schedule {placement.stages}; give one time a stage"
                    )
                table.update({(stage, kind): time for stage, time in enumerate(times) if time is not None})
            else:
                for stage, rank in enumerate(placement.rank_of):
                    table[stage, kind] = share(times, chunks[rank])
        for stage in range(placement.stages):
            if (stage, B) not in table and (stage, I) in table and (stage, W) in table:
                table[stage, B] = plain(table[stage, I] + table[stage, W])
        return table

    def latency(self, value: Value) -> Number:
        """The latency of the message that carries this (stage, kind) to another rank."""
        return self.hop.get(value, 0) if isinstance(self.hop, Mapping) else self.hop


class Durations(dict[Value, Number]):
    """Times by (stage, kind); looking up one that is not known raises ValueError with the remedy, but R is as F."""

    def __missing__(self, value: Value) -> Number:
        stage, kind = value
        if kind == R and (stage, F) in self:
            return self[stage, F]
        known = ", ".join(sorted({kind for _, kind in self}))
        raise ValueError(
            f"these costs say nothing of {kind} on stage {stage}, only of {known};"
            " measure them on a schedule that splits the backward, such as zb-h1"
        )


def share(work: Number, parts: int) -> Number:
    """`work` / `parts`, exact where `work` is, and an int where it comes out even.

    >>> share(3, 2), share(4, 2), share(0.5, 2)
    (Fraction(3, 2), 2, 0.25)
    """
    if not isinstance(work, Rational):
        return work / parts
    return plain(Fraction(work) / parts)


def middle(values: Sequence[Number]) -> Number:
    """The median, exact where the values are.

    >>> middle([1, 2]), middle([0.5, 1.0, 4.0])
    (Fraction(3, 2), 1.0)
    """
    exact = [Fraction(value) for value in values if isinstance(value, Rational)]
    return plain(median(exact)) if len(exact) == len(values) else float(median(map(float, values)))


def _refuse_negative(name: str, value: Number) -> None:
    if not isinstance(value, Real) or not 0 <= value < float("inf"):
        raise ValueError(f"{name} must be a time of at least 0: got {value!r}")
