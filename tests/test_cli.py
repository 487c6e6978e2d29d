"""The command line: exact JSON on standard output, a sentence for what is wrong, a status that says whose fault."""

import itertools
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import pipelab as pl
from pipelab import cli, clock
from pipelab.cli import COMMANDS, main

COUNTS = "must be a whole number from 1"
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(Path(cli.__file__).resolve().parents[2])}
BUBBLES = {"step", "span", "overhead"}
BAR = re.compile(r"(\r[^\r\n]*)+\n?")
TINY = ["train", "--model", "tiny", "--rows", "1", "--data", "arithmetic"]


class Answer:
    """What a command gave: exit status, standard output, standard error but for the bar that slow work shows there."""

    def __init__(self, status: int, out: str, err: str) -> None:
        self.status, self.out, self.err = status, out, BAR.sub("", err)

    @property
    def json(self):
        """The one JSON object of standard output, with nothing before or after it."""
        assert (self.status, self.err) == (0, "")
        assert self.out.endswith("}\n") and self.out.count("\n") == 1
        return json.loads(self.out, parse_constant=pytest.fail)


@pytest.fixture
def pipelab(capfd):
    """Runs a command in this process; what other libraries print counts, too."""

    def run(*arguments: object) -> Answer:
        capfd.readouterr()
        try:
            status = main([str(argument) for argument in arguments])
        except SystemExit as ended:
            status = ended.code
        return Answer(status, *capfd.readouterr())

    return run


def in_a_process(*arguments: object, cwd: Path) -> Answer:
    command = [sys.executable, "-m", "pipelab", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, timeout=600, cwd=cwd, env=ENVIRONMENT)
    return Answer(done.returncode, done.stdout.decode(), done.stderr.decode())  # text=True would make \r a line's end


def assert_refused(answer: Answer, *words: str, status: int = 2, lines: int = 2) -> None:
    assert answer.status == status
    assert answer.out == ""
    assert answer.err.startswith("pipelab")
    assert 1 <= answer.err.count("\n") <= lines
    assert "Traceback" not in answer.err and "usage:" not in answer.err
    for word in words:
        assert word in answer.err


def simulate(*more: object) -> list[object]:
    return ["simulate", "1f1b", "--ranks", 4, "--microbatches", 8, *more]


def train(*more: object) -> list[object]:
    return [*TINY, "--schedule", "1f1b", "--microbatches", 2, "--steps", 1, *more]


# ---- help


def test_help_of_every_command_has_an_example_that_can_be_copied(capsys):
    for command in COMMANDS:
        with pytest.raises(SystemExit) as ended:
            main([command, "--help"])
        out = capsys.readouterr().out
        assert ended.value.code == 0
        assert "Example" in out
        assert any(line.startswith(f"pipelab {command}") for line in out.splitlines())


