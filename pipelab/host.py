"""What can this machine show? Its processors, memory, GPUs and packages, and what follows for pipelines.

The facts about GPUs come from a rank that is launched to look at them: the caller itself never starts CUDA.
"""

import contextlib
import importlib.metadata
import os
import platform
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipelab.failure import RunError

Facts = Mapping[str, Any]

PACKAGES = {
    "torch": "training",
    "numpy": "training",
    "cloudpickle": "launching functions of a notebook",
    "safetensors": "checkpoints",
    "tqdm": "progress bars",
    "jupyterlab": "the labs",
    "ipykernel": "the labs",
    "ipywidgets": "live figures",
    "anywidget": "live timelines",
    "plotly": "figures",
    "papermill": "running the labs without a browser",
    "nbconvert": "running the labs without a browser",
    "nbval": "testing the labs",
}
"""What each package is here for."""

LEAST_FILES, LEAST_SHM = 1024, 2**30


def look() -> dict[str, Any]:
    """The facts of this host, plain values only. Starts two ranks to see whether they can talk, and what GPUs they see.

    >>> sorted(look())[:5]
    ['cores', 'files', 'gpus', 'launch', 'links']
    """
    rank = _look_from_a_rank()
    return {
        "platform": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "cores": cores(),
        "memory_bytes": _memory(),
        "shared_memory_bytes": shutil.disk_usage("/dev/shm").total if os.path.isdir("/dev/shm") else None,
        **_limits(),
        "packages": {name: _version(name) for name in PACKAGES},
        "nvidia_driver": _answer("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader").split("\n")[0],
        "links": _links(_answer("nvidia-smi", "topo", "-m")),
        **rank,
    }


