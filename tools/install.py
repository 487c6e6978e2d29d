"""Make .venv ready: once, quietly, with a torch that suits this machine. Standard library only.

Each step is a line on stderr; what it printed is in .venv/pipelab-setup.log.
Read `make_ready` first, then `set_up` and `install_torch`.
"""

import errno
import hashlib
import importlib.metadata
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import time
import tomllib
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
PYTHON = VENV / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
LOG = VENV / "pipelab-setup.log"
STAMP = VENV / ".pipelab-ready"
PIP_INSTALL = [str(PYTHON), "-m", "pip", "install", "--no-input", "--retries", "2"]

FIRST_TORCH = "torch==2.13.0"  # what everything here was measured with
OLDEST_TORCH = (2, 11)  # the bound in pyproject.toml; a test holds them equal
KEPT_FROM_SYSTEM = ("torch", "numpy")  # a vendor's torch belongs with the numpy that it was built for

DISK_FULL = "the disk is full; free some space, or set TMPDIR to a larger disk, and run this again"
UNREACHABLE = "the package index cannot be reached; check the network, or pip's settings, and run this again"
REMEDIES = {  # for what pip, uv and venv print; the first that fits is told
    r"No space left on device|Disk quota exceeded|os error (28|122)\b": DISK_FULL,
    r"ensurepip is not available|No module named '?(ensurepip|venv)": (
        "this Python lacks venv; install it (Debian, Ubuntu: apt install python3-venv) and run this again"
    ),
    r"connection broken|ConnectionError|ConnectTimeout|name resolution|Network is unreachable"
    r"|Connection refused|timed out|error sending request|dns error|Failed to fetch": UNREACHABLE,
    r"Could not find a version|No matching distribution|No solution found": (
        f"no build for Python {platform.python_version()} on {platform.system()} {platform.machine()}; "
        "check pip's settings, or try another Python: make clean test PYTHON=python3.12"
    ),
}


class SetupError(Exception):
    """A sentence: what went wrong, and the remedy."""


# ---------------------------------------------------------------------------------------- decisions, all pure


def fits(version: str | None) -> bool:
    """Does this torch satisfy our bound? A pre-release of the bound itself (2.11.0a0) comes before it."""
    match = re.match(r"(\d+)\.(\d+)(?:\.0)*(a|b|rc|\.?dev)?", version or "")
    if not match:
        return False
    release = (int(match[1]), int(match[2]))
    return release > OLDEST_TORCH or (release == OLDEST_TORCH and not match[3])


def brings_cuda(report: dict[str, Any]) -> bool:
    """Are there CUDA packages among those that pip says it would install?"""
    names = [item["metadata"]["name"].lower() for item in report["install"]]
    return any(re.match(r"(nvidia|cuda|triton)\b", name) for name in names)


def torch_commands(torch: str, gpu: bool, cuda: bool, uv: str | None) -> list[list[str]]:
    """Commands that install torch, best first. `cuda`: pip would bring CUDA, unwanted without a GPU."""
    if cuda and not gpu:
        return [uv_install(uv, "--torch-backend=cpu", torch)] if uv else []
    by_pip = [*PIP_INSTALL, torch]  # reads pip's own settings, which may name a folder with a CPU build
    return [uv_install(uv, "--torch-backend=auto", torch), by_pip] if gpu and uv else [by_pip]


def kept_apart(project: dict[str, Any]) -> list[str]:
    """What goes into .venv even where it shares the system's packages: all but torch and numpy."""
    lines = [*project["dependencies"], *project["optional-dependencies"]["test"]]
    return [line for line in lines if re.split(r"[^\w.-]", line)[0] not in KEPT_FROM_SYSTEM]


def explain(output: str) -> str:
    found = (remedy for pattern, remedy in REMEDIES.items() if re.search(pattern, output, re.IGNORECASE))
    return next(found, "it failed")


# ------------------------------------------------------------------------------------------- running commands


def environment() -> dict[str, str]:
    """As if .venv were activated; its kernel goes before any that the user registered."""
    path = os.pathsep.join([str(PYTHON.parent), os.environ.get("PATH", os.defpath)])
    ours = {"PATH": path, "VIRTUAL_ENV": str(VENV), "JUPYTER_PREFER_ENV_PATH": "1"}
    return {**os.environ, **ours, "PIP_USER": "0", "PIP_DISABLE_PIP_VERSION_CHECK": "1"}


