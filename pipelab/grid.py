"""Where in the rows is it? The rows near a mistake, with a caret under the action."""

from collections.abc import Mapping, Sequence

AROUND, MOST_ROWS, LONGEST_WORD = 6, 13, 24


def grid(rows: Sequence[Sequence[object]], marks: Mapping[int, int], around: int = AROUND) -> str:
    """The rows near the marked places (rank: position), ranks down and actions across, and carets under each mark.

    Of a long row only what is around its own mark is shown, of many ranks the marked ones and a few more.

    >>> print(grid(["0F0 0B0 0F1 0B1".split(), ["1F0"]], {0: 2}, around=1))
    rank 0: ... 0B0 0F1 0B1
                    ^^^
    rank 1: ...
    """
    centre = min(marks.values(), default=0)
    ranks = sorted(sorted(range(len(rows)), key=lambda rank: rank not in marks)[:MOST_ROWS])
    first = {rank: max(0, marks.get(rank, centre) - around) for rank in ranks}
    windows = {
        rank: [str(word)[:LONGEST_WORD] for word in rows[rank][first[rank] :][: 2 * around + 1]] for rank in ranks
    }
    width = max((len(word) for window in windows.values() for word in window), default=1)
    label = max((len(f"rank {rank}:") for rank in ranks), default=0)
    cut = any(first.values())
    lines = []
    for rank, window in windows.items():
        before = " ..." * bool(first[rank]) or "    " * cut
        after = " ..." * (len(rows[rank]) > first[rank] + len(window) > first[rank])
        cells = "".join(f" {word:<{width}}" for word in window).rstrip()
        lines.append(f"{f'rank {rank}:':<{label}}{before}{cells}{after}".rstrip())
        if rank in marks:
            column = marks[rank] - first[rank]
            lines.append(" " * (label + 4 * cut + (width + 1) * column + 1) + "^" * len(window[column]))
    if len(rows) > len(ranks):
        lines.append(f"({len(rows) - len(ranks)} more ranks not shown)")
    return "\n".join(lines)
