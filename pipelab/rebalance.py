"""Which layer should move? From the timeline of a run: the one move whose simulated step is the shortest.

The run says how long each stage took, the profile how much of that is whose. So a move is predicted from the run's own
times, and then verified by running it: `train(..., at=move.at)`.
"""

from dataclasses import dataclass

from pipelab.costs import Costs
from pipelab.cut_search import moves
from pipelab.profile import Profile
from pipelab.run import Run
from pipelab.simulate import simulate

LEAST = 0.01
"""The least gain that is worth a move: two runs of one cut differ by more."""


@dataclass(frozen=True)
class Move:
    """One layer (its place in the model) goes from stage `source` to stage `target`, which makes the cut `at`.

    `before` and `after` are the steps in seconds, both simulated with the times of the run. `ranks` are those of the
    two stages.
    """

    layer: int
    source: int
    target: int
    ranks: tuple[int, int]
    at: tuple[int, ...]
    before: float
    after: float

    @property
    def change(self) -> float:
        """By what share of itself the step becomes longer: negative for a gain."""
        return self.after / self.before - 1

    def __str__(self) -> str:
        """The suggestion in a sentence.

        >>> print(Move(7, source=2, target=3, ranks=(2, 3), at=(2, 4, 7), before=0.1, after=0.091))
        move layer 7 from rank 2 to rank 3: predicted -9.0 %, 91.0 instead of 100.0 ms a step
        """
        names = [f"rank {rank}" for rank in self.ranks]
        if self.ranks != (self.source, self.target):
            names = [f"stage {s} ({name})" for s, name in zip((self.source, self.target), names, strict=True)]
        steps = f"{1e3 * self.after:.1f} instead of {1e3 * self.before:.1f} ms a step"
        return f"move layer {self.layer} from {names[0]} to {names[1]}: predicted {100 * self.change:+.1f} %, {steps}"


def suggest_move(run: Run, profile: Profile) -> Move | None:
    """The move of one layer across one cut that shortens the step most; None where that is less than one per cent.

    `profile` is that of the run's model, for micro-batches of the same size. Messages take what they took in the run.
    Raises ValueError for the profile of another model.
    """
    if len(profile) != len(run.model):
        raise ValueError(
            f"the profile has {len(profile)} layers and the run's model {len(run.model)}; profile that one"
        )
    seen = run.costs()
    layers = profile.calibrated(seen, run.at)

    def step(at: tuple[int, ...]) -> float:
        return float(simulate(run.schedule, Costs(layers.costs(at).work, seen.hop)).makespan)

    before, rank_of = step(run.at), run.schedule.placement.rank_of
    tried = [
        Move(layer, source, target, (rank_of[source], rank_of[target]), at, before, step(at))
        for layer, source, target, at in moves(run.at, len(profile))
    ]
    best = min(tried, key=lambda move: move.after, default=None)
    return best if best is not None and best.change < -LEAST else None