@pytest.mark.parametrize("command", [name for name in COMMANDS if name not in ("train", "labs", "bench")])
def test_the_example_of_a_quick_command_runs(command, pipelab, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    answer = pipelab(*COMMANDS[command].EXAMPLE.split()[1:])
    assert (answer.status, answer.err) == (0, "")


def test_without_a_command_the_commands_are_named(pipelab):
    assert_refused(pipelab(), *COMMANDS)


# ---- schedules and simulate


def test_schedules_lists_every_name_with_what_it_takes(pipelab):
    answer = pipelab("schedules", "--json").json
    assert list(answer) == ["schedules"]
    assert {entry["name"]: entry["description"] for entry in answer["schedules"]} == pl.SCHEDULES
    assert all(list(entry) == ["name", "description", "chunks", "options"] for entry in answer["schedules"])
    assert all(name in pipelab("schedules").out for name in pl.SCHEDULES)


SIMULATE_FIELDS = [
    "schedule", "ranks", "stages", "microbatches", "stage_to_rank", "rows", "makespan", "span", "bubble", "formula",
    "peak_in_flight", "peak_until_input",
]  # fmt: skip


@pytest.mark.parametrize("name", pl.SCHEDULES)
def test_simulate_gives_exactly_the_fields_of_the_contract(name, pipelab):
    answer = pipelab("simulate", name, "--ranks", 4, "--microbatches", 8, "--json").json
    trace = pl.simulate(pl.build(name, 4, 8), pl.Costs.uniform())
    more = ["objective", "lower_bound", "gap"] if name == "zb-auto" else []
    assert list(answer) == SIMULATE_FIELDS + more
    assert set(answer["bubble"]) == BUBBLES
    assert answer["formula"] is None or set(answer["formula"]) == BUBBLES
    assert (answer["schedule"], answer["ranks"], answer["microbatches"]) == (name, 4, 8)
    assert answer["stage_to_rank"] == list(pl.build(name, 4, 8).placement.rank_of)
    assert "\n".join(answer["rows"]) == pl.build(name, 4, 8).to_text()
    assert answer["bubble"] == {kind: pytest.approx(float(trace.bubble(kind)), abs=1e-15) for kind in BUBBLES}
    assert answer["makespan"] == trace.makespan
    assert answer["peak_in_flight"] == list(trace.peak_in_flight)


@pytest.mark.parametrize("chunks, bound", [(1, 27), (2, 24)])
def test_simulate_zb_auto_says_how_far_it_is_from_the_bound(pipelab, chunks, bound):
    answer = pipelab("simulate", "zb-auto", "--ranks", 4, "--microbatches", 8, "--chunks", chunks, "--json").json
    assert (answer["stages"], answer["span"]) == (4 * chunks, bound)
    assert (answer["objective"], answer["lower_bound"], answer["gap"]) == ("span", bound, 0)


def test_simulate_zb_auto_hints_at_two_stages_a_rank_where_they_are_shorter(pipelab):
    asked = ("simulate", "zb-auto", "--ranks", 4, "--microbatches", 8)
    hint = "within the same limit, two stages a rank (--chunks 2) have a span of 24"
    assert hint in pipelab(*asked).out
    for more in (("--chunks", 1), ("--chunks", 2), ("--hop", 20)):
        assert "within the same limit" not in pipelab(*asked, *more).out


def types_of(value: object) -> set[type]:
    inside = value if isinstance(value, list) else value.values() if isinstance(value, dict) else [value]
    return {type(item) for item in inside}


def test_figures_are_integers_where_they_are_exact_and_floats_elsewhere(pipelab):
    even = pipelab(*simulate("--json")).json
    for field in ("makespan", "span", "peak_in_flight", "peak_until_input", "stage_to_rank"):
        assert types_of(even[field]) == {int}
    assert types_of(even["bubble"]) == {float}
    assert types_of(pipelab("simulate", "gpipe", "--ranks", 1, "--microbatches", 3, "--json").json["bubble"]) == {int}
    odd = pipelab("simulate", "interleaved", "--ranks", 4, "--chunks", 2, "--microbatches", 8, "--json").json
    assert odd["makespan"] == 28.5 and odd["peak_in_flight"] == [5.5, 4.5, 3.5, 2.5]
    thirds = pipelab(*simulate("--F", "1/3", "--I", "1/3", "--W", "1/3", "--json")).json
    assert thirds["makespan"] == 11 and type(thirds["makespan"]) is int


def test_where_there_is_no_closed_form_the_formula_is_null(pipelab, tmp_path):
    rows = tmp_path / "mine.txt"
    rows.write_text("0F0 0B0\n")
    answer = pipelab("simulate", "--file", rows, "--json").json
    assert answer["formula"] is None
    assert answer["schedule"] == "mine"


def test_times_are_read_exactly_in_every_form(pipelab):
    exact = pipelab(*simulate("--F", "0.1", "--I", ".1", "--W", "1e-1", "--hop", "1/10", "--json")).json
    tenth = pipelab(*simulate("--hop", 1, "--json")).json
    assert exact["makespan"] == tenth["makespan"] / 10
    assert pipelab(*simulate("--F", "0.0033333333333333335", "--json")).json["makespan"] > 0
    nothing = pipelab(*simulate("--F", 0, "--I", 0, "--W", 0, "--json")).json
    assert (nothing["makespan"], nothing["bubble"]["overhead"]) == (0, 0)


def test_the_last_of_two_values_wins(pipelab):
    assert pipelab(*simulate("--ranks", 2, "--json")).json["ranks"] == 2


def test_explain_says_where_the_time_goes_and_only_when_asked(pipelab):
    plain, asked = (pipelab("simulate", "1f1b", "--ranks", 4, "--microbatches", 8, *more, "--json").json
                    for more in ([], ["--explain"]))  # fmt: skip
    why = asked.pop("explanation")
    assert asked == plain
    assert why["makespan"] == {"work": 24, "order": 9, "communication": 0, "imbalance": 0, "jitter": 0}
    assert [sum(idle.values()) for idle in why["idle"]] == [9] * 4
    assert sum(leg["end"] - leg["start"] for leg in why["critical_path"]) == 33 and why["difference"] is None
    said = pipelab("simulate", "1f1b", "--ranks", 4, "--microbatches", 8, "--explain").out
    assert (
        " ".join(why["text"].split()) in " ".join(said.split())
        and "rank 3        3          6           0    9" in said
    )


def test_a_file_of_rows_is_simulated_with_placement_read_from_it(pipelab, tmp_path):
    rows = tmp_path / "zb.txt"
    rows.write_text("# a comment\n" + pl.build("zb-h1", 3, 5).to_text() + "\n\n")
    answer = pipelab("simulate", "--file", rows, "--json").json
    named = pipelab("simulate", "zb-h1", "--ranks", 3, "--microbatches", 5, "--json").json
    assert all(answer[field] == named[field] for field in SIMULATE_FIELDS if field not in ("schedule", "formula"))


def test_without_json_a_person_reads_the_timeline_and_the_figures(pipelab):
    answer = pipelab(*simulate())
    assert answer.status == 0
    for word in ("rank 3", "makespan 33", "27.3 %", "formula", "in flight"):
        assert word in answer.out


REFUSED_ROWS = {
    "": "no action",
    "# nothing\n\n": "no action",
    "0F0 0B0 hello": "rank 0, position 2: 'hello'",
    "0F0 0b0": "'0b0'",
    "0F٠ 0B0": "is not an action",
    "0SEND_F0": "0SEND_F0 is a message",
    "0F0 0B0+0F1+0B1": "joins 3 actions",
    "0F0": "0B0",
    "0F0 0B0 0F1": "0B1",
    "0F0 0I0": "0W0 is missing",
    "0F0 0F0 0B0": "0F0 is doubled",
    "0F0 0B0 0W0": "0B0 is doubled by 0W0",
    "0B0 0F0": "0B0 is out of order",
    "0F0 0B0 1F0 1B0\n1F1 1B1": "1F1 is misplaced",
    "0F0 1F0 0B0\n1B0": "1B0 is misplaced",
    "0F0 0B0 0F1 0B1\n1F1 1B1 1F0 1B0": "deadlock: rank 0, position 1: 0B0 waits for 1B0",
    "999999999F0": "more than 20 million actions",
    "0F999999999": "more than 20 million actions",
}


@pytest.mark.parametrize("rows", REFUSED_ROWS)
def test_a_file_that_is_no_schedule_is_refused_with_reasons_that_name_the_action(rows, pipelab, tmp_path):
    file = tmp_path / "rows.txt"
    file.write_text(rows, encoding="utf-8")
    answer = pipelab("simulate", "--file", file, "--json")
    assert_refused(answer, REFUSED_ROWS[rows], lines=40)


@pytest.mark.parametrize("rows", ["0F0 0B0 hello", "0F0 0I0", "0B0 0F0", "0F0 0B0 0F1 0B1\n1F1 1B1 1F0 1B0"])
def test_a_refused_file_shows_its_rows_with_a_caret(rows, pipelab, tmp_path):
    file = tmp_path / "rows.txt"
    file.write_text(rows, encoding="utf-8")
    for command in ("simulate", "train", "export"):
        answer = pipelab(command, "--file", file)
        assert_refused(answer, "rank 0: ", "^", lines=40)


def test_a_file_may_begin_with_a_byte_order_mark(pipelab, tmp_path):
    file = tmp_path / "rows.txt"
    file.write_text("0F0 0B0", encoding="utf-8-sig")
    assert pipelab("simulate", "--file", file, "--json").json["rows"] == ["0F0 0B0"]


def test_reasons_without_end_are_cut_at_forty_lines(pipelab, tmp_path):
    file = tmp_path / "rows.txt"
    file.write_text("\n".join(f"{rank}F0 {rank}F99" for rank in range(99)))
    assert_refused(pipelab("simulate", "--file", file), "is missing", "more", lines=40)


def test_a_file_that_cannot_be_read_as_text_is_refused_and_named(pipelab, tmp_path):
    binary = tmp_path / "binary"
    binary.write_bytes(b"\x00\xff\xfe")
    for path in (binary, tmp_path, tmp_path / "nowhere.txt"):
        assert_refused(pipelab("simulate", "--file", path), f"--file {path}")


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--ranks", 0], ["--ranks", COUNTS, "'0'"]),
        (["--ranks", -1], ["--ranks", COUNTS, "'-1'"]),
        (["--ranks", 1.5], ["--ranks", COUNTS, "'1.5'"]),
        (["--ranks", ""], ["--ranks", COUNTS]),
        (["--ranks", "+4"], ["--ranks", COUNTS]),
        (["--ranks", " 4"], ["--ranks", COUNTS]),
        (["--ranks", "1_0"], ["--ranks", COUNTS]),
        (["--ranks", "٤"], ["--ranks", COUNTS]),
        (["--ranks", "4²"], ["--ranks", COUNTS]),
        (["--ranks", "9" * 5000], ["--ranks", COUNTS, "999..."]),
        (["--microbatches", "1e3"], ["--microbatches", COUNTS]),
        (["--microbatches", 10**8], ["more than 20 million actions", "fewer"]),
        (["--microbatches", 10**30], ["--microbatches", COUNTS]),
        (["--chunks", 2], ["1f1b", "chunks=2", "interleaved"]),
        (["--chunks", 0], ["--chunks", COUNTS]),
        (["--ranks"], ["--ranks", "expected one argument"]),
        *[
            (["--F", time], ["--F", "0.5 or 1/3"])
            for time in (
                "nan",
                "inf",
                "-1",
                "1e400",
                "1e999999999",
                "1e-999999999",
                "1_0",
                "٣",
                "1/0",
                "x",
                "",
                "9" * 99,
            )
        ],
        (["--hop", "-0.5"], ["--hop", "'-0.5'"]),
        (["--rank", 4], ["no --rank", "--ranks"]),
        (["--nonsense"], ["--nonsense", "pipelab simulate --help"]),
        (["gpipe"], ["gpipe"]),
        (["--memory-limit", 3], ["--memory-limit"]),
        (["--file", "rows.txt"], ["--file", "1f1b"]),
    ],
)
def test_wrong_input_of_simulate_is_named_in_a_sentence(more, words, pipelab):
    assert_refused(pipelab(*simulate(*more, "--json")), *words)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["simulate"], ["name a schedule", "1f1b", "--file"]),
        (["simulate", "1f1b", "--ranks", 4], ["--microbatches"]),
        (["simulate", "1f1b", "--microbatches", 4], ["--ranks"]),
        (["simulate", "1f2b", "--ranks", 4, "--microbatches", 4], ["'1f2b'", "1f1b"]),
        (["simulate", "", "--ranks", 4, "--microbatches", 4], ["''", "1f1b"]),
        (["simulate", "--file", "x", "--ranks", 4], ["--file", "--ranks"]),
        (["simulate", "--file", ""], ["--file"]),
        (["schedules", "1f1b"], ["1f1b"]),
        (["schedules", "--josn"], ["--josn", "--json"]),
        (["fly"], ["fly", "simulate"]),
        (["--debug"], ["--debug"]),
        (["train"], ["--schedule", "--microbatches"]),
        (["train", "--schedule", "1f1b"], ["--microbatches"]),
        (["train", "--file", "x", "--schedule", "1f1b"], ["--file says all", "leave out", "1f1b"]),
        (["train", "--file", "x", "--pp", 2], ["--file says all", "leave out --pp"]),
        (["train", "--file", "x", "--microbatches", 2], ["--file says all", "leave out --microbatches"]),
        (["train", "--file", "x", "--chunks", 2], ["leave out --chunks"]),
        (["train", "--file", "nowhere.txt"], ["--file nowhere.txt cannot be read"]),
    ],
)
def test_a_command_that_is_not_complete_or_not_there_is_named_with_the_remedy(arguments, words, pipelab):
    assert_refused(pipelab(*arguments), *words)


