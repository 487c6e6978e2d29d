"""How are figures set in columns? As plain text, for a terminal and as the twin of a chart."""

from collections.abc import Sequence


def columns(lines: Sequence[Sequence[object]]) -> str:
    """A table as text: the first column to the left, the others to the right.

    >>> print(columns([["rank", "peak"], [0, 4], [10, 1]]))
    rank  peak
    0        4
    10       1
    """
    cells = [list(map(str, line)) for line in lines]
    first, *widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return "\n".join(
        "  ".join([name.ljust(first), *(word.rjust(width) for word, width in zip(words, widths, strict=True))]).rstrip()
        for name, *words in cells
    )
