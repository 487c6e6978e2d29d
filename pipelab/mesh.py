"""Where does each global rank stand among replicas, pipeline stages and tensor shards?"""

from dataclasses import dataclass

from pipelab.counts import count


@dataclass(frozen=True)
class Mesh:
    """The axes `dp`, `pp`, `tp` of a run; `tp` varies fastest, so that tensor shards sit next to each other.

    Raises ValueError when an axis is no whole number, or smaller than 1.

    >>> mesh = Mesh(dp=2, pp=4, tp=2)
    >>> mesh.size, mesh.coordinates(13)
    (16, (1, 2, 1))
    """

    dp: int = 1
    pp: int = 1
    tp: int = 1

    def __post_init__(self) -> None:
        for axis in ("dp", "pp", "tp"):
            count(f"mesh axis {axis}", getattr(self, axis))

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

    def groups(self, axis: str) -> tuple[tuple[int, ...], ...]:
        """All groups along an axis, in the order of their first ranks.

        >>> Mesh(dp=2, pp=2, tp=2).groups("dp")
        ((0, 4), (1, 5), (2, 6), (3, 7))
        """
        return tuple(sorted({self.group(axis, rank) for rank in range(self.size)}))

    def __str__(self) -> str:
        """A picture: a block for each replica, a row for each pipeline rank, in it its tensor shards; and who talks.

        >>> print(Mesh(dp=2, pp=2, tp=2))
        dp 2 x pp 2 x tp 2 = 8 global ranks
                 replica 0    replica 1
          pp 0   [  0   1 ]   [  4   5 ]
          pp 1   [  2   3 ]   [  6   7 ]
        tp, within brackets: 0-1 2-3 4-5 6-7
        pp, down a column:   0-2 1-3 4-6 5-7
        dp, across replicas: 0-4 1-5 2-6 3-7
        """
        width = len(str(self.size - 1)) + 2
        cells = [
            [
                "[" + "".join(f"{self.global_rank(dp, pp, tp):>{width}} " for tp in range(self.tp)) + "]"
                for dp in range(self.dp)
            ]
            for pp in range(self.pp)
        ]
        heads = [f"replica {dp}".ljust(max(len(cells[0][0]), 9)) for dp in range(self.dp)]
        label = len(f"  pp {self.pp - 1}")
        lines = [f"dp {self.dp} x pp {self.pp} x tp {self.tp} = {self.size} global ranks"]
        lines.append((" " * label + "   " + "   ".join(heads)).rstrip())
        for pp, row in enumerate(cells):
            padded = [cell.ljust(len(head)) for cell, head in zip(row, heads, strict=True)]
            lines.append((f"  pp {pp}".ljust(label) + "   " + "   ".join(padded)).rstrip())
        for axis, where in (("tp", "within brackets:"), ("pp", "down a column:"), ("dp", "across replicas:")):
            if getattr(self, axis) > 1:
                talk = " ".join("-".join(map(str, group)) for group in self.groups(axis))
                lines.append(f"{axis}, {where:<16} {talk}")
        return "\n".join(lines)