# ---- train


LEARNING = [name for name in pl.SCHEDULES if name != "inference"]


@pytest.mark.parametrize(("name", "chunks"), [*((name, None) for name in LEARNING), ("interleaved", 2)])
def test_train_check_gives_exactly_the_fields_of_the_contract_and_no_difference(name, chunks, pipelab):
    more = ["--chunks", chunks] if chunks else []
    shape = ["--schedule", name, "--pp", 3, "--microbatches", 4, "--steps", 2, *more]
    answer = pipelab(*TINY, *shape, "--check", "--json").json
    assert list(answer) == [
        "schedule", "mesh", "transport", "device", "clock", "pids", "losses", "step_seconds", "bubble",
        "peak_activation_bytes", "max_parameter_difference", *(["versions"] if name == "pipedream" else []),
    ]  # fmt: skip
    assert answer["mesh"] == {"pp": 3, "tp": 1, "dp": 1}
    assert (answer["schedule"], answer["transport"], answer["device"]) == (name, "memory", "cpu")
    assert answer["clock"] == "virtual"
    assert answer["pids"] == [os.getpid()] * 3
    assert len(answer["losses"]) == 2 and types_of(answer["losses"]) == {float}
    assert type(answer["step_seconds"]) is float and answer["step_seconds"] > 0
    assert list(answer["bubble"]) == ["measured", "replayed", "formula"]
    assert all(set(figures) == BUBBLES for figures in answer["bubble"].values() if figures is not None)
    assert len(answer["peak_activation_bytes"]) == 3 and types_of(answer["peak_activation_bytes"]) == {int}
    # looped-bfs runs the backwards of a stage last to first, so its gradients are equal to rounding only.
    assert answer["max_parameter_difference"] <= (1e-12 if name == "looped-bfs" else 0)


