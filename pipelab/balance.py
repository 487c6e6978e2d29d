"""Where should a model be cut? By number of layers, parameters, time or memory, or so that the step is the shortest.

    uniform      every stage has as many layers as the next
    parameters   the stage with the most parameters has as few as possible
    time         the stage that works longest works as little as possible
    memory       the rank that holds most holds as little as possible, and then the step is as short as possible
    optimal      the simulated step is as short as possible, within a limit of memory

The first three look at stages alone. The last two know the schedule, what it keeps in flight, and which ranks hold
which stages. They are exact where that is cheap and say so (`Balance.exact`); elsewhere they are the best found, beside
a lower bound.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache, cached_property
from itertools import accumulate, pairwise
from math import inf

from pipelab.action import B, F, I, W, parts
from pipelab.costs import Link
from pipelab.cut_search import Cut, Found, best_cut, bottleneck
from pipelab.partition import balanced_boundaries, check_boundaries
from pipelab.profile import Profile
from pipelab.schedule import Schedule
from pipelab.simulate import simulate

POLICIES = ("uniform", "parameters", "time", "memory", "optimal")
SEARCHED = ("memory", "optimal")
Held = Callable[[Cut], Sequence[int]]
"""The bytes that each rank holds with a cut."""
STATES = 4
"""Copies of each parameter that a rank holds under AdamW: the parameter, its gradient and two moments."""
EFFORT = 200_000  # bounds that a search may look at, some seconds; to simulate two actions takes as long as one bound


@dataclass(frozen=True)
class Balance:
    """A cut (`at`: the first layer of each stage but the first), and what it is predicted to take.

    `step` is the simulated makespan in the seconds of the profile, `bytes` what each rank holds at most: parameters
    with gradients and optimizer, and saved activations. Of a policy that searches, no cut is below `bound`.
    """

    policy: str
    at: Cut
    step: float
    bytes: tuple[int, ...]
    exact: bool = True
    bound: float | None = None

    def __str__(self) -> str:
        """What it is, in a sentence.

        >>> print(Balance("optimal", (2, 4), 0.0123, (2**20, 2**21, 2**20), exact=False, bound=0.012))
        optimal: cut before layers 2, 4; predicted step 12.30 ms, at most 2.0 MiB on a rank; not proved the best
        """
        where = f"cut before layers {', '.join(map(str, self.at))}" if self.at else "not cut"
        held = f"at most {max(self.bytes) / 2**20:.1f} MiB on a rank"
        proof = "" if self.exact else "; not proved the best"
        return f"{self.policy}: {where}; predicted step {1e3 * self.step:.2f} ms, {held}{proof}"


def balance(
    policy: str, profile: Profile, schedule: Schedule, *,
    link: Link = Link(), limit: float = inf, held: Held | None = None,  # noqa: B008 (a frozen value)
) -> Balance:  # fmt: skip
    """Cut the model of this profile for this schedule by one of `POLICIES`; `limit` is the bytes that a rank may hold.

    A search adds up layers, which leaves out what an action makes and drops, and all other axes of a mesh. `held` says
    what a cut holds indeed, as `predict_memory` does: then that is bounded and told, and the sums are lowered to it.

    Raises ValueError for another policy, for fewer layers than stages, and where the limit cannot be kept.

    >>> from pipelab import build
    >>> ones = (1.0,) * 6
    >>> layers = Profile(tuple("012345"), dict(F=ones, B=ones, I=ones, W=ones), (8,) * 6, (8,) * 6, (1,) * 6, (1,) * 6)
    >>> balance("uniform", layers, build("1f1b", ranks=2, microbatches=4)).at
    (3,)
    >>> balance("memory", layers, build("1f1b", ranks=2, microbatches=4)).at  # rank 0 keeps two micro-batches
    (2,)
    """
    if not limit > 0:
        raise ValueError(f"limit is the bytes that a rank may hold, and positive: got {limit:g}; leave it out for none")
    if policy not in POLICIES:
        raise ValueError(f"a model is balanced by {', '.join(POLICIES)}: got {policy!r}")
    if schedule.stages > len(profile):
        raise ValueError(
            f"a model of {len(profile)} layers cannot fill {schedule.stages} stages; use at most {len(profile)}"
        )
    plan = _Plan(profile, schedule, link, limit if held is None else inf)
    found = plan.by(policy)
    if held is None:
        return _within(found, limit)
    told = replace(found, bytes=tuple(held(found.at)))
    while policy in SEARCHED and max(told.bytes) > limit and max(found.bytes) <= plan.limit:
        plan = _Plan(profile, schedule, link, max(found.bytes) - (max(told.bytes) - limit))
        found = plan.by(policy)
        told = replace(found, bytes=tuple(held(found.at)))
    return _within(told, limit)


def predict(
    name: str, at: Cut, profile: Profile, schedule: Schedule, *, link: Link = Link(),  # noqa: B008 (a frozen value)
) -> Balance:  # fmt: skip
    """What a cut of one's own takes, under a name for it. Raises ValueError where it is no cut of these layers.

    >>> from pipelab import build
    >>> ones = (1.0,) * 6
    >>> layers = Profile(tuple("012345"), dict(F=ones, B=ones, I=ones, W=ones), (8,) * 6, (8,) * 6, (1,) * 6, (1,) * 6)
    >>> predict("mine", (1,), layers, build("gpipe", ranks=2, microbatches=1)).step
    12.0
    """
    at = check_boundaries(at, schedule.stages, len(profile))
    return _Plan(profile, schedule, link, inf).of(name, at)


def _within(result: Balance, limit: float) -> Balance:
    """The same, or ValueError where a rank would hold too much."""
    most = max(result.bytes)
    if most > limit:
        needs = f"rank {result.bytes.index(most)} would hold {most / 2**20:.2f} MiB of {limit / 2**20:.2f}"
        remedy = "balance by memory or optimal, or allow more"
        if result.policy in SEARCHED:
            remedy = "allow more, or take more ranks, smaller micro-batches or a schedule with fewer in flight"
        raise ValueError(f"the cut by {result.policy} does not fit: {needs}; {remedy}")
    return result


class _Plan:
    """One model, one schedule: what any cut takes, and the searches for the best."""

    def __init__(self, profile: Profile, schedule: Schedule, link: Link, limit: float) -> None:
        self.profile, self.schedule, self.link, self.limit = profile, schedule, link, limit
        self.rank_of, self.stages = schedule.placement.rank_of, schedule.stages
        whole, split = (kind in {a.kind for _, _, a in schedule.actions()} for kind in (B, W))
        times = profile.work
        # Of rows that mix whole and split backwards the bounds take the cheaper of the two.
        backward = {
            (True, False): times[B],
            (False, True): [i + w for i, w in zip(times[I], times[W], strict=True)],
        }.get((whole, split)) or [min(b, i + w) for b, i, w in zip(times[B], times[I], times[W], strict=True)]
        self.work = [f + b for f, b in zip(times[F], backward, strict=True)]
        self.until = [0.0, *accumulate(self.work)]
        self.before = [0.0, *accumulate(times[F])]  # until a first micro-batch comes this far
        self.after = [0.0] * (len(profile) + 1) if split else [0.0, *accumulate(times[B])]  # and its gradient back
        self.sizes = [
            [0, *accumulate(sizes)]
            for sizes in (profile.held, profile.waiting, [STATES * p for p in profile.parameters])
        ]
        self.kept = kept_at_most(schedule)
        self.step = cache(self._step)
        """The simulated makespan of a cut."""

    def of(self, policy: str, at: Cut) -> Balance:
        """What this cut takes."""
        return Balance(policy, at, self.step(at), self.bytes(at))

    def by(self, policy: str) -> Balance:
        """The cut by this policy; one that searches keeps to the limit, or gives the leanest."""
        if policy in SEARCHED:
            return self.leanest() if policy == "memory" else self.fastest()
        weights = {"uniform": [1] * len(self.profile), "parameters": self.profile.parameters, "time": self.work}[policy]
        return self.of(policy, balanced_boundaries(weights, self.stages))

    def _step(self, at: Cut) -> float:
        return float(simulate(self.schedule, self.profile.costs(at, self.link)).makespan)

    def bytes(self, at: Cut) -> tuple[int, ...]:
        """What each rank holds at most; of a cut that is not complete, for its first stages."""
        ends = (0, *at, len(self.profile)) if len(at) == self.stages - 1 else (0, *at)
        sizes = [[total[j] - total[i] for total in self.sizes] for i, j in pairwise(ends)]
        most = [0] * self.schedule.ranks
        for rank, moments in enumerate(self.kept):
            own = [stage for stage in self.schedule.placement.stages_on(rank) if stage < len(sizes)]
            most[rank] = sum(sizes[stage][2] for stage in own) + max(
                sum(moment.get(stage, (0, 0))[k] * sizes[stage][k] for stage in own for k in (0, 1))
                for moment in moments
            )
        return tuple(most)

    def stage_bytes(self, stage: int, i: int, j: int) -> float:
        """What one stage of these layers holds at most."""
        held, waiting, states = (total[j] - total[i] for total in self.sizes)
        moments = [moment.get(stage, (0, 0)) for moment in self.kept[self.rank_of[stage]]]
        return states + max(f * held + w * waiting for f, w in moments)

    def stage_time(self, stage: int, i: int, j: int) -> float:
        """A lower bound of the step: the way to the stage, its work, and the way back; inf where memory forbids it."""
        if self.limit < inf and self.stage_bytes(stage, i, j) > self.limit:
            return inf
        return self.before[i] + self.schedule.microbatches * (self.until[j] - self.until[i]) + self.after[i]

    def leanest(self) -> Balance:
        """Of the cuts whose fullest rank holds the least, that of the shortest step."""
        found = self._leanest
        lean = _Plan(self.profile, self.schedule, self.link, limit=found.value).fastest()
        return replace(lean, policy="memory", exact=found.exact, bound=found.bound)

    @cached_property
    def _leanest(self) -> Found:
        at, floor = bottleneck(len(self.profile), self.stages, self.stage_bytes)
        return best_cut(
            len(self.profile), self.stages, [at, *self._simple()], value=lambda at: max(self.bytes(at)),
            bound=lambda begin: max(self.bytes(begin)), floor=floor, effort=EFFORT, price=1,
        )  # fmt: skip

    def fastest(self) -> Balance:
        """The cut of the shortest simulated step within the limit; where none was found to fit, the leanest."""
        at, floor = bottleneck(len(self.profile), self.stages, self.stage_time)
        lean = [self._leanest.at] if self.limit < inf else []
        price = sum(map(len, self.schedule.rows)) // 2
        found = best_cut(
            len(self.profile), self.stages, [*self._simple(), at, *lean], value=self._limited(self.step),
            bound=self._limited(self._bound), floor=floor, effort=EFFORT, price=price,
        )  # fmt: skip
        at = found.at if found.value < inf else self._leanest.at
        return replace(self.of("optimal", at), exact=found.exact, bound=found.bound)

    def _simple(self) -> list[Cut]:
        """Cuts to begin with."""
        return [balanced_boundaries(weights, self.stages) for weights in (self.work, [1] * len(self.profile))]

    def _limited(self, value: Callable[[Cut], float]) -> Callable[[Cut], float]:
        """inf for a cut that does not fit."""
        return lambda at: value(at) if self.limit == inf or max(self.bytes(at)) <= self.limit else inf

    def _bound(self, begin: Cut) -> float:
        """No step is shorter whose cut begins like this: the ranks' work, the way to their first stage and back."""
        i, done = begin[-1], len(begin)
        loads, starts = [0.0] * self.schedule.ranks, [i] * self.schedule.ranks
        for stage in reversed(range(done)):
            first, last = (0, *begin)[stage], begin[stage]
            loads[self.rank_of[stage]] += self.until[last] - self.until[first]
            starts[self.rank_of[stage]] = first
        rest = set(self.rank_of[done:])
        share = (sum(loads[rank] for rank in rest) + self.until[-1] - self.until[i]) / len(rest)
        bounds = [self._rank_bound(start, load) for start, load in zip(starts, loads, strict=True)]
        return max(*bounds, self._rank_bound(min(starts[rank] for rank in rest), share))

    def _rank_bound(self, start: int, load: float) -> float:
        return self.before[start] + self.schedule.microbatches * load + self.after[start]


