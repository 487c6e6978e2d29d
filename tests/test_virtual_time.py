"""Virtual time is the time of a machine with a processor a rank: own work, arrivals, and nothing else."""

import gc
import itertools
import statistics
import threading
import time
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

import pipelab as pl
from pipelab import clock, stage
from pipelab.clock import Turn, VirtualClock, WallClock, measure, undisturbed
from pipelab.models import build_model

NAMES = ["naive", "gpipe", "1f1b", "interleaved", "zb-h1"]
WIDTH, ROWS = 16, 4
KINDS = ("step", "span", "overhead")


def build(name: str, ranks: int, microbatches: int) -> pl.Schedule:
    return pl.build(name, ranks, microbatches, 2 if name == "interleaved" else None)


def tiny_run(schedule: pl.Schedule, *, steps: int = 2, link: pl.Link | None = None, rows: int | None = None) -> pl.Run:
    """A few steps of the preset `tiny`; `rows` of the batch may leave the micro-batches uneven."""
    torch.manual_seed(0)
    tokens = torch.randint(256, (steps, rows or 2 * schedule.microbatches, 16))
    return pl.train(build_model("tiny"), [(batch, batch) for batch in tokens], schedule, link=link or pl.Link(), seed=1)


# ---- the clock, with work whose duration is known