@pytest.mark.parametrize("transport", ["memory", "gloo"])
def test_a_mesh_trains_the_uncut_model_and_tells_the_bytes_of_each_axis(pipelab, transport):
    mesh = ["--pp", 2, "--tp", 2, "--dp", 2, "--zero", "--tie-embeddings", "--sequence-parallel", "--clip", 1]
    shape = ["--schedule", "zb-h1", "--microbatches", 3, "--steps", 2, "--transport", transport]
    answer = pipelab(*TINY, *shape, *mesh, "--check", "--json").json
    assert answer["mesh"] == {"pp": 2, "tp": 2, "dp": 2}
    assert answer["max_parameter_difference"] < 1e-12
    assert len(answer["pids"]) == len(answer["peak_activation_bytes"]) == len(answer["sent"]) == 8
    assert len(set(answer["pids"])) == (1 if transport == "memory" else 8)
    first = answer["sent"][0]
    assert set(first) == {"pp", "tp", "dp", "tie", "all"} and set(first["dp"]) >= {"reduce_scatter", "all_gather"}
    assert first["pp"]["send_f"]["times"] == 3 and types_of(first["pp"]["send_f"]["bytes"]) == {int}


def test_training_without_a_flush_tells_the_staleness_and_the_memory_of_the_versions(pipelab):
    shape = ["--schedule", "pipedream", "--pp", 3, "--microbatches", 4, "--steps", 2]
    versions = pipelab(*TINY, *shape, "--json").json["versions"]
    assert versions["staleness"] == [2, 1, 0]
    assert versions["peak_weight_bytes"] == [
        held * one for held, one in zip((3, 2, 1), versions["weight_bytes"], strict=True)
    ]
    assert len(versions["update_seconds"]) == 3 and min(versions["update_seconds"]) > 0
    shown = pipelab(*TINY, *shape, "--check").out
    for words in ("2 1 0 updates at most", "3 2 1 times the weights", "virtual time does not count", "the same delays"):
        assert words in shown


