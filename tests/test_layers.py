"""Who may import whom (DESIGN, section 4): words and time need no torch, the machines need little else."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "pipelab"
FILES = {str(path.relative_to(PACKAGE).with_suffix("")): path for path in sorted(PACKAGE.rglob("*.py"))}

PLAIN = {
    "action",
    "counts",
    "placement",
    "schedule",
    "mesh",
    "schedules",
    "dependencies",
    "validate",
    "formulas",
    "costs",
}
PLAIN |= {"collector", "grid", "rule", "score", "search", "planner", "lower", "engine", "simulate", "outline", "trace"}
PLAIN |= {"explain", "units", "message_order", "recompute", "flight_recorder", "wait_for", "failure", "feed", "live"}
FACES = {"show", "cli", "labs", "labkit", "bench", "doctor", "__main__"}
OPTIONAL = {"cloudpickle", "safetensors", "tqdm"}  # only where they are used
DRAWING = {"plotly", "ipywidgets", "anywidget", "traitlets", "papermill", "nbformat", "nbconvert", "IPython"}
DRAWING |= {"jupyter_server"}


def group(module):
    """plain, faces, or torch for all others: the first word after `pipelab` decides."""
    first = module.split("/")[0].split(".")[0]
    return "plain" if first in PLAIN else "faces" if first in FACES else "torch"


def imports(path, only_at_the_top=False):
    """The dotted names that a file imports; `from pipelab import x` counts as pipelab.x."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    inner = {id(n) for f in ast.walk(tree) if isinstance(f, ast.FunctionDef | ast.Lambda) for n in ast.walk(f)}
    for node in ast.walk(tree):
        if only_at_the_top and (id(node) in inner or is_for_types(node, tree)):
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: write imports in full, from pipelab..."
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def is_for_types(node, tree):
    """Inside `if TYPE_CHECKING:`, which never runs."""
    guards = [n for n in ast.walk(tree) if isinstance(n, ast.If) and ast.unparse(n.test).endswith("TYPE_CHECKING")]
    return any(node is inside for guard in guards for inside in ast.walk(guard))


def outside(names):
    return {name.split(".")[0] for name in names} - set(sys.stdlib_module_names) - {"pipelab"}


def within(names):
    return {name.split(".")[1] for name in names if name.startswith("pipelab.")}


@pytest.mark.parametrize("name", FILES)
def test_imports_stay_in_their_layer(name):
    path, names, top = FILES[name], set(imports(FILES[name])), set(imports(FILES[name], only_at_the_top=True))
    if name == "__init__":  # its other names are looked up when they are used
        assert not outside(top) and {group(module) for module in within(top)} <= {"plain"}
    elif group(name) == "plain":
        assert not outside(names), f"{path} belongs to the layers without torch: the standard library only"
        assert {group(module) for module in within(names)} <= {"plain"}, f"{path}: or name the new module in PLAIN"
    elif group(name) == "torch":
        assert outside(top) <= {"torch", "numpy"}, f"{path}: a GPU host may have nothing else"
        assert outside(names) <= {"torch", "numpy"} | OPTIONAL
        assert "faces" not in {group(module) for module in within(names)}
    else:
        assert outside(names) <= {"torch", "numpy"} | OPTIONAL | DRAWING
    if name != "__main__":
        assert not (within(names) & {"cli", "labkit"}) - {name.split("/")[0]}, "nobody imports a face of the package"


def test_formulas_know_neither_the_generators_nor_the_simulator():
    for name, path in FILES.items():
        assert not name.startswith("formulas") or within(imports(path)) <= {"formulas", "counts"}


def test_importing_pipelab_loads_no_heavy_package():
    heavy = ["torch", "numpy", "plotly", "ipywidgets", "anywidget", "papermill"]
    script = f"import sys, pipelab; print([name for name in {heavy} if name in sys.modules])"
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=PACKAGE.parent)
    assert (ended.stdout.strip(), ended.stderr) == ("[]", "")
