"""Ranks as processes: the same losses, parameters and memory as in one process, by the messages of gloo."""

import gc
import itertools
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import pipelab as pl
from pipelab.data import Batches
from pipelab.failure import RunError
from pipelab.launcher import launch, recorder
from pipelab.models import GPT, GPTConfig
from pipelab.reference import train_delayed, train_uncut
from pipelab.schedules import chunks_of
from pipelab.training import train

ROOT = Path(__file__).parent.parent
CONFIG = GPTConfig(vocabulary=17, width=8, heads=2, layers=10, context=5, dropout=0.1)
pytestmark = pytest.mark.usefixtures("travelling")


def gpt() -> GPT:
    torch.manual_seed(1)
    return GPT(CONFIG).double()


def batch(rows: int = 9, context: int = 5, seed: int = 0) -> tuple[Tensor, Tensor]:
    tokens = torch.randint(CONFIG.vocabulary, (rows, context + 1), generator=torch.Generator().manual_seed(seed))
    return tokens[:, :-1].contiguous(), tokens[:, 1:].clone()


def schedule_of(name: str, ranks: int, microbatches: int) -> pl.Schedule:
    return pl.build(name, ranks, microbatches, 2 if chunks_of(name) == "any" else None)


def as_processes(function, *arguments, ranks: int):
    """What rank 0 of several processes gives; the imports that take seconds are done once for all tests."""
    return launch(function, *arguments, ranks=ranks, timeout=240, preload=["pipelab.training", "torch._dynamo"])[0]


def train_all(runs):
    """Within a rank: train each (model, batches, schedule, options); losses, parameters and peaks of each."""
    done = []
    for model, batches, schedule, options in runs:
        run = train(model, batches, schedule, transport="gloo", **options)
        done.append((run.losses, run.parameters(), run.memory.peaks, run.pids, run.trace))
    return done


# ---- the same numbers


@pytest.mark.parametrize("ranks", [2, 3, 4])
def test_every_schedule_trains_over_processes_as_it_does_in_one(ranks):
    # Nine rows in five micro-batches are uneven; float64 and one thread make bit-equality a fair demand.
    schedules = [schedule_of(name, ranks, 5) for name in pl.SCHEDULES if name != "inference"]
    found = as_processes(train_all, [(gpt(), [batch()], schedule, {"seed": 7}) for schedule in schedules], ranks=ranks)
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    uncut, delayed = gpt(), gpt()
    train_uncut(uncut, [batch()], 5, seed=7)
    train_delayed(delayed, [batch()], 5, ranks, seed=7)
    torch.set_num_threads(before)
    for schedule, (losses, parameters, peaks, pids, trace) in zip(schedules, found, strict=True):
        here = gpt()
        run = train(here, [batch()], schedule, seed=7)
        assert losses == run.losses, schedule.name
        assert peaks == run.memory.peaks, schedule.name
        assert len(set(pids)) == ranks
        assert trace.peak_in_flight == run.trace.peak_in_flight
        assert sorted(map(str, (s.action for s in trace.spans))) == sorted(str(s.action) for s in run.trace.spans)
        plain = uncut if schedule.flush else delayed
        for (name, ours), theirs in zip(here.named_parameters(), plain.parameters(), strict=True):
            assert torch.equal(parameters[name], ours), (schedule.name, name)
            torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-12)


def test_variable_lengths_and_uneven_micro_batches_between_steps_are_exact():
    # Lengths grow and shrink, come again, and rows stop dividing by M: a stale row or a stale shape would show.
    batches = [
        batch(rows, context, seed) for seed, (rows, context) in enumerate([(4, 5), (7, 2), (4, 3), (7, 2), (9, 5)])
    ]
    cases = [schedule_of(name, 2, 4) for name in ("gpipe", "1f1b", "interleaved", "zb-h1")]
    found = as_processes(train_all, [(gpt(), batches, schedule, {}) for schedule in cases], ranks=2)
    for schedule, (losses, parameters, *_) in zip(cases, found, strict=True):
        here = gpt()
        assert losses == train(here, batches, schedule).losses
        assert all(torch.equal(parameters[name], ours) for name, ours in here.named_parameters())


