"""Every lab keeps the rules of a lab, runs with other parameters too, and its exercise can be solved."""

import ast
import contextlib
import io
import json
import re
from pathlib import Path
from statistics import median
from types import SimpleNamespace

import pytest

import pipelab as pl
from pipelab.labs import find_labs, run_lab
from pipelab.show import timeline_text
from pipelab.tensor_layers import ColumnParallelLinear, RowParallelLinear

LABS = sorted((Path(__file__).resolve().parent.parent / "labs").glob("*.ipynb"))
KERNEL = {"display_name": "Python 3", "language": "python", "name": "python3"}

ABSOLUTE_PATH = re.compile(r"(?<![\w.~/:])(/(home|Users|root|tmp|mnt|opt|usr|var|work|data)/|[A-Z]:\\)")
INSTALL_OR_NETWORK = re.compile(
    r"^\s*[%!]|\bpip3? install|\bconda install|https?:|\burllib\b|\brequests\b|\bsocket\b|\bwget\b|\bcurl\b", re.M
)


def code_cells(lab):
    cells = json.loads(lab.read_text(encoding="utf-8"))["cells"]
    return [cell for cell in cells if cell["cell_type"] == "code"]


def source(cell):
    return "".join(cell["source"])


def is_parameters(cell):
    return "parameters" in cell["metadata"].get("tags", [])


@pytest.fixture(params=LABS, ids=lambda lab: lab.stem)
def lab(request):
    return request.param


# -------------------------------------------------------------------------------------------- the form of a lab


def test_a_lab_is_committed_without_outputs_and_widget_state(lab):
    notebook = json.loads(lab.read_text(encoding="utf-8"))
    assert (notebook["nbformat"], notebook["nbformat_minor"]) == (4, 5)
    assert notebook["metadata"]["kernelspec"] == KERNEL
    assert "widgets" not in notebook["metadata"]
    assert lab.stat().st_size < 100_000
    for cell in code_cells(lab):
        assert cell["outputs"] == [] and cell["execution_count"] is None, cell["id"]
    ids = [cell["id"] for cell in notebook["cells"]]
    assert len(set(ids)) == len(ids)


def test_a_lab_has_one_cell_of_parameters_that_are_literals_and_come_first(lab):
    cells = code_cells(lab)
    assert [is_parameters(cell) for cell in cells] == [True] + [False] * (len(cells) - 1)
    for statement in ast.parse(source(cells[0])).body:
        assert isinstance(statement, ast.Assign), "papermill replaces values: no work in the parameters cell"
        ast.literal_eval(statement.value)


def test_a_lab_has_few_and_short_cells(lab):
    lengths = [len(source(cell).splitlines()) for cell in code_cells(lab)]
    assert len(lengths) <= 25 and max(lengths) <= 15, "if a cell grows, the package lacks a function"
    assert median(lengths) <= 5


def test_a_lab_checks_itself(lab):
    checks = [n for cell in code_cells(lab) for n in ast.walk(ast.parse(source(cell))) if isinstance(n, ast.Assert)]
    assert checks, "correctness lives in asserts: outputs are not compared"


def test_a_lab_installs_nothing_fetches_nothing_and_names_no_machine(lab):
    for cell in json.loads(lab.read_text(encoding="utf-8"))["cells"]:
        assert not ABSOLUTE_PATH.search(source(cell)), cell["id"]
    for cell in code_cells(lab):
        assert not INSTALL_OR_NETWORK.search(source(cell)), cell["id"]


# ------------------------------------------------------------------------------- other parameters (defaults: nbval)


TWO = {"ranks": 2, "microbatches": 5, "model": "tiny", "steps": 1}
OTHERS = {  # for every lab parameters that are small, odd, or at an end of what it takes
    **dict.fromkeys(["02", "03", "04", "05", "06", "07", "08", "09", "14", "15", "18", "22"], TWO),
    "00": {"ranks": 5, "microbatches": 3},
    "01": {"ranks": 4, "microbatches": 2, "chunks": 2, "model": "tiny", "steps": 1},
    "10": {"ranks": 2, "microbatches": 5},
    "11": {"ranks": 2, "microbatches": 5, "steps": 1},
    "12": {"ranks": 2, "tokens": 2, "model": "tiny"},
    "13": {"ranks": 2, "most": 1},
    "16": {"ranks": 2, "microbatches": 5, "steps": 1, "vocabulary": 300, "layers": 6},
    "17": {"ranks": 2, "rows": 12, "steps": 1, "layers": 4},
    "19": {"ranks": 2, "microbatches": 5, "steps": 1, "width": 32, "layers": 4},
    "20": {"shards": 4, "microbatches": 2, "blocks": 2, "steps": 1},
    "21": {"microbatches": 3, "steps": 1, "layers": 4},
}