def test_without_a_flush_all_that_train_writes_is_written_and_a_watch_is_refused(pipelab, tmp_path):
    pytest.importorskip("plotly")
    page, trace = tmp_path / "run.html", tmp_path / "run.json"
    shape = [*TINY, "--schedule", "pipedream", "--pp", 2, "--microbatches", 2, "--steps", 2]
    answer = pipelab(*shape, "--html", page, "--trace", trace, "--explain", "--json").json
    read = pl.Trace.from_json(trace.read_text())
    assert {str(span.action) for span in read.spans if span.lane == "memory"} == {
        f"{stage}U{number}" for stage in range(2) for number in range(4)
    }
    assert page.exists() and answer["explanation"]["text"].startswith("pipedream in virtual time")
    for option in (["--watch"], ["--clip", 1]):
        assert_refused(pipelab(*shape, *option), option[0].removeprefix("--"), "pipedream", "1f1b")


def test_a_schedule_without_a_backward_is_not_for_training(pipelab):
    refused = pipelab(*TINY, "--schedule", "inference", "--pp", 2, "--microbatches", 4)
    assert_refused(refused, "--schedule inference", "no backward")


def test_simulate_plays_generation_in_rounds_of_groups(pipelab):
    shape = ["simulate", "inference", "--ranks", 4, "--microbatches", 16]
    answer = pipelab(*shape, "--groups", 2, "--json").json
    assert (answer["makespan"], answer["formula"]) == (33, None)
    assert_refused(pipelab(*shape, "--groups", 3), "multiple of groups", "microbatches=18")
    assert_refused(pipelab("simulate", "1f1b", "--ranks", 4, "--microbatches", 8, "--groups", 2), "--groups", "1f1b")


def test_without_check_there_is_no_difference_to_report(pipelab):
    assert pipelab(*train("--json")).json["max_parameter_difference"] is None


def test_train_explains_the_run_against_its_replay(pipelab):
    answer = pipelab(*train("--explain", "--json")).json
    why = answer["explanation"]
    assert why["text"].startswith("1f1b in virtual time takes ") and "in simulated time" in why["text"]
    for idle in why["idle"]:
        assert min(idle.values()) >= 0
    replayed = why["difference"]
    assert set(replayed) == {"work", "order", "communication", "imbalance", "jitter"}


def test_check_runs_in_float64_whatever_dtype_says(pipelab):
    plain = pipelab(*train("--json")).json
    checked = pipelab(*train("--json", "--check", "--dtype", "bfloat16")).json
    assert checked["peak_activation_bytes"][0] > 1.5 * plain["peak_activation_bytes"][0]
    assert checked["losses"] == pytest.approx(plain["losses"], rel=1e-4)


@pytest.mark.parametrize("value", [1.0, float("nan")])
def test_a_difference_fails_the_check_also_where_it_is_no_number(value, pipelab, monkeypatch):
    from pipelab import reference

    def spoiled(model, *arguments, **options):
        with torch.no_grad():
            list(model.parameters())[3].view(-1)[0] = value

    monkeypatch.setattr(reference, "train_uncut", spoiled)
    answer = pipelab(*train("--check", "--json"))
    assert answer.status == 1
    assert "--check" in answer.err and answer.err.count("\n") == 1
    assert json.loads(answer.out, parse_constant=pytest.fail)["max_parameter_difference"] != 0


def test_a_loss_that_is_no_number_is_null(pipelab, monkeypatch):
    monkeypatch.setattr(torch.optim, "AdamW", lambda parameters, **options: torch.optim.SGD(parameters, lr=1e30))
    assert None in pipelab(*train("--steps", 4, "--json")).json["losses"]


def test_the_same_seed_gives_the_same_losses_and_another_seed_others(pipelab):
    def losses(*more) -> list[float]:
        return pipelab(*train("--json", *more)).json["losses"]

    assert losses() == losses("--seed", 0) != losses("--seed", 2**63 - 1)


def test_a_modelled_link_lengthens_the_step(pipelab):
    shape = ["--pp", 2, "--json"]
    assert pipelab(*train(*shape, "--latency", 1)).json["step_seconds"] > 2
    slow = pipelab(*train(*shape, "--bandwidth", "1e3", "--dtype", "float64")).json["step_seconds"]
    assert slow > 2 * 16 * 32 * 8 / 1e3


def test_rows_of_ones_own_are_trained(pipelab, tmp_path):
    file = tmp_path / "1f1b.txt"  # a name that has a formula, which these rows have not
    file.write_text("0F0 0F2 0F1 0I2 0I0 0B1 0W2 0W0\n1F0 1F2 1B2 1F1 1B0 1B1\n")
    answer = json.loads(pipelab(*TINY, "--file", file, "--steps", 2, "--check", "--json").out)
    assert (answer["schedule"], answer["mesh"]["pp"], len(answer["losses"])) == ("1f1b (file)", 2, 2)
    assert answer["max_parameter_difference"] < 1e-9 and answer["bubble"]["formula"] is None
    assert pipelab("simulate", "--file", file, "--json").json["microbatches"] == 3


def test_trace_and_page_are_written(pipelab, tmp_path):
    pytest.importorskip("plotly")
    page, trace = tmp_path / "run.html", tmp_path / "run.json"
    answer = pipelab(*train("--pp", 2, "--html", page, "--trace", trace, "--json")).json
    read = pl.Trace.from_json(trace.read_text())
    assert (read.schedule, read.clock, read.ranks) == ("1f1b", "virtual", 2)
    assert read.makespan == answer["step_seconds"]
    assert "plotly" in page.read_text().lower()
    assert sorted(tmp_path.iterdir()) == [page, trace]


