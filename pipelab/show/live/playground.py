"""What happens if? Sliders beside a timeline; then step through it, or build a schedule by hand."""

from collections.abc import Callable
from html import escape
from typing import Any

import ipywidgets

from pipelab.costs import Costs
from pipelab.placement import Placement
from pipelab.schedules import SCHEDULES, chunks_of
from pipelab.show.live.draft import Choice, Draft
from pipelab.show.live.question import Answer, Question, answer, exact
from pipelab.show.live.steps import in_order, moment, standings
from pipelab.show.live.widget import Timeline
from pipelab.units import origin, time_unit

WORDS = {"description_width": "110px"}


class Playground(ipywidgets.VBox):
    """Sliders for a question, and its answer as a timeline and a table; `.answer` holds the last one.

    >>> ground = Playground(Question("gpipe", ranks=4, microbatches=8))
    >>> ground.controls["microbatches"].value = 16
    >>> ground.answer.trace.makespan
    57
    """

    def __init__(self, question: Question | None = None) -> None:
        start = question or Question()
        self.timeline = Timeline()
        self.controls = _controls(start)
        self.table = ipywidgets.HTML()
        self.stepper = Stepper(self.timeline)
        for control in self.controls.values():
            control.observe(lambda change: self.ask(), names="value")
        columns = [list(self.controls.values())[place : place + 4] for place in (0, 4, 8)]
        rows = [ipywidgets.VBox(column) for column in columns]
        super().__init__([ipywidgets.HBox([*rows, self.table], layout=WRAP), self.timeline, self.stepper])
        self.ask()

    def ask(self) -> None:
        """Answer what the sliders say; a question without an answer is told below the timeline."""
        values = {name: control.value for name, control in self.controls.items()}
        values |= {name: exact(values[name]) for name in ("F", "I", "W", "hop", "imbalance")}
        question = Question(**values)
        self.controls["chunks"].disabled = chunks_of(question.schedule) != "any"
        try:
            self.answer = answer(question)
        except ValueError as error:
            self.timeline.note = str(error).splitlines()[0]
            return
        with self.timeline.hold_sync():
            self.timeline.show(self.answer.trace, limit=question.limit or None)
            self.timeline.note = ""
        self.table.value = table(self.answer)
        self.stepper.start()


class Stepper(ipywidgets.VBox):
    """Goes through the trace of a timeline action by action: what is ready, what is blocked and why.

    >>> stepper = Playground(Question("1f1b", ranks=2, microbatches=2)).stepper
    >>> stepper.place.value = 3
    >>> "0B0 needs 1B0, which rank 1 has not begun" in stepper.words.value
    True
    """

    def __init__(self, timeline: Timeline) -> None:
        self.timeline = timeline
        self.on = ipywidgets.ToggleButton(description="step by step", tooltip="one action after the other")
        self.place = ipywidgets.IntSlider(0, 0, 0, description="actions done", style=WORDS)
        self.words = ipywidgets.HTML()
        back, forth = _button("back", lambda: self._by(-1)), _button("next", lambda: self._by(1))
        self.inner = ipywidgets.VBox([ipywidgets.HBox([back, forth, self.place]), self.words])
        self.inner.layout.display = "none"
        self.on.observe(lambda change: self.start(), names="value")
        self.place.observe(lambda change: self.show(), names="value")
        super().__init__([self.on, self.inner])

    def start(self) -> None:
        """From the first action of the trace that the timeline shows now."""
        self.inner.layout.display = "" if self.on.value else "none"
        trace = self.timeline.trace
        self.place.max = sum(map(len, trace.compute)) if trace else 0
        if self.on.value and self.place.value:
            self.place.value = 0
        else:
            self.show()

    def show(self) -> None:
        """Dim what is still to come, and say where each rank stands."""
        trace, done = self.timeline.trace, self.place.value
        if trace is None or not (self.on.value or done):
            self.timeline.now = None
            return
        now = moment(trace, done)
        self.timeline.now = float(time_unit([trace]).of(now - origin(trace)))
        last = f"{in_order(trace)[done - 1].action} has just ended" if done else "nothing is done yet"
        lines = [f"time {time_unit([trace]).text(now - origin(trace))}: {last}", *map(str, standings(trace, done))]
        self.words.value = f"<pre style='line-height:1.4'>{escape(chr(10).join(lines))}</pre>"

    def _by(self, step: int) -> None:
        self.place.value += step


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
        undo = _button("undo", self.undo)
        super().__init__([ipywidgets.HBox([self.split, undo]), self.timeline, self.rows, self.verdict])
        self.show()

    def place(self, rank: int, word: str) -> None:
        """An action, or the next of a kind, at the end of a rank's row; a refusal is told below the timeline."""
        self._do(lambda: self.draft.place(rank, word))

    def undo(self) -> None:
        """Take the last action back."""
        self._do(self.draft.undo)

    def show(self, note: str = "") -> None:
        """Draw the rows so far and what may come next."""
        trace = self.draft.trace()
        length = float(trace.makespan)
        with self.timeline.hold_sync():
            self.timeline.show(trace)
            title = f"my schedule: {length:g} long so far" if length else "my schedule: nothing placed yet"
            self.timeline.heading = [title, "outlines may come next: click one, or press F, B, I or W on a rank"]
            self.timeline.ghosts = _ghosts(self.draft.choices(self.split.value), trace, self.draft.costs)
            self.timeline.note = note
        self.rows.value = self.draft.schedule.to_text() if length or self.draft.placed else ""
        self.verdict.value = f"<pre>{escape(self.draft.verdict())}</pre>"

    def _do(self, act: Callable[[], Any]) -> None:
        try:
            placed = act()
        except ValueError as error:
            self.timeline.note = f"refused: {error}"
            return
        self.show(f"placed {placed}" if placed else "taken back")

    def _read(self) -> None:
        if self.rows.value.strip() != self.draft.schedule.to_text().strip():
            self._do(lambda: self.draft.read(self.rows.value))

    def _hear(self, event: dict[str, Any]) -> None:
        if event["type"] == "place":
            self.place(event["rank"], event["action"])
        elif event["type"] == "undo":
            self.undo()


