"""Sums over tokens, and what divides them: how per-token losses and metrics become numbers."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Shaped

from jopd.losses.types import Inputs, Mask, Terms, Total
from jopd.losses.vocabulary import accumulator


def masked_total(values: Shaped[Array, "B T"], mask: Mask) -> Total:
    """Sum of the values (numbers, or true and false) where the mask is on, and how many those are."""
    dtype = accumulator(values.dtype)
    # where, not times: 0 * inf is NaN.
    return Total(jnp.where(mask, values.astype(dtype), 0).sum(), mask.sum(dtype=dtype))


def masked_totals(terms: Terms, mask: Mask) -> dict[str, Total]:
    """`masked_total` of every [B, T] term."""
    return {name: masked_total(values, mask) for name, values in terms.items()}


def token_mean(values: Float[Array, "B T"], mask: Mask, inputs: Inputs) -> Total:
    """Sum and count of a per-token loss, both under the input `weight` if there is one: a
    (weighted) mean over tokens.
    """
    if "weight" not in inputs:
        return masked_total(values, mask)
    weight = jax.lax.stop_gradient(inputs["weight"]).astype(values.dtype)
    return Total(masked_total(values * weight, mask).sum, masked_total(weight, mask).sum)


def row_sum(values: Float[Array, "B T"], mask: Mask, inputs: Inputs) -> Total:
    """Sum of a per-token loss, under the input `weight` if there is one, and the number of rows
    with a token.

    The aggregation that keeps returns unbiased for a sequence's loss when lengths vary.
    """
    return Total(
        token_mean(values, mask, inputs).sum,
        jnp.any(mask, axis=1).sum(dtype=accumulator(values.dtype)),
    )
