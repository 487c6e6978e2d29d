"""What fills most of each column? The picture of a row that has more bars than columns."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator

from pipelab.action import Action, parts
from pipelab.trace import Number, Span

Stretch = tuple[str, float, float]
"""(letter, start, end), in columns."""


def stretches(
    row: Iterable[Span], position: Callable[[Number], Number], letter: Callable[[Action], str]
) -> Iterator[Stretch]:
    """The spans of a rank in columns; a pair becomes its two halves, one after the other."""
    for span in row:
        together = parts(span.action)
        start, end = float(position(span.start)), float(position(span.end))
        length = (end - start) / len(together)
        for turn, action in enumerate(together):
            yield letter(action), start + turn * length, start + (turn + 1) * length


def majority(row: Iterable[Stretch], columns: int, idle: str) -> list[str]:
    """For each column the letter that holds most of it, or `idle`; on a tie work, and the earlier.

    >>> "".join(majority([("F", 0, 0.7), ("B", 0.7, 3)], columns=4, idle="·"))
    'FBB·'
    """
    held: list[dict[str, float]] = [defaultdict(float) for _ in range(columns)]
    for letter, start, end in row:
        for column in range(max(int(start), 0), min(int(end) + 1, columns)):
            length = min(end, column + 1) - max(start, column)
            if length > 0:
                held[column][letter] += length
    cells = []
    for lengths in held:
        letter = max(lengths, key=lambda key: lengths[key], default=idle)
        busy = sum(lengths.values())
        cells.append(letter if busy and lengths[letter] >= 1 - busy - 1e-9 else idle)
    return cells
