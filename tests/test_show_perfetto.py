"""The export for Perfetto is held to the trace-event format: fields, nesting, and both ends of every arrow."""

import itertools
import json
from fractions import Fraction

import pytest

import pipelab as pl
from pipelab.cli import main
from pipelab.lower import lower
from pipelab.show.memory import in_flight_curve
from pipelab.show.perfetto import perfetto_json
from pipelab.simulate import simulate_program
from pipelab.trace import Span, Trace, number

FIELDS = {
    "X": {"name": str, "cat": str, "pid": int, "tid": int, "ts": float, "dur": float, "args": dict},
    "M": {"name": str, "pid": int, "tid": int, "args": dict},
    "C": {"name": str, "pid": int, "tid": int, "ts": float, "args": dict},
    "s": {"name": str, "cat": str, "pid": int, "tid": int, "ts": float, "id": int},
    "f": {"name": str, "cat": str, "pid": int, "tid": int, "ts": float, "id": int, "bp": str},
}
NAMES = {"process_name", "process_sort_index", "thread_name", "thread_sort_index"}


def checked(text: str) -> dict[str, list[dict]]:
    """The events by phase, after the whole file was found to keep to the format."""
    written = json.loads(text, parse_constant=pytest.fail)
    assert set(written) == {"traceEvents", "displayTimeUnit", "otherData"} and written["displayTimeUnit"] == "ms"
    events = {phase: [] for phase in FIELDS}
    for event in written["traceEvents"]:
        fields = FIELDS[event["ph"]]
        assert set(event) == {"ph", *fields} and all(type(event[field]) is kind for field, kind in fields.items())
        events[event["ph"]].append(event)
    assert {event["name"] for event in events["M"]} <= NAMES
    assert all(event["pid"] > 0 for event in written["traceEvents"])  # 0 is the kernel's own in Perfetto
    assert_nested(events["X"])
    assert_named(events)
    assert_two_ends(written["traceEvents"])
    return events


def in_nanoseconds(event):
    start, length = (round(1000 * event[field]) for field in ("ts", "dur"))
    return start, start + length


def assert_nested(slices):
    """No two bars of a thread overlap, counted as Perfetto does, in whole nanoseconds."""
    threads = {}
    for event in slices:
        start, end = in_nanoseconds(event)
        assert 0 <= start <= end
        threads.setdefault((event["pid"], event["tid"]), []).append((start, end))
    for bars in threads.values():
        for (_, end), (start, _) in itertools.pairwise(sorted(bars)):
            assert end <= start


def assert_named(events):
    """Every process and thread has one name and one place, and no thread's number is used twice."""
    named = {name: [(e["pid"], e["tid"]) for e in events["M"] if e["name"] == name] for name in NAMES}
    threads = {(event["pid"], event["tid"]) for event in events["X"]}
    assert sorted(threads) == sorted(named["thread_name"]) == sorted(named["thread_sort_index"])
    assert len({thread for _, thread in threads}) == len(threads)
    assert sorted(named["process_name"]) == sorted(named["process_sort_index"]) == sorted(set(named["process_name"]))
    assert {process for process, _ in threads} <= {process for process, _ in named["process_name"]}


def assert_two_ends(events):
    """Each arrow begins once and ends once, later or at once, each end right behind the bar that it is bound to."""
    begun, ended, bar = {}, {}, None
    for event in events:
        if event["ph"] == "X":
            bar = event
        elif event["ph"] in "sf":
            assert (event["pid"], event["tid"], event["ts"]) == (bar["pid"], bar["tid"], bar["ts"])
            table = begun if event["ph"] == "s" else ended
            assert event["id"] not in table
            table[event["id"]] = event
            assert event["ph"] == "s" or (event["bp"] == "e" and event["id"] in begun)
    assert set(begun) == set(ended)
    for arrow, start in begun.items():
        end = ended[arrow]
        assert start["ts"] <= end["ts"] and (start["name"], start["cat"]) == (end["name"], end["cat"])


