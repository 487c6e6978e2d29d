"""What did a run measure? Losses, traces, memory, and the bubble by measurement, by replay and by formula."""

import itertools
from collections.abc import Mapping
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any

from torch import Tensor, nn

from pipelab.action import Action, B, F, I, Pair, R, W, parts
from pipelab.collectives import Traffic, add_traffic
from pipelab.costs import Costs, middle
from pipelab.formulas import formula
from pipelab.holdings import Memory
from pipelab.lower import Program
from pipelab.mesh import Mesh
from pipelab.outline import Figures
from pipelab.recompute import uniform
from pipelab.schedule import Schedule
from pipelab.simulate import simulate, simulate_program
from pipelab.state import State
from pipelab.trace import BUBBLES, Trace
from pipelab.weight_versions import Versions


@dataclass(frozen=True, repr=False)
class Run:
    """What a training run did: the loss of each step, the trace and the memory of a typical step, the bubbles.

    `losses` and `figures` (what a step came to) have every step. Spans are kept of the last 100 steps alone
    (`pipelab.record.KEPT`), so that a run may be long: `traces` has one trace for each of these, `trace` is the one of
    median makespan, and `memory` the activation bytes of that step (its `peaks` are over all steps of the run). `clock`
    says whose seconds these are. `pids` has the process of each global rank, `first` is whether this process tells of
    the run. `cores` is how many processors the ranks shared, where that is known, and `residual` by how many seconds
    the clocks of different hosts may be apart. `norms` has, for each kept step of a watched run, the norm of every
    stage's output (under its F) and of its input's gradient (under its I). Without a flush the steps are one schedule
    and one trace, and `versions` says which versions of the weights there were. `at` has the first layer of each stage
    but the first.

    On a mesh with replicas or shards there are several pipelines: `traces`, `trace` and the curves of `memory` are
    those of global rank 0's, `replicas` and `figures` have those of each by its (dp, tp), and the peaks are of all
    global ranks. `traffic` has, for each kept step and global rank, what it sent (see `sent`); `gradient_norms` has the
    global norm of each step before clipping, `evaluations` a (step, mean loss) for each evaluation.

    `state` is what training can go on from (`train(..., resume=run)`), `arguments` what else `train` was given, for
    `reshape`; None and empty where this process cannot go on with the run.
    """

    schedule: Schedule
    program: Program
    mesh: Mesh
    losses: list[float]
    traces: list[Trace]
    trace: Trace
    memory: Memory
    model: nn.Sequential
    figures: Mapping[tuple[int, int], list[Figures]]
    pids: tuple[int, ...] = ()
    first: bool = True
    cores: int | None = None
    residual: float = 0.0
    norms: tuple[dict[Action, float], ...] = ()
    versions: Versions | None = None
    at: tuple[int, ...] = ()
    replicas: Mapping[tuple[int, int], list[Trace]] = field(default_factory=dict)
    traffic: tuple[tuple[Traffic, ...], ...] = ()
    evaluations: list[tuple[int, float]] = field(default_factory=list)
    gradient_norms: list[float | None] = field(default_factory=list)
    state: State | None = None
    arguments: Mapping[str, Any] = field(default_factory=dict)

    def __repr__(self) -> str:
        step = f"{1e3 * self.step_seconds:.1f} ms a step in {self.clock_label}"
        return f"<Run of {self.schedule.name}: {len(self.losses)} steps, loss {self.losses[-1]:.3f}, {step}>"

    @property
    def clock(self) -> str:
        """ "virtual" or "wall"."""
        return self.trace.clock

    @property
    def clock_label(self) -> str:
        """The clock in words, with a warning where a wall clock shows ranks that took turns on the processors."""
        ranks = self.mesh.size
        if self.clock == "wall" and self.cores is not None and self.cores < ranks:
            return f"wall time, time-shared: {ranks} ranks on {self.cores} cores"
        return f"{self.clock} time"

    @property
    def step_seconds(self) -> float:
        """Median time of a step in seconds of the run's clock, until the last pipeline is done and all gradients are
        summed; without a flush, an even share of the whole."""
        durations = [max(figures.duration for figures in step) for step in zip(*self.figures.values(), strict=True)]
        return float(middle(durations)) / (len(self.losses) // len(durations))

    @property
    def _pipelines(self) -> list[list[Trace]]:
        return list(self.replicas.values()) or [self.traces]

    def sent(self, global_rank: int | None = None) -> Traffic:
        """What a rank (or all together) sent in the last step: times and bytes by axis and kind."""
        total: Traffic = {}
        for rank, traffic in enumerate(self.traffic[-1] if self.traffic else ()):
            if global_rank in (None, rank):
                add_traffic(total, traffic)
        return total

    def costs(self) -> Costs:
        """The median time of each stage and kind over all pipelines and all steps whose spans are kept."""
        return Costs.measured([trace for traces in self._pipelines for trace in traces])

    def replay(self) -> Trace:
        """The same schedule, with what it recomputes, simulated with the run's own median times; collectives within
        actions are at their ends."""
        trace, inside = self._replayed(), self._inside()
        within = [
            span._replace(
                lane="collective", start=float(span.end) - sum(inside.get(action[:2], 0.0) for action in both)
            )
            for span in (trace.spans if inside else ())
            for both in [parts(span.action)]
        ]
        return Trace(trace.schedule, trace.clock, trace.chunks, (*trace.spans, *within)) if within else trace

    def _replayed(self) -> Trace:
        costs = self.costs()
        if R not in costs.work:
            return simulate(self.schedule, costs)
        played = simulate_program(self.program, costs)
        return Trace(played.schedule, played.clock, played.chunks, tuple(itertools.chain(*played.compute)))

    def _inside(self) -> dict[tuple[int, str], float]:
        """By stage and kind the median time that an action waits in collectives: tensor shards meet there."""
        waits: dict[tuple[int, str], list[float]] = {}
        for trace in itertools.chain(*self._pipelines):
            for key, wait in trace.waits_inside():
                waits.setdefault(key, []).append(wait)
        return {key: float(middle(times)) for key, times in waits.items()}

    def bubbles(self) -> dict[str, dict[str, float] | None]:
        """Three figures side by side, each as step, span and overhead.

        `measured` is the median over the steps, the mean over the pipelines of a mesh; `replayed` comes from the
        simulator with the run's median times; `formula` is the closed form for equal stages with the run's mean F, I
        and W (both of the steps whose spans are kept), None outside its domain.
        """
        measured = {
            kind: fmean(float(middle([step.bubble(kind) for step in figures])) for figures in self.figures.values())
            for kind in BUBBLES
        }
        replayed = {kind: float(bubble) for kind, bubble in self.replay().bubbles().items()}
        return {"measured": measured, "replayed": replayed, "formula": self._formula()}

    def _formula(self) -> dict[str, float] | None:
        schedule, costs = self.schedule, self.costs()
        shape = {"P": schedule.ranks, "M": schedule.microbatches, "V": schedule.stages // schedule.ranks}
        hops = list(costs.hop.values()) if isinstance(costs.hop, Mapping) else []
        try:
            times = {**self._mean_work(), "hop": float(sum(hops)) / max(len(hops), 1)}
            return {
                kind: float(formula(schedule.name, f"bubble_{kind}", **shape, **times))  # type: ignore[arg-type]
                for kind in BUBBLES
            }
        except ValueError:
            return None

    def _mean_work(self) -> dict[str, float]:
        """Mean F, I and W of one rank for one micro-batch; a full backward counts as I, for a formula needs I + W, and
        so does an R right before every backward."""
        if not uniform(self.program.rows, self.schedule):
            raise ValueError("no formula knows of an R elsewhere, or of some micro-batches only")
        busy = {F: 0.0, I: 0.0, W: 0.0}
        for trace in self.traces:
            for span in itertools.chain(*trace.compute):
                if isinstance(span.action, Pair):
                    raise ValueError("a pair's time cannot be told apart into F, I and W")
                kind = I if span.action.kind in (B, R) else span.action.kind
                busy[kind] += float(span.end - span.start)
        share = len(self.traces) * self.schedule.ranks * self.schedule.microbatches
        return {kind: seconds / share for kind, seconds in busy.items()}

    def parameters(self) -> dict[str, Tensor]:
        """Every parameter after the last step, under its name in the uncut model."""
        return {name: parameter.detach() for name, parameter in self.model.named_parameters()}
