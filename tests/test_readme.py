"""What the front page says is true: the tree, the links, the commands and the example of a new schedule."""

import re
from pathlib import Path

import pytest

import pipelab as pl

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = ["README.md", "CONTRIBUTING.md", "CHANGELOG.md", "labs/cluster/README.md"]


def tree():
    """The paths that the README's tree names, by indentation; each with its comment."""
    block = re.search(r"## The tree.*?```text\n(.*?)```", README, re.S).group(1)
    folders, paths = {}, {}
    for line in block.splitlines():
        indent, name, comment = re.match(r"( *)(\S*) *(.*)", line).groups()
        if not name or name == "--":
            continue
        path = folders.get(len(indent) - 2, "") + name
        folders[len(indent)] = path if name.endswith("/") else ""
        paths[path] = comment
    return paths


def test_the_tree_names_what_exists_and_says_what_it_is():
    for path, comment in tree().items():
        assert (ROOT / path).exists() and (ROOT / path).is_dir() == path.endswith("/"), path
        assert comment or path.endswith("/"), f"{path} has no comment"


def test_every_file_of_the_package_and_every_lab_is_in_the_tree():
    files = [*ROOT.glob("pipelab/**/*.py"), *ROOT.glob("labs/*.ipynb"), *ROOT.glob("tools/*.py")]
    missing = {file.relative_to(ROOT).as_posix() for file in files} - set(tree())
    assert not missing, f"tell in the README what they are: {sorted(missing)}"


@pytest.mark.parametrize("page", PAGES)
def test_relative_links_lead_somewhere(page):
    text = (ROOT / page).read_text(encoding="utf-8")
    links = [*re.findall(r"\]\(([^)#\s]+)[^)]*\)", text), *re.findall(r'(?:src|srcset|href)="([^"]+)"', text)]
    for link in links:
        assert link.startswith("https://") or ((ROOT / page).parent / link).exists(), f"{page}: {link}"


@pytest.mark.parametrize("page", PAGES)
def test_make_targets_that_are_named_exist(page):
    named = re.findall(r"`make (\w+)", (ROOT / page).read_text(encoding="utf-8"))
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = re.search(r"^\.PHONY: (.*)$", makefile, re.M).group(1).split()
    assert set(named) <= set(targets)


def test_the_picture_is_small():
    assert (ROOT / "labs/images/five_pipelines.png").stat().st_size < 200_000


def test_the_example_of_a_new_schedule_runs():
    contributing = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    example = re.search(r"```python\n(.*?)```", contributing, re.S).group(1)
    assert len(example.splitlines()) <= 15
    scope = {}
    exec(example, scope)
    schedule = pl.validate(scope["eager_1f1b"](4, 32))
    slow = pl.Costs.uniform(F=1, I=1, W=1, hop=0.25)
    assert pl.simulate(schedule, slow).makespan == pl.formula("gpipe", "makespan", P=4, M=32, hop=0.25) == 106.5
    assert pl.formula("1f1b", "makespan", P=4, M=32, hop=0.25) == 118
    assert pl.simulate(schedule, slow).peak_in_flight == (7, 5, 3, 1)
