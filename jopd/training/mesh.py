"""The devices of a run and the placement of what goes on them."""

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from jopd.config import MeshConfig
from jopd.models.sharding import MESH_AXES, spec


def make_mesh(config: MeshConfig) -> Mesh:
    """A mesh with the axes data, fsdp and tensor over all devices.

    Raises:
      ValueError: the axes do not multiply to the number of devices.
    """
    sizes = [config.data, config.fsdp, config.tensor]
    devices = jax.device_count()
    fixed = int(np.prod([size for size in sizes if size != -1]))
    sizes = [devices // fixed if size == -1 else size for size in sizes]
    if int(np.prod(sizes)) != devices:
        raise ValueError(
            f"mesh data={config.data}, fsdp={config.fsdp}, tensor={config.tensor} does not fill "
            f"the {devices} devices"
        )
    return jax.make_mesh(tuple(sizes), MESH_AXES, axis_types=(AxisType.Auto,) * len(sizes))


def batch_ways(mesh: Mesh) -> int:
    """In how many parts the mesh splits a batch."""
    return mesh.shape["data"] * mesh.shape["fsdp"]


def replicated(mesh: Mesh) -> NamedSharding:
    return NamedSharding(mesh, PartitionSpec())


def place_batch(mesh: Mesh, batch):
    """Puts a tree of host arrays `[rows, ...]` on the devices, split by row. Every process holds
    the whole batch and gives its part.
    """

    def place(array):
        sharding = NamedSharding(
            mesh, spec(mesh, array.shape, ("batch",) + (None,) * (array.ndim - 1))
        )
        return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])

    return jax.tree.map(place, batch)
