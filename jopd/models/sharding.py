"""Where each array lives: logical axes, the mesh axes that they map to, and the placement of every
parameter.

The mesh has three axes. `data` and `fsdp` both split the batch; `fsdp` also splits the parameters,
gathered where they are used; `tensor` splits heads, the MLP's width and the vocabulary. Code names
logical axes only; these tables are the one place that maps them.

                        training and scoring           while a token a step is written
    layers' kernels     fsdp × tensor: gathered layer  tensor: gathered once before the loop, as
                        by layer, once a pass          each token would gather all of them again
    embedding           vocabulary over tensor, width  vocabulary over tensor
                        over fsdp
    output head         in the vocabulary stage the    as the embedding
                        vocabulary over tensor × fsdp:
                        what travels in a chunk are
                        its hidden states, and no
                        device holds or sums the
                        gradient of a whole head
    hidden states       rows over data × fsdp; in the  rows over data × fsdp
                        vocabulary stage over data
    keys and values                                    rows over data × fsdp, heads over tensor
"""

import math
from typing import Any

import jax
import numpy as np
from jax.experimental.multihost_utils import process_allgather
from jax.sharding import Mesh, NamedSharding, PartitionSpec

MESH_AXES = ("data", "fsdp", "tensor")

RULES: dict[str, tuple[str, ...]] = {
    "batch": ("data", "fsdp"),
    "embed": ("fsdp",),
    "heads": ("tensor",),
    "mlp": ("tensor",),
    "vocabulary": ("tensor",),
    # Of the vocabulary stage: its logits are [rows, time, entries].
    "stage_rows": ("data",),
    "stage_entries": ("tensor", "fsdp"),
}

# The logical axes of a kernel, by the name of the layer that owns it; a bias has the last one.
KERNELS = {
    "embedding": ("vocabulary", "embed"),
    "output_head": ("embed", "vocabulary"),
    "query": ("embed", "heads"),
    "key": ("embed", "heads"),
    "value": ("embed", "heads"),
    "output": ("heads", "embed"),
    "gate": ("embed", "mlp"),
    "up": ("embed", "mlp"),
    "down": ("mlp", "embed"),
}


def constrain(x: jax.Array, *axes: str | None) -> jax.Array:
    """Places an intermediate by its logical axes; does nothing outside a mesh."""
    mesh = jax.sharding.get_abstract_mesh()
    return x if mesh.empty else jax.lax.with_sharding_constraint(x, spec(mesh, x.shape, axes))


def spec(mesh, shape: tuple[int, ...], axes: tuple[str | None, ...]) -> PartitionSpec:
    """The partition of an array; an axis that the mesh does not divide stays whole, or is split by
    the first of its mesh axes that do.
    """

    def names(size: int, axis: str | None) -> tuple[str, ...] | None:
        of_axis = () if axis is None else RULES[axis]
        while of_axis and size % math.prod(mesh.shape[name] for name in of_axis):
            of_axis = of_axis[:-1]
        return of_axis or None

    return PartitionSpec(*(names(*each) for each in zip(shape, axes, strict=True)))


def for_decoding(model: Any) -> Any:
    """A model's parameters as the decode loop wants them: whole but for their tensor axes. Called
    outside the loop, where each is gathered once.
    """

    def place(path, leaf):
        *names, _ = (key.name for key in path)  # the last one is the array of a variable
        axes = parameter_axes(tuple(names), leaf.ndim)
        return constrain(leaf, *(None if axis == "embed" else axis for axis in axes))

    return jax.tree_util.tree_map_with_path(place, model)


def ways(size: int, axis: str) -> int:
    """In how many parts the mesh splits an array along a logical axis of that size."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return 1
    names = spec(mesh, (size,), (axis,))[0] or ()
    return math.prod(mesh.shape[name] for name in names)


def of_shards(x, shards: int, axis: int, function, *others):
    """`function` of each shard's rows, which lie along an axis, and its part of the others; nothing
    leaves its device.
    """
    split = x.reshape(*x.shape[:axis], shards, -1, *x.shape[axis + 1 :])
    over_layers = function if not axis else jax.vmap(function, (0, *(None,) * len(others)))
    done = jax.vmap(over_layers, (axis, *(0,) * len(others)), axis)(split, *others)
    return done.reshape(*x.shape[:axis], -1, *done.shape[axis + 2 :])


def on_host(tree: Any) -> Any:
    """The whole arrays of a tree on every host, wherever their parts are; on several processes all
    call this.
    """
    if jax.process_count() == 1:
        return jax.device_get(tree)
    whole = lambda x: (
        process_allgather(x, tiled=True)
        if isinstance(x, jax.Array) and not (x.is_fully_replicated or x.is_fully_addressable)
        else np.asarray(x)
    )
    return jax.tree.map(whole, tree)


def parameter_axes(path: tuple[str, ...], ndim: int) -> tuple[str | None, ...]:
    """The logical axes of the parameter at `path` in a model's nested dict."""
    owner = path[-1] if path[-1] in KERNELS else path[-2]
    if owner not in KERNELS:  # norms
        return (None,) * ndim
    rows, columns = KERNELS[owner]
    axes = {"bias": (columns,), "lora_a": (rows, None), "lora_b": (None, columns)}.get(
        path[-1], (rows, columns)
    )
    return (None,) * (ndim - len(axes)) + axes  # stacked layers come first


def parameter_shardings(mesh: Mesh, params):
    """The `NamedSharding` of every leaf of a tree of parameters (arrays or shapes), optimiser
    moments included.

    Leaves whose path does not end in a parameter's name (counts, scalars) are replicated, and so is
    all that stands under "modules".
    """

    def place(path, leaf):
        names = tuple(key.key for key in path if isinstance(key, jax.tree_util.DictKey))
        if "modules" in names or (
            len(names) < 2 and names[-1:] not in [("embedding",), ("output_head",)]
        ):
            return NamedSharding(mesh, PartitionSpec())
        return NamedSharding(mesh, spec(mesh, leaf.shape, parameter_axes(names, len(leaf.shape))))

    return jax.tree_util.tree_map_with_path(place, params)
