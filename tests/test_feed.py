"""The live feed tells what the run will have measured, in order, once, and never holds it up."""

import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import pipelab as pl
from pipelab import feed
from pipelab.action import parts
from pipelab.failure import RunError
from pipelab.feed import Ended, Feed, InOrder, Spans, Started, StepBegun, StepEnded
from pipelab.flights import landings
from pipelab.live import Live
from pipelab.models import GPT, GPTConfig

ROOT = Path(__file__).parent.parent
CONFIG = GPTConfig(vocabulary=17, width=8, heads=2, layers=6, context=5)
pytestmark = pytest.mark.usefixtures("all_is_heard", "travelling")
MACHINES = [(transport, clock) for transport in ("memory", "gloo") for clock in ("virtual", "wall")]


def gpt() -> GPT:
    torch.manual_seed(1)
    return GPT(CONFIG)


def batches(steps: int = 3, rows: int = 8) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(0)
    tokens = [torch.randint(CONFIG.vocabulary, (rows, 6), generator=generator) for _ in range(steps)]
    return [(t[:, :-1].contiguous(), t[:, 1:].clone()) for t in tokens]


def told(events, step, rank):
    """The spans and the memory that were fed of one rank in one step."""
    pieces = [e for e in events if isinstance(e, Spans) and (e.step, e.rank) == (step, rank)]
    assert [e.last for e in pieces] == [False] * (len(pieces) - 1) + [True]
    return [s for e in pieces for s in e.spans], tuple(point for e in pieces for point in e.memory)


# ---- what is fed is what the run has measured


@pytest.mark.parametrize(("transport", "clock"), MACHINES)
def test_all_that_is_fed_equals_the_run_exactly(transport, clock):
    heard = []
    schedule = pl.build("zb-h1", 2, 4)
    run = pl.train(gpt(), batches(), schedule, transport=transport, clock=clock, feed=heard.append)
    for step, trace in enumerate(run.traces):
        spans = [span for rank in range(2) for span in told(heard, step, rank)[0]]
        if (transport, clock) == ("gloo", "wall"):  # where a message landed is known when both ends are
            ends = landings(spans)
            spans = [span._replace(end=ends.get(span, span.end)) for span in spans]
        assert spans == [*trace.spans]
    typical = run.traces.index(run.trace)
    assert tuple(told(heard, typical, rank)[1] for rank in range(2)) == run.memory.curves
    ends = [event for event in heard if isinstance(event, StepEnded)]
    assert [end.loss for end in ends] == run.losses
    assert {end.targets for end in ends} == {8 * 5}
    assert heard[0] == Started(schedule, run.mesh, clock, transport)
    assert heard[-1] == Ended("", 0)


@pytest.mark.parametrize(("transport", "clock"), MACHINES)
def test_steps_follow_each_other_and_hold_their_spans(transport, clock):
    heard = []
    pl.train(gpt(), batches(), pl.build("1f1b", 3, 4), transport=transport, clock=clock, feed=heard.append)
    frame = [event for event in heard if not isinstance(event, Spans)]
    assert [type(event) for event in frame] == [Started, *[StepBegun, StepEnded] * 3, Ended]
    step = None
    for event in heard[1:-1]:
        step = event.step if isinstance(event, StepBegun) else step
        assert event.step == step


@pytest.mark.parametrize("transport", ["memory", "gloo"])
def test_without_a_flush_losses_come_meanwhile_and_the_one_long_step_is_whole_at_the_end(transport):
    live, traces = Live(), []

    def listener(event):
        live(event)
        traces.append(live.trace)

    schedule = pl.build("pipedream", 3, 4)
    run = pl.train(gpt(), batches(), schedule, transport=transport, feed=listener)
    assert live.losses == run.losses
    assert live.trace == run.trace and traces[:-1] == [None] * (len(traces) - 1)
    assert live.targets == 3 * 8 * 5


