"""How is a failed run told? One sentence that names the culprit, then what every rank was doing.

The ranks that lose a connection because another one died are told as that, and never in place of the one that died.
"""

import re
import signal
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from pipelab.flight_recorder import FINISHED, TURN, WAITING, Note
from pipelab.wait_for import Graph, cycle, holding_up, wait_for_graph

SECONDARY = re.compile(
    r"closed by peer|reset by peer|broken pipe|socket closed|connection refused|connection was closed|not connected"
    r"|timed out|wait timeout|remote process (exited|has)|peer .* (gone|left)|recvvector failed|sendbytes failed"
    r"|nccl.*(remote|unhandled system) error|heartbeat|process group has been aborted",
    re.IGNORECASE | re.DOTALL,
)
"""What an error says when the fault is another rank's."""

MOST_RANKS = 16
"""How many ranks a report describes."""

LAST_ACTIONS = 12
LAST_LINES = 10

HINTS = {
    signal.SIGKILL: "if nobody has killed it, the system was short of memory: try a smaller model or fewer ranks",
    signal.SIGSEGV: "it crashed in compiled code; the last lines show where",
    signal.SIGABRT: "compiled code gave up; the last lines show why",
    signal.SIGBUS: "it touched memory that is not there; a full disk or /dev/shm does this",
}


class RunError(RuntimeError):
    """A run that failed: the sentence names the rank, what it was doing, and the cause.

    `.sentence` is that sentence, `.report` what follows it (the other ranks, the last actions, the last lines printed),
    `.traceback` the culprit's own traceback or "", `.rank` the culprit or None.
    """

    def __init__(self, sentence: str, report: str = "", traceback: str = "", rank: int | None = None) -> None:
        super().__init__("\n".join(filter(None, (sentence, report))))
        self.sentence = sentence
        self.report = report
        self.traceback = traceback
        self.rank = rank

    def _render_traceback_(self) -> list[str]:
        """What Jupyter shows: the rank's own traceback instead of the launcher's."""
        return [*self.traceback.splitlines(), f"RunError: {self}"]


class RankTraceback(Exception):
    """The traceback of a rank, as the cause of its RunError: Python prints it with that."""


@dataclass(frozen=True)
class Fate:
    """What is known of one rank of a failed run.

    `exit_code` is negative for a signal; `error` and `message` are the type and text of what it raised, at `time`
    (`time.time`, as in its notes). `task` is what it was doing if it noted nothing; one that has `vanished` was lost
    from sight.
    """

    rank: int
    pid: int | None = None
    host: str = ""
    exit_code: int | None = None
    returned: bool = False
    error: str = ""
    message: str = ""
    traceback: str = ""
    time: float = 0.0
    notes: Sequence[Note] = ()
    lines: Sequence[str] = ()
    task: str = "its work"
    vanished: bool = False

    @property
    def killed(self) -> bool:
        """A signal ended it, or it ended without a word, which comes to the same."""
        return not self.error and (self.vanished or (self.exit_code is not None and self.exit_code < 0))

    @property
    def failed(self) -> bool:
        """It raised, or ended without a result."""
        return bool(self.error) or self.killed or (self.exit_code is not None and not self.returned)

    @property
    def secondary(self) -> bool:
        """It failed because another rank did: nobody answered it any more."""
        return bool(self.error) and (self.error == "Aborted" or bool(SECONDARY.search(self.message)))

    @property
    def last(self) -> Note | None:
        """What it noted last."""
        return self.notes[-1] if self.notes else None

    @property
    def name(self) -> str:
        """Its rank, and its process if that is known."""
        return f"rank {self.rank}" + ("" if self.pid is None else f" (pid {self.pid})")

    @property
    def place(self) -> str:
        """The host, as the end of a sentence."""
        return f" on host {self.host}" if self.host else ""


def culprit(fates: Sequence[Fate]) -> Fate | None:
    """Whose fault it was: a rank that was killed; else the first that failed by itself; else the first that failed.

    >>> lost = Fate(0, error="RuntimeError", message="Connection closed by peer", time=1.0)
    >>> culprit([lost, Fate(1, error="ValueError", message="boom", time=1.5)]).rank
    1
    """
    failed = [fate for fate in fates if fate.failed]
    return min(failed, key=lambda fate: (not fate.killed, fate.secondary, fate.time, fate.rank), default=None)


def failure(fates: Sequence[Fate]) -> RunError:
    """The error of a run in which a rank has failed. What a rank tells as a RunError is a whole sentence already."""
    guilty = culprit(fates)
    assert guilty is not None, "a run failed and no rank did"
    sentence = guilty.message if guilty.error == RunError.__name__ else f"{guilty.name} {_end(guilty)}"
    if guilty.secondary and (gone := [fate.rank for fate in fates if fate.returned]):
        sentence += f"; {_ranks(gone)} had returned and could not answer"
    return _error(sentence, guilty, fates, others_too=any(note.action for fate in fates for note in fate.notes))


