"""Labs run headless in a kernel of their own: what fails is named, and nothing is written but the copies."""

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

pytest.importorskip("papermill", reason="no papermill here: no lab is run")

import nbformat

from pipelab import labs
from pipelab.cli import main

PARAMETERS = "ranks = 2\nname = 'gpipe'"


def notebook(*cells: str) -> nbformat.NotebookNode:
    """The first cell holds the parameters; a cell that starts with `#` and a blank is text."""
    made = [
        nbformat.v4.new_markdown_cell(cell) if cell.startswith("# ") else nbformat.v4.new_code_cell(cell)
        for cell in (PARAMETERS, *cells)
    ]
    made[0].metadata["tags"] = ["parameters"]
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    return nbformat.v4.new_notebook(cells=made, metadata={"kernelspec": kernel})


@pytest.fixture
def course(tmp_path, monkeypatch):
    """A folder of labs instead of our own, and an empty working directory."""
    folder, here = tmp_path / "labs", tmp_path / "here"
    folder.mkdir()
    here.mkdir()
    monkeypatch.setattr(labs, "FOLDER", folder)
    monkeypatch.chdir(here)

    def add(name: str, *cells: str) -> Path:
        nbformat.write(notebook(*cells), folder / f"{name}.ipynb")
        return folder / f"{name}.ipynb"

    return add


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def outputs(path: Path) -> str:
    cells = nbformat.read(path, as_version=4).cells
    return "".join(str(output.get("text", "")) for cell in cells for output in cell.get("outputs", []))


