"""Where does each global rank stand among replicas, pipeline stages and tensor shards?"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Mesh:
    """The axes `dp`, `pp`, `tp` of a run; `tp` varies fastest, so that tensor shards sit next to each other.

    Raises ValueError when an axis is smaller than 1.

    >>> mesh = Mesh(dp=2, pp=4, tp=2)
    >>> mesh.size, mesh.coordinates(13)
    (16, (1, 2, 1))
    """

    dp: int = 1
    pp: int = 1
    tp: int = 1

    def __post_init__(self) -> None:
        for axis in ("dp", "pp", "tp"):
            if getattr(self, axis) < 1:
                raise ValueError(f"mesh axis {axis} must be at least 1: got {getattr(self, axis)}")

    @property
    def size(self) -> int:
        """Number of global ranks, dp x pp x tp."""
        return self.dp * self.pp * self.tp

    def coordinates(self, global_rank: int) -> tuple[int, int, int]:
        """(dp, pp, tp) of a global rank.

        >>> Mesh(dp=2, pp=2, tp=2).coordinates(5)
        (1, 0, 1)
        """
        rest, tp = divmod(global_rank, self.tp)
        dp, pp = divmod(rest, self.pp)
        return dp, pp, tp

    def global_rank(self, dp: int = 0, pp: int = 0, tp: int = 0) -> int:
        """The global rank at these coordinates.

        >>> Mesh(dp=2, pp=2, tp=2).global_rank(dp=1, tp=1)
        5
        """
        return (dp * self.pp + pp) * self.tp + tp

    def group(self, axis: str, global_rank: int) -> tuple[int, ...]:
        """The global ranks that differ from this one along one axis only, itself included.

        >>> Mesh(dp=2, pp=2, tp=2).group("pp", 5)
        (5, 7)
        """
        dp, pp, tp = self.coordinates(global_rank)
        own = {"dp": dp, "pp": pp, "tp": tp}
        if axis not in own:
            raise ValueError(f"a mesh has the axes dp, pp and tp: got {axis!r}")
        return tuple(self.global_rank(**{**own, axis: step}) for step in range(getattr(self, axis)))