def test_where_a_package_is_missing_the_remedy_is_told_before_anything_is_trained(pipelab, monkeypatch, tmp_path):
    for package in ("plotly", "tqdm"):
        monkeypatch.setitem(sys.modules, package, None)
    assert_refused(pipelab(*train("--html", tmp_path / "run.html")), "--html", "pip install plotly", lines=1)
    assert_refused(pipelab("labs", "--only", "01"), "pip install tqdm", lines=1)
    assert not list(tmp_path.iterdir())


def test_over_processes_the_figures_have_the_same_fields_and_the_same_losses(pipelab):
    options = ("--pp", 2, "--microbatches", 3, "--steps", 2, "--check", "--json")
    here, there = (pipelab(*train(*options, "--transport", name)).json for name in ("memory", "gloo"))
    assert list(here) == list(there)
    for same in ("losses", "peak_activation_bytes", "max_parameter_difference", "clock", "mesh"):
        assert here[same] == there[same]
    assert there["transport"] == "gloo"
    assert len(set(there["pids"])) == 2 and os.getpid() not in there["pids"]
    assert here["pids"] == [os.getpid()] * 2


def test_training_without_a_flush_gives_the_same_over_processes(pipelab):
    shape = [*TINY, "--schedule", "pipedream", "--pp", 3, "--microbatches", 2, "--steps", 2, "--check", "--json"]
    here, there = (pipelab(*shape, "--transport", name).json for name in ("memory", "gloo"))
    for figures in (here, there):
        del figures["versions"]["update_seconds"]
    for same in ("losses", "peak_activation_bytes", "versions"):
        assert here[same] == there[same]
    assert here["max_parameter_difference"] == there["max_parameter_difference"] == 0


def test_a_text_file_of_ones_own_is_trained_on(pipelab, tmp_path):
    text = tmp_path / "mine.txt"
    text.write_text("to be or not to be, that is the question\n" * 9)
    assert len(pipelab(*train("--data", text, "--json")).json["losses"]) == 1


def test_without_json_a_person_reads_losses_bubbles_and_memory(pipelab):
    answer = pipelab(*train("--pp", 2, "--check"))
    assert (answer.status, answer.err) == (0, "")
    for word in ("rank 1", "loss", "virtual", "bubble step", "bubble span", "bubble overhead", "MiB", "at most 0"):
        assert word in answer.out


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--schedule", "2f2b"], ["'2f2b'", "1f1b"]),
        (["--pp", 0], ["--pp", COUNTS]),
        (["--microbatches", 0], ["--microbatches", COUNTS]),
        (["--steps", 0], ["--steps", COUNTS]),
        (["--rows", 0], ["--rows", COUNTS]),
        (["--layers", 0], ["--layers", COUNTS]),
        (["--chunks", 2], ["1f1b", "chunks=2"]),
        (["--microbatches", 10**9], ["20 million"]),
        (["--tp", 3], ["tp=3", "2 heads"]),
        (["--zero"], ["--zero", "--dp 2"]),
        (["--sequence-parallel"], ["--sequence-parallel", "--tp 2"]),
        (["--clip", 0], ["--clip"]),
        (["--transport", "nccl"], ["--transport nccl", "--device cuda"]),
        (["--transport", "pigeon"], ["--transport pigeon", "memory"]),
        (["--comm", "telepathic"], ["--comm", "blocking"]),
        (["--device", "tpu"], ["--device", "tpu"]),
        (["--clock", "sun"], ["--clock", "sun"]),
        (["--model", "huge"], ["--model", "huge", "tiny"]),
        (["--dtype", "int8"], ["--dtype", "int8"]),
        (["--layers", 8, "--pp", 20], ["10 layers", "20 stages", "deeper"]),
        (["--layers", 1, "--pp", 4], ["3 layers", "4 stages"]),
        (["--seed", -1], ["--seed", "whole number from 0"]),
        (["--seed", "x"], ["--seed", "'x'"]),
        (["--seed", 2**63], ["--seed", "whole number"]),
        (["--latency", -1], ["--latency"]),
        (["--latency", "1e400"], ["--latency"]),
        (["--bandwidth", "nan"], ["--bandwidth"]),
        (["--bandwidth", 0], ["--bandwidth", "positive"]),
        (["--bandwidth", -5], ["--bandwidth"]),
        (["--data", "nowhere.txt"], ["nowhere.txt", "stdlib-docs"]),
        (["--data", ""], ["directory"]),
        (["--html", "nowhere/page.html"], ["--html", "nowhere/page.html", "folder"]),
        (["--trace", "nowhere/trace.json"], ["--trace", "folder"]),
        (["--html", "."], ["--html", "folder"]),
        (["--checkpoint", "full"], ["--checkpoint"]),
    ],
)
def test_wrong_input_of_train_is_named_in_a_sentence(more, words, pipelab):
    assert_refused(pipelab(*train(*more, "--json")), *words)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_a_device_that_is_not_there_is_refused_and_never_replaced(pipelab):
    assert_refused(pipelab(*train("--device", "cuda")), "--device cuda", "--device cpu")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", ["empty"]),
        (b"\x00\x01\x02" * 99, ["binary"]),
        (b"\xff" * 99, ["UTF-8"]),
        (b"short", ["5 bytes", "longer"]),
    ],
)
def test_data_that_cannot_be_trained_on_is_refused_in_a_sentence(content, words, pipelab, tmp_path):
    file = tmp_path / "data"
    file.write_bytes(content)
    assert_refused(pipelab(*train("--data", file)), *words)


