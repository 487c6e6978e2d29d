"""Where does one rank of a run stand, and with whom does it talk?"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from pipelab.clock import Clock
from pipelab.collectives import Group
from pipelab.mesh import Mesh
from pipelab.placement import Placement
from pipelab.tied import Tie
from pipelab.transport import Transport

EVERYBODY = "all"

Groups = dict[str, tuple[tuple[int, ...], ...]]
"""The global ranks of every group, by the name of their kind."""


@dataclass(frozen=True)
class Place:
    """One rank: its global rank, what carries its messages, its clock, and its `seats`, by the name of each group.

    `evaluating` carries the messages of evaluations, where another has to. The names are "tp", "dp", "all" and for each
    weight tied across ranks "tie 0", "tie 1"; a group of one has no seat.
    """

    global_rank: int
    transport: Transport
    clock: Clock
    evaluating: Transport | None = None
    seats: Mapping[str, Group] = field(default_factory=dict)

    @property
    def tp(self) -> Group | None:
        """The seat among tensor shards."""
        return self.seats.get("tp")

    @property
    def dp(self) -> Group | None:
        """The seat among replicas."""
        return self.seats.get("dp")


def all_groups(mesh: Mesh, placement: Placement, ties: Sequence[Tie]) -> Groups:
    """The global ranks of every group of more than one, by name, in an order that is the same wherever it is asked for.

    >>> all_groups(Mesh(dp=2, pp=2), Placement.loop(2), [((0, "0.weight"), (1, "3.weight"))])
    {'dp': ((0, 2), (1, 3)), 'tie 0': ((0, 1), (2, 3)), 'all': ((0, 1, 2, 3),)}
    """
    groups = {axis: mesh.groups(axis) for axis in ("tp", "dp")}
    for number, places in enumerate(ties):
        owners = sorted({placement.rank_of[stage] for stage, _ in places})
        groups[tie_name(number)] = tuple(
            tuple(mesh.global_rank(dp, owner, tp) for owner in owners) for dp in range(mesh.dp) for tp in range(mesh.tp)
        )
    groups[EVERYBODY] = (tuple(range(mesh.size)),)
    return {name: families for name, families in groups.items() if len(families[0]) > 1}


def tie_name(number: int) -> str:
    """The name of the group that has a tied weight."""
    return f"tie {number}"