def step(name, ranks, microbatches, hop=0, chunks=None):
    return simulate_program(lower(pl.build(name, ranks, microbatches, chunks)), pl.Costs.uniform(hop=hop))


@pytest.mark.parametrize("name", pl.SCHEDULES)
def test_every_schedule_keeps_to_the_format(name):
    trace = step(name, 4, 8, hop=Fraction(1, 3))
    events = checked(perfetto_json(trace))
    messages = [span for span in trace.spans if span.lane == "send"]
    assert len(events["X"]) == len(trace.spans)
    assert len(events["s"]) == len(messages)
    assert [e["pid"] for e in events["M"] if e["name"] == "process_name"] == [1, 2, 3, 4]


def test_messages_under_way_at_once_have_threads_of_their_own():
    events = checked(perfetto_json(step("gpipe", 2, 4, hop=5)))
    names = [event["args"]["name"] for event in events["M"] if event["name"] == "thread_name" and event["pid"] == 1]
    assert sorted(name for name in names if "send" in name)[:3] == ["send", "send (2)", "send (3)"]


def test_an_arrow_leads_from_the_send_to_the_work_that_takes_the_message():
    events = checked(perfetto_json(step("1f1b", 2, 2, hop=1)))
    bars = {(e["pid"], e["tid"], e["ts"]): e["name"] for e in events["X"]}
    ends = {e["id"]: bars[e["pid"], e["tid"], e["ts"]] for e in events["f"]}
    joined = {bars[e["pid"], e["tid"], e["ts"]]: ends[e["id"]] for e in events["s"]}
    assert joined == {"0SEND_F0": "1F0", "0SEND_F1": "1F1", "1SEND_B0": "0B0", "1SEND_B1": "0B1"}


def test_a_bar_tells_stage_kind_microbatch_and_what_it_waited_for():
    events = checked(perfetto_json(step("1f1b", 2, 2)))
    bar = next(event for event in events["X"] if event["name"] == "0B1")
    assert bar["args"] == {"kind": "B", "stage": 0, "microbatch": 1, "waiting_for": "1B1"}
    assert (bar["ts"], bar["dur"], bar["cat"]) == (7e6, 2e6, "compute")
    paired = checked(perfetto_json(step("dualpipe-v", 2, 4)))["X"]
    assert any(event["args"]["kind"] == "F+B" for event in paired)


def test_counters_are_the_micro_batches_in_flight_or_the_bytes_that_are_given():
    trace = step("interleaved", 2, 4, chunks=2)
    counted = [event for event in checked(perfetto_json(trace))["C"] if event["pid"] == 1]
    assert [e["args"]["micro-batches"] for e in counted] == [number(n) for _, n in in_flight_curve(trace, 0)]
    counted = checked(perfetto_json(trace, [[(0, 0), (1, 4096)], [(0, 0)]]))["C"]
    assert [(e["pid"], e["ts"], e["args"]) for e in counted][:2] == [(1, 0.0, {"bytes": 0}), (1, 1e6, {"bytes": 4096})]
    with pytest.raises(ValueError, match="one curve a rank, 2 in all: got 1"):
        perfetto_json(trace, [[]])


def test_times_that_meet_still_meet_after_rounding():
    third = 1e-3 / 3
    spans = tuple(
        Span(0, "compute", pl.Action(0, kind, m), m * 2 * third + shift, m * 2 * third + shift + third)
        for m in range(50)
        for kind, shift in (("F", 0), ("B", third))
    )
    checked(perfetto_json(Trace("thirds", "virtual", (1,), spans)))