def test_in_virtual_time_spans_come_while_the_step_goes_on(monkeypatch):
    monkeypatch.setattr(feed, "EVERY", 0.01)
    heard, seen = [], []
    model = nn.Sequential(nn.Linear(3, 3), Waits(until=lambda: any(isinstance(e, Spans) for e in heard), seen=seen))
    given = torch.ones(2, 3), torch.zeros(2, dtype=torch.int64)
    pl.train(model, [given], pl.build("gpipe", 2, 2), at=[1], feed=heard.append)
    assert seen[-1]  # the second stage's forward did not end before the first stage's was told


class Waits(nn.Module):
    """The identity; in its third call (the first after the warm-up's two) it goes on when something has happened."""

    def __init__(self, until, seen) -> None:
        super().__init__()
        self.until, self.seen, self.calls = until, seen, 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        if self.calls == 3:
            deadline = time.monotonic() + 120
            while not self.until() and time.monotonic() < deadline:
                time.sleep(0.01)
            self.seen.append(self.until())
        return x + 0


# ---- runs that end before their time


class Logs(nn.Module):
    """A Linear that writes down each of its forwards into a file; in the call `fails_at` it does something else."""

    def __init__(self, stage: int, path: Path, fails_at: int = 0, how=None) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 3)
        self.stage, self.path, self.fails_at, self.how, self.calls = stage, path, fails_at, how, 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        if self.calls == self.fails_at:
            self.how(self.path.with_name("told"))
        with open(self.path, "a") as file:
            file.write(f"{self.stage}F\n")
        return self.linear(x)


def fail(told: Path):
    """Once rank 0 has told what it did in this step: killed before, it would take that with it."""
    until = time.monotonic() + 60
    while not told.exists() and time.monotonic() < until:
        time.sleep(0.01)
    raise ArithmeticError("no such luck")


pressed = threading.Event()


def press_stop(_: Path):
    signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)
    pressed.wait(60)
    time.sleep(0.5)


def obey(*_):
    pressed.set()
    raise KeyboardInterrupt


def broken_off(tmp_path, transport, how, error):
    """Train three stages that stop in the middle of the second counted step; gives the events and what was executed."""
    path = tmp_path / "log"
    warm_up_and_a_step = 2 * 4
    model = nn.Sequential(Logs(0, path), Logs(1, path, warm_up_and_a_step + 3, how), Logs(2, path))
    given = torch.randn(4, 3), torch.zeros(4, dtype=torch.int64)
    heard = []

    def hear(event):
        heard.append(event)
        if isinstance(event, Spans) and (event.step, event.rank) == (1, 0):
            path.with_name("told").touch()

    with pytest.raises(error):
        pl.train(model, [given] * 3, pl.build("gpipe", 3, 4), transport=transport, feed=hear)
    executed = [path.read_text().split().count(f"{stage}F") - warm_up_and_a_step for stage in range(3)]
    return heard, executed


@pytest.mark.parametrize("transport", ["memory", "gloo"])
def test_a_run_that_fails_half_way_has_fed_exactly_what_was_executed(tmp_path, transport):
    heard, executed = broken_off(tmp_path, transport, fail, RunError)
    if transport == "gloo":  # the others are killed then, and may take what they have just done with them
        executed = [min(done, len(told_of(heard, 1, rank, "compute"))) if rank != 1 else done
                    for rank, done in enumerate(executed)]  # fmt: skip
    assert executed[1] == 2
    fed = [[e for s in told_of(heard, 1, rank, "compute") for e in parts(s.action)] for rank in range(3)]
    assert [[str(action) for action in row] for row in fed] == [
        [f"{rank}F{m}" for m in range(done)] for rank, done in enumerate(executed)
    ]
    assert len([event for event in heard if isinstance(event, StepEnded)]) == 1
    assert "no such luck" in heard[-1].error


def told_of(events, step, rank, lane):
    pieces = [e for e in events if isinstance(e, Spans) and (e.step, e.rank) == (step, rank)]
    return [span for piece in pieces for span in piece.spans if span.lane == lane]


def test_a_run_that_is_stopped_half_way_has_fed_exactly_what_was_executed(tmp_path):
    before = signal.signal(signal.SIGINT, obey)
    try:
        heard, executed = broken_off(tmp_path, "memory", press_stop, KeyboardInterrupt)
    finally:
        signal.signal(signal.SIGINT, before)
    forwards = [[s for s in told(heard, 1, rank)[0] if str(s.action)[1] == "F"] for rank in range(3)]
    assert [len(row) for row in forwards] == executed
    assert executed[1] >= 3  # a rank ends what it has begun
    assert heard[-1].error == "interrupted"
    assert not [t for t in threading.enumerate() if t.name in ("feed", "report")]


