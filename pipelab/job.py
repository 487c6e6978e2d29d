"""What is to be run, and how? One value, the same on every rank and every machine. Read next: `assembly`."""

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import nn

from pipelab.action import F, parts
from pipelab.checkpoint import Saving
from pipelab.costs import Link, Network
from pipelab.evaluation import Evaluation
from pipelab.loss import Loss
from pipelab.lower import Program, lower
from pipelab.mesh import Mesh
from pipelab.optimizer import Optimizer
from pipelab.partition import cut
from pipelab.stage import Stage
from pipelab.state import State
from pipelab.tied import Tie, find_ties
from pipelab.weight_update import Rate


@dataclass(frozen=True)
class Job:
    """What is to be run, and how: the same on every rank and every machine.

    Without a loss the last stage gives what its layers give; without an optimizer `step` changes no weights.
    """

    model: nn.Sequential
    program: Program
    mesh: Mesh
    device: torch.device
    clock: str
    loss: Loss | None = None
    optimizer: Optimizer | None = None
    seed: int = 0
    transport: str = "memory"
    link: Link | Network = Link()  # noqa: RUF009 (a frozen value)
    blocking: bool = False
    at: list[int] | None = None
    timeout: float = 600.0
    watch: bool = False
    autocast: torch.dtype | None = None
    sequence_parallel: bool = False
    zero: bool = False
    clip: float | None = None
    rate: Rate | None = None
    evaluation: Evaluation | None = None
    start: State | None = None
    saving: Saving | None = None
    make_stage: Callable[..., Stage] = Stage
    checkpointing: tuple[str, ...] = ()
    hoist: int = 0
    """The policy of each stage; an R in the program says for which micro-batches, and `hoist` puts it forward."""
    fed: bool = False
    """Whether somebody listens: then every rank tells what it does (see `feed`)."""

    @property
    def first(self) -> int:
        """The number of the first step: so many have been taken before."""
        return 0 if self.start is None else self.start.step

    @cached_property
    def slices(self) -> list[nn.Sequential]:
        """The layers of each stage, uncut."""
        return cut(self.model, self.program.schedule.stages, at=self.at)

    @cached_property
    def forwards(self) -> Program:
        """The program without its backwards."""
        schedule = self.program.schedule
        rows = tuple(
            tuple(action for element in row for action in parts(element) if action.kind == F) for row in schedule.rows
        )
        return lower(replace(schedule, rows=rows, forward_only=True))

    @cached_property
    def ties(self) -> list[Tie]:
        """The weights that more than one stage has."""
        return find_ties(self.slices)

    @property
    def in_place(self) -> bool:
        """Whether the ranks train the caller's own layers; with replicas, shards and ties they have copies."""
        return (self.mesh.dp, self.mesh.tp) == (1, 1) and not self.ties

    @property
    def written_by(self) -> dict[str, Any]:
        """By what a checkpoint was written, for information."""
        schedule, mesh = self.program.schedule, self.mesh
        return {
            "schedule": schedule.name,
            "microbatches": schedule.microbatches,
            "mesh": {"pp": mesh.pp, "tp": mesh.tp, "dp": mesh.dp},
            "transport": self.transport,
            "torch": torch.__version__,
        }


def usable_device(name: str | torch.device) -> torch.device:
    """The device of this name. Raises ValueError when it is a GPU and there is none, and for other kinds of device."""
    if str(name) not in ("cpu", "cuda", "cuda:0"):
        raise ValueError(f"device is 'cpu' or 'cuda': got {str(name)!r}; which GPU that is, CUDA_VISIBLE_DEVICES says")
    device = torch.device(name)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"device {device}: torch sees no CUDA device here; use device='cpu'")
    return device


def own_device(device: torch.device) -> torch.device:
    """The processor, or this rank's own GPU; ranks share GPUs where they are fewer, which NCCL refuses."""
    if device.type != "cuda":
        return device
    own = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())
    torch.cuda.set_device(own)
    return own