def answer(*command: str) -> str:
    """What a command prints; nothing if it is missing or fails."""
    try:
        return subprocess.run(
            command, capture_output=True, text=True, check=True, env=environment()
        ).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""


def attempt(what: str, command: list[str]) -> tuple[bool, str]:
    """Run a step: a line with its seconds on stderr, all it prints in the log. (Did it work, its output)"""
    start, live = time.monotonic(), sys.stderr.isatty()
    say(f"{what} ... ")
    with open(LOG, "ab") as log:
        log.write(f"\n$ {' '.join(command)}\n".encode())
        log.flush()
        begin = log.tell()
        with subprocess.Popen(
            command, cwd=ROOT, env=environment(), stdout=log, stderr=subprocess.STDOUT
        ) as process:
            while live and process.poll() is None:
                say(f"\r{what} ... {time.monotonic() - start:.0f} s")
                time.sleep(0.1)
    ending = "" if process.returncode == 0 else " and failed"
    say((f"\r{what} ... " if live else "") + f"{time.monotonic() - start:.1f} s{ending}\n")
    return process.returncode == 0, LOG.read_bytes()[begin:].decode(errors="replace")


def first_that_works(what: str, *commands: list[str]) -> None:
    output = ""
    for command in commands:
        worked, output = attempt(what, command)
        if worked:
            return
    raise SetupError(f"{what}: {explain(output)}")


def say(text: str) -> None:
    sys.stderr.write(text)
    sys.stderr.flush()


def find_uv() -> str | None:
    return shutil.which("uv", path=environment()["PATH"])


def uv_install(uv: str, *arguments: str) -> list[str]:
    return [uv, "pip", "install", "--python", str(PYTHON), "--compile-bytecode", *arguments]


# ----------------------------------------------------------------------------------------------------- set-up


def make_ready(extra: str) -> None:
    """Set up unless nothing changed; end the program with a sentence if that cannot be done."""
    try:
        if not ready(extra):
            set_up(extra)
    except SetupError as error:
        sys.exit(f"pipelab: {error}" + (f" (log: {LOG})" if LOG.exists() else ""))
    except OSError as error:
        sys.exit(f"pipelab: {DISK_FULL if error.errno in (errno.ENOSPC, errno.EDQUOT) else error}")
    except KeyboardInterrupt:
        sys.exit("\npipelab: interrupted; run this again to go on")


def silence_news() -> None:
    """JupyterLab would ask, over the first figure, whether to fetch its news; here nothing is fetched."""
    settings = VENV / "etc" / "jupyter" / "labconfig" / "page_config.json"
    settings.parent.mkdir(parents=True, exist_ok=True)
    settings.write_text('{"disabledExtensions": {"@jupyterlab/apputils-extension:announcements": true}}\n')


def ready(extra: str) -> bool:
    """Has nothing changed since the last set-up? Starts no process."""
    if not (PYTHON.exists() and STAMP.is_file()):
        return False
    stamped, *extras = STAMP.read_text().split()
    return stamped == fingerprint() and extra in extras


def fingerprint() -> str:
    """Changes when the set-up must be looked at: other requirements, another Python, a moved checkout."""
    parts = [Path(__file__).read_bytes(), (ROOT / "pyproject.toml").read_bytes()]
    return hashlib.sha256(b"\0".join([*parts, os.fsencode(PYTHON.resolve()), os.fsencode(ROOT)])).hexdigest()


def set_up(extra: str) -> None:
    STAMP.unlink(missing_ok=True)
    if not sound_venv():
        make_venv()
    add_pip()
    if fits(torch := installed_torch()):
        say(f"torch {torch} is here already: kept\n")
    else:
        torch = install_torch()
    extras = ["test"] if extra == "test" else ["test", extra]
    install_rest(torch, extras)
    silence_news()
    STAMP.write_text(f"{fingerprint()} {' '.join(extras)}\n")


def sound_venv() -> bool:
    """Is there a .venv whose Python runs, is new enough, and is still the release its packages are for?"""
    packages = "os.path.isdir(sysconfig.get_path('purelib'))"
    asked = f"import os, sys, sysconfig; print(sys.version_info >= (3, 11) and {packages})"
    return answer(str(PYTHON), "-c", asked) == "True"


