"""Set pipelab up, then do a job:  python3 tools/bootstrap.py lab|run|test|check|bench|soak|setup [-- arguments]

A fresh machine needs Python 3.11 and nothing else. Everything lands in .venv (see install.py); a later call
finds it ready and starts the job at once. This file must parse on any Python: an old one says what is wrong.
"""

import os
import shutil
import subprocess
import sys

IS_NEW_ENOUGH = "import sys; sys.exit(sys.version_info < (3, 11))"


def hand_over(command, env=None):
    """Become this command, so that signals and the exit status are its own. (On Windows it is a child.)"""
    if os.name == "nt":
        sys.exit(subprocess.call(command, env=env))
    sys.stderr.flush()
    os.execve(command[0], command, os.environ if env is None else env)


def newer_python():
    """A Python on PATH that is new enough. Each is asked, because a pyenv shim may exist and not work."""
    for name in ("python3.13", "python3.12", "python3.11", "python3.14", "python3"):
        path = shutil.which(name)
        if path and subprocess.call([path, "-c", IS_NEW_ENOUGH], stderr=subprocess.DEVNULL) == 0:
            return path
    return None


if sys.version_info < (3, 11):
    here = "pipelab needs Python 3.11 or newer and this is %d.%d" % sys.version_info[:2]
    newer = newer_python() if sys.version_info[0] > 2 else None
    if newer is None:
        sys.exit(here + "; install one, or name one: make test PYTHON=/path/to/python3.11")
    sys.stderr.write(here + "; using " + newer + "\n")
    hand_over([newer] + sys.argv)

import install

PROMPT = "--ServerApp.kernel_websocket_connection_class=pipelab.show.live.prompt.PromptConnection"


def job_commands(job, arguments):
    """What a job runs, each with the Python of .venv; None for a job that does not exist."""
    tested = [name for name in ("tests", "labs", "pipelab", "README.md") if (install.ROOT / name).exists()]
    doctests = ["--doctest-modules", "--doctest-glob=README.md"]
    if job == "soak":
        return [[str(install.PYTHON), str(install.ROOT / "tools" / "soak.py")] + arguments]
    notebooks = ["--nbval-lax", "--nbval-current-env", "--nbval-cell-timeout=600"]
    commands = {
        "lab": [["jupyterlab", PROMPT, "labs"]],
        "run": [["pipelab", "labs", "--html", "--out", "runs"]],
        "test": [["pytest"] + doctests + notebooks + tested],  # one run, so that its last line counts everything
        "check": [["ruff", "format", "--check"], ["ruff", "check"], ["mypy"]],
        "bench": [["pipelab", "bench", what] for what in ("simulate", "runtime", "split", "recorder", "launch")],
        "setup": [],
    }.get(job)
    if commands is None:
        return None
    return [[str(install.PYTHON), "-m"] + command + arguments for command in commands]


def main(job="", *arguments):
    commands = job_commands(job, [each for each in arguments if each != "--"])
    if commands is None:
        sys.stderr.write(__doc__.split("\n")[0] + "\n")
        sys.exit(2)
    install.make_ready("dev" if job == "check" else "test")
    os.chdir(str(install.ROOT))
    if len(commands) == 1:
        hand_over(commands[0], install.environment())
    sys.exit(max([subprocess.call(command, env=install.environment()) for command in commands] + [0]))


if __name__ == "__main__":
    main(*sys.argv[1:])