def test_a_lab_holds_with_other_parameters_too(lab, tmp_path):
    result = run_lab(lab, tmp_path / lab.name, OTHERS[lab.stem[:2]])
    assert result.ok, result.error
    assert '"widgets"' not in (tmp_path / lab.name).read_text(encoding="utf-8")


def test_a_check_that_fails_is_reported(tmp_path):
    """Or a green run would mean nothing."""
    notebook = json.loads(find_labs("01")[0].read_text(encoding="utf-8"))
    notebook["cells"] = [cell for cell in notebook["cells"] if cell["id"] in ("parameters", "naive-check")]
    notebook["cells"][1]["source"] = 'assert ranks == 5, "four, in fact"'
    broken = tmp_path / "broken.ipynb"
    broken.write_text(json.dumps(notebook), encoding="utf-8")
    result = run_lab(broken, tmp_path / "executed.ipynb", {})
    assert not result.ok and "four, in fact" in result.error


# ------------------------------------------------------------------------------------------- the exercise of lab 01


def checked(rows):
    """What the exercise says to these rows."""
    (check,) = (source(cell) for cell in code_cells(find_labs("01")[0]) if cell["id"] == "my-check")
    known = {"pl": pl, "timeline_text": timeline_text, "unit": pl.Costs.uniform(F=1, I=1, W=1), "my_rows": rows}
    with contextlib.redirect_stdout(io.StringIO()) as said:
        exec(check, known)
    return said.getvalue()


def test_exercise_01_begins_unsolved():
    (cell,) = (cell for cell in code_cells(find_labs("01")[0]) if cell["id"] == "my-rows")
    rows = ast.literal_eval(ast.parse(source(cell)).body[0].value)
    assert pl.Schedule.from_text(rows).rows == pl.build("gpipe", 3, 4).rows
    assert checked(rows).count("not yet") == 2


def test_exercise_01_can_be_solved():
    assert checked(pl.build("1f1b", 3, 4).to_text()).count("reached") == 1
    assert checked(pl.build("zb-h1", 3, 4).to_text()).count("reached") == 2


def test_exercise_01_explains_rows_that_cannot_run():
    assert "0B0 is out of order" in checked("0B0 0F0\n1F0 1B0")
    assert "deadlock" in checked("0F0 0B0 0F1 0B1\n1F1 1F0 1B0 1B1")
    assert checked("0F0 nonsense")


# ---------------------------------------------------------------------------------- the exercises of the other labs


def said(number, cells, **known):
    """What these cells of a lab print, run one after another; `known` is what they find there."""
    sources = {cell["id"]: source(cell) for cell in code_cells(find_labs(number)[0])}
    scope = {"pl": pl, "ranks": 4}
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        for cell in cells:
            exec(sources[cell], scope)
            scope.update(known)
    return printed.getvalue()


@pytest.mark.parametrize(("name", "reached"), [("1f1b", False), ("zb-h1", True), ("zb-h2", False)])
def test_exercise_00_begins_unsolved_and_can_be_solved(name, reached):
    rows = pl.build(name, 3, 4).to_text()
    assert said("00", ["imports", "my-rows", "my-check"], my_rows=rows).endswith("\ntarget: reached\n") == reached
    assert "target: not yet" in said("00", ["imports", "my-rows", "my-check"])


@pytest.mark.parametrize(
    ("name", "microbatches", "reached"), [("gpipe", 8, 0), ("1f1b", 16, 1), ("v-half", 16, 2), ("zb-h1", 32, 2)]
)
def test_exercise_19_begins_unsolved_and_can_be_solved(name, microbatches, reached):
    printed = said("18", ["imports", "my-choice", "my-check"], my_schedule=name, my_microbatches=microbatches)
    assert printed.count(": reached") == reached and "2:" in printed


EXERCISE_05 = ["imports", "ragged-word", "my-rounds", "my-check"]


@pytest.mark.parametrize(("rounds", "reached"), [([4, 4, 4, 4], 0), ([6, 6, 4], 1), ([8, 8], 1), ([9, 8], 0)])
def test_exercise_02_begins_unsolved_and_can_be_solved(rounds, reached):
    assert said("05", EXERCISE_05, my_rounds=rounds).count("reached") == reached