def hang(fates: Sequence[Fate], seconds: float) -> RunError:
    """The error of a run in which nothing has moved for so long: a deadlock, or a rank that holds the others up."""
    last = {fate.rank: fate.last for fate in fates}
    graph = wait_for_graph(last)
    by_rank = {fate.rank: fate for fate in fates}
    if circle := cycle(graph):
        return _error(f"deadlock: {_round(circle, last)}", by_rank[circle[0]], fates)
    held = next(iter(holding_up(graph)), None)
    guilty = by_rank[held] if held in by_rank else min(fates, key=lambda fate: (_state_order(fate), fate.rank))
    if guilty.returned or (guilty.last is not None and guilty.last.state == FINISHED):
        sentence = f"{guilty.name} had returned{guilty.place}, and others wait for it"
    else:
        sentence = f"{guilty.name} gave no sign of life for {seconds:g} s while {_doing(guilty)}{guilty.place}"
    return _error(f"{sentence}; give slow work a longer timeout", guilty, fates)


def describe(fates: Sequence[Fate], now: float | None = None) -> str:
    """One line a rank: what it does, or waits for, and since when.

    >>> print(describe([Fate(0, notes=[Note(7.0, "waiting", "0RECV_B0", "1SEND_B0", (1,))])], now=9.5))
      rank 0: waiting for 1SEND_B0 of rank 1, for 2.5 s
    """
    now = time.time() if now is None else now
    shown = [f"  rank {fate.rank}: {_state(fate, now)}" for fate in fates[:MOST_RANKS]]
    if len(fates) > MOST_RANKS:
        shown.append(f"  ... and {len(fates) - MOST_RANKS} more ranks")
    return "\n".join(shown)


def _error(sentence: str, guilty: Fate, fates: Sequence[Fate], others_too: bool = True) -> RunError:
    parts = []
    if others := [fate for fate in fates if fate is not guilty and others_too]:
        parts.append(describe(others))
    actions = [note.action for note in guilty.notes if note.action and note.awaited != TURN]
    if actions:
        parts.append(f"last actions of rank {guilty.rank}: {' '.join(actions[-LAST_ACTIONS:])}")
    if guilty.exit_code is not None and -guilty.exit_code in HINTS and guilty.killed:
        parts.append(HINTS[signal.Signals(-guilty.exit_code)])
    if guilty.secondary:
        parts.append(f"its error was {guilty.error}: {guilty.message}")
    if guilty.lines:
        lines = "".join(f"\n  {line}" for line in _last_lines(guilty.lines))
        parts.append(f"last lines of rank {guilty.rank}:{lines}")
    error = RunError(sentence, "\n".join(parts), guilty.traceback, guilty.rank)
    if guilty.traceback:
        error.__cause__ = RankTraceback(f"\n{guilty.traceback}")
    return error


def _last_lines(lines: Sequence[str]) -> Sequence[str]:
    """The last lines; of a stack that begins with its innermost call, the first."""
    stacks = [place for place, line in enumerate(lines) if "most recent call first" in line]
    begin = max(0, stacks[-1] - 2 if stacks else len(lines) - LAST_LINES)  # why it is printed stands before it
    return lines[begin : begin + LAST_LINES]


def _end(fate: Fate) -> str:
    """How a rank ended, as the rest of a sentence about it."""
    while_doing = f"while {_doing(fate)}{fate.place}"
    if fate.error == "SystemExit":
        return f"left early, by sys.exit({fate.message}), {while_doing}"
    if fate.secondary:
        return f"lost its connections {while_doing}"
    if fate.error:
        return f"raised {fate.error} {while_doing}: {fate.message}"
    if fate.vanished:
        return f"ended without a word, last seen {_doing(fate)}{fate.place}"
    if fate.killed:
        return f"was killed by signal {-(fate.exit_code or 0)} {while_doing}"
    return f"left early, with exit status {fate.exit_code}, {while_doing}"


def _doing(fate: Fate) -> str:
    note = fate.last
    if note is None or note.state == FINISHED:
        return f"running {fate.task}"
    return _waiting(note) if note.state == WAITING else f"running {note.action}"


def _waiting(note: Note) -> str:
    if note.awaited == TURN:
        return f"waiting for its turn to run {note.action}"
    if note.awaited == note.action:
        return f"waiting at {note.action} for {_ranks(note.peers)}"
    awaited = f" for {note.awaited}" if note.awaited else f" at {note.action}"
    return f"waiting{awaited}" + (f" of {_ranks(note.peers)}" if note.peers else "")


def _state(fate: Fate, now: float) -> str:
    if fate.returned or (fate.last is not None and fate.last.state == FINISHED):
        return "had returned"
    since = "" if fate.last is None else f", for {max(0.0, now - fate.last.time):.1f} s"
    return f"{_end(replace(fate, host=''))}{since}" if fate.failed else f"{_doing(fate)}{since}"


def _state_order(fate: Fate) -> float:
    """Ranks that run come first, the longest at it first; those that wait after them."""
    if fate.last is None:
        return 0.0
    return fate.last.time + (1e12 if fate.last.state == WAITING else 2e12 if fate.last.state == FINISHED else 0.0)


def _round(circle: Sequence[int], last: Mapping[int, Note | None]) -> str:
    steps = []
    for rank, peer in zip(circle, (*circle[1:], circle[0]), strict=True):
        note = last[rank]
        assert note is not None
        steps.append(f"rank {rank} waits at {note.action} for {note.awaited or 'an answer'} of rank {peer}")
    return ", ".join(steps)


def _ranks(ranks: Sequence[int]) -> str:
    return ("rank " if len(ranks) == 1 else "ranks ") + ", ".join(map(str, ranks))


__all__ = ["Fate", "Graph", "RunError", "culprit", "describe", "failure", "hang"]
