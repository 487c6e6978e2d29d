"""The live timeline without a browser: what is sent, asked and refused, and what is left without a notebook."""

import random
import time

import pytest

pytest.importorskip("anywidget", reason="no anywidget here: the live timeline is not tried")

import pipelab as pl
from pipelab.action import parts
from pipelab.data import Batches, load_text
from pipelab.feed import Ended, Spans, Started, StepBegun
from pipelab.mesh import Mesh
from pipelab.models import build_model
from pipelab.show import live
from pipelab.show.live.build_mode import Builder
from pipelab.show.live.columns import TimeAxis, block_of, read_block, trace_block
from pipelab.show.live.draft import Draft
from pipelab.show.live.question import Question, answer
from pipelab.show.live.script import script, stylesheet
from pipelab.show.live.sliders import Playground
from pipelab.show.live.steps import in_order, standings
from pipelab.show.live.watched import Watch
from pipelab.show.live.widget import Timeline
from pipelab.simulate import simulate_program
from pipelab.trace import LANES
from pipelab.units import Unit, origin
from pipelab.validate import refusal

UNIT = pl.Costs.uniform(F=1, I=1, W=1, hop=0.5)
pytestmark = pytest.mark.usefixtures("all_is_heard")


def step(name="1f1b", ranks=4, microbatches=8, **options):
    return pl.simulate(pl.build(name, ranks, microbatches, **options), UNIT)


def bars_of(block):
    """The bars of a block as (rank, lane, action, start, end)."""
    header, columns = read_block(block)
    rows = zip(
        *(columns[name].tolist() for name in ("rank", "lane", "stage", "kind", "microbatch", "start", "end")),
        strict=True,
    )
    kinds = header["kinds"]
    return [
        (rank, LANES[lane], f"{stage}{kinds[kind]}{m}", start, end) for rank, lane, stage, kind, m, start, end in rows
    ]


def bars_in(spans, first=0):
    return [
        (span.rank, span.lane, str(action), float(span.start - first), float(span.end - first))
        for span in spans
        for action in parts(span.action)
    ]


# ------------------------------------------------------------------------------------------------- what is sent


@pytest.mark.parametrize("name", sorted(pl.SCHEDULES))
def test_a_block_holds_every_bar_of_the_trace_once(name):
    trace = step(name, 3, 5)
    assert bars_of(trace_block(trace)) == bars_in(trace.spans, origin(trace))


def test_a_block_holds_messages_in_their_lanes_and_exact_fractions_as_floats():
    trace = simulate_program(pl.lower(pl.build("interleaved", 2, 4, chunks=3)), pl.Costs.uniform(hop=1))
    assert {lane for _, lane, *_ in bars_of(trace_block(trace))} == {"compute", "send", "recv"}
    assert bars_of(trace_block(trace)) == bars_in(trace.spans)


def test_only_new_spans_are_sent_to_a_timeline_that_grows():
    spans = step("dualpipe-v", 2, 6).spans
    blocks = [block_of({"first": at}, spans[at : at + 7], TimeAxis(Unit("", 1))) for at in range(0, len(spans), 7)]
    assert [bar for block in blocks for bar in bars_of(block)] == bars_in(spans)
    assert max(map(len, blocks)) < 1500


def test_memory_and_limit_are_one_a_rank():
    trace = step(ranks=2)
    header, columns = read_block(trace_block(trace, memory=[[(0, 1), (1, 5)], [(0, 2)]], limit=[3, 4]))
    assert header["curves"] == [2, 1] and columns["curves"].tolist() == [0, 1, 1, 5, 0, 2]
    assert header["limits"] == [3, 4]
    with pytest.raises(ValueError, match="one curve a rank, 2 in all"):
        trace_block(trace, memory=[[]])
    with pytest.raises(ValueError, match="or one a rank, 2 in all"):
        trace_block(trace, limit=[1, 2, 3])


# -------------------------------------------------------------------------------------------------- the widget


