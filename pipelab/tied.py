"""What if two layers share a weight and live on different ranks? Each rank has a copy, and the copies stay equal.

GPT-2's head uses the embedding's matrix: the first and the last stage. Both copies begin equal, their gradients are
summed once a step, after all of both, and so the optimizers make the same update. Where both stages are on one rank, as
in a V placement, there is one parameter and nothing to do (Narayanan et al. 2021; Megatron-LM's embedding group).
"""

from collections.abc import Mapping, Sequence

from torch import nn

Tie = tuple[tuple[int, str], ...]
"""The places of one parameter: (stage, name in the stage's layers)."""


def find_ties(parts: Sequence[nn.Module]) -> list[Tie]:
    """The parameters that more than one stage has, each with all its places.

    >>> from collections import OrderedDict
    >>> first, last = nn.Linear(2, 2), nn.Linear(2, 2)
    >>> last.weight = first.weight
    >>> find_ties([nn.Sequential(OrderedDict({"0": first})), nn.Sequential(OrderedDict({"1": last}))])
    [((0, '0.weight'), (1, '1.weight'))]
    """
    places: dict[int, list[tuple[int, str]]] = {}
    for stage, part in enumerate(parts):
        for name, parameter in part.named_parameters(remove_duplicate=False):
            places.setdefault(id(parameter), []).append((stage, name))
    return [tuple(tie) for tie in places.values() if len({stage for stage, _ in tie}) > 1]


def tie(own: Mapping[int, nn.Module], ties: Sequence[Tie]) -> dict[int, nn.Parameter]:
    """Make the places of each tie that a rank holds one parameter, which no other rank has.

    Gives it by the tie's number. The rank with a tie's first place keeps that parameter, others have a copy.
    """
    held: dict[int, nn.Parameter] = {}
    for number, places in enumerate(ties):
        here = [(own[stage], name) for stage, name in places if stage in own]
        if not here:
            continue
        layers, name = here[0]
        parameter = layers.get_parameter(name)
        if places[0][0] not in own:
            parameter = nn.Parameter(parameter.detach().clone(), parameter.requires_grad)
        for layers, name in here:
            path, _, leaf = name.rpartition(".")
            layers.get_submodule(path)._parameters[leaf] = parameter
        held[number] = parameter
    return held