def table(found: Answer) -> str:
    """The answer as an HTML table."""
    rows = "".join(
        f"<tr><th scope='row' style='text-align:left;font-weight:normal;padding-right:1em'>{escape(what)}</th>"
        f"<td style='padding-right:1em'>{escape(simulated)}</td><td>{escape(theory)}</td></tr>"
        for what, simulated, theory in found.rows
    )
    head = "<tr><td></td><td style='padding-right:1em'>simulated</td><td>formula</td></tr>"
    remark = f"<div style='max-width:26em'>{escape(found.remark)}</div>" if found.remark else ""
    return f"<table style='line-height:1.5'>{head}{rows}</table>{remark}"


WRAP = {"flex_flow": "row wrap"}


def _controls(start: Question) -> dict[str, Any]:
    """A control for each field of a question, under its name."""

    def whole(name: str, words: str, least: int, most: int) -> Any:
        return ipywidgets.IntSlider(getattr(start, name), least, most, description=words, style=WORDS)

    def real(name: str, words: str, most: float, step: float) -> Any:
        value = float(getattr(start, name))
        return ipywidgets.FloatSlider(value, min=0, max=most, step=step, description=words, style=WORDS)

    choose = ipywidgets.Dropdown(options=list(SCHEDULES), value=start.schedule, description="schedule", style=WORDS)
    return {
        "schedule": choose,
        "ranks": whole("ranks", "ranks P", 1, 16),
        "microbatches": whole("microbatches", "micro-batches M", 1, 64),
        "chunks": whole("chunks", "chunks V", 1, 4),
        "F": real("F", "forward F", 4, 0.25),
        "I": real("I", "input grad. I", 4, 0.25),
        "W": real("W", "weight grad. W", 4, 0.25),
        "hop": real("hop", "hop", 4, 0.25),
        "imbalance": real("imbalance", "last rank longer", 2, 0.1),
        "limit": whole("limit", "memory limit", 0, 32),
        "lanes": ipywidgets.Checkbox(start.lanes, description="show every message", style=WORDS),
    }


def _button(words: str, act: Callable[[], None]) -> Any:
    made = ipywidgets.Button(description=words, layout={"width": "auto"})
    made.on_click(lambda _: act())
    return made


def _ghosts(choices: list[Choice], trace: Any, costs: Costs) -> list[dict[str, Any]]:
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
