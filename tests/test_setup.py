"""The set-up decides well, does nothing when nothing changed, and its files agree with one another."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import bootstrap
import install
import pytest

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def report(*names):
    """What `pip install --dry-run --report` writes, as far as we read it."""
    return {"install": [{"metadata": {"name": name}} for name in names]}


# ------------------------------------------------------------------------------------------------ which torch


@pytest.mark.parametrize("version", ["2.11.0", "2.11", "2.12.0a0+gitabc", "2.13.0+cpu", "2.11.1rc1", "3.0.1"])
def test_torch_that_fits_is_kept(version):
    assert install.fits(version)


@pytest.mark.parametrize("version", ["2.10.1", "1.13.1", "2.11.0a0+nv", "2.11.0.dev20260101", "", None, "broken"])
def test_torch_that_does_not_fit_is_not(version):
    assert not install.fits(version)


def test_first_torch_is_within_the_bound_of_pyproject():
    bound = next(line for line in PROJECT["dependencies"] if line.startswith("torch"))
    assert bound == "torch>={}.{}".format(*install.OLDEST_TORCH)
    assert install.fits(install.FIRST_TORCH.removeprefix("torch=="))


def test_cuda_packages_are_seen_in_a_report():
    assert install.brings_cuda(report("torch", "nvidia-cudnn-cu13"))
    assert install.brings_cuda(report("torch", "cuda-toolkit"))
    assert install.brings_cuda(report("torch", "triton"))
    assert not install.brings_cuda(report("torch", "numpy", "sympy", "tritonclient"))


def test_without_gpu_and_without_cuda_pip_is_asked_as_it_reads_its_own_settings():
    commands = install.torch_commands("torch==2.13.0", gpu=False, cuda=False, uv="/bin/uv")
    assert commands == [[*install.PIP_INSTALL, "torch==2.13.0"]]


def test_without_gpu_cuda_is_never_installed():
    (command,) = install.torch_commands("torch==2.13.0", gpu=False, cuda=True, uv="/bin/uv")
    assert command[0] == "/bin/uv" and "--torch-backend=cpu" in command
    assert install.torch_commands("torch==2.13.0", gpu=False, cuda=True, uv=None) == []


def test_with_gpu_uv_picks_the_build_and_pip_is_the_second_choice():
    by_uv, by_pip = install.torch_commands("torch==2.13.0", gpu=True, cuda=False, uv="/bin/uv")
    assert "--torch-backend=auto" in by_uv and by_pip == [*install.PIP_INSTALL, "torch==2.13.0"]
    assert install.torch_commands("torch==2.13.0", gpu=True, cuda=False, uv=None) == [by_pip]


def test_torch_and_its_numpy_stay_with_a_system_that_has_them():
    names = {re.split("[<>=]", line)[0] for line in install.kept_apart(PROJECT)}
    assert {"jupyterlab", "ipykernel", "pytest"} <= names and not {"torch", "numpy"} & names


class Machine:
    """Stands in for what `install_torch` runs: says what would be printed, remembers what was run."""

    def __init__(self, monkeypatch, tmp_path, *, gpu=False, brings=("torch",), uv=None, fails=()):
        self.ran, self.brings, self.uv, self.fails = [], brings, uv, fails
        monkeypatch.setattr(install, "VENV", tmp_path)
        monkeypatch.setattr(install, "need_disk", lambda gigabytes: None)
        monkeypatch.setattr(install.platform, "system", lambda: "Linux")
        monkeypatch.setattr(
            install,
            "answer",
            lambda *command: ("GPU 0" if gpu else "") if "nvidia-smi" in command else "2.13.0",
        )
        monkeypatch.setattr(install, "find_uv", lambda: self.uv)
        monkeypatch.setattr(install, "attempt", self.attempt)

    def attempt(self, what, command):
        self.ran.append(what)
        if "--report" in command:
            Path(command[command.index("--report") + 1]).write_text(install.json.dumps(report(*self.brings)))
        if "fetching uv" in what:
            self.uv = "/bin/uv"
        return not any(word in command for word in self.fails), "No matching distribution found"


def test_cpu_machine_whose_pip_offers_a_cpu_build(monkeypatch, tmp_path):
    machine = Machine(monkeypatch, tmp_path)
    assert install.install_torch() == "2.13.0"
    assert machine.ran == ["asking pip what torch==2.13.0 brings", "installing torch==2.13.0"]


def test_cpu_machine_whose_pip_would_bring_cuda_fetches_uv(monkeypatch, tmp_path):
    machine = Machine(monkeypatch, tmp_path, brings=("torch", "nvidia-nccl-cu13"))
    install.install_torch()
    assert [what.split()[0] for what in machine.ran] == ["asking", "fetching", "installing"]


def test_cpu_machine_that_reaches_no_cpu_build_says_so_and_installs_nothing(monkeypatch, tmp_path):
    machine = Machine(monkeypatch, tmp_path, brings=("torch", "triton"), uv="/bin/uv", fails=("--torch-backend=cpu",))
    with pytest.raises(install.SetupError, match=r"no GPU here, .* out of reach"):
        install.install_torch()
    assert len(machine.ran) == 2


def test_gpu_machine_asks_nothing(monkeypatch, tmp_path):
    machine = Machine(monkeypatch, tmp_path, gpu=True, brings=("torch", "nvidia-nccl-cu13"))
    install.install_torch()
    assert machine.ran == ["installing torch==2.13.0"]


def test_any_fitting_torch_is_taken_where_the_first_is_not_offered(monkeypatch, tmp_path):
    machine = Machine(monkeypatch, tmp_path, fails=("torch==2.13.0",))
    install.install_torch()
    assert machine.ran[-1] == "installing torch>=2.11"


# ----------------------------------------------------------------------------------------------- what it says


@pytest.mark.parametrize(
    ("printed", "said"),
    [
        (
            "ERROR: Could not install packages due to an OSError: [Errno 28] No space left on device",
            "disk is full",
        ),
        ("OSError: [Errno 122] Disk quota exceeded", "disk is full"),
        (
            "connection broken by NewConnectionError\nERROR: No matching distribution found for torch",
            "cannot be reached",
        ),
        ("Temporary failure in name resolution", "cannot be reached"),
        ("error: Failed to fetch: `torch`\n  Caused by: error sending request", "cannot be reached"),
        ("ERROR: No matching distribution found for torch==2.13.0", "try another Python"),
        ("created successfully because ensurepip is not available", "apt install python3-venv"),
        ("something else", "it failed"),
    ],
)
def test_trouble_is_told_in_a_sentence_with_its_remedy(printed, said):
    assert said in install.explain(printed)


def test_full_disk_is_seen_before_anything_is_made(monkeypatch):
    monkeypatch.setattr(install.shutil, "disk_usage", lambda path: install.shutil._ntuple_diskusage(9, 8, 1))
    with pytest.raises(install.SetupError, match="needs 3"):
        install.need_disk(3)


def test_unknown_job_is_refused_and_sets_nothing_up(monkeypatch, capsys):
    monkeypatch.setattr(install, "make_ready", lambda extra: pytest.fail("it set up"))
    with pytest.raises(SystemExit) as end:
        bootstrap.main("brew")
    assert end.value.code == 2 and "lab|run|test" in capsys.readouterr().err


# ------------------------------------------------------------------------------- nothing to do, nothing done


@pytest.fixture
def made(monkeypatch, tmp_path):
    """A checkout whose set-up is done, in a folder of its own; no process may be started."""
    monkeypatch.setattr(install, "ROOT", tmp_path)
    for name, path in {"VENV": "", "PYTHON": "python", "LOG": "log", "STAMP": "stamp"}.items():
        monkeypatch.setattr(install, name, tmp_path / ".venv" / path)
    (tmp_path / ".venv").mkdir()
    (tmp_path / "pyproject.toml").write_text("one")
    install.PYTHON.write_text("")
    install.STAMP.write_text(f"{install.fingerprint()} test\n")
    monkeypatch.setattr(subprocess, "Popen", lambda *_, **__: pytest.fail("a process was started"))
    return tmp_path


def test_nothing_is_started_when_nothing_changed(made):
    install.make_ready("test")


@pytest.mark.parametrize("change", ["requirements", "python", "stamp", "checkout"])
def test_a_change_is_noticed(made, monkeypatch, change):
    if change == "requirements":
        (made / "pyproject.toml").write_text("two")
    elif change == "python":
        install.PYTHON.unlink()
    elif change == "stamp":
        install.STAMP.unlink()
    else:
        made.rename(made.with_name("moved"))
        for name in ("ROOT", "VENV", "PYTHON", "STAMP"):
            old = getattr(install, name)
            monkeypatch.setattr(install, name, made.with_name("moved") / old.relative_to(made))
    assert not install.ready("test")


def test_checking_needs_more_than_testing(made):
    assert install.ready("test") and not install.ready("dev")


def test_an_interrupted_set_up_leaves_no_stamp(made, monkeypatch):
    def interrupt():
        raise KeyboardInterrupt

    monkeypatch.setattr(install, "sound_venv", interrupt)
    with pytest.raises(SystemExit, match="run this again to go on"):
        install.make_ready("dev")
    assert not install.STAMP.exists()


# ------------------------------------------------------------------------------------------- files that agree


def test_environment_yml_names_the_packages_and_bounds_of_pyproject():
    yaml = pytest.importorskip("yaml")
    conda = yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf-8"))
    *packages, pip, by_pip = conda["dependencies"]
    ours = [*PROJECT["dependencies"], *PROJECT["optional-dependencies"]["test"]]
    assert [line.replace("pytorch-cpu", "torch").replace("playwright-python", "playwright") for line in packages] == [
        "python" + PROJECT["requires-python"],
        *ours,
    ]
    assert conda["name"] == PROJECT["name"] and conda["channels"] == ["conda-forge", "nodefaults"]
    assert (pip, by_pip) == ("pip", {"pip": ["-e ."]})


def test_makefile_offers_each_job():
    text = (ROOT / "Makefile").read_text()
    jobs = re.search(r"^([\w ]+):\n\t@\$\(PYTHON\) tools/bootstrap.py \$@", text, re.MULTILINE)[1].split()
    assert jobs == ["lab", "run", "test", "check", "bench", "soak"]
    for job in jobs:
        assert f'"make {job} ' in text and bootstrap.job_commands(job, [])


def test_arguments_reach_the_command():
    assert bootstrap.job_commands("lab", ["--no-browser"])[0][-2:] == ["labs", "--no-browser"]


def test_ci_runs_the_tests():
    script = ROOT / ".ci" / "run"
    assert (
        script.read_text().startswith("#!/usr/bin/env bash\nset -euo pipefail\n")
        and "\nmake test\n" in script.read_text()
    )
    assert sys.platform == "win32" or script.stat().st_mode & 0o111


def test_licence_is_the_same_everywhere():
    assert PROJECT["license"] == "Apache-2.0"
    assert "Apache License" in (ROOT / "LICENSE").read_text()[:200]
