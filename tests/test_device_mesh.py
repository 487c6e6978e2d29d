"""Our groups are those of torch's DeviceMesh, and a run may be given either."""

import pytest
import torch

import pipelab as pl
from pipelab.device_mesh import from_device_mesh, to_device_mesh
from pipelab.launcher import launch
from pipelab.mesh import Mesh

MESH = Mesh(dp=2, pp=2, tp=2)


def on_a_rank():
    import torch.distributed as dist
    from torch.distributed.device_mesh import init_device_mesh

    dist.init_process_group("gloo")
    rank, theirs = dist.get_rank(), to_device_mesh(MESH)
    groups = {axis: tuple(dist.get_process_group_ranks(theirs.get_group(axis))) for axis in ("dp", "pp", "tp")}
    refused = []
    for names in (("a", "b", "c"), ("tp", "pp", "dp")):
        try:
            from_device_mesh(init_device_mesh("cpu", (2, 2, 2), mesh_dim_names=names))
        except ValueError as error:
            refused.append(str(error))
    back = from_device_mesh(theirs)
    batch = torch.ones(4, 4), torch.zeros(4, dtype=torch.int64)
    model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Linear(4, 3))
    small = init_device_mesh("cpu", (4, 2), mesh_dim_names=("dp", "pp"))
    run = pl.train(model, [batch], pl.build("1f1b", 2, 1), small, transport="gloo")
    return rank, groups, back, refused, run.mesh


def test_groups_are_those_of_torch_both_ways():
    results = launch(on_a_rank, ranks=8)
    for rank, groups, back, refused, mesh in results:
        assert groups == {axis: MESH.group(axis, rank) for axis in ("dp", "pp", "tp")}
        assert back == MESH and mesh == Mesh(dp=4, pp=2)
        assert "name them among dp, pp and tp" in refused[0] and "tp varying fastest" in refused[1]


def test_what_is_no_mesh_is_refused():
    with pytest.raises(ValueError, match="mesh"):
        pl.train(torch.nn.Sequential(torch.nn.Linear(2, 2)), [], pl.build("naive", 1, 1), mesh=4)
