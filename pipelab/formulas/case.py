"""What is a formula asked about, and where does it hold? Read next: `whole_backward`."""

from collections.abc import Callable
from fractions import Fraction
from typing import NamedTuple


class Case(NamedTuple):
    """What one formula is asked about: all ranks are equal, and a chunk takes 1/V of its rank's work."""

    P: int
    M: int
    V: int
    F: Fraction
    I: Fraction  # noqa: E741
    W: Fraction
    hop: Fraction

    @property
    def B(self) -> Fraction:
        """The full backward."""
        return self.I + self.W

    @property
    def ideal(self) -> Fraction:
        """Busy time of every rank."""
        return self.M * (self.F + self.B)


class ClosedForm(NamedTuple):
    """What theory knows of one schedule. A `Peak` that is released at I is the same where nothing is said.

    Without a `backward` there is no I and no W.
    """

    makespan: Callable[[Case], Fraction]
    span: Callable[[Case], Fraction]
    peak: "Peak"
    peak_until_input: "Peak | None" = None
    chunks: int | str = 1
    backward: bool = True


Peak = Callable[[Case, int], int | Fraction]
"""Most micro-batches in flight on a rank."""


def within(case: Case, inside: bool, name: str, domain: str) -> None:
    """Raise ValueError that names the domain when a case lies outside it; a single rank has no bubble anywhere."""
    if not inside and case.P > 1:
        got = ", ".join(f"{letter}={value}" for letter, value in case._asdict().items())
        raise ValueError(f"{name} has a closed form for {domain}: got {got}")


def round_trips(case: Case) -> int:
    """ceil((M+P-1)/P), for in 1F1B a micro-batch must be back on rank 0 before the one P later can start."""
    return -(-(case.M + case.P - 1) // case.P)


def positive(time: Fraction) -> Fraction:
    return max(Fraction(0), time)
