"""How do the ranks of one axis add up, gather and share out tensors? Each has a seat among them, a `Group`.

Tensor shards meet in the middle of a forward, replicas when a stage has its last gradient. What carries the bytes is
another's concern: `transport.meetings` (threads), `transport.process_groups` (gloo, NCCL).
"""

from collections.abc import Iterable, Mapping
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from pipelab.clock import Clock
from pipelab.costs import Link
from pipelab.flight_recorder import FlightRecorder
from pipelab.randomness import others_may_draw

ALL_REDUCE, ALL_GATHER, REDUCE_SCATTER = "all_reduce", "all_gather", "reduce_scatter"
ROUNDS = {ALL_REDUCE: 2, ALL_GATHER: 1, REDUCE_SCATTER: 1}
"""How often a ring of n ranks passes on n-1 parts of the whole: an all-reduce is a reduce-scatter and an all-gather."""


class Volume(NamedTuple):
    """How often a rank sent or took part in a collective, and how many bytes it sent."""

    times: int = 0
    nbytes: int = 0

    def __add__(self, other: "Volume") -> "Volume":  # type: ignore[override]
        return Volume(self.times + other.times, self.nbytes + other.nbytes)


Traffic = dict[tuple[str, str], Volume]
"""By axis and kind, such as ("tp", "all_reduce")."""


def add_traffic(ours: Traffic, more: Mapping[tuple[str, str], Volume]) -> None:
    """Count more.

    >>> traffic = {("dp", "all_reduce"): Volume(1, 8)}
    >>> add_traffic(traffic, {("dp", "all_reduce"): Volume(2, 16)})
    >>> traffic
    {('dp', 'all_reduce'): Volume(times=3, nbytes=24)}
    """
    for key, volume in more.items():
        ours[key] = ours.get(key, Volume()) + volume


class Arriving(Protocol):
    """A collective under way."""

    def wait(self) -> tuple[Tensor, float]:
        """Its result, and when the last rank came to it. Raises Aborted, or TimeoutError."""


class Carrier(Protocol):
    """What brings the tensors of a group together; every rank starts the same collectives in the same order."""

    def start(self, kind: str, tensor: Tensor, now: float, *, largest: bool = False) -> Arriving:
        """Begin one. An all-reduce adds (or takes the `largest`); an all-gather of [*] gives [n, *]; a reduce-scatter
        of [n, *] gives [*]. The tensor may be changed at once: what is sent is a copy."""


class Meeting(NamedTuple):
    """A collective that was: from when to when on the rank's clock, and the bytes that the rank sent."""

    axis: str
    kind: str
    start: float
    end: float
    nbytes: int


class Started(NamedTuple):
    """A collective that this rank has begun, and the work goes on meanwhile."""

    kind: str
    nbytes: int
    arriving: Arriving


class Group:
    """One rank's seat among the `members` (global ranks) that differ from it along one axis, itself included.

    Within an action the rank waits for the others (`all_reduce`, `all_gather`, `reduce_scatter`): in virtual time it
    goes on when the last has come and the bytes are there, by the ring's alpha-beta time over `link`. With `start` and
    `finish` the work goes on. `meetings` grows by each until somebody takes them. `recorder` is told of each within the
    action `at`.
    """

    def __init__(
        self, axis: str, members: tuple[int, ...], index: int, carrier: Carrier, clock: Clock, link: Link
    ) -> None:
        self.axis, self.members, self.index = axis, members, index
        self.carrier, self.clock, self.link = carrier, clock, link
        self.meetings: list[Meeting] = []
        self.recorder = FlightRecorder()
        self.at: object = ""

    def __deepcopy__(self, memo: object) -> "Group":
        """A copied layer talks to the same ranks."""
        return self

    @property
    def size(self) -> int:
        """Number of members."""
        return len(self.members)

    def all_reduce(self, tensor: Tensor, *, largest: bool = False) -> Tensor:
        """The sum over all members (or the largest), on each of them; in the order of the members."""
        return self._meet(ALL_REDUCE, tensor, largest=largest)

    def all_gather(self, tensor: Tensor, dim: int = 0) -> Tensor:
        """The tensors of all members, side by side along `dim`."""
        return torch.cat(tuple(self._meet(ALL_GATHER, tensor)), dim)

    def reduce_scatter(self, tensor: Tensor, dim: int = 0) -> Tensor:
        """This member's part, along `dim`, of the sum over all members; the dim must be a multiple of their number."""
        return self._meet(REDUCE_SCATTER, torch.stack(tensor.chunk(self.size, dim)))

    def start(self, kind: str, tensor: Tensor) -> Started:
        """Begin a collective (shapes as in `Carrier.start`) and go on working."""
        return Started(kind, self._whole(kind, tensor), self.carrier.start(kind, tensor, self.clock.now))

    def finish(self, started: Started) -> Tensor:
        """Wait for what was begun; a rank's collectives go one after the other."""
        result, all_came = started.arriving.wait()
        start, end = self.clock.beside(all_came, self.seconds(started.kind, started.nbytes))
        self._note(started.kind, start, end, started.nbytes)
        return result

    def taken(self) -> list[Meeting]:
        """The meetings since this was asked last."""
        taken, self.meetings = self.meetings, []
        return taken

    def seconds(self, kind: str, nbytes: int) -> float:
        """How long a ring takes over tensors that are `nbytes` when whole: (n-1) messages of 1/n each, once or twice.

        (Thakur, Rabenseifner and Gropp 2005, section 4.)
        """
        return ROUNDS[kind] * (self.size - 1) * self.link.seconds(nbytes / self.size)

    def sent(self, kind: str, nbytes: int) -> int:
        """The bytes that one rank sends meanwhile."""
        return ROUNDS[kind] * (self.size - 1) * nbytes // self.size

    def _meet(self, kind: str, tensor: Tensor, *, largest: bool = False) -> Tensor:
        nbytes = self._whole(kind, tensor)

        def exchange(now: float) -> tuple[Tensor, float]:
            self.recorder.meeting(
                f"the {kind} of {self.at}", self.members[: self.index] + self.members[self.index + 1 :]
            )
            result, all_came = self.carrier.start(kind, tensor, now, largest=largest).wait()
            self.recorder.queueing(self.at)
            return result, all_came + self.seconds(kind, nbytes)

        with others_may_draw():
            result, start, end = self.clock.meet(exchange)
        self.recorder.running(self.at)
        self._note(kind, start, end, nbytes)
        return result

    def _whole(self, kind: str, tensor: Tensor) -> int:
        return tensor.nbytes * (self.size if kind == ALL_GATHER else 1)

    def _note(self, kind: str, start: float, end: float, nbytes: int) -> None:
        self.meetings.append(Meeting(self.axis, kind, start, end, self.sent(kind, nbytes)))


def traffic_of(meetings: Iterable[Meeting]) -> Traffic:
    """What was sent in these collectives.

    >>> traffic_of([Meeting("tp", "all_gather", 0.0, 0.1, 8)])
    {('tp', 'all_gather'): Volume(times=1, nbytes=8)}
    """
    traffic: Traffic = {}
    for axis, kind, _, _, nbytes in meetings:
        add_traffic(traffic, {(axis, kind): Volume(1, nbytes)})
    return traffic
