"""How much will each rank hold, and why? Predicted from shapes and from the order of the rows, before anything runs.

Each stage is run once on fake tensors (`footprint`); then the row of every rank is played (`memory_row`). What a row
cannot say is how long messages wait. Those of processes have buffers, which count whole; those of virtual ranks wait
in a mailbox that is no rank's, and are told beside, for stages that work in equal time.
Read first: `holdings` (the causes). Read next: `fit` (what if it is too much?).
"""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from pipelab.action import Action, B, F, I, W, parts
from pipelab.checkpointing import Checkpointing, block_names, policies_of
from pipelab.costs import Costs, Link
from pipelab.data_parallel import buckets
from pipelab.footprint import TILE, FakeStage, Footprint, copies, fake_mode, fake_seat, optimizer_bytes
from pipelab.holdings import COMMUNICATION, flights, steps
from pipelab.loss import Loss, cross_entropy
from pipelab.lower import CARRIES, Program, lower
from pipelab.memory_row import End, Footprints, MemoryRow, works
from pipelab.mesh import Mesh
from pipelab.message_order import AHEAD, RULES, channels, window
from pipelab.microbatches import cut_batch
from pipelab.optimizer import Optimizer, adamw
from pipelab.partition import cut
from pipelab.recompute import NONE
from pipelab.record import parameter_bytes
from pipelab.refusals import CLOCKS, refuse_mesh, refuse_update
from pipelab.schedule import Schedule
from pipelab.simulate import simulate_program
from pipelab.stage import Stage
from pipelab.tensor_parallel import check_tensor_shards, loss_of, shard
from pipelab.transport import Layout
from pipelab.units import listed

Batch = tuple[Tensor, Tensor]
Kinds = tuple[str, ...]


@dataclass(frozen=True)
class Prediction:
    """The bytes that each rank of a pipeline is predicted to hold.

    `causes` says for each rank what it holds at its worst moment, by cause, also "working"; `peaks` has the most of
    each cause, as `Memory.peaks_by_cause` measures it, and `activations` what `Memory.peaks` will be. `waiting` is the
    most that the messages for a virtual rank come to which it has not taken yet: in `peaks`, but in no total.
    """

    mesh: Mesh
    causes: tuple[Mapping[str, int], ...]
    peaks: tuple[Mapping[str, int], ...]
    activations: tuple[int, ...]
    waiting: tuple[int, ...]

    @property
    def totals(self) -> tuple[int, ...]:
        """The most bytes that each rank of a pipeline has in use at once."""
        return tuple(sum(held.values()) for held in self.causes)

    @property
    def everywhere(self) -> int:
        """All ranks of the mesh together, and what waits between them, as where they share a host."""
        return (sum(self.totals) + sum(self.waiting)) * self.mesh.dp * self.mesh.tp

    def __str__(self) -> str:
        """A line a rank, in MiB, or in GiB where a rank holds one.

        >>> print(Prediction(Mesh(), ({"parameters": 2**20, "activations": 2**21},), ({},), (0,), (0,)))
        rank 0: 3.00 MiB = parameters 1.00 + activations 2.00
        """
        unit, name = (2**30, "GiB") if max(self.totals) >= 2**30 else (2**20, "MiB")
        lines = []
        for rank, held in enumerate(self.causes):
            shares = " + ".join(f"{cause} {size / unit:.2f}" for cause, size in held.items() if size)
            lines.append(f"rank {rank}: {self.totals[rank] / unit:.2f} {name} = {shares}")
        return "\n".join(lines)


def predict_memory(
    model: nn.Sequential, schedule: Schedule, batch: Batch, mesh: Mesh | None = None, *,
    loss: Loss = cross_entropy, optimizer: Optimizer = adamw, at: Sequence[int] | None = None,
    zero: bool = False, sequence_parallel: bool = False, checkpointing: str | Sequence[str] = NONE, hoist: int = 0,
    device: str | torch.device = "cpu", transport: str = "memory", make_stage: Callable[..., Stage] = Stage,
) -> Prediction:  # fmt: skip
    """What each rank of `train(model, [batch], schedule, mesh, ...)` will hold; nothing is computed or changed.

    Replicas hold alike, and so do tensor shards; told is the first of each, which has the most where rows are uneven.
    The model and the batch may lie on the device "meta", where nothing has memory. Raises ValueError for a schedule
    without a backward, for what `train` refuses, and for layers that look at numbers.

    >>> from pipelab import build
    >>> with torch.device("meta"):  # parameters of 4 GiB
    ...     model = nn.Sequential(*(nn.Linear(2**14, 2**14) for _ in range(4)))
    ...     batch = torch.zeros(64, 2**14), torch.zeros(64, dtype=torch.int64)
    >>> held = predict_memory(model, build("1f1b", 2, 4), batch)
    >>> [round(total / 2**30) for total in held.totals]
    [10, 10]
    """
    if schedule.forward_only:
        raise ValueError(f"{schedule.name} has no backward; memory is predicted of schedules that train")
    mesh = mesh or Mesh(pp=schedule.ranks)
    device = str(device).partition(":")[0]
    for what, given, known in (("device", device, TILE), ("transport", transport, CLOCKS)):
        if given not in known:
            raise ValueError(f"memory is predicted for {what} {listed(list(known))}: got {given!r}")
    refuse_mesh(mesh, schedule, Link())
    refuse_update(mesh, None, zero, sequence_parallel)
    cut_batch(0, batch, mesh.dp * schedule.microbatches)
    check_tensor_shards(model, mesh.tp, sequence_parallel=sequence_parallel)
    by_stage = policies_of(model, schedule.stages, checkpointing, at)
    program, tile, mode = lower(schedule, mesh, checkpointing=by_stage, hoist=hoist), TILE[device], fake_mode()
    slices = cut(model, schedule.stages, at=at)
    if mesh.tp > 1:
        seat = fake_seat(mesh.tp)
        slices = [shard(layers, seat, sequence_parallel=sequence_parallel) for layers in copies(slices, "meta")]
    split = {action.stage for _, _, action in schedule.actions() if action.kind == W}
    with mode:
        try:
            slices = copies(slices)
            if mesh.tp > 1:
                loss = loss_of(slices[-1], loss)
            stages = [
                FakeStage(
                    layers, first=stage == 0, loss=loss if stage == schedule.stages - 1 else None, split=stage in split,
                    tile=tile, make_stage=make_stage,
                    checkpointing=None if by_stage[stage] == NONE else partial(
                        Checkpointing, layers, by_stage[stage], block_names(model), ()
                    ),
                )
                for stage, layers in enumerate(slices)
            ]  # fmt: skip
            found = _footprints(stages, program, batch, mesh.dp)
            ends = [_end(stages, program, rank, mesh.dp, optimizer, zero, device) for rank in range(schedule.ranks)]
        except Exception as error:
            what = f"{type(error).__name__}: {error}"
            raise ValueError(f"the memory of this model cannot be predicted without running it ({what})") from error
    none = [0] * schedule.ranks
    buffers, waiting = (
        (none, _waiting(program, found)) if transport == "memory" else (_buffers(program, found, transport), none)
    )
    rows = [MemoryRow(rank, program, found, *kept) for rank, kept in enumerate(zip(ends, buffers, strict=True))]
    for row in rows:
        row.play()
    peaks = (
        {**row.most, COMMUNICATION: row.most[COMMUNICATION] + most} for row, most in zip(rows, waiting, strict=True)
    )
    return Prediction(
        mesh, tuple(r.worst for r in rows), tuple(peaks), tuple(r.activations for r in rows), tuple(waiting)
    )


