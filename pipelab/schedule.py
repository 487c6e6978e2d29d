"""What is a schedule? For each rank the order of its work, and nothing else: no time, no idle slots, nothing live.

Read next: `schedules/` (how the published ones are written), then `dependencies` (what must come before what).
"""

import csv
import io
import operator
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import count, islice
from typing import TYPE_CHECKING, Any

from pipelab.action import COMPUTE, REDUCE, Action, B, Element, I, Pair, R, U, W, parse_element, parts
from pipelab.grid import grid
from pipelab.placement import Placement

if TYPE_CHECKING:
    from pipelab.costs import Costs
    from pipelab.rule import Rule
    from pipelab.trace import Number

Letter = tuple[int, str]
"""(stage, kind): an action before its micro-batch is counted."""

Word = Iterable[Letter | str | tuple[Letter, Letter]]
"""The letters of one rank in order, two overlapped ones in one tuple; with one stage a rank, also "FFBB"."""

Finding = tuple[str, int | None, int | None]
"""A sentence, and the rank and position to mark (None where there is no place to mark)."""

MOST_ACTIONS = 20_000_000
MOST_REASONS = 12
_TORCH_PAIR = re.compile(r"\((\w+);(\w+)\)OVERLAP_F_B", re.ASCII)


class ScheduleError(ValueError):
    """A schedule that cannot run: `.reasons` are sentences, and the text adds the rows with carets under the places."""

    def __init__(self, reasons: Sequence[str], rows: str = "") -> None:
        self.reasons = list(reasons)
        super().__init__("\n".join([*self.reasons, rows]).rstrip())

    @classmethod
    def at(cls, rows: Sequence[Sequence[object]], found: Sequence[Finding]) -> "ScheduleError":
        """The error of what was found in these rows: 12 sentences at most, the first place of each rank marked."""
        reasons = [sentence for sentence, _, _ in found]
        if len(reasons) > MOST_REASONS:
            reasons[MOST_REASONS:] = ["... and more of this kind"]
        first_on_rank = reversed(found[:MOST_REASONS])  # the later entry of a dict wins
        marks = {rank: position for _, rank, position in first_on_rank if rank is not None and position is not None}
        return cls(reasons, grid(rows, marks))


