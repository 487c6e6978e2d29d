"""The doctor tells facts, what follows from them, and a remedy for what is missing."""

import importlib.metadata
import json

import pytest
import torch

from pipelab import host
from pipelab.cli import main

GPU = {"name": "H200", "memory_bytes": 2**37}
GOOD = {
    "cores": 8, "memory_bytes": 2**34, "shared_memory_bytes": 2**33, "files": 4096, "processes": None,
    "packages": dict.fromkeys(host.PACKAGES, "1.0"), "nvidia_driver": "", "links": [],
    "torch": {"version": "2.13.0", "cuda": None, "nccl": None, "gloo": True},
    "gpus": [], "peer_access": [], "launch": {"ok": True, "seconds": 0.5, "error": None},
}  # fmt: skip


@pytest.fixture(scope="module")
def facts():
    return host.look()


def test_the_facts_are_this_host_s(facts):
    assert facts["cores"] == host.cores() >= 1
    assert facts["packages"]["torch"] == importlib.metadata.version("torch")
    assert facts["torch"]["version"] == torch.__version__
    assert facts["launch"]["ok"] and facts["launch"]["error"] is None
    assert len(facts["gpus"]) == len(facts["peer_access"])
    assert not torch.cuda.is_initialized()


def test_json_is_one_object_with_what_can_run_and_what_is_missing(facts, capsys, monkeypatch):
    monkeypatch.setattr(host, "look", lambda: dict(facts))
    assert main(["doctor", "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed == json.loads(json.dumps(facts)) | {"can_run": host.can_run(facts), "missing": host.missing(facts)}


def test_the_text_names_clock_and_remedy(monkeypatch, capsys):
    bad = GOOD | {"packages": GOOD["packages"] | {"plotly": None}}
    monkeypatch.setattr(host, "look", lambda: bad | {"platform": "Linux", "python": "3.12"})
    assert main(["doctor"]) == 0
    said = capsys.readouterr().out
    assert "virtual time" in said and "plotly (for figures): pip install plotly" in said


def test_on_a_good_host_nothing_is_missing():
    assert host.missing(GOOD) == []


@pytest.mark.parametrize(
    ("fault", "what", "remedy"),
    [
        ({"packages": GOOD["packages"] | {"cloudpickle": None}}, "cloudpickle", "pip install cloudpickle"),
        ({"nvidia_driver": "570"}, "CUDA", "CUDA build"),
        ({"gpus": [GPU], "shared_memory_bytes": 2**26}, "/dev/shm", "--shm-size"),
        ({"files": 256}, "open files", "ulimit -n 4096"),
        ({"launch": {"ok": False, "error": "no fork"}}, "cannot be launched: no fork", "mend"),
    ],
    ids=["package", "torch without CUDA", "shared memory", "open files", "launch"],
)
def test_each_fault_comes_with_its_remedy(fault, what, remedy):
    (one,) = host.missing(GOOD | fault)
    assert what in one["what"] and remedy in one["remedy"]


def test_what_can_run_follows_from_the_processors_and_gpus():
    assert len(host.can_run(GOOD)) == 2
    assert "up to 8 gloo processes" in host.can_run(GOOD)[1]
    assert "the one core" in host.can_run(GOOD | {"cores": 1})[1]
    cuda = GOOD["torch"] | {"cuda": "12.8", "nccl": "2.27.3"}
    one = GOOD | {"torch": cuda, "gpus": [GPU], "peer_access": [[True]]}
    assert any("take turns on one H200" in said for said in host.can_run(one))
    assert not any("NCCL processes" in said for said in host.can_run(one))
    two = one | {"gpus": [GPU] * 2, "peer_access": [[True, False], [False, True]]}
    assert "up to 2 NCCL processes" in host.can_run(two)[-1] and "not all directly" in host.can_run(two)[-1]


def test_a_host_that_cannot_launch_is_told_in_a_sentence_and_fails(monkeypatch, capsys):
    import pipelab.launcher

    def refuse(*_, **__):
        raise ValueError("launch forks processes, which this system cannot")

    monkeypatch.setattr(pipelab.launcher, "launch", refuse)
    assert main(["doctor", "--json"]) == 1
    printed = json.loads(capsys.readouterr().out)
    assert printed["launch"]["error"].startswith("launch forks processes")
    assert printed["can_run"] and "cannot be launched" in " ".join(one["what"] for one in printed["missing"])


def test_of_the_gpus_of_a_host_only_those_of_this_process_are_asked_what_they_have_left(monkeypatch, tmp_path):
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\ncase $1 in --id=2,3) echo 7; echo 9;; *) echo 1;; esac\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert host.free_gpu_memory() == 2**20
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,3")
    assert host.free_gpu_memory() == 7 * 2**20
