"""What must be kept so that training can go on? Every value under the name it has in the uncut model.

A name such as `3.attention.qkv.weight` says nothing of ranks, so what one cut has left any other can take up. Two
things need no values of their own: random numbers are keyed by (seed, step, layer, micro-batch), see `randomness`, and
the data cursor is the number of batches consumed, which is that of the next step. So is the place in a learning-rate
schedule, a function of the step. Read next: `parts`, `checkpoint`.
"""

import copy
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from pipelab.optimizer import Optimizer, apart_from_gpus

Entries = dict[str, dict[str, Any]]
"""What an optimizer remembers of each parameter, such as `exp_avg` and `step` under `3.attention.qkv.weight`."""


@dataclass(frozen=True, repr=False)
class State:
    """Where training stands between two steps: copies on the CPU, that no later step changes.

    `step` batches have been consumed, with the losses `losses`; the next step has that number. `model` has parameters
    and buffers as `state_dict` names them, `optimizer` the entries of each parameter (a tied one has them under each of
    its names) and `kind` its class. `written_by`
    tells the schedule and the mesh, for information only; `source` is what to call this state in a sentence.
    """

    step: int
    seed: int
    losses: tuple[float, ...]
    model: dict[str, Tensor]
    optimizer: Entries
    kind: str
    written_by: dict[str, Any] = field(default_factory=dict)
    source: str = "the run"

    def __repr__(self) -> str:
        return f"<State of {len(self.model)} tensors after {self.step} steps, with {self.kind}>"


def values_of(model: nn.Module) -> dict[str, Tensor]:
    """The tensors that `state_dict` names: parameters, and the buffers that are to be kept.

    >>> sorted(values_of(nn.Sequential(nn.Linear(2, 3), nn.ReLU())))
    ['0.bias', '0.weight']
    """
    return {name: value for name, value in model.state_dict().items() if isinstance(value, Tensor)}


def copied(values: dict[str, Any]) -> dict[str, Any]:
    """Copies that share nothing with the values; tensors on the CPU."""
    return {
        name: value.detach().to("cpu", copy=True).contiguous() if isinstance(value, Tensor) else copy.deepcopy(value)
        for name, value in values.items()
    }


def put_back(state: State, model: nn.Module) -> None:
    """Give the model the values of the state, in place."""
    with torch.no_grad():
        for name, ours in values_of(model).items():
            ours.copy_(state.model[name])


def remind(optimizer: torch.optim.Optimizer, known: Mapping[int, dict[str, Any]]) -> None:
    """Let an optimizer that was just made remember what is known of its parameters, by their id.

    Settings such as the learning rate stay those that it was made with.
    """
    own = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    state = {place: copied(known[id(parameter)]) for place, parameter in enumerate(own) if known.get(id(parameter))}
    optimizer.load_state_dict({**optimizer.state_dict(), "state": state})


def names_of(parts: Iterable[nn.Module]) -> dict[int, list[str]]:
    """The names of each parameter, by its id: one that is tied has several."""
    names: dict[int, list[str]] = {}
    for part in parts:
        for name, parameter in part.named_parameters(remove_duplicate=False):
            names.setdefault(id(parameter), []).append(name)
    return names


def refuse_what_does_not_fit(state: State, model: nn.Module, optimizer: Optimizer, seed: int) -> None:
    """Raise ValueError unless the state is one of this model, this kind of optimizer and this seed."""
    if seed != state.seed:
        raise ValueError(
            f"{state.source} was trained with seed {state.seed}, not {seed}, and would go on with other random numbers;"
            f" give seed {state.seed}"
        )
    _refuse_model(state, model)
    _refuse_optimizer(state, model, optimizer)


def _refuse_model(state: State, model: nn.Module) -> None:
    ours, theirs = values_of(model), state.model
    for name in (*theirs, *ours):
        if name not in ours or name not in theirs:
            has, lacks = (state.source, "this model") if name in theirs else ("this model", state.source)
            raise ValueError(f"{has} has {name} and {lacks} has not; build the model that was trained")
    for name, tensor in theirs.items():
        if ours[name].shape != tensor.shape:
            shapes = f"{list(tensor.shape)} in {state.source} and {list(ours[name].shape)} in this model"
            raise ValueError(f"{name} is {shapes}; build the model that was trained")
        if ours[name].dtype != tensor.dtype:
            there, here = (str(each.dtype).removeprefix("torch.") for each in (tensor, ours[name]))
            raise ValueError(f"{name} is {there} in {state.source} and {here} in this model; build it in {there}")
    for first, *others in names_of([model]).values():
        for other in others:
            if not torch.equal(theirs[first], theirs[other]):
                raise ValueError(
                    f"{first} and {other} are one parameter in this model and two in {state.source}; build the model"
                    " that was trained"
                )


def _refuse_optimizer(state: State, model: nn.Module, optimizer: Optimizer) -> None:
    """Let the optimizer take a step with copies of the parameters, and look what it remembers of each."""
    parameters = dict(model.named_parameters())
    probes = {name: nn.Parameter(parameters[name].detach().clone()) for name in parameters if state.optimizer.get(name)}
    for probe in probes.values():
        probe.grad = torch.zeros_like(probe)
    made = apart_from_gpus(optimizer(list(probes.values()) or list(parameters.values())))
    kind = type(made).__name__
    if kind != state.kind:
        raise ValueError(f"{state.source} was trained with {state.kind}, not {kind}; give that optimizer")
    if probes:
        made.step()
    for name, probe in probes.items():
        ours, theirs = (_shapes(entry) for entry in (made.state[probe], state.optimizer[name]))
        if ours != theirs:
            differ = " and ".join(sorted(key for key, _ in ours ^ theirs))
            raise ValueError(
                f"this {kind} and that of {state.source} differ in {differ} of {name}; give it its settings"
            )


def _shapes(entry: Mapping[str, Any]) -> set[tuple[str, torch.Size | None]]:
    return {(kind, value.shape if isinstance(value, Tensor) else None) for kind, value in entry.items()}