@dataclass(frozen=True, repr=False)
class Schedule:
    """For each rank, the sequence of its actions; the one object that is judged, simulated, run and drawn.

    >>> schedule = Schedule.from_text("0F0 0B0\\n1F0 1B0")
    >>> schedule.ranks, schedule.stages, schedule.microbatches
    (2, 2, 1)
    """

    name: str
    placement: Placement
    microbatches: int
    rows: tuple[tuple[Element, ...], ...]
    flush: bool = True
    """Whether the weights wait for the end of the step; without it they change after each micro-batch.
    Text and CSV hold the rows alone, so what is read from them has a flush, and is to have backwards."""
    forward_only: bool = False
    """Whether it is one of inference, which holds no backward; of rows that say nothing else a backward is missing."""
    groups: int = 0
    """How many groups of sequences take turns in generation: micro-batch n is round n // groups of group n % groups,
    and begins with the token that the last stage made for it one round before. 0: no micro-batch needs another."""

    @property
    def ranks(self) -> int:
        """Number of ranks, P."""
        return self.placement.ranks

    @property
    def stages(self) -> int:
        """Number of stages, S."""
        return self.placement.stages

    def actions(self) -> Iterator[tuple[int, int, Action]]:
        """Every action with its rank and its position in the row (the two actions of a pair share one)."""
        for rank, row in enumerate(self.rows):
            for position, element in enumerate(row):
                for action in parts(element):
                    yield rank, position, action

    @classmethod
    def from_words(
        cls, name: str, placement: Placement, microbatches: int, word: Callable[[int], Word], drop_rest: bool = False
    ) -> "Schedule":
        """Build the rows from one word a rank, `word(rank)`: micro-batch numbers follow by counting each letter.

        A B counts as one I and one W. With `drop_rest` the word may be written for more micro-batches, and those from
        `microbatches` on are left out. Raises ScheduleError that names rank, position and letter.

        >>> print(Schedule.from_words("demo", Placement.loop(1), 2, lambda rank: [(0, "F"), (0, "B")] * 2))
        0F0 0B0 0F1 0B1
        >>> print(Schedule.from_words("demo", Placement.loop(2), 2, lambda rank: ["FFBB", "FBFB"][rank]))
        0F0 0F1 0B0 0B1
        1F0 1B0 1F1 1B1
        """
        refuse_too_many(_stages(placement), microbatches)
        below = microbatches if drop_rest else MOST_ACTIONS
        rows: list[tuple[Element, ...]] = []
        for rank in range(placement.ranks):
            rows.append(tuple(_counted(rows, word(rank), placement.stages_on(rank), below)))
        return cls(name, placement, microbatches, tuple(rows))

    @classmethod
    def from_rule(
        cls,
        name: str,
        placement: Placement,
        microbatches: int,
        order: "str | Rule",
        in_flight: "Number | Sequence[Number] | None" = None,
        costs: "Costs | None" = None,
    ) -> "Schedule":
        """Let every free rank pick its next action by a rule: the first kind in `order` that may run now.

        `order` names F and B, or F, I and W: "IFW" is "I before F before W"; or it is a function (see `rule`).
        `in_flight` bounds the micro-batches that a rank holds, one number or one per rank. `costs` say when what
        arrives (uniform unless given). Raises ScheduleError where the rule gets stuck, ValueError for wrong arguments.

        >>> print(Schedule.from_rule("mine", Placement.loop(2), 3, "BF", in_flight=[2, 1]))
        0F0 0F1 0B0 0F2 0B1 0B2
        1F0 1B0 1F1 1B1 1F2 1B2
        """
        from pipelab.rule import word_by_rule  # a rule asks what is needed first, and so knows what a schedule is

        refuse_too_many(_stages(placement), microbatches, kinds=3)
        words = word_by_rule(placement, microbatches, order, in_flight, costs)
        return cls.from_words(name, placement, microbatches, words.__getitem__)

    def to_text(self) -> str:
        """One line a rank, actions separated by blanks.

        >>> Schedule.from_text("0F0 0B0").to_text()
        '0F0 0B0'
        """
        return "\n".join(" ".join(map(str, row)) for row in self.rows)

    __str__ = to_text

    def __repr__(self) -> str:
        shape = f"{self.ranks} ranks, {self.stages} stages, {self.microbatches} micro-batches"
        return f"<Schedule {self.name}: {shape}>"

    @classmethod
    def from_text(cls, text: str, name: str = "custom") -> "Schedule":
        """Read rows as `to_text` writes them (blank lines and `#` comments are skipped).

        The placement is inferred: a stage belongs to the rank that holds most of its actions, on a tie the lowest.
        Raises ScheduleError that names rank, position and word.

        >>> Schedule.from_text("0F0 1F0 1I0 0I0 1W0 0W0").placement.rank_of
        (0, 0)
        """
        lines = [line.split("#")[0].split() for line in text.splitlines()]
        return cls._from_cells(name, [line for line in lines if line])

    def to_csv(self) -> str:
        """The compute-only CSV that PyTorch's pipeline runtime loads: one line a rank.

        >>> Schedule.from_text("0F0 0B0").to_csv()
        '0F0,0B0\\n'
        """
        return "".join(",".join(map(_torch_text, row)) + "\n" for row in self.rows)

    @classmethod
    def from_csv(cls, text: str, name: str = "custom") -> "Schedule":
        """Read PyTorch's compute-only CSV (empty cells, its idle slots, are dropped). Raises ScheduleError.

        >>> Schedule.from_csv("0F0,,0B0").to_text()
        '0F0 0B0'
        """
        lines = csv.reader(io.StringIO(text))
        cells = [[_TORCH_PAIR.sub(r"\1+\2", cell.strip()) for cell in line if cell.strip()] for line in lines]
        return cls._from_cells(name, [line for line in cells if line])

    @classmethod
    def _from_cells(cls, name: str, cells: list[list[str]]) -> "Schedule":
        try:
            rows = tuple(tuple(map(_parse_cell, line)) for line in cells)
        except ValueError:
            raise ScheduleError.at(cells, list(islice(_unreadable(cells), MOST_REASONS + 1))) from None
        if not rows:
            raise ScheduleError(["there is no action in this text; write one line a rank, as in: 0F0 0B0"])
        return cls.from_rows(name, rows)

    @classmethod
    def from_rows(cls, name: str, rows: tuple[tuple[Element, ...], ...]) -> "Schedule":
        """These rows, their shape and placement read off them. Raises ScheduleError for a number far too large.

        >>> Schedule.from_rows("mine", ((Action(0, "F", 0), Action(1, "F", 0)),)).placement.rank_of
        (0, 0)
        """
        actions = [(rank, action) for rank, row in enumerate(rows) for element in row for action in parts(element)]
        stages = 1 + max(action.stage for _, action in actions)
        microbatches = 1 + max(action.microbatch for _, action in actions)
        try:
            refuse_too_many(max(stages, len(rows)), microbatches)
        except ValueError as error:
            raise ScheduleError.at(rows, [_too_many(rows, stages, microbatches, error)]) from None
        votes = ((action.stage, rank) for rank, action in actions)
        return cls(name, Placement.from_votes(len(rows), stages, votes), microbatches, rows)


