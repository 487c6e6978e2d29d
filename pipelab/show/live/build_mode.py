"""Can you do better? Build a schedule on the timeline, action by action, beside its text and its score."""

from collections.abc import Callable
from html import escape
from typing import Any

import ipywidgets

from pipelab.costs import Costs
from pipelab.placement import Placement
from pipelab.show.live.draft import Choice, Draft
from pipelab.show.live.sliders import button
from pipelab.show.live.widget import Timeline
from pipelab.trace import Trace


class Builder(ipywidgets.VBox):
    """Place actions by click or key; what cannot come next is refused with the reason; the rows stay editable as text.

    Click an outline, or choose a rank with up and down and press F, B, I or W; Backspace takes the last one back.

    >>> builder = Builder(ranks=2, microbatches=1)
    >>> builder.place(0, "B")
    >>> builder.timeline.note
    'refused: rank 0, position 0: 0B0 needs 0F0, which is not placed yet; place it on rank 0 first'
    >>> for rank, letter in ((0, "F"), (1, "F"), (1, "B"), (0, "B")):
    ...     builder.place(rank, letter)
    >>> builder.rows.value.splitlines()
    ['0F0 0B0', '1F0 1B0']
    """

    def __init__(self, ranks: int = 3, microbatches: int = 4, costs: Costs | None = None) -> None:
        self.draft = Draft(Placement.loop(ranks), microbatches, costs)
        self.timeline = Timeline()
        self.timeline.placing = True
        self.timeline.on_event = self._hear
        self.split = ipywidgets.ToggleButtons(options=[("F B", False), ("F I W", True)], tooltips=["whole", "split"])
        self.split.observe(lambda change: self.show(), names="value")
        self.rows = ipywidgets.Textarea(continuous_update=False, rows=ranks + 1, layout={"width": "100%"})
        self.rows.observe(lambda change: self._read(), names="value")
        self.verdict = ipywidgets.HTML()
        undo = button("undo", self.undo)
        super().__init__([ipywidgets.HBox([self.split, undo]), self.timeline, self.rows, self.verdict])
        self.show()

    def place(self, rank: int, word: str) -> None:
        """An action, or the next of a kind, at the end of a rank's row; a refusal is told below the timeline."""
        self._do(lambda: f"placed {self.draft.place(rank, word)}")

    def undo(self) -> None:
        """Take the last action back."""
        self._do(self.draft.undo)

    def show(self, note: str = "") -> None:
        """Draw the rows so far and what may come next."""
        trace = self.draft.trace()
        length = float(trace.makespan)
        with self.timeline.hold_sync():
            self.timeline.show(trace)
            choices = self.draft.choices(self.split.value)
            title = (
                f"my schedule: {length:g} long{' so far' * bool(choices)}"
                if length
                else "my schedule: nothing placed yet"
            )
            next_one = "outlines may come next: click one, or press F, B, I or W on a rank"
            self.timeline.heading = [title, next_one if choices else "all is placed: its score is below"]
            self.timeline.ghosts = _ghosts(choices, trace)
            self.timeline.note = note
        self.rows.value = self.draft.schedule.to_text() if length or self.draft.placed else ""
        self.verdict.value = f"<pre>{escape(self.draft.verdict())}</pre>"

    def _do(self, act: Callable[[], str]) -> None:
        try:
            said = act()
        except ValueError as error:
            self.timeline.note = f"refused: {error}"
            return
        self.show(said)

    def _read(self) -> None:
        if self.rows.value.strip() != self.draft.schedule.to_text().strip():
            self._do(lambda: self.draft.read(self.rows.value))

    def _hear(self, event: dict[str, Any]) -> None:
        if event["type"] == "place":
            self.place(event["rank"], event["action"])
        elif event["type"] == "undo":
            self.undo()


def _ghosts(choices: list[Choice], trace: Trace) -> list[dict[str, Any]]:
    """An outline at the end of its row for each action that could come next."""
    free = {rank: float(row[-1].end) if row else 0.0 for rank, row in enumerate(trace.compute)}
    turns: dict[int, int] = {}
    ghosts = []
    for rank, action, why_not in choices:
        turn = turns[rank] = turns.get(rank, -1) + 1
        ghosts.append(
            {"rank": rank, "start": free[rank], "turn": turn, "action": str(action), "kind": action.kind,
             "microbatch": action.microbatch, "ready": not why_not, "why": why_not}
        )  # fmt: skip
    return ghosts
