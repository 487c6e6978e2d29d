"""Tell what this machine can show, what is missing, and what to do about it."""

import argparse
from typing import Any

from pipelab.cli.parser import add_json, print_json

EXAMPLE = "pipelab doctor"


def add_options(command: argparse.ArgumentParser) -> None:
    """The options of `pipelab doctor`."""
    add_json(command)


def run(options: argparse.Namespace) -> int:
    """Print the facts and what follows; 1 when ranks cannot be launched."""
    from pipelab.host import can_run, look, missing

    facts = look()
    facts |= {"can_run": can_run(facts), "missing": missing(facts)}
    if options.json:
        print_json(facts)
    else:
        _print(facts)
    return 0 if facts["launch"]["ok"] else 1


def _print(facts: dict[str, Any]) -> None:
    torch = facts["torch"]
    rows = {
        "system": f"{facts['platform']}, Python {facts['python']}",
        "processors": f"{facts['cores']} cores, {_gigabytes(facts['memory_bytes'])} of memory",
        "limits": f"{_limit(facts['files'])} open files, {_limit(facts['processes'])} processes, "
        f"/dev/shm {_gigabytes(facts['shared_memory_bytes'])}",
        "torch": f"{torch.get('version')}, CUDA {torch.get('cuda') or 'no'}, NCCL {torch.get('nccl') or 'no'}, "
        f"gloo {'yes' if torch.get('gloo') else 'no'}",
        "GPUs": _gpus(facts),
        "launch": f"2 ranks met in {facts['launch']['seconds']:.1f} s (wall clock)"
        if facts["launch"]["ok"]
        else "fails",
        "packages": ", ".join(f"{name} {version}" for name, version in facts["packages"].items() if version),
    }
    for name, value in rows.items():
        print(f"{name:<12}{value}")
    print("\nThis machine can run")
    for sentence in facts["can_run"]:
        print(f"  - {sentence}")
    if facts["missing"]:
        print("\nMissing")
    for one in facts["missing"]:
        print(f"  - {one['what']} (for {one['for']}): {one['remedy']}")


def _gpus(facts: dict[str, Any]) -> str:
    if not facts["gpus"]:
        return "none that torch can use" + (f" (driver {facts['nvidia_driver']})" if facts["nvidia_driver"] else "")
    names = [f"{gpu['name']} {_gigabytes(gpu['memory_bytes'])}" for gpu in facts["gpus"]]
    links = sorted({link for row in facts["links"] for link in row if link != "X"})
    return f"{', '.join(names)}; driver {facts['nvidia_driver'] or 'unknown'}; links {', '.join(links) or 'none'}"


def _gigabytes(count: int | None) -> str:
    return "?" if count is None else f"{count / 2**30:.1f} GiB"


def _limit(value: int | None) -> str:
    return "any number of" if value is None else f"{value:,}"
