"""Run the notebooks in `labs/` headless, each in a kernel of its own, and say what happened.

The executed copies go to a folder of the caller's; the notebooks themselves, the working directory and the checkout are
left as they were.
"""

import os
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

FOLDER = Path(__file__).resolve().parent.parent / "labs"
CELL_TIMEOUT = 600
"""Seconds after which a cell is taken to hang: far more than any takes on a busy machine."""
HEADLESS = {"PLOTLY_RENDERER": "plotly_mimetype", "PIPELAB_HEADLESS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
"""What kernels inherit: figures as data without a script, no widgets, no compiled files beside the sources."""


@dataclass(frozen=True)
class LabResult:
    """One executed lab: seconds on the wall clock, and the error of the cell that failed, if one did."""

    name: str
    seconds: float
    error: str | None

    @property
    def ok(self) -> bool:
        """True when every cell ran."""
        return self.error is None


def find_labs(*only: str) -> list[Path]:
    """The notebooks in order, or those whose name starts with one of `only`.

    Raises ValueError where there is none, or none that starts so, naming those that there are.
    """
    labs = sorted(FOLDER.glob("[0-9]*.ipynb"))
    if not labs:
        raise ValueError("the labs are not beside the package; run from a clone of the project")
    for start in only:
        if not any(lab.name.startswith(start) for lab in labs):
            raise ValueError(f"no lab starts with {start!r}; there are {', '.join(lab.stem for lab in labs)}")
    return [lab for lab in labs if not only or lab.name.startswith(only)]


def refuse_unknown_parameters(labs: list[Path], parameters: Mapping[str, Any]) -> None:
    """Raise ValueError for a parameter that none of the labs has."""
    known = {name for lab in labs for name in parameters_of(lab)}
    for name in parameters:
        if name not in known:
            raise ValueError(f"no lab has the parameter {name!r}; there are {', '.join(sorted(known)) or 'none'}")


def parameters_of(lab: Path) -> dict[str, Any]:
    """The parameters of a notebook with what papermill knows of each."""
    import papermill

    with _quiet():
        return dict(papermill.inspect_notebook(str(lab)))


def run_lab(lab: Path, copy: Path, parameters: Mapping[str, Any], *, html: bool = False) -> LabResult:
    """Execute one notebook into `copy` (and an HTML page beside it); parameters that it does not have are left out."""
    import papermill

    own = {name: value for name, value in parameters.items() if name in parameters_of(lab)}
    begin = time.perf_counter()
    error = None
    with _quiet(), patch.dict(os.environ, HEADLESS):
        try:
            papermill.execute_notebook(
                str(lab), str(copy), own, kernel_name="python3", cwd=str(copy.parent), progress_bar=False,
                store_widget_state=False, execution_timeout=CELL_TIMEOUT,
                extra_arguments=["--log-level=CRITICAL"],  # else kernels report encryption and shutdown
            )  # fmt: skip
        except papermill.PapermillExecutionError as failure:
            error = f"cell {failure.exec_count}: {failure.ename}: {failure.evalue}"
        except Exception as failure:  # a dead kernel, a cell that took too long: the other labs still run
            error = f"{type(failure).__name__}: {failure}"
    seconds = time.perf_counter() - begin
    if html and copy.exists():
        copy.with_suffix(".html").write_text(_to_html(copy), encoding="utf-8")
    return LabResult(lab.stem, seconds, error)


def run_labs(
    labs: list[Path], out: Path, parameters: Mapping[str, Any], *, html: bool = False,
    on_lab: Callable[[LabResult], None] = lambda result: None,
) -> list[LabResult]:  # fmt: skip
    """Execute the notebooks one after another into the folder `out`; a failure does not stop the rest."""
    refuse_unknown_parameters(labs, parameters)
    out.mkdir(parents=True, exist_ok=True)
    results = []
    for lab in labs:
        results.append(run_lab(lab, out / lab.name, parameters, html=html))
        on_lab(results[-1])
    return results


def _to_html(notebook: Path) -> str:
    """A page that works offline, with plotly's script once if there is a figure."""
    import nbformat
    from nbconvert import HTMLExporter

    from pipelab.show.report import FETCHED, FITS_THE_PAPER, NOTHING_IS_FETCHED, WITHOUT_SCRIPTS

    content = nbformat.read(notebook, as_version=4)
    outputs = [output for cell in content.cells for output in cell.get("outputs", [])]
    head = f'<head><meta http-equiv="Content-Security-Policy" content="{NOTHING_IS_FETCHED}">'
    head += "<style>@media print { body { zoom: 0.75 } }</style>"  # so that lines of code fit the paper
    if sum(_draw_with_a_script(output) for output in outputs):
        from plotly.offline import get_plotlyjs

        head += f"<script>{get_plotlyjs()}</script>{FITS_THE_PAPER}{WITHOUT_SCRIPTS}"
    with _quiet():
        page, _ = HTMLExporter(embed_images=True).from_notebook_node(content)
    return FETCHED.sub("", page).replace("<head>", head, 1)


def _draw_with_a_script(output: dict[str, Any]) -> bool:
    """Give a figure, which a notebook keeps as data, the HTML that draws it; gives whether it is a figure."""
    figure = output.get("data", {}).get("application/vnd.plotly.v1+json")
    if figure is not None:
        from plotly.io import to_html

        drawn = to_html(
            {name: figure[name] for name in ("data", "layout")}, include_plotlyjs=False, include_mathjax=False,
            full_html=False, validate=False, config={"displaylogo": False, "responsive": True},
        )  # fmt: skip
        still = output["data"].get("text/html", "")
        output["data"]["text/html"] = f"{drawn}\n<noscript>{still}</noscript>"
    return figure is not None


@contextmanager
def _quiet() -> Iterator[None]:
    """Jupyter's own warnings (missing cell ids, event loops) say nothing of the labs."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