def make_venv() -> None:
    if VENV.exists():
        say(".venv has no Python that works and is new enough: making it again\n")
        shutil.rmtree(VENV)
    shared = fits(torch := torch_of_this_python())
    if shared:
        say(f"{sys.executable} has torch {torch}: kept, .venv shares its packages\n")
    need_disk(1 if shared else 3)
    VENV.mkdir()
    flags = ["--system-site-packages"] if shared else []
    commands = [[sys.executable, "-m", "venv", *flags, str(VENV)]]
    if uv := shutil.which("uv"):  # for a Debian Python without its venv package
        commands.append(
            [uv, "venv", "--seed", "--allow-existing", "--python", sys.executable, *flags, str(VENV)]
        )
    first_that_works("making .venv", *commands)


def torch_of_this_python() -> str | None:
    try:  # from inside another virtual environment, a new one could not see its packages
        return importlib.metadata.version("torch") if sys.prefix == sys.base_prefix else None
    except importlib.metadata.PackageNotFoundError:
        return None


def installed_torch() -> str:
    return answer(str(PYTHON), "-c", "import torch; print(torch.__version__)")


def need_disk(gigabytes: int) -> None:
    free = shutil.disk_usage(ROOT).free / 1e9
    if free < gigabytes:
        raise SetupError(
            f"{ROOT} has {free:.1f} GB of disk left and this needs {gigabytes}; free some and run this again"
        )


def add_pip() -> None:
    """A .venv made by uv has no pip; one before 23.2 downloads all of CUDA only to read what torch needs."""
    pip = (str(PYTHON), "-m", "pip", "--version")
    if not answer(*pip):
        first_that_works("adding pip", [str(PYTHON), "-m", "ensurepip"])
    if tuple(map(int, re.findall(r"\d+", answer(*pip))[:2])) < (23, 2):
        first_that_works("updating pip", [*PIP_INSTALL, "pip>=23.2"])


def install_torch() -> str:
    """Take the first release that is offered.

    On Linux that is a CUDA build, unless pip was told of another. So without a GPU pip is asked first, and if
    CUDA would come, uv, which knows where the CPU builds are, fetches one.
    """
    gpu = bool(answer("nvidia-smi", "-L"))
    need_disk(6 if gpu else 3)
    output = ""
    for torch in (FIRST_TORCH, "torch>={}.{}".format(*OLDEST_TORCH)):
        cuda = False
        if platform.system() == "Linux" and not gpu:
            worked, output, cuda = ask_pip(torch)
            if not worked and explain(output) == UNREACHABLE:
                break
            if not worked:
                continue
        if cuda and not find_uv():
            first_that_works("fetching uv", [*PIP_INSTALL, "uv"])
        for command in torch_commands(torch, gpu, cuda, find_uv()):
            worked, output = attempt(f"installing {torch}", command)
            if worked:
                return installed_torch()
        if cuda:
            raise SetupError(
                f"no GPU here, so {torch} with CUDA is not taken, and its CPU build is out of reach; "
                f"download that wheel, install it ({PYTHON} -m pip install WHEEL), and run this again"
            )
    raise SetupError(f"installing torch: {explain(output)}")


def ask_pip(torch: str) -> tuple[bool, str, bool]:
    """Is this torch offered, what did pip print, and would CUDA come with it? Installs nothing."""
    report = VENV / "pipelab-report.json"
    dry_run = [*PIP_INSTALL, "--dry-run", "--ignore-installed", "--report", str(report), torch]
    worked, output = attempt(f"asking pip what {torch} brings", dry_run)
    return worked, output, worked and brings_cuda(json.loads(report.read_text(encoding="utf-8")))


def install_rest(torch: str, extras: list[str]) -> None:
    """Everything else, and pipelab itself from this checkout; a constraint keeps torch as it is."""
    if not torch:
        raise SetupError("torch was installed and does not import; make clean and run this again")
    constraint = VENV / "pipelab-torch.txt"
    constraint.write_text(f"torch=={torch}\n")
    rest = ["--constraint", str(constraint), "--editable", f".[{','.join(extras)}]"]
    uv = find_uv()
    if "include-system-site-packages = true" in (VENV / "pyvenv.cfg").read_text():
        uv = None  # it does not see the system's packages
        project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
        # Jupyter looks for its parts beside its own Python, so it is installed even where the system has it.
        first_that_works("installing Jupyter", [*PIP_INSTALL, "--ignore-installed", *kept_apart(project)])
    by_uv = [uv_install(uv, *rest)] if uv else []
    first_that_works("installing pipelab and the rest", *by_uv, [*PIP_INSTALL, *rest])
