"""What did a run measure? Losses, traces, memory, and the bubble by measurement, by replay and by formula."""

import itertools
from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor, nn

from pipelab.action import Action, B, F, I, Pair, W
from pipelab.costs import Costs, middle
from pipelab.formulas import formula
from pipelab.holdings import Memory
from pipelab.mesh import Mesh
from pipelab.schedule import Schedule
from pipelab.simulate import simulate
from pipelab.trace import BUBBLES, Trace
from pipelab.weight_versions import Versions


@dataclass(frozen=True, repr=False)
class Run:
    """What a training run did: the loss of each step, the trace and the memory of a typical step, the bubbles.

    `traces` has one trace a step, `trace` the one of median makespan, and `memory` the activation bytes of that step
    (its `peaks` are over all steps). `clock` says whose seconds these are. `pids` has the process of each global rank,
    `first` is whether this process tells of the run. `cores` is how many processors the ranks shared, where that is
    known, and `residual` by how many seconds the clocks of different hosts may be apart. `norms` has, for each step of
    a watched run, the norm of every stage's output (under its F) and of its input's gradient (under its I). Without a
    flush the steps are one schedule and one trace, and `versions` says which versions of the weights there were. `at`
    has the first layer of each stage but the first.
    """

    schedule: Schedule
    mesh: Mesh
    losses: list[float]
    traces: list[Trace]
    trace: Trace
    memory: Memory
    model: nn.Sequential
    pids: tuple[int, ...] = ()
    first: bool = True
    cores: int | None = None
    residual: float = 0.0
    norms: tuple[dict[Action, float], ...] = ()
    versions: Versions | None = None
    at: tuple[int, ...] = ()

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
        """Median makespan of the steps in seconds of the run's clock; without a flush, an even share of the whole."""
        steps_in_a_trace = len(self.losses) // len(self.traces)
        return float(middle([trace.makespan for trace in self.traces])) / steps_in_a_trace

    def costs(self) -> Costs:
        """The median time of each stage and kind over all steps."""
        return Costs.measured(self.traces)

    def replay(self) -> Trace:
        """The same schedule simulated with the run's own median times."""
        return simulate(self.schedule, self.costs())

    def bubbles(self) -> dict[str, dict[str, float] | None]:
        """Three figures side by side, each as step, span and overhead.

        `measured` is the median over the steps; `replayed` comes from the simulator with the run's median times;
        `formula` is the closed form for equal stages with the run's mean F, I and W, None outside its domain.
        """
        measured = {kind: float(middle([trace.bubble(kind) for trace in self.traces])) for kind in BUBBLES}
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
        """Mean F, I and W of one rank for one micro-batch; a full backward counts as I, for a formula needs I + W."""
        busy = {F: 0.0, I: 0.0, W: 0.0}
        for trace in self.traces:
            for span in itertools.chain(*trace.compute):
                if isinstance(span.action, Pair):
                    raise ValueError("a pair's time cannot be told apart into F, I and W")
                kind = I if span.action.kind == B else span.action.kind
                busy[kind] += float(span.end - span.start)
        share = len(self.traces) * self.schedule.ranks * self.schedule.microbatches
        return {kind: seconds / share for kind, seconds in busy.items()}

    def parameters(self) -> dict[str, Tensor]:
        """Every parameter after the last step, under its name in the uncut model."""
        return {name: parameter.detach() for name, parameter in self.model.named_parameters()}
