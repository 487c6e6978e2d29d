"""The benchmarks give the rows that they promise; no figure of theirs is asserted, for machines differ."""

import json
import subprocess
import sys
from functools import partial
from pathlib import Path

from pipelab.bench import memory, recorder, runtime
from pipelab.bench.split import compare_splits
from pipelab.cli import main
from pipelab.mesh import Mesh

GPU = Path(__file__).resolve().parent.parent / "benchmarks" / "gpu.py"


def test_the_script_for_gpus_can_be_tried_out_on_a_cpu(tmp_path):
    ended = subprocess.run(
        [sys.executable, GPU, "--device", "cpu", "--quick", "--out", tmp_path],
        capture_output=True, text=True, timeout=900,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    results = json.loads((tmp_path / "gpu.json").read_text())
    assert list(results) == ["inventory", "parity", "nccl", "recorder", "timelines", "mfu"]
    assert all(row["max_parameter_difference"] < 1e-12 for row in results["parity"])
    assert {(row["schedule"], row["ranks"]) for row in results["timelines"]} >= {("1f1b", 4), ("zb-h1", 8)}
    assert results["mfu"]["flops"] > 0 and "## mfu" in (tmp_path / "gpu.md").read_text()
    assert all((tmp_path / row["trace"]).exists() for row in results["timelines"])


def test_where_nobody_can_draw_the_recorders_are_compared_without_the_picture(monkeypatch):
    assert "feed" in recorder.switches()
    monkeypatch.setitem(sys.modules, "anywidget", None)
    assert "watch" in recorder.SWITCHES and "watch" not in recorder.switches()


def test_a_split_is_compared_in_time_and_bytes():
    rows = list(compare_splits(repetitions=1))
    assert [row["work"] for row in rows] == ["tiny", "small", "wide"]
    for row in rows:
        assert row["ours"] > 0 and row["torch"] > 0
        assert 0 < row["ours_held"] < row["torch_held"]  # torch keeps the whole graph for W


def test_the_runtimes_are_compared_after_their_gradients_were_found_equal(monkeypatch, capsys):
    monkeypatch.setattr(runtime, "compare_runtimes", partial(runtime.compare_runtimes, works=("tiny",)))
    assert main(["bench", "runtime", "--quick", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["rows"]
    assert {row["schedule"] for row in rows} == {"gpipe", "1f1b", "interleaved", "interleaved-zb"}
    assert all(set(row) == {"schedule", "ranks", "work", "torch_over_ours"} for row in rows)
    assert all(row["torch_over_ours"] > 0 for row in rows)


def test_predicted_memory_is_compared_with_tracked_for_each_rank(monkeypatch, capsys):
    monkeypatch.setattr(memory, "SCHEDULES", {"1f1b": None})
    monkeypatch.setattr(memory, "MESHES", {"pp 2": (Mesh(pp=2), False)})
    assert main(["bench", "memory"]) == 0
    title, head, *rows = capsys.readouterr().out.splitlines()
    assert "predicted" in title and head.split()[-1] == "error"
    assert len(rows) == 2 * 3  # ranks, and policies of activation checkpointing
    assert all(abs(float(row.split()[-1].rstrip("%"))) < 1 for row in rows)