Moment = dict[int, tuple[int, int]]


def kept_at_most(schedule: Schedule) -> list[list[Moment]]:
    """For each rank the moments at which it may hold most: by stage, how many (micro-batches from F to I, then to W).

    Moments at which no stage has more than at another are left out. The rows alone say this, whatever the times.

    >>> from pipelab import build
    >>> kept_at_most(build("1f1b", ranks=2, microbatches=4))
    [[{0: (2, 0)}], [{1: (1, 0)}]]
    """
    kept = []
    for rank, row in enumerate(schedule.rows):
        own = schedule.placement.stages_on(rank)
        held, waiting = dict.fromkeys(own, 0), dict.fromkeys(own, 0)
        moments: set[tuple[tuple[int, int], ...]] = {((0, 0),) * len(own)}
        for element in row:
            for action in sorted(parts(element), key=lambda action: action.kind != F):  # of a pair both are held
                held[action.stage] += {F: 1, W: 0}.get(action.kind, -1)
                waiting[action.stage] += {I: 1, W: -1}.get(action.kind, 0)
                moments.add(tuple((held[stage], waiting[stage]) for stage in own))
        kept.append([dict(zip(own, moment, strict=True)) for moment in sorted(_largest(moments))])
    return kept


def _largest(moments: set[tuple[tuple[int, int], ...]]) -> list[tuple[tuple[int, int], ...]]:
    def covers(one: Sequence[tuple[int, int]], other: Sequence[tuple[int, int]]) -> bool:
        return one != other and all(a >= c and b >= d for (a, b), (c, d) in zip(one, other, strict=True))

    return [moment for moment in moments if not any(covers(other, moment) for other in moments)]
