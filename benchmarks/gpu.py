"""What does a GPU show? Parity, NCCL, the cost of recording, timelines of 4 and 8 stages, the MFU of a stage.

    python benchmarks/gpu.py --out benchmarks            # on a machine with a GPU, some minutes
    python benchmarks/gpu.py --device cpu --quick --out DIR   # tries the script out, with a tiny model

Needs torch and numpy only. Each part runs by itself: one that fails leaves its error in the results.
Writes gpu.json, a trace for each timeline, and gpu.md.
"""

import argparse
import copy
import json
import platform
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch

import pipelab as pl
from pipelab.bench.recorder import compare_recording
from pipelab.data import Batches, load_text
from pipelab.models import build_model
from pipelab.reference import train_uncut

DENSE_BF16 = {"H200": 989e12, "H100": 989e12, "A100": 312e12, "L40S": 362e12, "L4": 121e12, "V100": 125e12}
"""Peak operations a second of the tensor cores without sparsity, from the vendor's data sheets (V100: float16)."""
SCHEDULES = (("gpipe", None), ("1f1b", None), ("interleaved", 2), ("zb-h1", None))


def inventory(options: argparse.Namespace) -> dict[str, Any]:
    """What this was measured on."""
    found: dict[str, Any] = {"torch": torch.__version__, "python": platform.python_version(), "pipelab": pl.__version__}
    if options.device == "cuda":
        properties = torch.cuda.get_device_properties(0)
        found |= {"gpu": properties.name, "gpus": torch.cuda.device_count(), "bytes": properties.total_memory}
        found |= {"multiprocessors": properties.multi_processor_count, "cuda": torch.version.cuda}
        found["nccl"] = ".".join(map(str, torch.cuda.nccl.version())) if torch.distributed.is_nccl_available() else None
    return found


def parity(options: argparse.Namespace) -> list[dict[str, Any]]:
    """In float64 on the device: the largest difference of any parameter from the uncut model, after two steps."""
    rows = []
    for name, chunks in SCHEDULES:
        model = build_model("tiny", dtype=torch.float64)
        uncut = copy.deepcopy(model).to(options.device)
        batches = list(_batches("tiny", microbatches=4, rows=2, steps=2))
        run = pl.train(model, batches, pl.build(name, 3, 4, chunks), device=options.device)
        train_uncut(uncut, [tuple(t.to(options.device) for t in batch) for batch in batches], 4)
        theirs = dict(uncut.named_parameters())
        apart = max(float((ours - theirs[key].detach()).abs().max()) for key, ours in run.parameters().items())
        rows.append({"schedule": name, "max_parameter_difference": apart})
    return rows


def nccl(options: argparse.Namespace) -> dict[str, Any]:
    """A world of one rank, and what two ranks on one GPU are answered."""
    if options.device != "cuda":
        return {"skipped": "needs a GPU"}
    return {"one rank": _ranks_on_gpu_0(1), "two ranks on one GPU": _ranks_on_gpu_0(2)}


RANK = """
import datetime, os, torch, torch.distributed as dist
torch.cuda.set_device(0)
dist.init_process_group("nccl", device_id=torch.device("cuda", 0), timeout=datetime.timedelta(seconds=40))
x = torch.ones(4, device="cuda")
dist.all_reduce(x)
torch.cuda.synchronize()
print("all_reduce gives", x[0].item())
if dist.get_world_size() == 1:
    y = torch.zeros(4, device="cuda")
    for work in dist.batch_isend_irecv([dist.P2POp(dist.isend, x, 0), dist.P2POp(dist.irecv, y, 0)]):
        work.wait()
    torch.cuda.synchronize()
    print("send to itself gives", y[0].item())
dist.destroy_process_group()
"""