@pytest.mark.parametrize(
    ("schedule", "reached"),
    [
        (pl.build("zb-h1", 3, 5), 0),
        (pl.build("zb-auto", 3, 5, memory_limit=4), 1),
        (pl.build("zb-h2", 3, 5), 1),
        (pl.build("zb-h2", 3, 4), 0),
    ],
    ids=["zb-h1", "zb-auto", "zb-h2", "too few micro-batches"],
)
def test_exercise_03_begins_unsolved_and_can_be_solved(schedule, reached):
    cells = ["imports", "my-rows", "my-check"]
    assert said("06", cells, my_rows=schedule.to_text()).count("reached") == reached


@pytest.mark.parametrize(("limits", "reached"), [([4] * 4, 0), ([6, 4, 3, 3], 1), ([7, 5, 4, 4], 1), ([7, 7, 7, 7], 0)])
def test_exercise_04_begins_unsolved_and_can_be_solved(limits, reached):
    assert said("07", ["imports", "my-limits", "my-check"], my_limits=limits).count("reached") == reached


def sparing(ready, moment):
    """ZB-H1's habit as a rule: an F only while fewer than P - r micro-batches are between F and I."""
    wanted = {action.kind: action for action in ready}
    if "I" in wanted and "F" in wanted and wanted["F"].microbatch - wanted["I"].microbatch < 4 - moment.rank:
        return wanted["F"]
    return wanted.get("I") or wanted.get("F") or wanted.get("W")


def by_rule(order, in_flight):
    return pl.Schedule.from_rule("mine", pl.Placement.loop(4), 8, order, in_flight)


@pytest.mark.parametrize(
    ("schedule", "reached"),
    [
        (by_rule("BF", 4), []),
        (by_rule("IFW", 4), [1]),
        (by_rule(sparing, 4), [1, 2]),
        (by_rule("IFW", 7), [3]),
        (pl.build("zb-v", 4, 8), []),
        (pl.Schedule.from_text("0B0 0F0"), []),
    ],
    ids=["1f1b", "IFW in 4", "sparing", "IFW in 7", "another shape", "not legal"],
)
def test_exercise_06_begins_unsolved_and_can_be_solved(schedule, reached):
    lines = said("09", ["imports", "my-schedule", "my-check"], my_schedule=schedule).splitlines()
    assert [number for number in (1, 2, 3) if lines[number - 1].endswith("reached")] == reached
    assert said("09", ["imports", "my-schedule", "my-check"]).count(": reached") == 0


@pytest.mark.parametrize(
    ("rows", "reached"),
    [
        ("0F0 0F1 0B0 0B1\n1F0 1B0 1F1 1B1\n2F0 2F1 2B0 2B1", []),
        ("0F0 0F1 0B0 0B1\n1F0 1B0 1F1 1B1\n2F0 2B0 2F1 2B1", [1]),
        ("0F0 0F1 0B0 0B1\n1F0 1F1 1B0 1B1\n2F0 2F1 2B0 2B1", [1, 2]),
        (pl.build("1f1b", 3, 2).to_text(), []),
        ("0F0 3F0 0F1 3F1 3B0 0B0 3B1 0B1\n1F1 1F0 4F0 4F1 4B0 1B0 4B1 1B1\n2F1 2F0 5F0 5B0 5F1 5B1 2B0 2B1", [3]),
        ("0F0 oops", []),
        ("0F0", []),
    ],
    ids=["given", "moved", "gpipe", "two rows changed", "circle of three", "no rows", "not complete"],
)
def test_exercise_07_begins_unsolved_and_can_be_solved(rows, reached):
    lines = said("10", ["imports", "my-rows", "my-check"], my_rows=rows).splitlines()
    assert [number for number in (1, 2, 3) if f"target {number}: reached" in lines] == reached


WARMUPS = [([3, 2, 1, 0], 0), ([4, 3, 2, 0], 1), ([5, 4, 2, 0], 1), ([6, 4, 2, 0], 0), ([0, 1], 0)]


@pytest.mark.parametrize(("warmup", "reached"), WARMUPS)
def test_exercise_05_begins_unsolved_and_can_be_solved(warmup, reached):
    assert said("08", ["imports", "my-warmup", "my-check"], my_warmup=warmup).count("reached") == reached


