"""Which rank holds which stage? Loop for most schedules, V for the memory-balanced family. Read next: `schedule`."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Placement:
    """The rank of every stage: `rank_of[stage]`; a rank's own stages in order are its chunks.

    Raises ValueError when a stage is given a rank outside 0..ranks-1.

    >>> Placement.loop(2, chunks=2).rank_of
    (0, 1, 0, 1)
    >>> Placement.vee(2).rank_of
    (0, 1, 1, 0)
    """

    ranks: int
    rank_of: tuple[int, ...]

    def __post_init__(self) -> None:
        for stage, rank in enumerate(self.rank_of):
            if not 0 <= rank < self.ranks:
                raise ValueError(f"stage {stage} is placed on rank {rank}, but the ranks are 0..{self.ranks - 1}")

    @classmethod
    def loop(cls, ranks: int, chunks: int = 1) -> "Placement":
        """Stage s on rank s mod P: the round-robin of interleaved 1F1B (Narayanan et al. 2021, section 2.2).

        >>> Placement.loop(4).rank_of
        (0, 1, 2, 3)
        """
        return cls(ranks, tuple(stage % ranks for stage in range(ranks * chunks)))

    @classmethod
    def vee(cls, ranks: int) -> "Placement":
        """Down the ranks and back up, so that rank 0 holds the first and the last stage (Qi et al. 2024).

        >>> Placement.vee(3).rank_of
        (0, 1, 2, 2, 1, 0)
        """
        return cls(ranks, (*range(ranks), *reversed(range(ranks))))

    @property
    def stages(self) -> int:
        """Number of stages, S."""
        return len(self.rank_of)

    def stages_on(self, rank: int) -> tuple[int, ...]:
        """The stages (chunks) of a rank, in order.

        >>> Placement.loop(2, chunks=2).stages_on(1)
        (1, 3)
        """
        return tuple(stage for stage, holder in enumerate(self.rank_of) if holder == rank)

    def chunks_per_rank(self) -> tuple[int, ...]:
        """How many stages each rank holds.

        >>> Placement(2, (0, 1, 1)).chunks_per_rank()
        (1, 2)
        """
        counts = Counter(self.rank_of)
        return tuple(counts[rank] for rank in range(self.ranks))

    @classmethod
    def from_votes(cls, ranks: int, stages: int, votes: Iterable[tuple[int, int]]) -> "Placement":
        """Place each stage on the rank with most votes (stage, rank), on a tie or without any vote on the lowest.

        >>> Placement.from_votes(2, 3, [(0, 1), (1, 1), (1, 0)]).rank_of
        (1, 0, 0)
        """
        rank_of = [0] * stages
        for (stage, rank), _ in sorted(Counter(votes).items(), key=lambda vote: (vote[1], -vote[0][1])):
            rank_of[stage] = rank  # the last one stays
        return cls(ranks, tuple(rank_of))