def test_an_on_step_that_raises_ends_the_run_as_ever_and_the_feed_tells_so():
    heard = []

    def stop(step: int, loss: float) -> None:
        raise StopIteration("enough")

    with pytest.raises(StopIteration):
        pl.train(gpt(), batches(), pl.build("1f1b", 2, 4), on_step=stop, feed=heard.append)
    assert heard[-1] == Ended("enough", 0)


# ---- listeners that misbehave


@pytest.mark.parametrize("transport", ["memory", "gloo"])
def test_a_listener_that_raises_is_reported_once_after_the_run_and_changes_nothing(transport):
    calls = []

    def listener(event):
        calls.append(event)
        raise KeyError("not mine")

    expected = pl.train(gpt(), batches(), pl.build("1f1b", 2, 4))
    with pytest.warns(RuntimeWarning, match=r"failed at Started and was not called again; training went on") as said:
        run = pl.train(gpt(), batches(), pl.build("1f1b", 2, 4), transport=transport, feed=listener)
    assert run.losses == expected.losses
    assert len(calls) == len(said) == 1


def test_a_listener_that_never_comes_back_cannot_hold_up_the_run(monkeypatch):
    monkeypatch.setattr(feed, "FAREWELL", 0.1)
    forever = threading.Event()
    try:
        with pytest.warns(RuntimeWarning, match=r"too slow: \d+ events were dropped; the Run itself is whole"):
            run = pl.train(gpt(), batches(), pl.build("1f1b", 2, 4), feed=lambda event: forever.wait(60))
        assert len(run.losses) == 3
    finally:
        forever.set()


def test_when_there_is_no_room_the_oldest_are_dropped_and_counted():
    heard, go_on, busy = [], threading.Event(), threading.Event()

    def listener(event):
        heard.append(event)
        busy.set()
        go_on.wait(60)

    with pytest.warns(RuntimeWarning, match="6 events were dropped"), Feed(listener, room=3) as events:
        events.put(StepBegun(0))
        busy.wait(60)
        for step in range(1, 10):
            events.put(StepBegun(step))
        assert events.dropped == 6
        go_on_later(go_on)
    assert [event.step for event in heard[:-1]] == [0, 7, 8, 9]
    assert heard[-1] == Ended("", 6)  # there is always room for the end


@pytest.mark.parametrize("room", [1, 2, 5, 6, 7])
def test_where_events_are_dropped_no_step_is_told_with_a_gap_that_looks_whole(room):
    heard, go_on, busy = [], threading.Event(), threading.Event()

    def listener(event):
        heard.append(event)
        busy.set()
        go_on.wait(60)

    with pytest.warns(RuntimeWarning, match="events were dropped"), Feed(listener, room=room) as events:
        put = [
            e
            for s in range(9)
            for e in (StepBegun(s), *(Spans(s, r, (), (), True) for r in (0, 1)), StepEnded(s, 0, 1))
        ]
        events.put(put[0])
        busy.wait(60)
        for event in put[1:]:
            events.put(event)
        go_on_later(go_on)
    steps = [[type(e) for e in heard[:-1] if e.step == s] for s in range(9)]
    assert {len(kinds) for kinds in steps[1:]} <= {0, 4}
    assert steps[0] == [StepBegun]  # what followed is dropped with its end, so nobody takes it for whole
    assert heard[-1].dropped + len(heard) - 1 == len(put)


def go_on_later(event):
    threading.Timer(0.2, event.set).start()


def test_the_listener_is_called_in_one_thread_that_is_neither_the_caller_s_nor_a_rank_s_and_is_gone_afterwards():
    names = set()
    pl.train(gpt(), batches(), pl.build("1f1b", 2, 4), feed=lambda event: names.add(threading.current_thread().name))
    assert names == {"feed"}
    assert not [thread for thread in threading.enumerate() if thread.name in ("feed", "report")]


