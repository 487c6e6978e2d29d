"""What happens if? Sliders beside a timeline, and a way to go through it step by step."""

from collections.abc import Callable
from html import escape
from typing import Any

import ipywidgets

from pipelab.schedules import SCHEDULES, chunks_of
from pipelab.show.live.question import Answer, Question, answer, exact
from pipelab.show.live.steps import in_order, moment, standings
from pipelab.show.live.widget import Timeline
from pipelab.units import origin, time_unit

WORDS = {"description_width": "110px"}
WIDE = {"width": "280px"}  # so that two columns and the table have room beside one another


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
        controls = list(self.controls.values())
        columns = [ipywidgets.VBox(controls[:6]), ipywidgets.VBox(controls[6:])]
        super().__init__([ipywidgets.HBox([*columns, self.table], layout=WRAP), self.timeline, self.stepper])
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
        back, forth = button("back", lambda: self._by(-1)), button("next", lambda: self._by(1))
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


def table(found: Answer) -> str:
    """The answer as an HTML table."""
    rows = "".join(
        f"<tr><th scope='row' style='text-align:left;font-weight:normal;padding-right:1em'>{escape(what)}</th>"
        f"<td style='padding-right:1em'>{escape(simulated)}</td><td>{escape(theory)}</td></tr>"
        for what, simulated, theory in found.rows
    )
    head = "<tr><td></td><td style='padding-right:1em'>simulated</td><td>formula</td></tr>"
    remark = f"<div style='max-width:21em'>{escape(found.remark)}</div>" if found.remark else ""
    return f"<table style='line-height:1.5'>{head}{rows}</table>{remark}"


WRAP = {"flex_flow": "row wrap"}


def _controls(start: Question) -> dict[str, Any]:
    """A control for each field of a question, under its name."""

    def whole(name: str, words: str, least: int, most: int) -> Any:
        return ipywidgets.IntSlider(getattr(start, name), least, most, description=words, style=WORDS, layout=WIDE)

    def real(name: str, words: str, most: float, step: float) -> Any:
        value = float(getattr(start, name))
        return ipywidgets.FloatSlider(value, min=0, max=most, step=step, description=words, style=WORDS, layout=WIDE)

    names = {"options": list(SCHEDULES), "value": start.schedule}
    choose = ipywidgets.Dropdown(**names, description="schedule", style=WORDS, layout=WIDE)
    return {
        "schedule": choose,
        "ranks": whole("ranks", "ranks P", 1, 16),
        "microbatches": whole("microbatches", "micro-batches M", 1, 64),
        "chunks": whole("chunks", "chunks V", 1, 4),
        "limit": whole("limit", "memory limit", 0, 32),
        "lanes": ipywidgets.Checkbox(start.lanes, description="show every message", style=WORDS, layout=WIDE),
        "F": real("F", "forward F", 4, 0.25),
        "I": real("I", "input grad. I", 4, 0.25),
        "W": real("W", "weight grad. W", 4, 0.25),
        "hop": real("hop", "hop", 4, 0.25),
        "imbalance": real("imbalance", "last rank longer", 2, 0.1),
    }


def button(words: str, act: Callable[[], None]) -> Any:
    """A button that does this."""
    made = ipywidgets.Button(description=words, layout={"width": "auto"})
    made.on_click(lambda _: act())
    return made
