"""What does training refuse before any work? Each raises ValueError with the remedy."""

import os

import torch
from torch import nn

from pipelab.costs import Link, Network
from pipelab.evaluation import Evaluation
from pipelab.mesh import Mesh
from pipelab.microbatches import split_batch
from pipelab.schedule import Schedule
from pipelab.world import is_rank

CLOCKS = {"memory": "virtual", "gloo": "virtual", "nccl": "wall"}
"""The transports, and the clock of each unless said otherwise."""
COMMUNICATION = ("overlapped", "blocking")


def refuse_mesh(mesh: Mesh, schedule: Schedule, link: Link | Network) -> None:
    if mesh.pp != schedule.ranks:
        raise ValueError(f"the mesh has pp={mesh.pp} and the schedule {schedule.ranks} ranks; make them equal")
    if not schedule.flush and (mesh.dp, mesh.tp) != (1, 1):
        raise ValueError(
            f"{schedule.name} updates its weights after each micro-batch, so nothing is summed over replicas or shards:"
            f" got dp={mesh.dp}, tp={mesh.tp}; leave both at 1, or take 1f1b"
        )
    if isinstance(link, Network) and len(link.host_of) != mesh.size:
        raise ValueError(f"the network names the hosts of {len(link.host_of)} ranks, and the mesh has {mesh.size}")


def refuse_update(mesh: Mesh, clip: float | None, zero: bool, sequence_parallel: bool) -> None:
    if clip is not None and not clip > 0:
        raise ValueError(f"clip is the largest norm of the gradients, and positive: got {clip}; leave it out for none")
    if zero and mesh.dp == 1:
        raise ValueError("zero shares the optimizer's state among replicas; there is one: raise dp, or leave it out")
    if sequence_parallel and mesh.tp == 1:
        raise ValueError("sequence_parallel shares tokens among tensor shards; there is one: raise tp, or leave it out")


def refuse_shapes_alone(model: nn.Module) -> None:
    if any(parameter.is_meta for parameter in model.parameters()):
        raise ValueError(
            "the model lies on the device meta, where nothing has values; predict_memory tells what it would hold, and"
            " to train, build it on a real device"
        )


def refuse_evaluation(evaluation: Evaluation | None, microbatches: int) -> None:
    for batch in evaluation.batches if evaluation is not None else ():
        try:
            split_batch(0, batch, microbatches)
        except ValueError as error:
            raise ValueError(f"evaluation, {error}") from error


def refuse_machine(
    transport: str, device: torch.device, comm: str, mesh: Mesh, clock: str | None, link: Link | Network
) -> None:
    if transport not in CLOCKS:
        raise ValueError(f"transport {transport} is not there; it is one of {', '.join(CLOCKS)}")
    if comm not in COMMUNICATION:
        raise ValueError(f"comm is {' or '.join(map(repr, COMMUNICATION))}: got {comm!r}")
    if torch.is_autocast_enabled(device.type):
        raise ValueError("torch.autocast around train does not reach its ranks; give train autocast=torch.bfloat16")
    if transport == "nccl" and clock == "virtual":
        raise ValueError("transport nccl runs on the wall clock; use memory or gloo for virtual time")
    if transport == "nccl" and link != Link():
        raise ValueError("transport nccl has real links: leave latency and bandwidth out, or use memory or gloo")
    if transport == "nccl":
        here = int(os.environ.get("LOCAL_WORLD_SIZE", mesh.size)) if is_rank() else mesh.size
        gpus = torch.cuda.device_count()
        if device.type != "cuda":
            raise ValueError(f"transport nccl moves data between GPUs: got device {device}; use gloo, or device cuda")
        if gpus < here:
            raise ValueError(f"transport nccl needs a GPU a rank: {here} ranks and {gpus} GPUs on this host; use gloo")
