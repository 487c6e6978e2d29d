"""A GPU's moments on the host's clock, with events of known times in the place of CUDA's."""

import math

import pytest
import torch

import pipelab as pl
from pipelab import cuda_clock
from pipelab.clock import measure
from pipelab.cuda_clock import CudaTurn, CudaWallClock, Stamps, closest
from pipelab.trace import Span


class Device:
    """A GPU that stamps an event when told to run; its clock is 1000 s ahead of the host's, and both stand still."""

    def __init__(self) -> None:
        self.host = 5.0
        self.ahead = 1000.0
        self.queue = []
        self.made = 0

    def event(self):
        self.made += 1
        return Event(self)

    def work(self, seconds: float) -> None:
        self.queue.append(seconds)

    def run(self) -> None:
        """Everything that was launched."""
        while self.queue:
            launched = self.queue.pop(0)
            if isinstance(launched, Event):
                launched.at = self.host + self.ahead
            else:
                self.host += launched


class Event:
    """What `torch.cuda.Event(enable_timing=True)` does."""

    def __init__(self, device: Device) -> None:
        self.device, self.at = device, None

    def record(self, stream=None) -> None:
        self.at = None
        self.device.queue.append(self)

    def query(self) -> bool:
        return self.at is not None

    def synchronize(self) -> None:
        self.device.run()

    def elapsed_time(self, end: "Event") -> float:
        return 1e3 * (end.at - self.at)


@pytest.fixture
def device(monkeypatch):
    device = Device()
    monkeypatch.setattr(cuda_clock.time, "perf_counter", lambda: device.host)
    return device


def test_of_several_looks_the_closest_is_kept_and_its_error_is_half_its_gap():
    assert closest([(0.0, 0.5), (1.0, 1.125), (2.0, 2.25)]) == (1, 1.0625, 0.0625)


def test_a_moment_is_told_in_the_hosts_seconds_only_when_the_gpu_has_reached_it(device):
    stamps = Stamps(size=4, make=device.event)
    stamps.anchor()
    start = stamps.take()
    device.work(0.25)
    end = stamps.take()
    stamps.drain()
    assert math.isnan(start.seconds) and math.isnan(end.seconds)  # nothing ran yet, and nobody waited for it
    device.run()
    stamps.drain()
    assert (start.seconds, end.seconds) == pytest.approx((5.0, 5.25), abs=1e-9)


def test_events_go_back_to_the_pool(device):
    stamps = Stamps(size=4, make=device.event)
    made = device.made
    for _ in range(3):  # a step anchors anew, and tells what is left of the step before
        stamps.anchor()
        moments = [stamps.take() for _ in range(4)]
    stamps.settle()
    assert device.made == made and not math.isnan(moments[-1].seconds)
    assert len({id(event) for event in stamps._free}) == 4


def test_more_moments_than_the_pool_holds_take_new_events(device):
    stamps = Stamps(size=1, make=device.event)
    stamps.anchor()
    moments = [stamps.take() for _ in range(3)]
    stamps.settle()
    assert not any(math.isnan(moment.seconds) for moment in moments)


def test_the_wall_clock_of_a_gpu_gives_the_spans_of_the_gpu_not_of_the_launches(device):
    clock = CudaWallClock(Stamps(size=4, make=device.event))
    clock.restart(origin=4.0)
    result, start, end = clock.run(lambda: device.work(0.5) or "launched")
    assert result == "launched" and device.host == 5.0
    span = Span(0, "compute", pl.Action.parse("0F0"), start, end)
    sent = Span(0, "send", pl.Action.parse("0SEND_F0"), clock.now, 2.0)
    spans, curve = clock.settle([span, sent], [(end, 64)])
    assert (spans[0].start, spans[0].end) == pytest.approx((1.0, 1.5), abs=1e-9)
    assert (spans[1].start, spans[1].end) == (1.0, 2.0)
    assert curve == [(pytest.approx(1.5, abs=1e-9), 64)]


def test_a_message_leaves_when_the_gpu_has_computed_it_and_not_when_the_host_has_launched_that(device):
    clock = CudaWallClock(Stamps(size=4, make=device.event))
    clock.restart(origin=4.0)
    _, start, end = clock.run(lambda: device.work(0.5))
    leaves, lands = clock.placed(clock.now), clock.placed(clock.now, later=0.25)
    computed = Span(0, "compute", pl.Action.parse("0F0"), start, end)
    (computed, sent), _ = clock.settle([computed, Span(0, "send", pl.Action.parse("0SEND_F0"), leaves, lands)], [])
    assert sent.start == computed.end == pytest.approx(1.5, abs=1e-9)
    assert sent.end - sent.start == pytest.approx(0.25, abs=1e-9)


def test_of_a_step_that_breaks_off_the_gpu_clock_tells_what_was_reached_and_waits_for_nothing(device):
    clock = CudaWallClock(Stamps(size=8, make=device.event))
    clock.restart(origin=4.0)
    spans, curve = [], []
    for action in ("0F0", "0F1"):
        _, start, end = clock.run(lambda: device.work(0.5))
        spans.append(Span(0, "compute", pl.Action.parse(action), start, end))
        curve.append((end, 64))
        if action == "0F0":
            device.run()
    spans, curve = clock.reached(spans, curve)
    assert [(str(span.action), span.start, span.end) for span in spans] == [("0F0", 1.0, 1.5)] and curve == [(1.5, 64)]
    assert device.host == 5.5 and device.queue  # the second is still under way


def test_an_update_on_a_gpu_lasts_as_long_as_the_gpu_says_and_the_host_does_not_wait(device):
    clock = CudaWallClock(Stamps(size=4, make=device.event))
    clock.restart(origin=4.0)
    told, start, end = clock.aside(lambda: device.work(0.25) or "updated")
    assert told == "updated" and device.host == 5.0
    (span,), _ = clock.settle([Span(0, "memory", pl.Action.parse("0U0"), start, end)], [])
    assert (span.start, span.end) == (pytest.approx(1.0, abs=1e-9), pytest.approx(1.25, abs=1e-9))


def test_settling_waits_for_all_that_was_launched_so_that_no_step_begins_in_the_update_before_it(device):
    clock = CudaWallClock(Stamps(size=4, make=device.event))
    clock.restart(origin=4.0)
    clock.run(lambda: device.work(0.5))
    device.work(0.25)  # an optimizer's step
    clock.settle([], [])
    assert device.host == 5.75 and not device.queue


def test_a_turn_lasts_from_event_to_event(device, monkeypatch):
    monkeypatch.setattr(torch.cuda, "synchronize", lambda _: device.run())
    turn = CudaTurn(torch.device("cuda"), make=device.event)
    device.work(3.0)  # launched before the turn: not its work
    result, seconds = measure(turn, lambda: device.work(0.125) or "done")
    assert result == "done" and seconds == pytest.approx(0.125, abs=1e-9)