@pytest.fixture
def sent(monkeypatch):
    """What a `Watch` sends, in order: whole frames, and blocks of what is new."""
    sent = []
    monkeypatch.setattr(Watch, "send", lambda self, message, blocks: sent.extend(blocks))

    def watch(**options):
        made = Watch(**options)
        made.observe(lambda change: sent.append(change.new), names="frame")
        return made

    return watch, sent


def train(listener, steps=2, transport="memory", **options):
    batches = Batches(text=load_text("arithmetic"), microbatches=4, rows=1, context=16, seed=0, steps=steps)
    schedule = pl.build("zb-h1", 2, 4)
    return pl.train(build_model("tiny"), batches, schedule, feed=listener, transport=transport, **options)


@pytest.mark.parametrize("transport", ["memory", "gloo"])
def test_a_watched_run_ends_as_its_last_step_with_loss_and_memory(sent, transport):
    watch, frames = sent[0](limit=2**20), sent[1]
    run = train(watch, transport=transport)
    last = run.traces[-1]
    assert bars_of(frames[-1]) == bars_of(trace_block(last))
    header, columns = read_block(frames[-1])
    assert header["limits"] == [2**20] * 2 and max(columns["curves"][1::2]) <= max(run.memory.peaks)
    assert watch.trace == last and watch.losses == run.losses and watch.live.losses == run.losses
    title, figures = watch.heading
    assert title.startswith("zb-h1: ") and "tokens/s" in figures and "bubbles: step" in figures


def test_what_is_sent_while_a_step_goes_on_is_what_was_told_and_each_span_once(sent):
    watch, frames = sent[0](), sent[1]
    schedule, spans = pl.build("1f1b", 2, 4), step("1f1b", 2, 4).spans
    watch(Started(schedule, Mesh(pp=2), "virtual", "memory"))
    watch(StepBegun(0))
    for count in range(0, len(spans), 3):
        for span in spans[count : count + 3]:
            watch(Spans(0, span.rank, (span,), ((float(span.end), 7),), last=False))
        until(lambda count=count: sum(len(bars_of(block)) for block in frames) == min(count + 3, len(spans)))
    watch(Ended("rank 1 failed", 0))
    assert sorted(bar for block in frames for bar in bars_of(block)) == sorted(
        (rank, lane, name, start * 1000, end * 1000) for rank, lane, name, start, end in bars_in(spans)
    )
    assert sum(len(read_block(block)[1]["curves"]) for block in frames) == 2 * len(spans)
    assert watch.heading[0] == "1f1b broke off in step 0: rank 1 failed"


def test_a_picture_that_fails_never_disturbs_the_run(sent, monkeypatch):
    watch = sent[0]()
    monkeypatch.setattr(Watch, "_begin", lambda self, progress: 1 / 0)
    with pytest.warns(RuntimeWarning, match="failed at Ended"):
        run = train(watch)
    assert len(run.losses) == 2


def test_one_watch_may_see_several_runs(sent):
    watch, frames = sent[0](), sent[1]
    for steps in (1, 3):
        run = train(watch, steps)
        assert watch.losses == run.losses and watch.trace == run.traces[-1]
        assert bars_of(frames[-1]) == bars_of(trace_block(run.traces[-1]))


def test_every_pipeline_of_a_mesh_is_seen_and_depends_on_itself_alone(sent):
    watch, frames = sent[0](), sent[1]
    batches = Batches(text=load_text("arithmetic"), microbatches=8, rows=1, context=16, seed=0, steps=1)
    pl.train(build_model("tiny"), batches, pl.build("1f1b", 2, 4), Mesh(dp=2, pp=2), feed=watch)
    header, columns = read_block(frames[-1])
    growing, _ = read_block(frames[0])
    assert header["ranks"] == 4 and header["sides"] == growing["sides"] == [0, 0, 1, 1]
    assert {"REDUCE"} <= {header["kinds"][kind] for kind in columns["kind"]}


def until(condition):
    for _ in range(2400):
        if condition():
            return
        time.sleep(0.05)
    raise AssertionError("it never came true")


def test_a_timeline_carries_the_step_as_text_for_where_no_widget_can_be():
    bundle = Timeline(step("gpipe"))._repr_mimebundle_()[0]
    assert bundle["text/plain"].startswith("rank 0  F0") and "application/vnd.jupyter.widget-view+json" in bundle