def test_the_clock_is_said_and_the_unit_of_simulated_time():
    trace = step("gpipe", 1, 1)
    about = json.loads(perfetto_json(trace))["otherData"]
    assert about == {"schedule": "gpipe", "clock": "simulated time", "unit": "1 unit of the costs"}
    (name,) = (e["args"]["name"] for e in checked(perfetto_json(trace))["M"] if e["name"] == "process_name")
    assert name == "rank 0 (simulated: 1 s is 1 unit of the costs)"
    measured = Trace("gpipe", "wall", trace.chunks, trace.spans)
    assert json.loads(perfetto_json(measured))["otherData"]["clock"] == "wall-clock time"


def test_any_kind_in_any_lane_has_a_bar():
    lanes = [("compute", "F", 0, 4), ("collective", "F", 1, 2), ("collective", "REDUCE", 1.5, 3), ("memory", "U", 4, 5)]
    spans = tuple(Span(0, lane, pl.Action(0, kind, 0), start, end) for lane, kind, start, end in lanes)
    events = checked(perfetto_json(Trace("mine", "virtual", (1,), spans)))
    assert [(e["cat"], e["args"]["kind"]) for e in events["X"]] == [(lane, kind) for lane, kind, *_ in lanes]
    names = [event["args"]["name"] for event in events["M"] if event["name"] == "thread_name"]
    assert sorted(names) == ["collective", "collective (2)", "compute", "memory"]


def test_a_run_that_broke_off_has_no_arrow_to_what_did_not_happen():
    whole = step("1f1b", 2, 2)
    broken = Trace("1f1b", "virtual", whole.chunks, tuple(s for s in whole.spans if s.rank == 0))
    assert checked(perfetto_json(broken))["s"] == []


def test_the_trace_of_a_run_is_exported_with_its_bytes(tmp_path, capsys):
    shape = ["--pp", "2", "--microbatches", "4", "--steps", "1", "--model", "tiny", "--rows", "1"]
    file, out = tmp_path / "run.json", tmp_path / "perfetto.json"
    assert main(["train", "--schedule", "1f1b", *shape, "--data", "arithmetic", "--trace", str(file)]) == 0
    assert main(["export", "--trace", str(file), "--format", "perfetto", "--out", str(out)]) == 0
    events = checked(out.read_text())
    trace, peaks = Trace.from_json(file.read_text()), [0, 0]
    assert len(events["X"]) == len(trace.spans) and len(events["s"]) == 8
    for event in events["C"]:
        peaks[event["pid"] - 1] = max(peaks[event["pid"] - 1], event["args"]["bytes"])
    assert peaks[0] > peaks[1] > 0
    capsys.readouterr()
    assert main(["export", "--trace", str(file), "--format", "torch-csv"]) == 0
    assert capsys.readouterr().out == pl.build("1f1b", 2, 4).to_csv()
    assert main(["export", "--trace", str(file), "--format", "text"]) == 0
    assert "virtual time: makespan" in capsys.readouterr().out
    assert main(["export", "--trace", str(file), "--format", "json"]) == 0
    assert json.loads(capsys.readouterr().out) == json.loads(file.read_text())


@pytest.mark.parametrize(
    ("text", "more", "words"),
    [
        ("{}", [], "is not a pipelab trace"),
        ("[1]", [], "is not a pipelab trace"),
        ("hello", [], "is not a pipelab trace"),
        ('{"schedule":"a","clock":"wall","chunks":[1],"spans":[],"memory":[[],[]]}', [], "2 memory curves for 1 ranks"),
        ('{"schedule":"a","clock":"wall","chunks":[1],"spans":[],"memory":7}', [], "--trace"),
        ("{}", ["--ranks", "4"], "leave out --ranks"),
        ("{}", ["1f1b"], "leave out the name 1f1b"),
        ("{}", ["--file", "x"], "give one of them"),
    ],
)
def test_what_is_no_trace_is_refused_in_a_sentence(text, more, words, tmp_path, capsys):
    file = tmp_path / "trace.json"
    file.write_text(text)
    assert main(["export", "--trace", str(file), "--format", "perfetto", *more]) == 2
    out, err = capsys.readouterr()
    assert out == "" and words in err and err.count("\n") == 1 and "Error" not in err