def test_blocking_sends_and_both_clocks_change_times_and_nothing_else():
    options = [{"comm": comm, "clock": clock} for comm in ("overlapped", "blocking") for clock in ("virtual", "wall")]
    schedule = schedule_of("1f1b", 2, 4)
    found = as_processes(train_all, [(gpt(), [batch()] * 2, schedule, more) for more in options], ranks=2)
    assert len({tuple(losses) for losses, *_ in found}) == 1
    assert [trace.clock for *_, trace in found] == ["virtual", "wall"] * 2


def test_train_starts_the_processes_and_brings_the_model_and_the_progress_home():
    model, here, told = gpt(), gpt(), []
    batches = (batch(seed=seed) for seed in range(3))  # a generator cannot travel; what it gives does
    schedule = schedule_of("zb-h1", 3, 4)
    run = train(model, batches, schedule, steps=2, transport="gloo", on_step=lambda *step: told.append(step))
    expected = train(here, [batch(seed=seed) for seed in range(2)], schedule)
    assert run.losses == expected.losses
    assert run.model is model
    assert told == list(enumerate(run.losses))
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(model.parameters(), here.parameters(), strict=True))
    assert (run.clock, len(run.traces), len(set(run.pids))) == ("virtual", 2, 3)
    assert os.getpid() not in run.pids


def test_batches_that_can_be_drawn_again_are_drawn_by_every_rank_and_not_sent(monkeypatch):
    endless = Batches(text=bytes(range(17)) * 9, microbatches=4, rows=1, context=5, seed=0)  # which no message can hold
    expected, schedule, model = gpt(), schedule_of("1f1b", 2, 4), gpt()
    whole = train(expected, endless, schedule, steps=5)
    drawn, draw = [], Batches.__getitem__
    monkeypatch.setattr(Batches, "__getitem__", lambda batches, k: drawn.append(k) or draw(batches, k))
    run = train(model, endless, schedule, steps=3, transport="gloo")
    more = train(model, endless, schedule, steps=2, transport="gloo", resume=run)
    assert set(drawn) == {0, 3}  # the first of each run, to see whether it fits
    assert run.losses + more.losses == whole.losses
    assert all(
        torch.equal(ours, theirs) for ours, theirs in zip(model.parameters(), expected.parameters(), strict=True)
    )


def test_training_without_a_flush_brings_versions_and_progress_home():
    model, here, told = gpt(), gpt(), []
    batches, schedule = [batch(seed=seed) for seed in range(3)], schedule_of("pipedream", 3, 4)
    run = train(model, batches, schedule, transport="gloo", on_step=lambda *step: told.append(step))
    expected = train(here, batches, schedule)
    assert run.losses == expected.losses and told == list(enumerate(run.losses))
    for same in ("staleness", "peaks", "weights"):
        assert getattr(run.versions, same) == getattr(expected.versions, same)
    assert min(run.versions.update_seconds) > 0 and len(run.versions.update_seconds) == 3
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(model.parameters(), here.parameters(), strict=True))
    assert (len(run.traces), run.trace.ranks, len(set(run.pids))) == (1, 3, 3)


def told_on_every_rank(batches, schedule):
    told = []
    run = train(gpt(), batches, schedule, transport="gloo", clock="wall", on_step=lambda *step: told.append(step))
    return told, run.losses, float(run.trace.makespan)


def test_without_a_flush_every_rank_hears_each_step_once_and_the_clocks_set_out_together():
    arguments = [batch(), batch()], schedule_of("pipedream", 2, 3)
    begun = time.perf_counter()
    for told, losses, makespan in launch(told_on_every_rank, *arguments, ranks=2, timeout=240):
        assert told == list(enumerate(losses)) and len(losses) == 2
        assert makespan < time.perf_counter() - begun  # an origin that was never set would be the host's up-time


def notes_of_a_step():
    train(gpt(), [batch()], schedule_of("1f1b", 2, 2), transport="gloo")
    return [note for note in recorder().notes() if note.action == "the end of the step"]


