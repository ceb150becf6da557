"""What the losses do along the vocabulary, always the last axis, so that it may be long and may be
sharded.

Nothing here gathers the vocabulary onto one device: a chosen token's log-probability is a
compare-and-sum, and a top-k is taken inside groups of the vocabulary first, so that only each
group's best candidates travel.
"""

import functools
import math

import jax
import jax.numpy as jnp
from jax.experimental.custom_partitioning import custom_partitioning
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array, Bool, Float, Int

# A vocabulary axis cut evenly over up to 128 devices keeps every group whole on one of them.
_GROUPS = 128


def accumulator(dtype: jnp.dtype) -> jnp.dtype:
    """The type that log-probabilities of such values are computed in: float32, or float64 for
    float64.

    >>> accumulator(jnp.dtype("bfloat16"))
    dtype('float32')
    """
    return jnp.dtype(jnp.float64 if dtype == jnp.float64 else jnp.float32)


def product(equation: str, left: Float[Array, "..."], right: Float[Array, "..."]) -> Array:
    """`einsum` of two arrays of one type, summed in float32 or wider.

    >>> product("i,i->", *jnp.ones((2, 3), jnp.bfloat16)).dtype
    dtype('float32')
    """
    wide = accumulator(left.dtype)
    narrow = lambda a, b: jnp.einsum(equation, a, b, preferred_element_type=wide)
    if left.dtype == wide:
        return narrow(left, right)
    # XLA's CPU backend stops at some products of 16 bits that are summed in 32 (jax 0.10, 0.11).
    widened = lambda a, b: jnp.einsum(equation, a.astype(wide), b.astype(wide))
    return jax.lax.platform_dependent(left, right, cpu=widened, default=narrow)


def log_softmax(logits: Float[Array, "*n V"], temperature: float = 1.0) -> Float[Array, "*n V"]:
    """Log-probabilities of `logits / temperature`, in float32 or wider whatever the logits' type.

    >>> print(jnp.exp(log_softmax(jnp.log(jnp.array([1.0, 9.0])), 2.0)))
    [0.25 0.75]
    """
    logits = logits.astype(accumulator(logits.dtype))
    if temperature != 1:
        # Divided as distances from the best logit: a small temperature would round the best away.
        best = jax.lax.stop_gradient(jnp.max(logits, axis=-1, keepdims=True))
        logits = (logits - best) / temperature
    return jax.nn.log_softmax(logits, axis=-1)


def log_prob_of(logp: Float[Array, "*n V"], tokens: Int[Array, "*n"]) -> Float[Array, "*n"]:
    """`logp[..., tokens]` as a compare-and-sum: safe beside entries of -inf, local where the
    vocabulary is sharded.

    >>> print(log_prob_of(jnp.array([[-1.0, -2.0], [-3.0, -4.0]]), jnp.array([1, 0])))
    [-2. -3.]
    """
    ids = jax.lax.broadcasted_iota(tokens.dtype, logp.shape, logp.ndim - 1)
    return jnp.sum(jnp.where(ids == tokens[..., None], logp, 0), axis=-1)


def top_k(x: Float[Array, "*n V"], k: int) -> tuple[Float[Array, "*n k"], Int[Array, "*n k"]]:
    """The `k` largest entries and their ids, as `jax.lax.top_k` gives them, ties included; `k` is
    clipped to V.

    >>> values, ids = top_k(jnp.array([0.1, 0.7, 0.2]), 2)
    >>> print(values, ids)
    [0.7 0.2] [1 2]

    Not differentiable: pass `stop_gradient(x)`.
    """
    return _search(x, min(k, x.shape[-1]))