def test_what_the_reader_selects_can_be_observed():
    timeline, heard = Timeline(step()), []
    timeline.observe(lambda change: heard.append(change.new), names="selected")
    timeline._hear(timeline, {"type": "select", "action": "1F3"}, [])
    assert heard == ["1F3"]


def test_the_script_is_small_and_fetches_nothing_and_nothing_moves():
    code, looks = script(), stylesheet()
    assert len(code) < 70_000 and "://" not in code + looks and "\nimport " not in code
    assert "transition" not in looks and "animation" not in looks and "#0003" in looks
    assert "56B4E9" not in code, "colours are written once, in palette.py"


# ---------------------------------------------------------------------------------------------- the playground


@pytest.mark.parametrize("name", sorted(pl.SCHEDULES))
def test_the_answer_is_what_simulator_and_formula_say(name):
    found = answer(Question(name, ranks=3, microbatches=4))
    assert found.trace.makespan == pl.simulate(found.schedule, pl.Costs.uniform()).makespan
    for what, simulated, theory in found.rows:
        assert theory in ("", simulated), f"{name}: {what}"


def test_an_imbalance_has_no_formula_and_says_so():
    found = answer(Question(imbalance=1))
    assert "equal ranks" in found.remark and all(not theory for _, _, theory in found.rows)
    assert found.trace.makespan > answer(Question()).trace.makespan


def test_messages_take_lanes_and_no_other_time():
    asked = {"schedule": "zb-h1", "hop": 1}
    with_lanes, without = answer(Question(**asked, lanes=True)).trace, answer(Question(**asked)).trace
    assert with_lanes.makespan == without.makespan and len(with_lanes.spans) > len(without.spans)


def test_every_control_of_the_playground_is_answered():
    ground = Playground(Question(ranks=2, microbatches=3))
    other = {"schedule": "zb-v", "ranks": 3, "microbatches": 5, "F": 2.0, "I": 1.5, "W": 0.5, "hop": 0.25}
    other |= {"imbalance": 0.5, "limit": 2, "lanes": True}
    for name, value in other.items():
        before = ground.timeline.frame
        ground.controls[name].value = value
        assert ground.timeline.frame != before, name
    assert ground.controls["chunks"].disabled and "limit 2" in ground.table.value


def test_a_schedule_that_is_none_is_refused_at_once():
    with pytest.raises(ValueError, match="no schedule '1f2b'; did you mean 1f1b"):
        live.playground(schedule="1f2b")


def test_a_question_without_an_answer_is_told_and_the_picture_stays():
    ground = Playground(Question("zb-auto", ranks=2, microbatches=4))
    for name in ("F", "I", "W"):
        ground.controls[name].value = 0.0
    assert ground.answer.trace.makespan == 0 or ground.timeline.note


@pytest.mark.parametrize("name", ["1f1b", "zb-h1", "interleaved", "dualpipe-v"])
def test_step_by_step_every_rank_goes_from_blocked_to_finished(name):
    trace = step(name, 3, 3)
    count = len(in_order(trace))
    for done in range(count):
        states = {standing.state for standing in standings(trace, done)}
        assert states & {"running", "ready"} or any("on its way" in s.why for s in standings(trace, done))
    assert {standing.state for standing in standings(trace, count)} == {"finished"}


def test_a_blocked_rank_names_what_it_needs():
    first, second = standings(step("gpipe", 2, 1), 1)
    assert (first.state, second.state) == ("blocked", "blocked")
    assert str(first) == "rank 0: blocked: 0B0 needs 1B0, which rank 1 has not begun"
    assert str(second) == "rank 1: blocked: what 1F0 needs is on its way until 1.5"


# --------------------------------------------------------------------------------------------- the build mode


@pytest.mark.parametrize("name", ["naive", "gpipe", "1f1b", "zb-h1", "zb-h2", "interleaved", "zb-v"])
def test_every_schedule_that_can_run_can_be_built(name):
    schedule = pl.build(name, 3, 4)
    draft = Draft(schedule.placement, 4)
    draft.read(schedule.to_text())
    assert draft.schedule.rows == schedule.rows
    assert draft.trace().makespan == pl.simulate(schedule, pl.Costs.uniform()).makespan
    assert draft.verdict().startswith("my schedule: legal; target ")


