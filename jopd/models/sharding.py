"""Where each array lives: logical axes, the mesh axes that they map to, and the placement of every
parameter.

The mesh has three axes. `data` and `fsdp` both split the batch; `fsdp` also splits the parameters,
gathered where they are used; `tensor` splits heads, the MLP's width and the vocabulary. Code names
logical axes only; this table is the one place that maps them.
"""

import math

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

MESH_AXES = ("data", "fsdp", "tensor")

RULES: dict[str, str | tuple[str, ...]] = {
    "batch": ("data", "fsdp"),
    "embed": "fsdp",
    "heads": "tensor",
    "mlp": "tensor",
    "vocabulary": "tensor",
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
    """The partition of an array; an axis that the mesh does not divide stays whole."""
    names = [None if axis is None else RULES[axis] for axis in axes]
    ways = [
        math.prod(mesh.shape[n] for n in ((name,) if isinstance(name, str) else name or ()))
        for name in names
    ]
    return PartitionSpec(
        *(
            name if size % way == 0 else None
            for name, size, way in zip(names, shape, ways, strict=True)
        )
    )


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