def refuse_too_many(stages: int, microbatches: int, kinds: int = 2) -> None:
    """Raise ValueError when a schedule with this many kinds of action would have more than 20 million actions."""
    if kinds * stages * microbatches > MOST_ACTIONS:
        raise ValueError(
            f"{stages} stages x {microbatches} micro-batches are more than {MOST_ACTIONS // 10**6} million actions;"
            " ask for fewer micro-batches or stages"
        )


def stagger(*streams: tuple[Sequence[Letter], int]) -> list[Letter]:
    """Merge streams of letters that start late: at slot t each stream, in turn, gives its letter t - delay.

    One dial: a backward stream that starts after 0 forwards is naive, after P-1-r is 1F1B, after M is GPipe.

    >>> f, b = (0, "F"), (0, "B")
    >>> "".join(kind for _, kind in stagger(([f] * 3, 0), ([b] * 3, 1)))
    'FFBFBB'
    """
    timed = [
        (delay + place, turn, letter)
        for turn, (letters, delay) in enumerate(streams)
        for place, letter in enumerate(letters)
    ]
    return [letter for _, _, letter in sorted(timed)]


def _stages(placement: Placement) -> int:
    if not isinstance(placement, Placement):
        raise ValueError(f"placement says which rank holds each stage, as Placement.loop(4): got {placement!r:.80}")
    return placement.stages


def _counted(before: Sequence[Sequence[Element]], word: Word, own: tuple[int, ...], below: int) -> list[Element]:
    """The row of the rank after those `before`, which holds its `own` stages: micro-batches `below` a number only."""
    counters: dict[Letter, Iterator[int]] = defaultdict(count)
    rank, row = len(before), list[Element]()
    make: Any = tuple.__new__  # a million actions a second

    def number(stage: int, kind: str) -> int:
        if kind != B:
            return next(counters[stage, kind])
        next(counters[stage, W])
        return next(counters[stage, I])

    letter: Any
    for position, letter in enumerate(_letters(rank, word)):
        if letter.__class__ is str and len(own) == 1:
            letter = (own[0], letter)
        try:
            first, second = letter
            if first.__class__ is int:
                m = number(first, second) if second == B else next(counters[letter])
                if m < below:
                    row.append(make(Action, (first, second, m)))
                continue
            both = letter if isinstance(first, tuple) else (letter,)
            kinds = [(operator.index(stage), kind) for stage, kind in both]
        except (TypeError, ValueError):
            reason = f"rank {rank}, position {position}: {_not_a_letter(letter, rank, own)}"
            raise ScheduleError.at([*before, [*row, repr(letter)]], [(reason, rank, len(row))]) from None
        kept = [Action(stage, kind, m) for stage, kind in kinds if (m := number(stage, kind)) < below]
        if kept:  # what is left of a pair stands alone
            row.append(Pair(*kept) if len(kept) == 2 else kept[0])
    return row


def _letters(rank: int, word: Word) -> Word:
    if isinstance(word, str):
        return "".join(word.split())
    if isinstance(word, Iterable):
        return word
    raise ScheduleError([f"rank {rank}: its word is {word!r}; give its letters, such as [(0, 'F'), (0, 'B')] or 'FB'"])


def _not_a_letter(letter: object, rank: int, own: tuple[int, ...]) -> str:
    example = f"write (stage, kind), as in ({own[0] if own else 0}, 'F')"
    if isinstance(letter, str) and letter in COMPUTE:
        held = ", ".join(map(str, own)) or "none"
        return f"{letter!r} does not say which stage, and rank {rank} holds not one but these: {held}; {example}"
    return f"{letter!r} is not a letter; {example}"


def _parse_cell(word: str) -> Element:
    element = parse_element(word)
    for action in parts(element):
        if action.kind not in COMPUTE:
            what = {U: "an update", REDUCE: "a reduction", R: "a recomputation, which `lower` adds"}.get(
                action.kind, "a message"
            )
            raise ValueError(f"{action} is {what}; a schedule holds F, B, I and W only: leave it out")
    return element


def _unreadable(cells: list[list[str]]) -> Iterator[Finding]:
    """What is wrong with each word that is no action."""
    for rank, line in enumerate(cells):
        for position, word in enumerate(line):
            try:
                _parse_cell(word)
            except ValueError as error:
                yield f"rank {rank}, position {position}: {error}", rank, position


def _too_many(rows: Sequence[Sequence[Element]], stages: int, microbatches: int, error: ValueError) -> Finding:
    """Which action's number says that there are so many: a slip of the finger, most likely."""
    number = "stage" if stages > microbatches else "microbatch"
    places = ((rank, position) for rank, row in enumerate(rows) for position in range(len(row)))
    rank, position = max(places, key=lambda at: max(getattr(action, number) for action in parts(rows[at[0]][at[1]])))
    return f"rank {rank}, position {position}: {rows[rank][position]}: {error}", rank, position


def _torch_text(element: Element) -> str:
    return f"({element.first};{element.second})OVERLAP_F_B" if isinstance(element, Pair) else str(element)