def test_a_folder_that_takes_no_files_is_refused_before_any_work(pipelab, tmp_path, monkeypatch):
    import tempfile

    def full(*arguments, **options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(tempfile, "TemporaryFile", full)
    assert_refused(pipelab(*train("--html", tmp_path / "page.html")), "--html", "No space left")
    assert not list(tmp_path.iterdir())


# ---- failures of the run itself


def test_a_failed_run_is_one_line_and_status_1_and_debug_shows_the_traceback(pipelab, monkeypatch):
    from pipelab.stage import Stage

    def fail(*arguments, **options):
        raise RuntimeError("no such luck")

    monkeypatch.setattr(Stage, "forward", fail)
    assert_refused(pipelab(*train("--pp", 2)), "rank 0 failed at 0F0: RuntimeError: no such luck", status=1)
    answer = pipelab(*train("--pp", 2, "--debug"))
    assert (answer.status, answer.out) == (1, "")
    assert "Traceback" in answer.err and "in fail" in answer.err


def test_a_defect_of_ours_is_named_with_its_kind_and_has_status_1(pipelab, monkeypatch):
    def fail(options):
        raise KeyError("lost")

    monkeypatch.setattr(cli.schedules, "run", fail)
    assert_refused(pipelab("schedules"), "KeyError: 'lost'", status=1)


def test_control_c_is_one_word_and_status_130(pipelab, monkeypatch):
    def interrupted(options):
        raise KeyboardInterrupt

    monkeypatch.setattr(cli.schedules, "run", interrupted)
    assert_refused(pipelab("schedules"), "interrupted", status=130)


# ---- in a process of its own


def test_as_a_process_it_answers_the_same(tmp_path):
    answer = in_a_process(*simulate("--json"), cwd=tmp_path)
    assert answer.json["makespan"] == 33
    assert_refused(in_a_process("simulate", "1f2b", "--ranks", 1, "--microbatches", 1, cwd=tmp_path), "1f1b")
    assert list(tmp_path.iterdir()) == []


def test_as_a_process_training_writes_nothing_but_json(tmp_path):
    answer = in_a_process(*train("--pp", 2, "--check", "--json"), cwd=tmp_path)
    assert answer.json["max_parameter_difference"] == 0
    assert list(tmp_path.iterdir()) == []


def test_a_reader_that_leaves_early_causes_no_traceback():
    done = subprocess.run(
        f"{sys.executable} -m pipelab simulate gpipe --ranks 8 --microbatches 9999 --json | head -c 10",
        shell=True, capture_output=True, text=True, timeout=600, env=ENVIRONMENT,
    )  # fmt: skip
    assert done.stdout == '{"schedule'
    assert "Traceback" not in done.stderr


# ---- train: where to cut


@pytest.mark.parametrize("policy", ["uniform", "parameters", "time", "memory", "optimal"])
def test_train_balances_and_tells_the_cut_and_its_prediction(policy, pipelab):
    shape = ["--pp", 2, "--layers", 6, "--balance", policy, "--check", "--json"]
    answer = pipelab(*train(*shape)).json
    assert answer["balance"] == policy and answer["max_parameter_difference"] == 0
    assert len(answer["at"]) == 1 and answer["predicted_step_seconds"] > 0 and len(answer["predicted_bytes"]) == 2
    by_hand = pipelab(*train("--pp", 2, "--layers", 6, "--layout", answer["layout"], "--json")).json
    assert (by_hand["at"], by_hand["layout"], by_hand["balance"]) == (answer["at"], answer["layout"], "layout")


def test_what_a_balanced_run_holds_of_all_causes_keeps_to_the_cap(pipelab):
    shape = ["--pp", 4, "--microbatches", 8, "--layers", 10, "--json", "--balance"]
    lean, free = (max(pipelab(*train(*shape, policy)).json["predicted_bytes"]) for policy in ("memory", "uniform"))
    cap = (lean + free) / 2 / 2**20
    assert max(pipelab(*train(*shape, "optimal", "--memory-cap", cap)).json["predicted_bytes"]) <= cap * 2**20
    assert_refused(pipelab(*train(*shape, "uniform", "--memory-cap", cap)), "uniform does not fit: rank", "optimal")
    assert_refused(pipelab(*train(*shape, "optimal", "--memory-cap", 0.9 * lean / 2**20)), "does not fit", "allow more")


def test_a_cut_by_hand_is_predicted_with_what_it_recomputes(pipelab):
    shape = ["--pp", 2, "--microbatches", 4, "--layers", 6, "--layout", "Et*4|ttH", "--json"]
    plain, full = (pipelab(*train(*shape, "--checkpointing", policy)).json for policy in ("none", "full"))
    assert full["at"] == plain["at"] == [5] and full["suggestion"] is None
    assert full["predicted_bytes"][0] < plain["predicted_bytes"][0]
    assert full["predicted_step_seconds"] > 0 and "peak_recomputed_bytes" in full


@pytest.fixture
def a_second_a_module(monkeypatch):
    """In virtual time an action takes one second, and one more for every module that it runs forward."""
    taken = itertools.count()

    def take(*_):
        next(taken)

    fine = SimpleNamespace(resolution=1e-9)
    monkeypatch.setattr(clock, "time", SimpleNamespace(thread_time=taken.__next__, get_clock_info=lambda name: fine))
    hook = torch.nn.modules.module.register_module_forward_hook(take)
    yield
    hook.remove()


def test_train_suggests_a_move_after_a_poor_layout(pipelab, a_second_a_module):
    poor = ["--pp", 2, "--layers", 8, "--layout", "Et*7|tH"]
    move = pipelab(*train(*poor, "--json")).json["suggestion"]
    assert (move["layer"], move["at"]) == (7, [7]) and move["predicted_change"] < 0
    said = pipelab(*train(*poor)).out
    assert "suggestion        move layer 7 from rank 0 to rank 1: predicted -" in said
    assert "cut               Et*7|tH (by layout)" in said


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--layout", "Et*16|H|"], ["--layout Et*16|H|", "^ stage 2 would be empty"]),
        (["--layout", "Et*15|H"], ["the model's layers", "Et*16H"]),
        (["--layout", "Et*16H"], ["1 stages", "the schedule 2"]),
        (["--layout", "Et*16|H", "--balance", "time"], ["--balance and --layout", "leave out one"]),
        (["--balance", "best"], ["--balance", "optimal"]),
        (["--balance", "optimal", "--memory-cap", "0.001"], ["rank", "MiB of 0.00", "allow more"]),
        (["--balance", "uniform", "--memory-cap", "0"], ["--memory-cap", "positive"]),
        (["--memory-cap", "1"], ["will not fit: rank 1 needs", "of 1 MiB", "above all", "nearest comes"]),
    ],
)
def test_a_cut_that_cannot_be_is_refused_before_training(more, words, pipelab):
    assert_refused(pipelab(*train("--pp", 2, *more)), *words)


