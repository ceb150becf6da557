"""What the losses do along the vocabulary, always the last axis, so that it may be long and may be sharded.

Nothing here gathers the vocabulary onto one device: a chosen token's log-probability is a compare-and-sum, and a top-k
is taken inside groups of the vocabulary first, so that only each group's best candidates travel.
"""

import functools
import math

import jax
import jax.numpy as jnp
from jax.experimental.custom_partitioning import custom_partitioning
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array, Bool, Float, Int

# A vocabulary axis cut evenly over up to 16 devices keeps every group whole on one of them.
_GROUPS = 16


def accumulator(dtype: jnp.dtype) -> jnp.dtype:
    """The type that log-probabilities of such values are computed in: float32, or float64 for float64."""
    return jnp.dtype(jnp.float64 if dtype == jnp.float64 else jnp.float32)


def log_softmax(logits: Float[Array, "*n V"], temperature: float = 1.0) -> Float[Array, "*n V"]:
    """Log-probabilities of `logits / temperature`, in float32 or wider whatever the logits' type."""
    return jax.nn.log_softmax(logits.astype(accumulator(logits.dtype)) / temperature, axis=-1)


def log_prob_of(logp: Float[Array, "*n V"], tokens: Int[Array, "*n"]) -> Float[Array, "*n"]:
    """`logp[..., tokens]` as a compare-and-sum: safe beside entries of -inf, local where the vocabulary is sharded."""
    ids = jax.lax.broadcasted_iota(tokens.dtype, logp.shape, logp.ndim - 1)
    return jnp.sum(jnp.where(ids == tokens[..., None], logp, 0), axis=-1)


def top_k(x: Float[Array, "*n V"], k: int) -> tuple[Float[Array, "*n k"], Int[Array, "*n k"]]:
    """The `k` largest entries and their ids, as `jax.lax.top_k` gives them, ties included; `k` is clipped to V.

    Two levels: the best of each of up to 16 groups of the vocabulary, then the best of those candidates. Not
      differentiable: pass
    `stop_gradient(x)`.
    """
    vocabulary = x.shape[-1]
    groups = math.gcd(vocabulary, _GROUPS)
    size = vocabulary // groups
    values, ids = _top_k(x.reshape(*x.shape[:-1], groups, size), min(k, size))
    ids = ids + size * jax.lax.broadcasted_iota(ids.dtype, ids.shape, ids.ndim - 2)
    # Candidates stand in the order of their groups, so among equals the lowest id still comes first.
    values, ids = (a.reshape(*x.shape[:-1], -1) for a in (values, ids))
    values, best = _top_k(values, min(k, vocabulary))
    return values, jnp.take_along_axis(ids, best, axis=-1)


def in_top_k(x: Float[Array, "*n V"], k: int) -> Bool[Array, "*n V"]:
    """Which entries are among the `k` largest of their row: exactly min(k, V) of them, ties going to the lowest id."""
    # The barrier gives the search and the comparison below the very same floats: fused apart, they could differ in the
    # last bit.
    x = jax.lax.optimization_barrier(jax.lax.stop_gradient(x))
    values, ids = top_k(x, k)
    columns = jax.lax.broadcasted_iota(ids.dtype, x.shape, x.ndim - 1)
    return (x > values[..., -1:]) | ((x == values[..., -1:]) & (columns <= ids[..., -1:]))


# XLA splits a top-k over devices along its leading axes on TPU; elsewhere it is an opaque call whose whole operand the
# partitioner would gather, so there we say by hand that the leading axes are independent. (TPU programs compiled ahead
# of time cannot hold such a call.)


def _top_k(x, k):
    @jax.custom_batching.custom_vmap
    def search(x):
        return jax.lax.platform_dependent(
            x, tpu=functools.partial(_plain_top_k, k=k), default=lambda x: _partitioned_top_k(x, k)
        )

    @search.def_vmap
    def _(axis_size, in_batched, x):
        return search(x), (True, True)

    return search(x)


def _plain_top_k(x, k):
    return tuple(jax.lax.top_k(x, k))


@functools.partial(custom_partitioning, static_argnums=(1,))
def _partitioned_top_k(x, k):
    return _plain_top_k(x, k)


def _split_leading_axes(k, mesh, arguments, results):
    (x,) = arguments
    kept = NamedSharding(mesh, PartitionSpec(*tuple(x.sharding.spec)[: x.ndim - 1]))
    return mesh, functools.partial(_plain_top_k, k=k), (kept, kept), (kept,)


_partitioned_top_k.def_partition(
    partition=_split_leading_axes, sharding_rule="... v -> ... k, ... k", need_replication_factors=("v", "k")
)
