"""What did one rank do in one step? Its spans, losses and bytes; and what the ranks' records tell together."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from torch import nn

from pipelab.action import Action
from pipelab.collectives import Traffic
from pipelab.data_parallel import GradientSum
from pipelab.holdings import Counted, Holdings, Memory
from pipelab.schedule import Schedule
from pipelab.trace import Span, Trace
from pipelab.watch import Finding
from pipelab.weight_versions import Update
from pipelab.zero import ShardedUpdate

KEPT = 100
"""So many steps keep their spans, the last ones of a run; of those before, their figures are left."""


@dataclass
class Record:
    """What one rank did in one step; `counted`, `parameters` (by stage), `optimizer` and `buffers` are what it held.

    `peak` is most activation bytes at any moment; of it and of `buffers` the most of all steps so far counts (`after`).
    """

    spans: list[Span] = field(default_factory=list)
    curve: list[tuple[float, int]] = field(default_factory=list)
    losses: dict[int, float] = field(default_factory=dict)
    own_losses: dict[tuple[int, int], float] = field(default_factory=dict)
    updates: list[Update] = field(default_factory=list)
    norms: dict[Action, float] = field(default_factory=dict)
    findings: list[Finding] = field(default_factory=list)
    traffic: Traffic = field(default_factory=dict)
    gradient_norm: float | None = None
    counted: Counted = field(default_factory=Counted)
    parameters: Mapping[int, int] = field(default_factory=dict)
    optimizer: int = 0
    buffers: int = 0
    peak: int = 0

    def after(self, earlier: "Record") -> None:
        """Count the peak, and take over what was more in the steps before, for their records will be gone."""
        self.peak = max(earlier.peak, *(held for _, held in self.curve), 0)
        self.buffers = max(earlier.buffers, self.buffers)


def trace_of(schedule: Schedule, clock: str, records: Sequence[Record]) -> Trace:
    """The trace of one execution, from what every rank did."""
    spans = tuple(span for record in records for span in record.spans)
    return Trace(schedule.name, clock, schedule.placement.chunks_per_rank(), spans)


def parameter_bytes(layers: Mapping[int, nn.Module], sums: GradientSum | ShardedUpdate | None = None) -> dict[int, int]:
    """The weights and buffers of each stage of a rank: what stages share counts for the first.

    With ZeRO-1 the share that the optimizer updates is a copy.
    """
    seen: set[int] = set()
    found = {}
    for stage, own in layers.items():
        new = {id(t): t.nbytes for t in (*own.parameters(), *own.buffers()) if id(t) not in seen}
        seen |= new.keys()
        shares = (
            [s.own.nbytes for s in sums.shares if s.bucket.stage == stage] if isinstance(sums, ShardedUpdate) else []
        )
        found[stage] = sum(new.values()) + sum(shares)
    return found


def memory_of(steps: Sequence[Sequence[Record]], typical: int, pipelines: Sequence[Sequence[int]]) -> Memory:
    """The peak of every global rank over all steps, and what it held in a typical one; `curves` of the first pipeline.

    `pipelines` has the global ranks of each.
    """
    last = steps[-1]
    curves = tuple(tuple(steps[typical][member].curve) for member in pipelines[0])
    held = tuple(_holdings(*records) for records in zip(steps[typical], last, strict=True))
    return Memory(tuple(record.peak for record in last), curves, held, tuple(map(tuple, pipelines)))


def _holdings(record: Record, last: Record) -> Holdings:
    updates = [span for span in record.spans if span.lane == "memory"]
    return Holdings(
        spans=tuple(record.spans),
        counted=record.counted,
        parameters=record.parameters,
        versions=tuple((span.end, one.stage, one.held) for span, one in zip(updates, record.updates, strict=True)),
        optimizer=last.optimizer,
        buffers=last.buffers,
    )