class Fetches(HTMLParser):
    """The addresses that a page would fetch when it is opened."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        given = dict(attributes)
        for name in ("src", "data", "srcset", "poster", "href"):
            address = given.get(name) or ""
            if (name != "href" or tag == "link") and address and not address.startswith("data:"):
                self.found.append(address)


# ---- finding them


def test_labs_are_found_in_order_and_by_how_their_name_starts(course):
    for name in ("02_second", "01_first", "notes"):
        course(name)
    assert [lab.stem for lab in labs.find_labs()] == ["01_first", "02_second"]
    assert [lab.stem for lab in labs.find_labs("02")] == ["02_second"]
    assert [lab.stem for lab in labs.find_labs("02", "01")] == ["01_first", "02_second"]
    with pytest.raises(ValueError, match="no lab starts with '03'; there are 01_first, 02_second"):
        labs.find_labs("03")


def test_a_package_without_its_labs_says_so(course):
    with pytest.raises(ValueError, match="run from a clone"):
        labs.find_labs()


def test_a_parameter_that_no_lab_has_is_named_and_one_that_some_have_is_not(course):
    chosen = [course("01_first")]
    assert set(labs.parameters_of(chosen[0])) == {"ranks", "name"}
    labs.refuse_unknown_parameters(chosen, {"ranks": 4})
    with pytest.raises(ValueError, match="no lab has the parameter 'rank'; there are name, ranks"):
        labs.refuse_unknown_parameters(chosen, {"ranks": 4, "rank": 4})


# ---- running them


@pytest.fixture
def pipelab(capfd):
    def run(*arguments: object) -> tuple[int, str, str]:
        capfd.readouterr()
        status = main(["labs", *map(str, arguments)])
        return status, *capfd.readouterr()

    return run


def test_labs_run_one_after_another_with_parameters_and_write_nothing_but_their_copies(course, tmp_path, pipelab):
    course("01_good", "# A figure", "import os; print(ranks, name, os.getcwd()); open('made', 'w').close()")
    course("02_bad", "1 + 1", "raise ValueError(f'no such {name}')", "print('never')")
    course("03_good", "assert ranks == 5")
    before = files(tmp_path)
    status, out, _ = pipelab("--out", "../out", "-p", "ranks=5", "-p", "name=1f1b", "--json", "--html")
    answer = json.loads(out)
    assert (status, out.count("\n")) == (1, 1)
    assert list(answer) == ["ok", "labs"] and answer["ok"] is False
    assert [list(lab) for lab in answer["labs"]] == [["name", "ok", "seconds", "error"]] * 3
    assert [(lab["name"], lab["ok"]) for lab in answer["labs"]] == [
        ("01_good", True),
        ("02_bad", False),
        ("03_good", True),
    ]
    assert [lab["error"] is None for lab in answer["labs"]] == [True, False, True]
    assert "ValueError: no such 1f1b" in answer["labs"][1]["error"]
    assert re.match(r"cell 4: ", answer["labs"][1]["error"])  # parameters, those given, 1 + 1, and this one
    assert all(type(lab["seconds"]) is float and lab["seconds"] > 0 for lab in answer["labs"])
    copies = tmp_path / "out"
    assert outputs(copies / "01_good.ipynb") == f"5 1f1b {copies}\n"
    assert "never" not in outputs(copies / "02_bad.ipynb")
    made = {"out/made", *(f"out/{n}.{kind}" for n in ("01_good", "02_bad", "03_good") for kind in ("ipynb", "html"))}
    after = files(tmp_path)
    assert set(after) - set(before) == made
    assert all(after[name] == content for name, content in before.items())


def test_a_page_works_offline_and_shows_its_figures(course, tmp_path):
    figures = ["go.Figure(go.Bar(y=[1, 2]))", "go.Figure(go.Bar(y=[3, 4]))"]
    lab = course("01_figure", "# A *figure*", "import plotly.graph_objects as go", *figures)
    [result] = labs.run_labs([lab], tmp_path / "out", {}, html=True)
    assert result.ok, result.error
    page = (tmp_path / "out" / "01_figure.html").read_text(encoding="utf-8")
    assert Fetches(page).found == []
    assert "Content-Security-Policy" in page and "default-src 'none'" in page
    assert page.count('class="plotly-graph-div"') == 2 and 3_000_000 < len(page) < 7_000_000  # and one script for both
    assert (tmp_path / "out" / "01_figure.ipynb").stat().st_size < 50_000
    assert "<em>figure</em>" in page


def test_a_second_run_replaces_the_copies_and_reports_every_lab(course, tmp_path):
    lab = course("01_first", "print(ranks)")
    seen = []
    for ranks in (3, 4):
        labs.run_labs([lab], tmp_path / "out", {"ranks": ranks}, on_lab=seen.append)
    assert outputs(tmp_path / "out" / "01_first.ipynb") == "4\n"
    assert [result.name for result in seen] == ["01_first"] * 2
    assert seen[0].ok and seen[0].error is None


def test_a_kernel_that_dies_fails_its_lab_only(course, tmp_path):
    chosen = [course("01_dies", "import os; os._exit(3)"), course("02_good", "print(ranks)")]
    dead, good = labs.run_labs(chosen, tmp_path / "out", {})
    assert "died" in dead.error.lower()
    assert good.ok


def test_without_json_a_person_reads_a_line_a_lab(course, pipelab):
    course("01_good")
    status, out, err = pipelab()
    assert status == 0 and re.fullmatch(r"(\r.*)*\n?", err)  # where the kernel starts slowly, the bar
    assert re.fullmatch(r"ok +\d+\.\d s  01_good\n", out)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["-p", "rank=3"], ["'rank'", "name, ranks"]),
        (["-p", "ranks"], ["-p ranks", "name=value"]),
        (["-p", "=3"], ["-p =3", "name=value"]),
        (["-p", "1x=3"], ["-p 1x=3", "name=value"]),
        (["--only", "07"], ["'07'", "01_first"]),
        (["--html"], ["--html", "--out"]),
        (["--out", "taken"], ["--out taken", "folder"]),
    ],
)
def test_wrong_input_is_refused_before_any_lab_runs(arguments, words, course, pipelab):
    course("01_first", "raise AssertionError('ran')")
    Path("taken").touch()
    status, out, err = pipelab(*arguments, "--json")
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert all(word in err for word in words)