def in_top_k(x: Float[Array, "*n V"], k: int) -> Bool[Array, "*n V"]:
    """Which entries are among the `k` largest of their row: exactly min(k, V) of them, ties going
    to the lowest id.

    >>> print(in_top_k(jnp.array([0.1, 0.7, 0.2]), 2))
    [False  True  True]
    """
    # The barrier gives the search and the comparison below the very same floats: fused apart, they
    # could differ in the last bit.
    x = jax.lax.optimization_barrier(jax.lax.stop_gradient(x))
    values, ids = top_k(x, k)
    # And this one keeps the kth entry from being looked up again for each entry that is compared
    # with it.
    value, last = jax.lax.optimization_barrier((values[..., -1:], ids[..., -1:]))
    columns = jax.lax.broadcasted_iota(ids.dtype, x.shape, x.ndim - 1)
    return (x > value) | ((x == value) & (columns <= last))


# On TPU, XLA splits a top-k over devices along its leading axes, and we add the vocabulary in
# groups. Elsewhere a top-k is an opaque call whose whole operand the partitioner would gather, so
# there we say by hand what each device does. (TPU programs compiled ahead of time cannot hold such
# a call.)


def _search(x, k):
    @jax.custom_batching.custom_vmap
    def search(x):
        return jax.lax.platform_dependent(
            x,
            tpu=functools.partial(_grouped_top_k, k=k),
            default=lambda x: _partitioned_top_k(x, k),
        )

    @search.def_vmap
    def _(axis_size, in_batched, x):
        return search(x), (True, True)

    return search(x)


def _grouped_top_k(x, k):
    """Two levels: the best of each of up to 128 groups of the vocabulary, then the best of those
    candidates.
    """
    groups = math.gcd(x.shape[-1], _GROUPS)
    size = x.shape[-1] // groups
    values, ids = jax.lax.top_k(x.reshape(*x.shape[:-1], groups, size), min(k, size))
    ids = ids + size * jax.lax.broadcasted_iota(ids.dtype, ids.shape, ids.ndim - 2)
    # Candidates stand in the order of their groups, so among equals the lowest id still comes
    # first.
    values, ids = (a.reshape(*x.shape[:-1], -1) for a in (values, ids))
    values, best = jax.lax.top_k(values, k)
    return values, jnp.take_along_axis(ids, best, axis=-1)


def _top_k_of_rows(x, k):
    # As a matrix: XLA has a search for matrices, and for anything else sorts whole rows.
    return tuple(a.reshape(*x.shape[:-1], k) for a in jax.lax.top_k(x.reshape(-1, x.shape[-1]), k))


def _top_k_of_shards(x, k, axes):
    """The same where each device of the mesh axes holds a part of the vocabulary: the best of each
    part travel.
    """
    values, ids = _top_k_of_rows(x, min(k, x.shape[-1]))
    ids = ids + x.shape[-1] * jax.lax.axis_index(axes).astype(ids.dtype)
    values, ids = (jax.lax.all_gather(a, axes, axis=a.ndim - 1, tiled=True) for a in (values, ids))
    values, best = _top_k_of_rows(values, k)
    return values, jnp.take_along_axis(ids, best, axis=-1)


@functools.partial(custom_partitioning, static_argnums=(1,))
def _partitioned_top_k(x, k):
    return _top_k_of_rows(x, k)


def _on_each_device(k, mesh, arguments, results):
    (x,) = arguments
    *leading, axes = tuple(x.sharding.spec) + (None,) * (x.ndim - len(x.sharding.spec))
    # Unequal parts would be padded with what may be larger than any entry: those are gathered.
    even = (
        axes is not None
        and x.shape[-1] % math.prod(mesh.shape[a] for a in jax.tree.leaves(axes)) == 0
    )
    search = functools.partial(_top_k_of_shards, axes=axes) if even else _top_k_of_rows
    operand = NamedSharding(mesh, PartitionSpec(*leading, axes if even else None))
    result = NamedSharding(mesh, PartitionSpec(*leading, None))
    return mesh, functools.partial(search, k=k), (result, result), (operand,)


_partitioned_top_k.def_partition(
    partition=_on_each_device,
    sharding_rule="... v -> ... k, ... k",
    need_replication_factors=("k",),
)