def _end(
    stages: Sequence[FakeStage], program: Program, rank: int, replicas: int, optimizer: Optimizer, zero: bool,
    device: str,
) -> End:  # fmt: skip
    """What a rank's update takes; with ZeRO-1 it has copies of its share of the weights, and works on those."""
    own = {stage: stages[stage].stage.layers for stage in program.placement.stages_on(rank)}
    parameters = list({id(p): p for layers in own.values() for p in layers.parameters()}.values())
    weights = parameter_bytes(own)
    packed = [b for stage, layers in own.items() for b in buckets(stage, layers.parameters())] if replicas > 1 else []
    largest = max((sum(p.nbytes for p in bucket.parameters) for bucket in packed), default=0)
    if not zero:
        states, update = optimizer_bytes(optimizer, parameters, device)
        return End(weights, states, update, largest)
    sizes = [(-(-sum(p.numel() for p in b.parameters) // replicas), b.parameters[0].dtype) for b in packed]
    shares = [nn.Parameter(Layout((size,), dtype).empty()) for size, dtype in sizes]
    for bucket, share in zip(packed, shares, strict=True):
        weights[bucket.stage] += share.nbytes
    states, update = optimizer_bytes(optimizer, shares, device)
    sums = sum(share.nbytes for share in shares)
    return End(weights, states, update + sums, max(largest, sums))


def _footprints(stages: Sequence[FakeStage], program: Program, batch: Batch, replicas: int) -> Footprints:
    """The footprints of all micro-batches; those of equal shapes and equal actions are measured once."""
    kinds: dict[tuple[int, int], Kinds] = defaultdict(tuple)
    for row in program.rows:
        for action in (action for element in row if works(element) for action in parts(element)):
            kinds[action.stage, action.microbatch] += (action.kind,)
    count = program.schedule.microbatches
    cuts = cut_batch(0, batch, replicas * count)
    inputs, targets = ([Layout.of(one) for one in tensors[:count]] for tensors in cuts)  # those of the first replica
    known: dict[object, tuple[tuple[Mapping[str, Footprint], Mapping[str, Footprint]], Layout]] = {}
    found = {}
    for microbatch, (x, target) in enumerate(zip(inputs, targets, strict=True)):
        for stage, fake in enumerate(stages):
            goal = target if fake.stage.loss is not None else None
            key = stage, x, goal, kinds[stage, microbatch]
            if key not in known:
                fake.forget_gradients()
                first, output = fake.footprints(kinds[stage, microbatch], x, goal)
                known[key] = (first, fake.footprints(kinds[stage, microbatch], x, goal)[0]), output
                fake.forget_gradients()
            found[stage, microbatch], x = known[key]
    return found


def _buffers(program: Program, found: Footprints, transport: str) -> list[int]:
    """The buffers that each process may use at once, for what it sends and what it posts receives for."""
    most = [0] * program.schedule.ranks
    width = window(program)
    for channel, traffic in channels(program).items():
        size = max(_size(send, found) for send in traffic.sent)
        most[channel.sender] += size * min(width, len(traffic.sent))
        most[channel.receiver] += size * min(AHEAD[RULES[transport]] + 1, len(traffic.sent))
    return most


def _waiting(program: Program, found: Footprints) -> list[int]:
    """The most that messages come to which each virtual rank has not taken yet, where all stages take equal time."""
    spans = simulate_program(program, Costs.uniform()).spans
    sizes = {send: _size(send, found) for traffic in channels(program).values() for send in traffic.sent}
    curves = (steps(flights(spans, sizes, rank)) for rank in range(program.schedule.ranks))
    return [max((held for _, held in curve), default=0) for curve in curves]


def _size(send: Action, found: Footprints) -> int:
    kinds, _ = found[send.stage, send.microbatch]
    return max(
        (kinds[kind].given for kind in ((F,) if CARRIES[send.kind] == F else (B, I)) if kind in kinds), default=0
    )