def test_a_feed_that_is_no_function_is_refused_before_any_work():
    with pytest.raises(ValueError, match="feed is a function of one event, or a listener such as Live"):
        pl.train(gpt(), iter(()), pl.build("1f1b", 2, 4), feed="live")


# ---- posts of processes


def run_of_posts(ranks: int, steps: int):
    """The events of a run as each rank posts them, without spans in them."""
    posts = {rank: [] for rank in range(ranks)}
    for step in range(steps):
        posts[0].append(StepBegun(step))
        for rank in range(ranks):
            posts[rank] += [Spans(step, rank, (), (), last) for last in (False, False, True)]
        posts[0].append(StepEnded(step, 0.0, 1))
    return {rank: list(enumerate(events)) for rank, events in posts.items()}


@pytest.mark.parametrize("seed", range(20))
def test_posts_of_ranks_are_put_in_order_whoever_is_heard_first(seed):
    chance, posts, heard = random.Random(seed), run_of_posts(3, 4), []
    at = dict.fromkeys(range(3), 0)  # the step of each rank's next post: they meet after each step
    with Feed(heard.append) as events, InOrder(events, 3) as order:
        while any(posts.values()):
            ready = [rank for rank in posts if posts[rank] and at[rank] <= min(at.values()) + 1]
            rank = chance.choice(ready)
            number, event = posts[rank].pop(0)
            order.hear(rank, number, event)
            at[rank] = posts[rank][0][1].step if posts[rank] else 99
    assert [event.step for event in heard[:-1]] == sorted(event.step for event in heard[:-1])
    for step in range(4):
        kinds = [type(event) for event in heard[:-1] if event.step == step]
        assert kinds[0] is StepBegun and kinds[-1] is StepEnded and len(kinds) == 2 + 3 * 3
    assert heard[-1] == Ended("", 0)


@pytest.mark.parametrize("lost", [{(0, 5)}, {(0, 7)}, {(0, 9)}, {(1, 3)}, {(1, 5)}, {(0, 5), (0, 8), (0, 9), (1, 5)}])
def test_posts_that_a_rank_had_no_room_for_are_counted_and_no_step_with_a_gap_is_told(lost):
    heard, posts = [], run_of_posts(2, 5)
    in_steps = sorted((event.step, rank, number, event) for rank in posts for number, event in posts[rank])
    with pytest.warns(RuntimeWarning, match="events were dropped"), Feed(heard.append) as events, \
            InOrder(events, 2) as order:  # fmt: skip
        for _, rank, number, event in in_steps:
            if (rank, number) not in lost:
                order.hear(rank, number, event)
    ends = [event.step for event in heard if isinstance(event, StepEnded)]
    assert ends[0] == 0 and ends[-1] == 4 and 1 not in ends  # all that is lost is of step 1
    for step in ends:
        assert len([event for event in heard[:-1] if event.step == step]) == 2 + 2 * 3
    assert heard[-1].dropped + len(heard) - 1 == len(in_steps)


TORCHRUN = """
import pickle, sys
sys.path.insert(0, {tests!r})
import pipelab as pl
from test_feed import batches, gpt
heard = []
run = pl.train(gpt(), batches(), pl.build("zb-h1", 2, 4), transport="gloo", feed=heard.append)
if run.first:
    pickle.dump((heard, run.traces, run.losses), open({out!r}, "wb"))
else:
    assert not heard
"""


def test_under_torchrun_rank_0_hears_all_ranks(tmp_path):
    import pickle

    script, out = tmp_path / "script.py", tmp_path / "heard"
    script.write_text(TORCHRUN.format(tests=str(ROOT / "tests"), out=str(out)))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", str(script)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    ended = subprocess.run(command, capture_output=True, text=True, timeout=600, env=environment)
    assert ended.returncode == 0, ended.stderr
    heard, traces, losses = pickle.loads(out.read_bytes())
    for step, trace in enumerate(traces):
        for rank in range(2):
            assert told(heard, step, rank)[0] == [span for span in trace.spans if span.rank == rank]
    assert [event.loss for event in heard if isinstance(event, StepEnded)] == losses
    assert heard[-1] == Ended("", 0)
