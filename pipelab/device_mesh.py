"""How do pipelab's mesh and torch's DeviceMesh become one another? Same axes, same order, same global ranks."""

from typing import Any

from pipelab.mesh import Mesh

AXES = ("dp", "pp", "tp")


def to_device_mesh(mesh: Mesh, device_type: str = "cpu") -> Any:
    """The `torch.distributed` DeviceMesh with this mesh's axes; every rank of a process group of its size calls it.

    `to_device_mesh(mesh)["tp"]` is then what `parallelize_module` or FSDP take. Raises RuntimeError without as many
    processes.
    """
    from torch.distributed.device_mesh import init_device_mesh

    return init_device_mesh(device_type, (mesh.dp, mesh.pp, mesh.tp), mesh_dim_names=AXES)


def from_device_mesh(device_mesh: Any) -> Mesh:
    """The Mesh with the axes of a DeviceMesh; those that it lacks are 1.

    Raises ValueError for other names than dp, pp and tp, or global ranks in another order than `Mesh` has.
    """
    names = tuple(device_mesh.mesh_dim_names or ())
    if not names or set(names) - set(AXES):
        raise ValueError(f"the dims of the mesh are named {names}; name them among dp, pp and tp (mesh_dim_names=...)")
    mesh = Mesh(**dict(zip(names, device_mesh.mesh.shape, strict=True)))
    in_order = device_mesh.mesh.permute(*sorted(range(len(names)), key=lambda dim: AXES.index(names[dim])))
    if in_order.flatten().tolist() != list(range(mesh.size)):
        raise ValueError("the global ranks of the mesh are not 0, 1, ... in the order dp, pp, tp, tp varying fastest")
    return mesh
