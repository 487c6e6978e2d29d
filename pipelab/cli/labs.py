"""Run the labs headless (papermill), with a summary and, if wanted, HTML reports."""

import argparse
import ast
import sys
import tempfile
from pathlib import Path
from typing import Any

from pipelab.cli.parser import CommandError, add_json, print_json

EXAMPLE = "pipelab labs --only 01 --out executed --html"


def add_options(command: argparse.ArgumentParser) -> None:
    """The options of `pipelab labs`."""
    command.add_argument("--only", action="append", default=[], metavar="NAME",
                         help="only the labs whose name starts so, as in 01; may be given several times")  # fmt: skip
    command.add_argument("--out", type=Path, metavar="DIR", help="keep the executed notebooks in this folder")
    command.add_argument("-p", dest="parameters", action="append", default=[], metavar="NAME=VALUE",
                         help="set a parameter of the labs; may be given several times")  # fmt: skip
    command.add_argument("--html", action="store_true", help="write an HTML page beside each executed notebook")
    add_json(command)


def run(options: argparse.Namespace) -> int:
    """Execute the labs, print a line for each, and give 1 when one failed."""
    from tqdm import tqdm

    from pipelab.labs import find_labs, run_labs

    if options.html and options.out is None:
        raise CommandError("--html needs a folder for the pages; add --out DIR")
    if options.out is not None and options.out.exists() and not options.out.is_dir():
        raise CommandError(f"--out {options.out} is a file; give the name of a folder")
    parameters = dict(_assignment(text) for text in options.parameters)
    chosen = find_labs(*options.only)
    with (
        tempfile.TemporaryDirectory() as spare,
        tqdm(total=len(chosen), unit="lab", file=sys.stderr, delay=2) as bar,
    ):
        out = options.out.absolute() if options.out else Path(spare)
        results = run_labs(chosen, out, parameters, html=options.html, on_lab=lambda result: bar.update())
    ok = all(result.ok for result in results)
    if options.json:
        labs = [{"name": r.name, "ok": r.ok, "seconds": round(r.seconds, 3), "error": r.error} for r in results]
        print_json({"ok": ok, "labs": labs})
    else:
        for result in results:
            print(f"{'ok    ' if result.ok else 'FAILED'}  {result.seconds:6.1f} s  {result.name}")
            if result.error:
                print(f"        {result.error}")
        if options.out:
            print(f"executed notebooks are in {options.out}")
    return 0 if ok else 1


def _assignment(text: str) -> tuple[str, Any]:
    """`name=value`; the value is read as Python where it is a literal, and as text otherwise."""
    name, equals, value = text.partition("=")
    if not equals or not name.isidentifier():
        raise CommandError(f"-p {text}: write name=value, as in -p microbatches=16")
    try:
        return name, ast.literal_eval(value)
    except (ValueError, SyntaxError):
        return name, value