def _ranks_on_gpu_0(ranks: int) -> dict[str, Any]:
    import os
    import socket

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    common = {**os.environ, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(ranks)}
    begin = time.perf_counter()
    started = [
        subprocess.Popen(
            [sys.executable, "-c", RANK], env={**common, "RANK": str(rank)},
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for rank in range(ranks)
    ]  # fmt: skip
    said = []
    for process in started:
        try:
            out, error = process.communicate(timeout=90)
        except subprocess.TimeoutExpired:
            process.kill()
            out, error = process.communicate()
            error += "\nno end within 90 s"
        said.append({"exit": process.returncode, "out": out.split("\n")[:-1], "error": error.splitlines()[-6:]})
    return {"seconds": time.perf_counter() - begin, "ranks": said}


def recorder(options: argparse.Namespace) -> list[dict[str, Any]]:
    """A recorded step over an unrecorded one; processor time of the host."""
    steps, model = (4, "tiny") if options.quick else (20, "small")
    return list(compare_recording(steps, model, options.device))


def timelines(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Virtual timelines of 4 and 8 stages: every action alone on the whole device, timed by events."""
    preset, rows, dtype = _size(options)
    found = []
    for ranks in (4, 8):
        for name, chunks in SCHEDULES:
            if chunks is not None and ranks * chunks > 8 and not options.quick:
                continue  # gpt2 has 14 layers
            microbatches = 2 * ranks
            model = build_model(preset, dtype=dtype)
            steps = 2 if options.quick else 5
            batches = _batches(preset, microbatches=microbatches, rows=rows, steps=steps)
            run = pl.train(model, batches, pl.build(name, ranks, microbatches, chunks), device=options.device)
            stem = f"gpu-{name}-{ranks}"
            (options.out / f"{stem}.json").write_text(run.trace.to_json())
            bubbles = run.bubbles()
            found.append(
                {
                    "schedule": name,
                    "ranks": ranks,
                    "microbatches": microbatches,
                    "step_seconds": run.step_seconds,
                    "bubble": {how: bubbles[how] and bubbles[how]["step"] for how in bubbles},
                    "peak_activation_bytes": run.memory.peaks,
                    "trace": f"{stem}.json",
                }
            )
    return found


def mfu(options: argparse.Namespace) -> dict[str, Any]:
    """One middle stage: its matrix operations of F and B, over their seconds and the device's peak."""
    from torch.utils.flop_counter import FlopCounterMode

    from pipelab.clock import make_turn, measure
    from pipelab.memory import ActivationMeter
    from pipelab.randomness import Randomness
    from pipelab.stage import Stage

    preset, rows, dtype = _size(options)
    model = build_model(preset, dtype=dtype)
    layers = model[1:4].to(options.device)
    stage = Stage(
        layers, first=False, loss=None, split=False, randomness=Randomness(0),
        meter=ActivationMeter(layers.parameters()),
    )  # fmt: skip
    stage.meter.counting = False
    shape = rows, model.config.context, model.config.width
    x, gradient = (torch.randn(shape, device=options.device, dtype=dtype) for _ in range(2))
    with FlopCounterMode(display=False) as counter:
        stage.forward(0, x, 0)
        stage.backward(0, gradient)
    turn = make_turn(torch.device(options.device))
    times = []
    for _ in range(3 if options.quick else 30):
        _, forward = measure(turn, lambda: stage.forward(0, x, 0))
        _, backward = measure(turn, lambda: stage.backward(0, gradient))
        times.append((forward, backward))
    forward, backward = (sorted(each)[len(times) // 2] for each in zip(*times, strict=True))
    flops = counter.get_total_flops()
    achieved = flops / (forward + backward)
    name = torch.cuda.get_device_name(0) if options.device == "cuda" else ""
    peak = next((value for key, value in DENSE_BF16.items() if key in name), None)
    return {
        "blocks": len(layers), "rows": rows, "context": shape[1], "width": shape[2], "dtype": str(dtype),
        "flops": flops, "F_seconds": forward, "B_seconds": backward, "flops_per_second": achieved,
        "peak_flops_per_second": peak, "mfu": achieved / peak if peak and dtype == torch.bfloat16 else None,
    }  # fmt: skip


def _size(options: argparse.Namespace) -> tuple[str, int, torch.dtype]:
    return ("tiny", 2, torch.float32) if options.quick else ("gpt2", 8, torch.bfloat16)


def _batches(preset: str, *, microbatches: int, rows: int, steps: int) -> Batches:
    context = build_model(preset, layers=1).config.context
    return Batches(
        text=load_text("stdlib-docs"), microbatches=microbatches, rows=rows, context=context, seed=0, steps=steps
    )


PARTS: dict[str, Callable[[argparse.Namespace], Any]] = {
    "inventory": inventory,
    "parity": parity,
    "nccl": nccl,
    "recorder": recorder,
    "timelines": timelines,
    "mfu": mfu,
}


def page(results: dict[str, Any]) -> str:
    """The results for people."""
    lines = ["# On a GPU", "", "Made by `python benchmarks/gpu.py`. Figures and errors in full: `gpu.json`.", ""]
    for name, found in results.items():
        lines += [f"## {name}", "", (PARTS[name].__doc__ or "").strip(), ""]
        rows = found if isinstance(found, list) else [found]
        for row in rows:
            lines.append("- " + ", ".join(f"{key} {_short(value)}" for key, value in row.items()))
        lines.append("")
    return "\n".join(lines)


def _short(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, dict):
        return "(" + ", ".join(f"{key} {_short(each)}" for key, each in value.items()) + ")"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_short, value)) + "]"
    return str(value)


def main() -> int:
    """Run the parts, write what they found, and give 1 when one failed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--quick", action="store_true", help="a tiny model and few steps")
    parser.add_argument("--only", choices=list(PARTS), help="one part alone")
    parser.add_argument("--out", type=Path, required=True, help="the folder for the results")
    options = parser.parse_args()
    if options.device == "cuda" and not torch.cuda.is_available():
        print("benchmarks/gpu.py: torch sees no CUDA device here; --device cpu --quick tries it out", file=sys.stderr)
        return 2
    options.out.mkdir(parents=True, exist_ok=True)
    results: dict[str, Any] = {}
    for name in [options.only] if options.only else list(PARTS):
        begin = time.perf_counter()
        try:
            results[name] = PARTS[name](options)
        except Exception as error:
            results[name] = {"error": f"{type(error).__name__}: {error}"}
        print(f"{name}: {time.perf_counter() - begin:.1f} s", file=sys.stderr)
        (options.out / "gpu.json").write_text(json.dumps(results, indent=1) + "\n")
    (options.out / "gpu.md").write_text(page(results))
    return int(any(isinstance(found, dict) and "error" in found for found in results.values()))


if __name__ == "__main__":
    sys.exit(main())
