"""Sums over tokens, and what divides them: how per-token losses and metrics become numbers."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Shaped

from jopd.losses.types import Inputs, Mask, Terms, Total
from jopd.losses.vocabulary import accumulator


def masked_total(values: Shaped[Array, "B T"], mask: Mask) -> Total:
    """Sum of the values (numbers, or true and false) where the mask is on, and how many those are.

    >>> total = masked_total(jnp.array([[1.0, 5.0]]), jnp.array([[True, False]]))
    >>> print(total.sum, total.count)
    1.0 1.0
    """
    dtype = accumulator(values.dtype)
    # where, not times: 0 * inf is NaN.
    return Total(jnp.where(mask, values.astype(dtype), 0).sum(), mask.sum(dtype=dtype))


def masked_totals(terms: Terms, mask: Mask) -> dict[str, Total]:
    """`masked_total` of every [B, T] term.

    >>> totals = masked_totals({"kl": jnp.array([[1.0, 3.0]])}, jnp.ones((1, 2), bool))
    >>> print(totals["kl"].mean())
    2.0
    """
    return {name: masked_total(values, mask) for name, values in terms.items()}


def token_mean(values: Float[Array, "B T"], mask: Mask, inputs: Inputs) -> Total:
    """Sum and count of a per-token loss, both under the input `weight` if there is one: a
    (weighted) mean over tokens.

    >>> values, mask = jnp.array([[1.0, 3.0]]), jnp.ones((1, 2), bool)
    >>> print(token_mean(values, mask, {"weight": jnp.array([[1.0, 3.0]])}).mean())  # (1 + 9) / 4
    2.5
    """
    if "weight" not in inputs:
        return masked_total(values, mask)
    weight = jax.lax.stop_gradient(inputs["weight"]).astype(values.dtype)
    return Total(masked_total(values * weight, mask).sum, masked_total(weight, mask).sum)


def row_sum(values: Float[Array, "B T"], mask: Mask, inputs: Inputs) -> Total:
    """Sum of a per-token loss, under the input `weight` if there is one, and the number of rows
    with a token.

    >>> values, mask = jnp.array([[1.0, 3.0], [2.0, 7.0]]), jnp.array([[1, 1], [1, 0]], bool)
    >>> print(row_sum(values, mask, {}).mean())  # (1 + 3 + 2) / 2
    3.0

    The aggregation that keeps returns unbiased for a sequence's loss when lengths vary.
    """
    return Total(
        token_mean(values, mask, inputs).sum,
        jnp.any(mask, axis=1).sum(dtype=accumulator(values.dtype)),
    )