def test_ranks_at_the_end_of_a_step_are_at_a_meeting_and_no_circle():
    for rank, notes in enumerate(launch(notes_of_a_step, ranks=2, timeout=240)):
        assert notes and {(note.awaited, note.peers) for note in notes} == {("the end of the step", (1 - rank,))}


FACTOR = 1.0


class Scales(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * FACTOR


def test_a_layer_of_ones_own_still_sees_the_globals_of_its_notebook_after_a_run(monkeypatch):
    # A class that came back from a rank would have brought the globals of that run with it.
    given = torch.ones(4, 2), torch.zeros(4, dtype=torch.int64)
    train(nn.Sequential(nn.Linear(2, 2), Scales()), [given], pl.build("1f1b", 2, 2), transport="gloo", at=[1])
    monkeypatch.setitem(globals(), "FACTOR", 5.0)
    assert torch.equal(Scales()(torch.ones(2)), torch.full((2,), 5.0))


def test_buffers_that_training_changes_come_home_too():
    def norm() -> nn.Sequential:
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Tanh(), nn.Linear(6, 3)).double()

    torch.manual_seed(1)
    given = torch.randn(8, 4).double(), torch.randint(3, (8,))
    ours, theirs = norm(), norm()
    train(ours, [given] * 2, pl.build("1f1b", 2, 2), at=[2], transport="gloo")
    train(theirs, [given] * 2, pl.build("1f1b", 2, 2), at=[2])
    for (name, value), other in zip(ours.state_dict().items(), theirs.state_dict().values(), strict=True):
        assert torch.equal(value, other), name


# ---- time


def test_a_link_delays_messages_between_processes_as_it_does_in_one():
    link = pl.Link(latency=0.25)
    run = train(gpt(), [batch()], pl.build("1f1b", 2, 4), transport="gloo", link=link)
    sends = [span for span in run.trace.spans if span.lane == "send"]
    assert {round(span.end - span.start, 9) for span in sends} == {0.25}
    assert float(run.trace.makespan) > 2 * 0.25


def test_blocking_shows_in_virtual_time_as_the_sender_s_wait():
    def makespan(transport: str, comm: str) -> float:
        link = pl.Link(latency=100)  # in virtual time, beside which the work is nothing
        return float(
            train(gpt(), [batch()], pl.build("gpipe", 2, 4), transport=transport, comm=comm, link=link).trace.makespan
        )

    for transport in ("memory", "gloo"):
        assert makespan(transport, "blocking") > makespan(transport, "overlapped") + 200


def test_waits_and_starts_follow_from_arrivals_in_every_process():
    run = train(gpt(), [batch()], pl.build("zb-h1", 3, 4), transport="gloo", link=pl.Link(latency=0.01))
    arrived = {span.action: span.end for span in run.trace.spans if span.lane == "send"}
    program = pl.lower(run.schedule)
    for span in run.trace.spans:
        if span.lane == "recv":
            assert span.end >= arrived[program.peer(span.action)] - 1e-9
            assert (span.waiting_for is not None) == (span.end > span.start)


def test_on_the_wall_clock_ranks_share_an_origin_and_the_label_tells_of_shared_cores(monkeypatch):
    from pipelab import ranks

    begun = time.perf_counter()
    run = train(gpt(), [batch()] * 2, pl.build("1f1b", 2, 4), transport="gloo", clock="wall")
    passed = time.perf_counter() - begun
    started = {span.action: span.start for row in run.trace.compute for span in row}
    ended = {span.action: span.end for row in run.trace.compute for span in row}
    for microbatch in range(4):
        assert started[pl.Action(1, "F", microbatch)] >= ended[pl.Action(0, "F", microbatch)] - 1e-4
    assert all(0 <= start < passed for start in started.values())
    monkeypatch.setattr(ranks, "_cores", lambda: 1)
    run = train(gpt(), [batch()], pl.build("1f1b", 2, 4), clock="wall")
    assert run.clock_label == "wall time, time-shared: 2 ranks on 1 cores"


