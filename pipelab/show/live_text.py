"""How does a run look in a terminal while it goes on? A timeline that grows; without a terminal, a line a step."""

import os
import shutil
import time
from typing import TextIO

from pipelab.feed import Ended, Event, StepEnded
from pipelab.live import Live
from pipelab.show.text import NARROWEST, rank_lines
from pipelab.units import CLOCK_NAMES, bubbles_text, mebibytes, origin, time_unit

EVERY = 0.1
"""Seconds between two pictures."""

UP, CLEAR_LINE, CLEAR_BELOW = "\x1b[{}F", "\x1b[K", "\x1b[J"


class LiveText:
    """A listener of the feed that draws into `out`: at most ten pictures a second, each over the one before.

    Where `out` is no terminal, it writes a line for each step instead. The last picture of a run that failed stays.
    """

    def __init__(self, out: TextIO) -> None:
        self.live = Live()
        self._out = out
        self._lines = 0
        self._next = 0.0

    def __call__(self, event: Event) -> None:
        """Take an event, and draw if it is time to."""
        self.live(event)
        if not self._out.isatty():
            if isinstance(event, StepEnded) and self.live.started is not None:
                which = f"{self.live.started.schedule.name}, step {event.step}"
                print("; ".join((which, *run_lines(self.live))), file=self._out, flush=True)
        elif isinstance(event, Ended):
            self._draw(picture(self.live, *self._size()) if event.error else [])
        elif time.monotonic() >= self._next:
            self._draw(picture(self.live, *self._size()))
            self._next = time.monotonic() + EVERY

    def __repr__(self) -> str:
        return f"<{'draws' if self._out.isatty() else 'prints each step of'} a run>"

    def _size(self) -> tuple[int, int]:
        """Columns and rows of the terminal, which need not be the one of standard output."""
        try:
            return os.get_terminal_size(self._out.fileno())
        except (OSError, ValueError):
            return shutil.get_terminal_size()

    def _draw(self, lines: list[str]) -> None:
        up = UP.format(self._lines) if self._lines else ""
        self._out.write(up + "".join(f"{line}{CLEAR_LINE}\n" for line in lines) + CLEAR_BELOW)
        self._out.flush()
        self._lines = len(lines)


def picture(live: Live, columns: int, rows: int) -> list[str]:
    """The state of a run as lines that fit a terminal: the step that goes on, and the figures of the last whole one."""
    current = live.current
    if live.started is None or current is None:
        return []
    width = max(columns - 1, NARROWEST)
    schedule, clock = live.started.schedule, CLOCK_NAMES[live.started.clock]
    state = f"step {live.step}" if live.step >= 0 else "warm-up"
    shown = current if any(current.compute) or live.trace is None else live.trace
    until = max(origin(trace) + trace.makespan for trace in (shown, live.trace or shown))
    lines = rank_lines(shown, width, until)
    if (more := len(lines) - max(rows - 5, 1)) > 0:
        lines = [*lines[:-more], f"and {more} more ranks"]
    return [
        line[:width]
        for line in (f"{schedule.name}, {len(current.compute)} ranks, {clock}: {state}", *lines, *run_lines(live))
    ]


def run_lines(live: Live) -> list[str]:
    """Loss, bytes and times of the last whole step, one subject a line."""
    trace = live.trace
    if trace is None:
        return []
    tokens = f"{live.tokens_per_second:,.0f} tokens/s" if live.tokens_per_second else "no work"
    makespan = time_unit([trace]).text(trace.makespan)
    return [
        f"loss {live.losses[-1]:.3f}, {makespan}, {tokens} ({CLOCK_NAMES[trace.clock]})",
        f"bubbles: {bubbles_text(trace)}",
        f"peak activations {mebibytes(live.peaks)} MiB by rank",
    ]