class Work:
    """A processor on which only our own layers take time: whole seconds, so that floats are exact."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def take(self, seconds: float) -> None:
        self.seconds += seconds


class _Taking(torch.autograd.Function):
    """The identity, which takes time in its forward and in its backward."""

    @staticmethod
    def forward(ctx, x, layer):
        ctx.layer = layer
        layer.work.take(layer.forward_seconds)
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        ctx.layer.work.take(ctx.layer.backward_seconds)
        return gradient, None


class Takes(nn.Module):
    """A layer of known times for F and I; W is taken by the stage."""

    def __init__(self, work: Work, forward_seconds: float, backward_seconds: float) -> None:
        super().__init__()
        self.work, self.forward_seconds, self.backward_seconds = work, forward_seconds, backward_seconds
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, x: Tensor) -> Tensor:
        return _Taking.apply(x * self.scale, self)


@pytest.fixture
def work(monkeypatch):
    """Processor time moves by what our layers take, and by 3 s with every W."""
    work = Work()
    fine = SimpleNamespace(resolution=1e-9)
    monkeypatch.setattr(
        clock,
        "time",
        SimpleNamespace(
            thread_time=lambda: work.seconds, perf_counter=time.perf_counter, get_clock_info=lambda name: fine
        ),
    )
    pay = stage.pay

    def pay_in_time(waiting) -> None:
        work.take(3)
        pay(waiting)

    monkeypatch.setattr(stage, "pay", pay_in_time)
    return work


def run_on(work: Work, schedule: pl.Schedule, forward, backward, link: pl.Link | None = None) -> pl.Run:
    model = nn.Sequential(*(Takes(work, f, i) for f, i in zip(forward, backward, strict=True)))
    batch = torch.ones(ROWS * schedule.microbatches, WIDTH), torch.zeros(ROWS * schedule.microbatches, WIDTH)
    return pl.train(
        model,
        [batch] * 2,
        schedule,
        loss=nn.functional.mse_loss,
        link=link or pl.Link(),
        at=list(range(1, schedule.stages)),
    )


@pytest.mark.parametrize(("name", "ranks", "microbatches"), list(itertools.product(NAMES, (1, 3), (1, 2, 5))))
def test_a_run_whose_work_takes_known_times_is_the_simulation_exactly(name, ranks, microbatches, work):
    schedule = build(name, ranks, microbatches)
    forward = [float(2 + index % 3) for index in range(schedule.stages)]
    backward = [float(1 + index % 2) for index in range(schedule.stages)]
    run = run_on(work, schedule, forward, backward)
    expected = pl.simulate(schedule, pl.Costs.per_stage(forward, backward, [3.0] * schedule.stages))
    for trace in run.traces:
        assert trace.compute == expected.compute
        assert trace.bubbles() == expected.bubbles()


@pytest.mark.parametrize("name", NAMES)
def test_a_message_arrives_after_its_latency_and_its_bytes_over_the_bandwidth(name, work):
    schedule = build(name, 3, 5)
    forward, backward = [2.0] * schedule.stages, [1.0] * schedule.stages
    nbytes = ROWS * WIDTH * 4
    link = pl.Link(latency=2.0, bytes_per_second=nbytes / 5)
    run = run_on(work, schedule, forward, backward, link)
    costs = pl.Costs.per_stage(forward, backward, [3.0] * schedule.stages, hop=7.0)
    assert run.trace.compute == pl.simulate(schedule, costs).compute
    sends = [span for span in run.trace.spans if span.lane == "send"]
    assert {span.end - span.start for span in sends} == {7.0}
    assert set(run.costs().hop.values()) == {7.0}


@pytest.mark.parametrize("name", NAMES)
def test_with_equal_work_measured_replayed_and_formula_are_the_same(name, work):
    schedule = build(name, 4, 8)
    per_stage = 1.0 if name == "interleaved" else 2.0
    bubbles = run_on(work, schedule, [per_stage] * schedule.stages, [per_stage] * schedule.stages).bubbles()
    assert bubbles["measured"] == bubbles["replayed"]
    assert bubbles["formula"] == pytest.approx(bubbles["measured"], abs=1e-12)


def test_work_on_another_thread_takes_no_virtual_time_and_sleeping_takes_none_either(work):
    ours = VirtualClock(Turn(torch.device("cpu")))

    def wait_for_the_other_thread() -> str:
        thread = threading.Thread(target=time.sleep, args=(0.01,))
        thread.start()
        thread.join()
        work.take(2)
        return "done"

    assert ours.run(wait_for_the_other_thread) == ("done", 0.0, 2.0)
    ours.wait_until(1.0)
    assert ours.now == 2.0
    ours.wait_until(5.0)
    assert ours.run(lambda: None) == (None, 5.0, 5.0)
    ours.restart(origin=0.0)
    assert ours.now == 0.0


def test_aside_virtual_time_stands_still_and_wall_time_goes_on():
    turn = SimpleNamespace(take=lambda: None, give=lambda: 2.5)
    virtual, wall = VirtualClock(turn), WallClock()
    virtual.wait_until(1.0)
    assert virtual.aside(lambda: "updated") == ("updated", 1.0, 3.5) and virtual.now == 1.0
    _, start, end = wall.aside(lambda: time.sleep(0.01))
    assert start < end <= wall.now


def test_where_processor_time_is_coarse_the_seconds_that_passed_are_taken(monkeypatch):
    passed = itertools.count()
    coarse = SimpleNamespace(
        thread_time=None,
        perf_counter=lambda: next(passed),
        get_clock_info=lambda name: SimpleNamespace(resolution=0.015),
    )
    monkeypatch.setattr(clock, "time", coarse)
    assert measure(Turn(torch.device("cpu")), lambda: "done") == ("done", 1)


def test_one_rank_computes_at_a_time():
    turn = Turn(torch.device("cpu"))
    inside, most = [], []

    def work() -> None:
        inside.append(None)
        time.sleep(0.001)
        most.append(len(inside))
        inside.pop()

    threads = [threading.Thread(target=measure, args=(turn, work)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1] * 8


# ---- runs with the durations that they happen to have


def starts_again(schedule: pl.Schedule, trace: pl.Trace, flight) -> dict[pl.Action, tuple[float, float]]:
    """Start and end of every action from nothing but the durations: the rule of the clock, written a second time."""
    rank_of = schedule.placement.rank_of
    length = {span.action: span.end - span.start for row in trace.compute for span in row}
    ends: dict[pl.Action, float] = {}
    found: dict[pl.Action, tuple[float, float]] = {}
    rows = [list(row) for row in schedule.rows]
    free = [0.0] * schedule.ranks
    while any(rows):
        for rank, row in enumerate(rows):
            while row and all(need in ends for need in wanted(row[0], schedule)):
                action = row.pop(0)
                start = free[rank]
                for need in wanted(action, schedule):
                    hop = 0.0 if rank_of[need.stage] == rank else flight(need)
                    start = max(start, ends[need] + hop)
                free[rank] = ends[action] = start + length[action]
                found[action] = start, free[rank]
    return found


def wanted(action: pl.Action, schedule: pl.Schedule) -> list[pl.Action]:
    """What must be there: the stage before for F, the own F and the stage after for a backward, the own I for W."""
    stage_, kind, microbatch = action
    if kind == "F":
        return [pl.Action(stage_ - 1, "F", microbatch)] if stage_ else []
    if kind == "W":
        return [pl.Action(stage_, "I", microbatch)]
    after = [pl.Action(stage_ + 1, other, microbatch) for other in "BI"]
    present = {own for row in schedule.rows for own in row}
    return [pl.Action(stage_, "F", microbatch), *(own for own in after if own in present)]


@pytest.mark.parametrize(("name", "ranks", "microbatches"), list(itertools.product(NAMES, (2, 4), (5,))))
def test_every_start_of_a_run_follows_from_durations_and_dependencies_alone(name, ranks, microbatches):
    schedule = build(name, ranks, microbatches)
    run = tiny_run(schedule)
    for trace in run.traces:
        again = starts_again(schedule, trace, lambda giver: 0.0)
        spans = [span for row in trace.compute for span in row]
        assert [(span.start, span.end) for span in spans] == [
            pytest.approx(again[span.action], abs=1e-9) for span in spans
        ]
        assert min(span.start for span in spans) == 0.0
        assert all(span.end > span.start for span in spans)


def test_with_a_link_arrivals_shift_by_latency_and_by_the_bytes_of_each_micro_batch():
    schedule = pl.build("1f1b", 3, 4)
    link = pl.Link(latency=0.25, bytes_per_second=1e6)
    run = tiny_run(schedule, link=link, rows=10)  # micro-batches of 3, 3, 2 and 2 rows
    nbytes = [rows * 16 * 32 * 4 for rows in (3, 3, 2, 2)]
    seconds = [0.25 + bytes_ / 1e6 for bytes_ in nbytes]
    for span in run.trace.spans:
        if span.lane == "send":
            assert span.end - span.start == pytest.approx(seconds[span.action.microbatch], abs=1e-9)
    again = starts_again(schedule, run.trace, lambda giver: seconds[giver.microbatch])
    for span in itertools.chain(*run.trace.compute):
        assert (span.start, span.end) == pytest.approx(again[span.action], abs=1e-9)


@pytest.mark.parametrize("name", NAMES)
def test_waits_lie_in_the_recv_lane_and_name_the_action_that_was_waited_for(name):
    schedule = build(name, 3, 4)
    trace = tiny_run(schedule, link=pl.Link(latency=0.01)).trace
    ended = {span.action: span.end for row in trace.compute for span in row}
    waits = {}
    for span in trace.spans:
        if span.lane != "recv":
            continue
        assert (span.waiting_for is not None) == (span.end > span.start)
        if span.waiting_for is not None:
            assert span.end == pytest.approx(ended[span.waiting_for] + 0.01)
            step = 1 if span.action.kind == "RECV_B" else -1
            assert (span.waiting_for.stage, span.waiting_for.microbatch) == (
                span.action.stage + step,
                span.action.microbatch,
            )
            waits[span.rank, span.end] = span.waiting_for
    assert waits
    for span in itertools.chain(*trace.compute):
        assert span.waiting_for == waits.get((span.rank, span.start))
    busy = [sum(span.end - span.start for span in row) for row in trace.compute]
    assert trace.busy == pytest.approx(busy)


def test_a_message_is_sent_when_its_action_ends_and_every_send_is_received_once():
    schedule = pl.build("zb-h1", 3, 4)
    trace = tiny_run(schedule).trace
    ended = {span.action: span.end for row in trace.compute for span in row}
    sends = {span.action: span for span in trace.spans if span.lane == "send"}
    receives = [span for span in trace.spans if span.lane == "recv"]
    assert len(sends) == len(receives) == 2 * 2 * 4
    for action, span in sends.items():
        giver = action._replace(kind="F" if action.kind == "SEND_F" else "I")
        assert span.start == span.end == ended[giver]
    assert {pl.lower(schedule).peer(span.action) for span in receives} == set(sends)


@pytest.mark.parametrize("name", ["1f1b", "zb-h1"])
def test_the_costs_of_a_run_are_the_medians_of_each_stage_and_kind_over_all_steps(name):
    run = tiny_run(build(name, 2, 3), steps=3)
    times: dict[tuple[int, str], list[float]] = {}
    for trace in run.traces:
        for span in itertools.chain(*trace.compute):
            times.setdefault((span.action.stage, span.action.kind), []).append(span.end - span.start)
    durations = run.costs().durations(run.schedule.placement)
    assert all(len(values) == 9 for values in times.values())
    for value, seconds in times.items():
        assert durations[value] == statistics.median(seconds)


@pytest.mark.parametrize("name", NAMES)
def test_a_run_reports_three_bubbles_each_as_step_span_and_overhead(name):
    run = tiny_run(build(name, 2, 4), steps=3)
    bubbles = run.bubbles()
    assert list(bubbles) == ["measured", "replayed", "formula"]
    for kind in KINDS:
        assert bubbles["measured"][kind] == statistics.median(trace.bubble(kind) for trace in run.traces)
        assert bubbles["replayed"][kind] == pl.simulate(run.schedule, run.costs()).bubble(kind)
    assert all(tuple(figures) == KINDS for figures in bubbles.values())
    assert all(isinstance(figure, float) for figures in bubbles.values() for figure in figures.values())
    assert run.clock == "virtual"
    assert run.step_seconds == statistics.median(trace.makespan for trace in run.traces)
    assert run.trace in run.traces


def test_outside_the_domain_of_a_formula_there_is_none():
    schedule = pl.Schedule.from_text("0F0 0F1 0B1 0B0\n1F0 1F1 1B1 1B0", name="my own")
    assert tiny_run(schedule).bubbles()["formula"] is None


def test_a_trace_of_a_run_survives_json():
    trace = tiny_run(pl.build("zb-h1", 2, 3), link=pl.Link(latency=0.001)).trace
    assert pl.Trace.from_json(trace.to_json()) == trace


def test_on_the_wall_clock_nothing_is_received_before_it_has_arrived():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    batch = torch.randn(2, 6, 4)
    run = pl.train(
        model,
        [tuple(batch)],
        pl.build("1f1b", 2, 3),
        loss=nn.functional.mse_loss,
        clock="wall",
        link=pl.Link(latency=0.005),
    )
    arrived = {span.action: span.end for span in run.trace.spans if span.lane == "send"}
    program = pl.lower(run.schedule)
    for span in run.trace.spans:
        if span.lane == "recv":
            assert span.end >= arrived[program.peer(span.action)] - 1e-4  # two clocks of the host
    for row in run.trace.compute:
        edges = [edge for span in row for edge in (span.start, span.end)]
        assert edges == sorted(edges)


def test_the_wall_clock_does_not_wait_for_what_is_past():
    ours = WallClock()
    ours.restart(origin=time.perf_counter())
    ours.wait_until(-10.0)
    _, start, end = ours.run(lambda: None)
    assert 0 <= start <= end


# ---- what is kept from the timeline


@pytest.mark.parametrize("collecting", [True, False])
@pytest.mark.parametrize("failing", [True, False])
def test_threads_are_given_back_and_the_collector_is_left_alone_also_after_an_exception(collecting, failing):
    threads, before = torch.get_num_threads(), gc.isenabled()
    try:
        torch.set_num_threads(2)
        (gc.enable if collecting else gc.disable)()
        try:
            with undisturbed():
                assert torch.get_num_threads() == 1
                assert gc.isenabled() == collecting
                if failing:
                    raise ZeroDivisionError
        except ZeroDivisionError:
            assert failing
        assert torch.get_num_threads() == 2
        assert gc.isenabled() == collecting
    finally:
        torch.set_num_threads(threads)
        (gc.enable if before else gc.disable)()


def test_a_buffer_that_the_warm_up_makes_is_no_obstacle_and_one_that_it_changes_is_restored():
    class Counts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("calls", torch.zeros(()))
            self.register_buffer("cache", None)

        def forward(self, x: Tensor) -> Tensor:
            self.calls += 1
            self.cache = torch.ones(4) if self.cache is None else self.cache
            return x * self.cache

    model = nn.Sequential(nn.Linear(4, 4), Counts())
    pl.train(model, [tuple(torch.ones(2, 6, 4))], pl.build("gpipe", 2, 3), loss=nn.functional.mse_loss)
    assert model[1].calls == 3