def test_the_caret_stands_under_the_mistake(pipelab):
    first, second = pipelab(*train("--layout", "Et*2|(tt")).err.splitlines()
    assert first[second.index("^")] == "(" and second.endswith("add a )")


def test_processes_that_torchrun_started_do_not_each_measure_a_cut_of_their_own(pipelab, monkeypatch):
    for name, value in {
        "RANK": "0",
        "WORLD_SIZE": "2",
        "LOCAL_RANK": "0",
        "MASTER_ADDR": "x",
        "MASTER_PORT": "1",
    }.items():
        monkeypatch.setenv(name, value)
    assert_refused(pipelab(*train("--pp", 2, "--balance", "time")), "--balance time measures", "--layout")


@pytest.mark.parametrize("module", ["pipelab.cli.parser", "torch"])
def test_control_c_while_modules_are_loaded_is_one_line_too(tmp_path, module):
    code = (
        "import os, runpy, signal, sys\n"
        "class Press:\n"
        f"    def find_spec(self, name, *_): name == {module!r} and os.kill(os.getpid(), signal.SIGINT)\n"
        "sys.meta_path.insert(0, Press())\n"
        f"sys.argv = {['pipelab', *map(str, train())]!r}\n"
        "runpy.run_module('pipelab', run_name='__main__')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=600, env=ENVIRONMENT
    )
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "pipelab: interrupted\n")


@pytest.mark.parametrize("name", ["RANK", "WORLD_SIZE", "MASTER_PORT"])
def test_a_variable_of_torchrun_that_is_no_number_is_refused_in_a_sentence(pipelab, monkeypatch, name):
    fine = {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": "29500"}
    for variable, value in {**fine, name: "x"}.items():
        monkeypatch.setenv(variable, value)
    answer = pipelab(*train("--pp", 2, "--transport", "gloo"))
    assert_refused(answer, f"{name}=x", "start it with torchrun, or unset them", status=2)


@pytest.mark.parametrize("policy", ["full", "selective", "every-2", "except-last", "full,none"])
def test_train_recomputes_and_stays_equal_to_the_uncut_model(policy, pipelab, tmp_path):
    shape = ["--pp", 2, "--checkpointing", policy, "--hoist", 1]
    answer = pipelab(*train(*shape, "--check", "--json", "--trace", tmp_path / "trace.json")).json
    assert answer["max_parameter_difference"] == 0 and len(answer["peak_recomputed_bytes"]) == 2
    kinds = {s.action.kind for s in pl.Trace.from_json((tmp_path / "trace.json").read_text()).spans}
    assert "R" in kinds and answer["bubble"]["replayed"]["step"] > 0


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--checkpointing", "every-0"], ["--checkpointing", "every-0", "except-last"]),
        (["--checkpointing", "half"], ["--checkpointing", "'half'", "selective"]),
        (["--checkpointing", "full,full,full"], ["checkpointing", "2 in all: got 3"]),
        (["--checkpointing", "full", "--hoist", "-1"], ["--hoist", "'-1'"]),
        (["--hoist", "1"], ["--hoist", "add --checkpointing"]),
        (["--checkpointing", "full", "--balance", "time"], ["--balance", "without recomputation", "--layout"]),
    ],
)
def test_train_refuses_a_checkpointing_that_is_not_there(more, words, pipelab):
    assert_refused(pipelab(*train("--pp", 2, *more)), *words)
