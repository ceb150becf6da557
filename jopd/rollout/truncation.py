"""Top-k, top-p and min-p as one threshold a row, found without sorting the vocabulary.

Each rule keeps the tokens whose log-probability is at least some `t`: top-k the largest `t` that
keeps k tokens, top-p (nucleus, 1904.09751) the largest that keeps a share p of the probability,
min-p (2407.01082) `log(min_p)` below the best token. A rule that asks for enough tokens is monotone
in `t`, so `t` is found by bisection over float32 itself: its bit patterns, read as ordered
integers, are few enough that 32 halvings end at the exact value. Each halving is a count or a sum
over the vocabulary, so a sharded vocabulary costs an all-reduce of one number a row, and no sort
and no gather.

The rules compose as Hugging Face's do: top-k, then top-p on what top-k left (renormalised), then
min-p on what top-p left. Tokens tied at a threshold are all kept, so more than k may stay; Hugging
Face does the same for top-k and min-p, while its top-p cuts inside a tie by the order of its sort.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int


def truncate(
    logp: Float[Array, "*n v"], *, top_k: int = 0, top_p: float = 1.0, min_p: float = 0.0
) -> Float[Array, "*n v"]:
    """`logp` with every token that the rules cut set to -inf, not renormalised.

    Args:
      logp: float32 log-probabilities at the sampling temperature; -inf is allowed, all -inf is not.
      top_k: how many tokens to keep; 0 keeps all.
      top_p: the probability to keep; 1 keeps all.
      min_p: the smallest probability to keep, as a share of the best token's; 0 keeps all.

    The best token always stays.
    """
    p = jnp.exp(logp)
    keep = jnp.ones(logp.shape, bool)
    if 0 < top_k < logp.shape[-1]:
        keep = at_least(logp, lambda above: jnp.sum(above, axis=-1) >= top_k)
    if top_p < 1:
        mass = lambda kept: jnp.sum(jnp.where(kept, p, 0), axis=-1)
        wanted = top_p * mass(keep)
        keep &= at_least(logp, lambda above, keep=keep: mass(above & keep) >= wanted)
    if min_p > 0:
        keep &= p >= min_p * jnp.max(p, axis=-1, keepdims=True)
    return jnp.where(keep, logp, -jnp.inf)


def at_least(
    x: Float[Array, "*n v"], enough: Callable[[Bool[Array, "*n v"]], Bool[Array, "*n"]]
) -> Bool[Array, "*n v"]:
    """Which entries reach the largest threshold that lets enough of them through; the largest entry
    always does.

    Args:
      x: float32.
      enough: of a mask, one answer a row; once true it stays true as entries are added.
    """
    key = ordered(x)

    def halve(_, bounds):
        low, high = bounds  # `low` lets enough through, `high + 1` does not
        middle = (low | high) - ((low ^ high) >> 1)  # their mean, rounded up, without overflow
        passed = enough(key >= middle[..., None])
        return jnp.where(passed, middle, low), jnp.where(passed, high, middle - 1)

    low, _ = jax.lax.fori_loop(0, 32, halve, (jnp.min(key, axis=-1), jnp.max(key, axis=-1)))
    return key >= low[..., None]


def ordered(x: Float[Array, "*n"]) -> Int[Array, "*n"]:
    """The int32 image of float32 that keeps its order: negative floats count bits downwards."""
    bits = jax.lax.bitcast_convert_type(
        jnp.where(x == 0, jnp.zeros_like(x), x), jnp.int32
    )  # -0 and 0 are one value
    return jnp.where(bits < 0, bits ^ jnp.int32(0x7FFFFFFF), bits)
