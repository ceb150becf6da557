"""The devices of a run and the placement of what goes on them."""

import jax
import numpy as np
from jax.experimental.mesh_utils import create_device_mesh, create_hybrid_device_mesh
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from jopd.config import MeshConfig
from jopd.models.sharding import MESH_AXES, spec


def make_mesh(config: MeshConfig, on: list[jax.Device] | None = None) -> Mesh:
    """A mesh with the axes data, fsdp and tensor over all devices, or those that are given.

    Raises:
      ValueError: the axes do not multiply to the number of devices.
    """
    sizes = [config.data, config.fsdp, config.tensor]
    on = jax.devices() if on is None else on
    devices = len(on)
    fixed = int(np.prod([size for size in sizes if size != -1]))
    sizes = [devices // fixed if size == -1 else size for size in sizes]
    if int(np.prod(sizes)) != devices:
        raise ValueError(
            f"mesh data={config.data}, fsdp={config.fsdp}, tensor={config.tensor} does not fill "
            f"the {devices} devices"
        )
    types = (AxisType.Auto,) * len(sizes)
    slices = len({getattr(device, "slice_index", 0) for device in on})
    if slices == 1:
        # An axis may be a part of one of the torus: 4 of 8.
        array = create_device_mesh(sizes, on, allow_split_physical_axes=True)
        return Mesh(array, MESH_AXES, axis_types=types)
    # Between slices the network is slow: `data` alone, which meets once a step, goes across.
    if sizes[0] % slices:
        raise ValueError(
            f"mesh.data={sizes[0]} does not divide over {slices} slices: make it a multiple"
        )
    within = (sizes[0] // slices, *sizes[1:])
    across = (slices, 1, 1)
    array = create_hybrid_device_mesh(within, across, on, allow_split_physical_axes=True)
    return Mesh(array, MESH_AXES, axis_types=types)


def batch_ways(mesh: Mesh) -> int:
    """In how many parts the mesh splits a batch."""
    return mesh.shape["data"] * mesh.shape["fsdp"]


def rows_fed(mesh: Mesh, rows: int) -> list[int]:
    """Which of a batch's rows this process gives to its devices."""
    sharding = NamedSharding(mesh, spec(mesh, (rows,), ("batch",)))
    parts = sharding.addressable_devices_indices_map((rows,)).values()
    return sorted({row for part in parts for row in np.arange(rows)[part].tolist()})


def replicated(mesh: Mesh) -> NamedSharding:
    return NamedSharding(mesh, PartitionSpec())


def place_batch(mesh: Mesh, batch):
    """Puts a tree of host arrays `[rows, ...]` on the devices, split by row. Every process has
    arrays of the whole batch and gives its part of them; what the others give is not read.
    """

    def place(array):
        sharding = NamedSharding(
            mesh, spec(mesh, array.shape, ("batch",) + (None,) * (array.ndim - 1))
        )
        return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])

    return jax.tree.map(place, batch)