@pytest.mark.parametrize(
    ("rule", "reached"),
    [
        (lambda n, stage, ranks: n, 0),
        (lambda n, stage, ranks: n - (ranks - 1 - stage), 1),
        (lambda n, stage, ranks: max(0, n - (ranks - 1 - stage)), 2),
    ],
)
def test_exercise_08_begins_unsolved_and_can_be_solved(rule, reached):
    lateness = tuple(tuple(min(n, 3 - stage) for n in range(12)) for stage in range(4))
    run = SimpleNamespace(versions=SimpleNamespace(staleness=lateness))
    assert said("11", ["my-rule", "my-check"], my_version=rule, run=run).count("reached") == reached


@pytest.mark.parametrize(("groups", "reached"), [(1, 0), (8, 0), (9, 2), (10, 1)])
def test_exercise_09_begins_unsolved_and_can_be_solved(groups, reached):
    assert said("12", ["my-groups", "my-check"], my_groups=groups).count("reached") == reached


@pytest.mark.parametrize(
    ("first", "reached"),
    [(["receive"] * 3, 0), (["send"] * 3, 0), (["receive", "send", "receive"], 1)],
    ids=["all receive", "all send", "one sends"],
)
def test_exercise_10_begins_unsolved_and_can_be_solved(first, reached):
    cells = ["imports", "my-ring", "my-first", "my-check"]
    printed = said("13", cells, my_first=first, patience=60 if reached else 2)  # a deadlock takes any patience
    assert printed.count("target: reached") == reached and printed.count("target: not yet") == 1 - reached


@pytest.mark.parametrize(("places", "reached"), [([3, 6], 1), ([2, 6], 2), ([1, 4], 0), ([2, 5], 1)])
def test_exercise_11_begins_unsolved_and_can_be_solved(places, reached):
    assert said("14", ["my-places", "my-check"], my_places=places).count("reached") == reached


@pytest.mark.parametrize(
    ("pp", "dp", "targets"),
    [(6, 1, []), (6, 2, [1]), (3, 4, [2]), (4, 3, [1, 2])],
    ids=["given", "deep", "flat", "good"],
)
def test_exercise_12_begins_unsolved_and_can_be_solved(pp, dp, targets):
    lines = said("15", ["my-mesh", "my-check"], my_pp=pp, my_dp=dp).splitlines()
    assert [number for number in (1, 2) if lines[number - 1].endswith(": reached")] == targets


@pytest.mark.parametrize(
    ("layout", "reached"),
    [("Et*2|t*3|tt|tH", []), ("Ett|t*3|t*3|H", [1]), ("Ett|tt|t*4|H", [1, 2]), ("Et*8|H", []), ("oops", [])],
)
def test_exercise_13_begins_unsolved_and_can_be_solved(layout, reached):
    lines = said("16", ["imports", "my-layout", "my-check"], my_layout=layout).splitlines()
    assert [n for n in (1, 2) if any(f"target {n}" in line and line.endswith(": reached") for line in lines)] == reached
    assert said("16", ["imports", "my-layout", "my-check"]).count(": reached") == 0


@pytest.mark.parametrize(
    ("first", "second", "reached"), [(240, 240, []), (24, 24, [1]), (24, 48, [1, 2]), (20, 60, []), (0, 7, [])]
)
def test_exercise_14_begins_unsolved_and_can_be_solved(first, second, reached):
    cells = ["imports", "my-choice", "my-check"]
    lines = said("17", cells, my_first=first, my_second=second).splitlines()
    assert [n for n in (1, 2) if any(f"target {n}" in line and line.endswith(": reached") for line in lines)] == reached
    assert said("17", cells).count(": reached") == 0


@pytest.mark.parametrize(
    ("policies", "hoist", "reached"),
    [
        (["full"] * 4, 0, []),
        (["full", "full", "none", "none"], 0, [1]),
        (["full", "full", "none", "none"], 1, [1, 2]),
        (["none"] * 4, 0, []),
        (["full"], 0, []),
    ],
)
def test_exercise_18_begins_unsolved_and_can_be_solved(policies, hoist, reached):
    cells = ["imports", "my-policies", "my-check"]
    lines = said("19", cells, my_policies=policies, my_hoist=hoist).splitlines()
    assert [n for n in (1, 2) if any(f"target {n}" in line and line.endswith(": reached") for line in lines)] == reached
    assert said("19", cells).count(": reached") == 0


def split_at_departure(wait, flight):
    """The wait before the message departs, and the rest of it."""
    early = max(min(wait.end, flight.start) - wait.start, 0)
    return early, wait.end - wait.start - early


