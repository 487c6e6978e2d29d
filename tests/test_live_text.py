"""A face of a run that goes on: its state from the feed, and its picture in a terminal."""

import io
import json
import re

import pytest

import pipelab as pl
from pipelab.cli import main
from pipelab.data import Batches, load_text
from pipelab.feed import Ended, Spans, Started, StepBegun, StepEnded
from pipelab.live import Live
from pipelab.mesh import Mesh
from pipelab.models import build_model
from pipelab.show.live_text import LiveText, picture
from pipelab.show.text import rank_lines

pytestmark = pytest.mark.usefixtures("all_is_heard")


def train(listener, steps: int = 2, **options):
    batches = Batches(text=load_text("arithmetic"), microbatches=4, rows=1, context=16, seed=0, steps=steps)
    return pl.train(build_model("tiny"), batches, pl.build("1f1b", 3, 4), feed=listener, **options)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("transport", ["memory", "gloo"])
def test_in_the_end_the_state_is_that_of_the_run(transport):
    live = Live()
    run = train(live, transport=transport)
    assert live.losses == run.losses
    assert live.trace == live.current == run.traces[-1]
    assert live.peaks == run.memory.peaks
    assert live.tokens_per_second == 4 * 16 / float(run.traces[-1].makespan)
    assert (live.step, live.ended) == (1, Ended("", 0))


def test_before_the_first_event_there_is_nothing_and_nothing_fails():
    live = Live()
    assert (live.current, live.trace, live.tokens_per_second, picture(live, 80, 24)) == (None, None, None, [])
    live(Started(pl.build("gpipe", 2, 2), Mesh(pp=2), "virtual", "memory"))
    assert live.current.spans == () and live.tokens_per_second is None
    assert picture(live, 80, 24)[0] == "gpipe, 2 ranks, virtual time: warm-up"


def test_a_step_that_goes_on_keeps_the_scale_of_the_last_whole_one():
    live = Live()
    schedule = pl.build("gpipe", 2, 2)
    spans = pl.simulate(schedule, pl.Costs.uniform()).spans
    live(Started(schedule, Mesh(pp=2), "virtual", "memory"))
    for step, share in ((0, spans), (1, spans[:3])):
        live(StepBegun(step))
        for rank in range(2):
            live(Spans(step, rank, tuple(span for span in share if span.rank == rank), (), False))
        if step == 0:
            live(StepEnded(0, 1.0, 8))
    first, growing = picture(live, 80, 24)[1:3]
    whole = rank_lines(live.trace, 79, live.trace.makespan)
    bars = [line.rstrip("·") for line in (first, growing)]
    assert len(bars[0]) < len(whole[0]) == len(first)
    assert all(before.startswith(bar) for before, bar in zip(whole, bars, strict=True))


def test_a_late_rank_stands_in_its_place_also_when_it_is_heard_of_first():
    live, schedule = Live(), pl.build("gpipe", 2, 2)
    spans = pl.simulate(schedule, pl.Costs.uniform()).spans
    live(Started(schedule, Mesh(pp=2), "virtual", "memory"))
    live(StepBegun(0))
    live(Spans(0, 1, tuple(span for span in spans if span.rank == 1)[:1], (), False))  # 1F0 from 1 to 2
    assert picture(live, 80, 24)[2].partition("1  ")[2].index("F") == (80 - 1 - len("rank 1  ")) // 2 + 1


@pytest.mark.parametrize(("columns", "rows"), [(80, 24), (24, 6), (10, 2), (300, 4)])
def test_the_picture_fits_the_terminal(columns, rows):
    live = Live()
    train(live)
    lines = picture(live, columns, rows)
    assert all(len(line) <= max(columns - 1, 20) for line in lines)
    assert len(lines) <= max(rows, 6)


def test_on_a_terminal_each_picture_is_drawn_over_the_one_before_and_the_last_is_wiped():
    out = Terminal()
    train(LiveText(out))
    pictures = re.split(r"\x1b\[(\d+)F", out.getvalue())
    heights = [piece.count("\n") for piece in pictures[::2]]
    assert [int(up) for up in pictures[1::2]] == heights[:-1]
    assert pictures[-1] == "\x1b[J"


def test_the_picture_of_a_run_that_failed_stays():
    out = Terminal()

    def stop(step: int, loss: float) -> None:
        raise StopIteration("enough")

    with pytest.raises(StopIteration):
        train(LiveText(out), on_step=stop)
    assert "rank 2" in out.getvalue().rpartition("\x1b[J")[0].rpartition("F")[2] or "rank 2" in out.getvalue()
    assert not out.getvalue().endswith("F\x1b[J")


def test_without_a_terminal_there_is_a_plain_line_a_step():
    out = io.StringIO()
    run = train(LiveText(out), steps=3)
    lines = out.getvalue().splitlines()
    assert [line.split(";")[0] for line in lines] == ["1f1b, step 0", "1f1b, step 1", "1f1b, step 2"]
    for line, loss in zip(lines, run.losses, strict=True):
        assert f"loss {loss:.3f}" in line and "virtual time" in line and "tokens/s" in line and "\x1b" not in line


@pytest.mark.parametrize("transport", ["memory", "gloo"])
def test_live_on_the_command_line_leaves_one_object_on_standard_output(capsys, transport):
    arguments = ["train", "--schedule", "gpipe", "--pp", "2", "--microbatches", "2", "--steps", "2", "--model", "tiny"]
    assert main([*arguments, "--transport", transport, "--live", "--json"]) == 0
    said = capsys.readouterr()
    assert len(json.loads(said.out)["losses"]) == 2
    assert [line.split(";")[0] for line in said.err.splitlines()] == ["gpipe, step 0", "gpipe, step 1"]
