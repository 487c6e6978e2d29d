"""What comes between a step's last gradient and the next step? What all ranks must agree on, then the optimizer.

In this order: gradients that tied layers or sequence shards have in parts are summed, all are clipped by their global
norm, each rank's optimizer steps, and with ZeRO-1 the updated shares are gathered.
"""

from collections.abc import Callable, Iterator, Mapping

import torch
from torch import nn

from pipelab.action import NORM, REDUCE, Action
from pipelab.collectives import ALL_REDUCE, Group, Meeting
from pipelab.data_parallel import Bucket, GradientSum
from pipelab.optimizer import Optimizer, state_bytes
from pipelab.place import EVERYBODY, Place, tie_name
from pipelab.tensor_parallel import partial_gradients, shard_dims
from pipelab.zero import ShardedUpdate

Rate = Callable[[int], float]
"""By what the learning rate is multiplied at a step."""

Parts = Iterator[tuple[Bucket, Group]]
"""Gradients that several ranks have in parts, to be summed over a group."""


class WeightUpdate:
    """The end of one rank's step, for its `layers` by stage, of whose parameters `tied` are shared with other stages.

    `sums` sums over replicas while the row goes on, where there are replicas; `shares` are those of ZeRO-1. `norm` is
    that of the last step's gradients over the whole model, where there is a limit `clip`.
    """

    def __init__(
        self, place: Place, layers: Mapping[int, nn.Sequential], tied: Mapping[int, nn.Parameter], optimizer: Optimizer,
        *, clip: float | None = None, rate: Rate | None = None, zero: bool = False,
    ) -> None:  # fmt: skip
        self.place, self.clip, self.rate = place, clip, rate
        self.norm: float | None = None
        self._tied = {id(parameter) for parameter in tied.values()}
        self._sharded, self._partial = _kinds(place, layers)
        own = {stage: [p for p in part.parameters() if id(p) not in self._tied] for stage, part in layers.items()}
        self.sums = self._sums(own, zero)
        alone = [parameter for parameters in own.values() for parameter in parameters]
        self.shares = self.sums.shares if isinstance(self.sums, ShardedUpdate) else []
        whole = [*(() if self.shares else alone), *tied.values()]
        self.stepped = [*dict.fromkeys(whole), *(share.own for share in self.shares)]
        self.parts = [*self._of_tied(tied), *self._of_sequence_shards(own)]
        self._counted = self._which_count(tied)
        self.optimizer = optimizer(self.stepped) if self.stepped else None
        self._state_bytes = 0
        self._base = [] if self.optimizer is None else [group["lr"] for group in self.optimizer.param_groups]

    @property
    def state_bytes(self) -> int:
        """What the optimizer keeps, as it was after its first step."""
        if not self._state_bytes and self.optimizer is not None:
            self._state_bytes = state_bytes(self.optimizer)
        return self._state_bytes

    @torch.no_grad()
    def __call__(self, step: int) -> list[tuple[Action, Meeting]]:
        """Update the weights; gives the collectives that it took."""
        went = list(self._sum_parts())
        if self.clip is not None:
            went += ((Action(0, NORM, 0), meeting) for meeting in self._clip(self.clip))
        if self.optimizer is not None:
            for group, base in zip(self.optimizer.param_groups, self._base, strict=True):
                group["lr"] = base if self.rate is None else base * self.rate(step)
            self.optimizer.step()
        if isinstance(self.sums, ShardedUpdate):
            went += self.sums.gather()
        return went

    def _sums(self, own: Mapping[int, list[nn.Parameter]], zero: bool) -> GradientSum | None:
        if self.place.dp is None:
            return None
        if zero:
            return ShardedUpdate(self.place.dp, own, lambda p: (id(p) in self._sharded, id(p) in self._partial))
        return GradientSum(self.place.dp, own)

    def _of_tied(self, tied: Mapping[int, nn.Parameter]) -> Parts:
        """A tied weight has its last gradient when all its stages have: so it is summed at the end."""
        for number, parameter in tied.items():
            bucket = Bucket(0, number, (parameter,))
            for group in (self.place.dp, self.place.seats.get(tie_name(number))):
                if group is not None:
                    yield bucket, group

    def _of_sequence_shards(self, own: Mapping[int, list[nn.Parameter]]) -> Parts:
        """Shards of a sequence have each their part of the gradient of weights that all of them have whole."""
        if self.place.tp is None or not self._partial:
            return
        for share in self.shares:
            if id(share.bucket.parameters[0]) in self._partial:
                yield share.bucket._replace(parameters=(share.own,)), self.place.tp
        for stage, parameters in own.items():
            parts = tuple(parameter for parameter in parameters if id(parameter) in self._partial)
            if parts and not self.shares:
                yield Bucket(stage, 0, parts), self.place.tp

    def _which_count(self, tied: Mapping[int, nn.Parameter]) -> list[nn.Parameter]:
        """Of all copies of a weight one counts in the norm: on the first replica, shard, and rank that has it."""
        first = {axis: axis not in self.place.seats or self.place.seats[axis].index == 0 for axis in ("tp", "dp")}
        share_of = {id(share.own): share.bucket.parameters[0] for share in self.shares}
        elsewhere = {
            id(parameter)
            for number, parameter in tied.items()
            if (seat := self.place.seats.get(tie_name(number))) is not None and seat.index > 0
        }
        return [
            parameter
            for parameter in self.stepped
            if (first["dp"] or id(parameter) in share_of)
            and (first["tp"] or id(share_of.get(id(parameter), parameter)) in self._sharded)
            and id(parameter) not in elsewhere
        ]

    def _sum_parts(self) -> Iterator[tuple[Action, Meeting]]:
        for bucket, group in self.parts:
            bucket.spread(group.finish(group.start(ALL_REDUCE, bucket.flat())))
            (meeting,) = group.taken()
            yield Action(bucket.stage, REDUCE, bucket.number), meeting

    def _clip(self, most: float) -> list[Meeting]:
        """Scale all gradients so that their norm over the whole model is at most `most`: torch's `clip_grad_norm_`."""
        meetings: list[Meeting] = []
        squares = [p.grad.double().square().sum() for p in self._counted if p.grad is not None]
        total = torch.stack(squares).sum() if squares else torch.zeros((), dtype=torch.float64)
        everybody = self.place.seats.get(EVERYBODY)
        if everybody is not None:
            device = self.stepped[0].device if self.stepped else total.device
            total = everybody.finish(everybody.start(ALL_REDUCE, total.view(1).to(device)))[0]
            meetings = everybody.taken()
        total = total.sqrt()
        nn.utils.clip_grads_with_norm_(self.stepped, most, total)
        self.norm = total.item()
        return meetings


def _kinds(place: Place, layers: Mapping[int, nn.Sequential]) -> tuple[set[int], set[int]]:
    """The parameters (by id) that are cut among tensor shards, and those whose gradients are there in parts."""
    if place.tp is None:
        return set(), set()
    sharded = {id(part.get_parameter(name)) for part in layers.values() for name in shard_dims(part)}
    return sharded, {id(part.get_parameter(name)) for part in layers.values() for name in partial_gradients(part)}