@pytest.mark.parametrize(
    ("rule", "reached"),
    [
        (lambda wait, flight: (wait.end - wait.start, 0), []),
        (lambda wait, flight: (flight.start - wait.start, flight.end - flight.start), [1]),
        (split_at_departure, [1, 2]),
    ],
    ids=["given", "whole flight", "at departure"],
)
def test_exercise_15_begins_unsolved_and_can_be_solved(rule, reached):
    lines = said("02", ["imports", "my-check"], my_split=rule).splitlines()
    assert [n for n in (1, 2) if lines[n - 1].endswith(": reached")] == reached
    assert said("02", ["imports", "my-split", "my-check"]).count(": reached") == 0


@pytest.mark.parametrize(
    ("step", "overhead", "reached"),
    [(8, 8, []), (63, 63, [1]), (63, 70, [1, 2]), (70, 70, [2]), (64, 71, []), (0, 0, [])],
)
def test_exercise_16_begins_unsolved_and_can_be_solved(step, overhead, reached):
    lines = said("03", ["imports", "my-check"], my_step=step, my_overhead=overhead).splitlines()
    assert [n for n in (1, 2) if lines[n - 1].endswith(": reached")] == reached
    assert said("03", ["imports", "my-counts", "my-check"]).count("too few") == 2


@pytest.mark.parametrize(
    ("word", "reached"),
    [
        (lambda rank, P, M: "F" * M + "B" * M, []),
        (lambda rank, P, M: "FB" * M, []),
        (lambda rank, P, M: "F" * (P - 1 - rank) + "FB" * (M - P + 1 + rank) + "B" * (P - 1 - rank), [1]),
        (lambda rank, P, M: (k := min(P - 1 - rank, M)) * "F" + "FB" * (M - k) + "B" * k, [1, 2]),
        (lambda rank, P, M: "B" * M + "F" * M, []),
    ],
    ids=["gpipe", "naive", "only for M >= P - 1", "1f1b", "out of order"],
)
def test_exercise_17_begins_unsolved_and_can_be_solved(word, reached):
    unit = pl.Costs.uniform()
    lines = said("04", ["imports", "my-check"], my_word=word, unit=unit).splitlines()
    assert [n for n in (1, 2) if any(f"target {n}" in line and line.endswith(": reached") for line in lines)] == reached
    assert said("04", ["imports", "dial-word", "my-word", "my-check"], microbatches=8).count(": reached") == 0


@pytest.mark.parametrize(
    ("names", "reached"),
    [(("up", "down"), False), (("gate", "up"), False), ((), False), (("gate", "up", "down"), True)],
    ids=["given", "no second", "nothing", "all three"],
)
def test_exercise_20_begins_unsolved_and_can_be_solved(names, reached):
    kinds = {"gate": ColumnParallelLinear, "up": ColumnParallelLinear, "down": RowParallelLinear}
    cells = ["imports", "my-layer", "my-plan", "my-check"]
    assert said("20", cells, my_plan={name: kinds[name] for name in names}).endswith(": reached\n") == reached


@pytest.mark.parametrize(
    ("mesh", "reached"),
    [
        (pl.Mesh(pp=1, tp=4, dp=2), False),
        (pl.Mesh(pp=2, tp=2, dp=2), False),
        (pl.Mesh(dp=8), False),
        (pl.Mesh(pp=2, dp=4), True),
    ],
    ids=["given", "one axis too many", "replicas alone", "stages inside"],
)
def test_exercise_21_begins_unsolved_and_can_be_solved(mesh, reached):
    given = {"microbatches": 4, "steps": 1, "layers": 6, "mesh": pl.Mesh(pp=2), "slow": pl.Link(2e-4, 2e8)}
    cells = ["imports", "same-run", "my-check"]
    assert (": reached" in said("21", cells, my_mesh=mesh, **given).splitlines()[-1]) == reached


@pytest.mark.parametrize(
    ("name", "devices", "reached"), [("gpipe", 2, 0), ("1f1b", 3, 1), ("zb-h1", 3, 2), ("oops", 1, 0)]
)
def test_exercise_22_begins_unsolved_and_can_be_solved(name, devices, reached):
    cells = ["parameters", "imports", "new-model", "whole-run", "folder", "save-run", "my-choice", "my-check"]
    assert said("22", cells, steps=1, my_schedule=name, my_ranks=devices).count(": reached") == reached