def test_the_best_known_trains_as_the_draft_does():
    draft = Draft(pl.Placement.loop(3), 4)
    draft.read(pl.build("zb-h1", 3, 4).to_text())
    assert "legal; target zb-h1: reached" in draft.verdict() and "14, target 14" in draft.verdict()


@pytest.mark.parametrize("split", [False, True])
@pytest.mark.parametrize("seed", range(5))
def test_what_is_never_refused_ends_as_a_schedule_that_can_run(split, seed):
    draft, chance = Draft(pl.Placement.loop(3, chunks=2), 2), random.Random(seed)
    while allowed := [choice for choice in draft.choices(split) if not choice.why_not]:
        chosen = chance.choice(allowed)
        draft.place(chosen.rank, str(chosen.action))
    assert pl.validate(draft.schedule)
    for _ in range(len(draft.placed)):
        draft.undo()
    assert not any(draft.schedule.rows)


def test_a_refusal_names_place_and_remedy():
    placement = pl.Placement.loop(2)
    rows = ((pl.Action(0, "F", 0),), (pl.Action(1, "F", 0), pl.Action(1, "B", 0)))
    so_far = pl.Schedule("mine", placement, 2, rows)
    reasons = {
        (0, "0B0"): None,
        (0, "1F1"): "rank 0, position 1: 1F1 is misplaced: rank 1 holds stage 1; move it there",
        (0, "0F0"): "rank 0, position 1: 0F0 is doubled: it is there already",
        (0, "0F2"): "rank 0, position 1: 0F2 names a micro-batch that is not there; they are 0..1; leave it out",
        (0, "0W0"): "rank 0, position 1: 0W0 needs 0I0, which is not placed yet; place it on rank 0 first",
        (1, "1F1"): "rank 1, position 2: 1F1 needs 0F1, which is not placed yet; place it on rank 0 first",
        (1, "1W0"): "rank 1, position 2: 1B0 is doubled by 1W0: a full backward is I and W in one; keep one form",
    }
    assert {(r, a): refusal(so_far, r, pl.Action.parse(a)) for r, a in reasons} == reasons


def test_the_builder_reads_its_text_and_scores_a_whole_schedule():
    builder = Builder(ranks=2, microbatches=2)
    builder.rows.value = pl.build("gpipe", 2, 2).to_text()
    assert "makespan       9" in builder.verdict.value and builder.timeline.note == "read 8 actions"
    builder.rows.value = "0F0 0B0\n1F0 1B0 nonsense"
    assert builder.timeline.note.startswith("refused: 'nonsense' is not an action")
    builder._hear({"type": "undo"})
    builder._hear({"type": "place", "rank": 0, "action": "B"})
    assert builder.draft.schedule.rows == pl.build("gpipe", 2, 2).rows


# ------------------------------------------------------------------------------------------- without a notebook


def test_without_a_notebook_there_is_a_figure_and_a_text(monkeypatch):
    for shown in (live.explore(step()), live.playground(schedule="gpipe"), live.builder()):
        assert shown.figure.data and "simulated time" in shown.text
    assert "makespan: 33 (formula 33)" in live.playground().text
    limited = live.playground(limit=3)
    assert [line.text for line in limited.figure.layout.annotations] == [
        "limit 3"
    ] and "rank 0 is above it" in limited.text
    monkeypatch.setenv("PIPELAB_HEADLESS", "1")
    assert not live.in_a_notebook()


def test_in_a_notebook_each_is_a_widget(monkeypatch):
    monkeypatch.setattr(live, "in_a_notebook", lambda: True)
    why = pl.explain(step(), against=step("gpipe"))
    shown = [live.explore(step()), live.overlay(why), live.watch(limit=2**20), live.playground(), live.builder()]
    assert [type(each).__name__ for each in shown] == ["Timeline", "Overlay", "Watch", "Playground", "Builder"]
    assert shown[1].frame and shown[1].as_text().count("rank 0") >= 2