# ---- what does not fit


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"transport": "pigeon"}, "transport pigeon is not there; it is one of memory, gloo, nccl"),
        ({"transport": "nccl"}, "transport nccl moves data between GPUs: got device cpu"),
        ({"comm": "telepathic"}, "'overlapped' or 'blocking': got 'telepathic'"),
        ({"batches": []}, "no batch to train on"),
        ({"batches": [(torch.ones(2), torch.ones(2))]}, "2 rows cannot be cut into 4 micro-batches"),
        ({"at": [99]}, "99"),
        ({"schedule": pl.build("looped-bfs", 2, 32, 2), "comm": "blocking"}, "the messages lock up"),
    ],
)
def test_what_does_not_fit_is_refused_before_a_process_is_started(change, sentence):
    given = {"batches": [batch()], "schedule": pl.build("1f1b", 2, 4), "transport": "gloo", **change}
    with pytest.raises(ValueError, match=sentence):
        train(gpt(), **given)


def test_another_number_of_processes_than_the_mesh_has_is_refused():
    with pytest.raises(RunError, match="the mesh has 2 global ranks and 3 processes were started"):
        as_processes(train_all, [(gpt(), [batch()], pl.build("1f1b", 2, 4), {})], ranks=3)


class Fails(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        raise RuntimeError("no such luck")


class Grows(nn.Module):
    """Its output has one more column every time, for inputs of one shape."""

    calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return x.repeat(1, 1 + (self.calls > 2))


def test_a_rank_that_fails_is_named_with_its_action_and_the_others_are_not_blamed():
    model = nn.Sequential(nn.Linear(2, 2), Fails(), nn.Linear(2, 2))
    given = torch.ones(4, 2), torch.zeros(4, dtype=torch.int64)
    began = time.monotonic()
    with pytest.raises(RunError, match=r"rank 1 \(pid \d+\) raised RuntimeError while running 1F0.*no such luck"):
        train(model, [given], pl.build("1f1b", 3, 4), transport="gloo", timeout=300)
    assert time.monotonic() - began < 300, "nobody waited for the time-out"


class Dies(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        os.kill(os.getpid(), signal.SIGKILL)
        return x


def test_a_rank_that_is_killed_is_named_with_what_it_did():
    given = torch.ones(4, 2), torch.zeros(4, dtype=torch.int64)
    model = nn.Sequential(nn.Linear(2, 2), Dies(), nn.Linear(2, 2))
    with pytest.raises(RunError, match=r"rank 1 \(pid \d+\) was killed by signal 9 while running 1F0"):
        train(model, [given], pl.build("1f1b", 3, 4), transport="gloo", timeout=240)


class Hangs(nn.Module):
    """In the third forward of one rank."""

    def __init__(self, rank: int) -> None:
        super().__init__()
        self.rank, self.calls = str(rank), 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        if (os.environ["RANK"], self.calls) == (self.rank, 3):
            time.sleep(300)
        return x


@pytest.mark.parametrize(("rank", "mesh"), [(2, pl.Mesh(pp=3)), (3, pl.Mesh(pp=2, tp=2))])
def test_a_rank_that_hangs_is_named_and_not_those_that_it_keeps_from_their_turn_or_their_collective(rank, mesh):
    model = GPT(GPTConfig(vocabulary=17, width=8, heads=2, layers=4, context=5, dropout=0.0))
    model.insert(len(model) - 1, Hangs(rank))
    with pytest.raises(
        RunError, match=rf"rank {rank} \(pid \d+\) gave no sign of life for 6 s while running \dF2"
    ) as e:
        train(model, [batch(4)], pl.build("1f1b", mesh.pp, 4), mesh, transport="gloo", timeout=6)
    told = dict(re.findall(r"^  rank (\d): (\w+)", e.value.report, re.M))
    assert told == {str(other): "waiting" for other in range(mesh.size) if other != rank}


def test_a_rank_that_hangs_after_its_last_action_is_named_and_not_those_that_wait_at_the_end_of_the_step():
    def optimizer(parameters):
        class Sleeps(torch.optim.SGD):
            def step(self, closure=None):
                time.sleep(300 if os.environ["RANK"] == "1" else 0)

        return Sleeps(parameters, lr=0.1)

    given = torch.ones(4, 2), torch.zeros(4, dtype=torch.int64)
    model = nn.Sequential(*(nn.Linear(2, 2) for _ in range(3)))
    with pytest.raises(RunError, match=r"^rank 1 \(pid \d+\) gave no sign of life for 6 s") as error:
        train(model, [given], pl.build("1f1b", 3, 4), optimizer=optimizer, transport="gloo", timeout=6)
    assert "rank 2: waiting at the end of the step for ranks 0, 1" in error.value.report


def test_an_output_whose_shape_does_not_follow_from_the_input_s_is_refused_and_never_misread():
    model = nn.Sequential(Grows(), nn.Identity())
    given = torch.ones(2, 3), torch.zeros(2, 3)
    with pytest.raises(RunError, match=r"0SEND_F0 carries torch\.float32 \(1, 6\), and before.*\(1, 3\)"):
        train(model, [given] * 2, pl.build("gpipe", 2, 2), loss=lambda y, t: y.sum(), transport="gloo", at=[1])


# ---- buffers


def exchange(messages):
    """Within a rank: send tensors from rank 0 to rank 1 as activations, spoil each at once; what rank 1 received."""
    from pipelab.transport import Message
    from pipelab.transport.processes import Processes, make_groups
    from pipelab.world import World

    program = pl.lower(pl.build("gpipe", 2, len(messages)))
    world = World(2, timeout=240)
    transport = Processes(
        program,
        world.rank,
        make_groups(program, [(0, 1)], world),
        device=torch.device("cpu"),
        timeout=240,
        blocking=False,
    )
    received = []
    for _ in range(3):  # the first step announces layouts, the later ones post ahead
        transport.begin([torch.empty(0)] * len(messages))
        for number, tensor in enumerate(messages):
            send = pl.Action(0, "SEND_F", number)
            if world.rank == 0:
                own = tensor.clone(memory_format=torch.preserve_format)
                transport.send(send, Message(own, 0.5 + number, pl.Action(0, "F", number)))
                own.zero_()
            else:
                message = transport.receive(send)
                assert (message.arrival, message.giver) == (0.5 + number, pl.Action(0, "F", number))
                received.append(message.tensor)
        transport.finish()
    world.close()
    return received


def test_what_is_sent_arrives_though_its_memory_is_used_again_at_once_and_though_it_is_a_view():
    same = torch.arange(12.0).view(3, 4)
    for tensors in (
        [same, same + 1, same + 2, same + 3],
        [same.t()] * 3,
        [torch.zeros(0, 4)] * 3,
        [torch.tensor(2.0)] * 3,
    ):
        _, received = launch(exchange, tensors, ranks=2, timeout=240, preload=["pipelab.training"])
        assert len(received) == 3 * len(tensors)
        for got, sent in zip(received, tensors * 3, strict=True):
            assert got.shape == sent.shape and torch.equal(got, sent)
            assert got.is_contiguous()


def test_bfloat16_and_complex_messages_arrive_bit_by_bit():
    for dtype in (torch.bfloat16, torch.float16, torch.complex128):
        tensor = torch.randn(5, 3).to(dtype)
        _, received = launch(exchange, [tensor] * 3, ranks=2, timeout=240, preload=["pipelab.training"])
        assert all(got.dtype == dtype and torch.equal(got, tensor) for got in received)


def test_receives_are_posted_ahead_and_no_channel_has_buffers_for_all_micro_batches():
    def watch():
        from pipelab.transport import processes

        slots, posted = [], []

        class Seen(processes.Slot):
            def __init__(self, layout):
                super().__init__(layout)
                slots.append(self)

        post = processes.Processes._post

        def counted(self, line, send, layout):
            post(self, line, send, layout)
            posted.append(len(line.posted))

        processes.Slot, processes.Processes._post = Seen, counted
        train(gpt(), [batch(rows=32)] * 6, pl.build("gpipe", 2, 32), transport="gloo")
        return len(slots), max(posted)

    from pipelab.message_order import AHEAD, WINDOW

    slots, posted = as_processes(watch, ranks=2)
    assert posted == AHEAD["tag"] == 8
    assert slots <= WINDOW + AHEAD["tag"] + 1  # of 32: those under way, those posted, the one that is read


def test_no_thread_no_connection_and_no_file_is_left_by_a_run(tmp_path):
    def count():
        import tempfile

        tempfile.tempdir, descriptors = str(tmp_path), []
        for _ in range(3):
            train(gpt(), [batch()], pl.build("1f1b", 2, 4), transport="gloo")
            gc.collect()
            until = time.monotonic() + 60  # gloo's own thread closes what it has
            while descriptors and len(os.listdir("/proc/self/fd")) > descriptors[0] and time.monotonic() < until:
                time.sleep(0.01)
            descriptors.append(len(os.listdir("/proc/self/fd")))
        return descriptors, [thread.name for thread in threading.enumerate() if "sends" in thread.name]

    (first, *_, last), threads = as_processes(count, ranks=2)
    assert last <= first and threads == []
    assert not list(tmp_path.iterdir())


# ---- from a shell


def torchrun(folder: Path, *arguments: object, options: tuple[str, ...]) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "torch.distributed.run", *options, "-m", "pipelab", *map(str, arguments)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen(command, cwd=folder, env=environment, text=True, **pipes)


def test_two_torchruns_as_if_on_two_hosts_make_one_pipeline_that_prints_once(tmp_path):
    with socket.create_server(("localhost", 0)) as probe:
        port = probe.getsockname()[1]
    hosts = [
        torchrun(
            tmp_path,
            *("train", "--schedule", "zb-h1", "--pp", 2, "--microbatches", 4, "--steps", 2, "--model", "tiny"),
            *("--rows", 1, "--data", "arithmetic", "--transport", "gloo", "--check", "--json"),
            options=(
                *("--nnodes", "2", "--nproc-per-node", "1", "--rdzv-backend", "c10d", "--rdzv-id", "one"),
                *("--rdzv-endpoint", f"localhost:{port}", "--local-addr", "localhost"),
            ),
        )
        for _ in range(2)
    ]
    try:
        answers = [host.communicate(timeout=600) for host in hosts]
    finally:
        for host in hosts:
            host.kill()
    assert [host.returncode for host in hosts] == [0, 0], answers
    (printed,) = [out for out, _ in answers if out]
    figures = json.loads(printed)
    assert figures["max_parameter_difference"] == 0
    assert len(set(figures["pids"])) == 2
    assert len(figures["losses"]) == 2
    assert not list(tmp_path.iterdir())


def test_a_run_over_processes_whose_work_takes_known_times_is_the_simulation_exactly():
    def known():
        """Within a rank: train each schedule, while whatever is measured here takes one second more than the rank."""
        from types import SimpleNamespace

        from pipelab import clock

        count = itertools.count(0, int(os.environ["RANK"]) + 1)
        fine = SimpleNamespace(resolution=1e-9)
        clock.time = SimpleNamespace(thread_time=count.__next__, get_clock_info=lambda name: fine)
        return [train(gpt(), [batch()] * 2, schedule, transport="gloo") for schedule in schedules]

    schedules = [schedule_of(name, 4, 5) for name in ("gpipe", "1f1b", "interleaved", "zb-h1", "zb-v")]
    for schedule, run in zip(schedules, as_processes(known, ranks=4), strict=True):
        times = tuple(rank + 1 for rank in schedule.placement.rank_of)
        expected = pl.simulate(schedule, pl.Costs(dict.fromkeys("FBIW", times)))
        assert [trace.compute for trace in run.traces] == [expected.compute] * 2, schedule.name
        bubbles = {kind: float(share) for kind, share in expected.bubbles().items()}
        assert run.bubbles()["measured"] == pytest.approx(bubbles) == run.bubbles()["replayed"]