def cores() -> int:
    """The processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def available_memory() -> int | None:
    """The bytes that this process and its children may still take, with the swap; None where the system says nothing.

    On Linux that is what the host has left, or what the limit of its control group leaves.
    """
    try:
        with open("/proc/meminfo", encoding="ascii") as lines:
            sizes = {name: int(rest.split()[0]) * 1024 for name, _, rest in (line.partition(":") for line in lines)}
        left = sizes["MemAvailable"] + sizes["SwapFree"]
    except (OSError, KeyError, ValueError):
        return None
    return min([left, *_left_in_groups()])


def _left_in_groups() -> list[int]:
    """What the limits of the control groups leave: of a container, and of this process within it (version 2)."""
    found = []
    with contextlib.suppress(OSError, IndexError, ValueError):
        own = Path("/proc/self/cgroup").read_text(encoding="ascii").split("::")[1].strip().lstrip("/")
        for group in (Path("/sys/fs/cgroup"), Path("/sys/fs/cgroup") / own):
            with contextlib.suppress(OSError, ValueError):
                most = int((group / "memory.max").read_text(encoding="ascii"))
                used = int((group / "memory.current").read_text(encoding="ascii"))
                stat = dict(line.split() for line in (group / "memory.stat").read_text(encoding="ascii").splitlines())
                found.append(most - used + int(stat.get("inactive_file", 0)))  # what the cache gives back
    return found


def free_gpu_memory() -> int | None:
    """The bytes that the fullest GPU for this process has left, without starting CUDA here; None without nvidia-smi."""
    chosen = os.environ.get("CUDA_VISIBLE_DEVICES")  # others may be full of somebody else's work
    own = [f"--id={chosen}"] if chosen else []
    answer = _answer("nvidia-smi", *own, "--query-gpu=memory.free", "--format=csv,noheader,nounits")
    sizes = [int(line) * 2**20 for line in answer.split("\n") if line.strip().isdigit()]
    return min(sizes, default=None)


def missing(facts: Facts) -> list[dict[str, str]]:
    """What is not as it should be: for each, what it prevents and what to do."""
    found = [
        {"what": name, "for": purpose, "remedy": f"pip install {name}, or make lab, which installs all"}
        for name, purpose in PACKAGES.items()
        if facts["packages"][name] is None
    ]
    if not facts["launch"]["ok"]:
        what = f"ranks cannot be launched: {facts['launch']['error']}"
        found.append({"what": what, "for": "real processes", "remedy": "mend what it names, then run pipelab doctor"})
    if facts["nvidia_driver"] and not facts["torch"].get("cuda"):
        remedy = "install a CUDA build: make clean lab takes the one for this machine"
        found.append({"what": "a torch with CUDA", "for": "the GPUs of this machine", "remedy": remedy})
    if facts["gpus"] and (facts["shared_memory_bytes"] or LEAST_SHM) < LEAST_SHM:
        found.append({"what": "/dev/shm of 1 GiB", "for": "NCCL", "remedy": "docker run --shm-size=8g or --ipc=host"})
    if facts["files"] is not None and facts["files"] < LEAST_FILES:
        found.append({"what": "open files", "for": "many ranks", "remedy": f"ulimit -n {4 * LEAST_FILES}"})
    return found


def can_run(facts: Facts) -> list[str]:
    """What this machine can show, as sentences; every one names its clock.

    >>> can_run({"cores": 2, "gpus": [], "peer_access": [], "launch": {"ok": True}, "torch": {"gloo": True}})[1]
    'up to 2 gloo processes in wall-clock time; more share the 2 cores: give them --clock virtual'
    """
    said = ["any number of virtual ranks in virtual time, in one process: the default of train, and of the labs"]
    if facts["launch"]["ok"] and facts["torch"].get("gloo"):
        n = facts["cores"]
        cores_ = f"the {n} cores" if n > 1 else "the one core"
        said.append(f"up to {n} gloo processes in wall-clock time; more share {cores_}: give them --clock virtual")
    gpus = facts["gpus"]
    if gpus:
        said.append(f"--device cuda: virtual ranks that take turns on one {gpus[0]['name']}, timed by CUDA events")
    if len(gpus) > 1 and facts["torch"].get("nccl"):
        pairs = [peer for row, access in enumerate(facts["peer_access"]) for peer in access[row + 1 :]]
        how = "directly" if all(pairs) else "not all directly: the links show in the timeline"
        said.append(f"up to {len(gpus)} NCCL processes, one a GPU, in wall-clock time; they reach one another {how}")
    return said


def _look_from_a_rank() -> dict[str, Any]:
    """What torch says in a process of its own, and whether two such processes can talk."""
    from pipelab.launcher import launch

    nothing: dict[str, Any] = {"torch": {}, "gpus": [], "peer_access": []}
    begin = time.perf_counter()
    try:
        seen = launch(_look_at_torch, ranks=2)[0]
    except (RunError, ValueError, OSError, ImportError) as error:
        sentence = error.sentence if isinstance(error, RunError) else str(error)
        return {**nothing, "launch": {"ok": False, "seconds": None, "error": sentence}}
    return {**nothing, **seen, "launch": {"ok": True, "seconds": time.perf_counter() - begin, "error": None}}


def _look_at_torch() -> dict[str, Any]:
    import torch
    import torch.distributed as dist

    dist.init_process_group("gloo")
    dist.barrier()
    rank = dist.get_rank()
    dist.destroy_process_group()
    if rank != 0:
        return {}
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    properties = [torch.cuda.get_device_properties(device) for device in range(count)]
    nccl = ".".join(map(str, torch.cuda.nccl.version())) if dist.is_nccl_available() else None
    return {
        "torch": {"version": torch.__version__, "cuda": torch.version.cuda, "nccl": nccl, "gloo": True},
        "gpus": [{"name": gpu.name, "memory_bytes": gpu.total_memory} for gpu in properties],
        "peer_access": [
            [a == b or torch.cuda.can_device_access_peer(a, b) for b in range(count)] for a in range(count)
        ],
    }


def _limits() -> dict[str, Any]:
    """How many files and processes this user may have; None for as many as wanted."""
    if sys.platform == "win32":
        return {"files": None, "processes": None}
    import resource

    limits = {"files": resource.RLIMIT_NOFILE, "processes": resource.RLIMIT_NPROC}
    soft = {name: resource.getrlimit(limit)[0] for name, limit in limits.items()}
    return {name: None if value == resource.RLIM_INFINITY else value for name, value in soft.items()}


def _memory() -> int | None:
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError, AttributeError):
        return None


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _links(topology: str) -> list[list[str]]:
    """How each GPU reaches each other one, as `nvidia-smi topo -m` says: NV18 (NVLink), PIX, PHB, SYS and so on.

    >>> _links("        GPU0    GPU1    CPU Affinity\\nGPU0     X      NV18    0-15\\nGPU1    NV18     X      0-15")
    [['X', 'NV18'], ['NV18', 'X']]
    """
    rows = [line.split()[1:] for line in topology.splitlines() if re.match(r"GPU\d+\s+\S+", line)]
    return [row[: len(rows)] for row in rows]


def _answer(*command: str) -> str:
    """What a command prints; nothing if it is missing or fails."""
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=30).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""
