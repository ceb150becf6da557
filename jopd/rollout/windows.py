"""Near-future windows: what a model writes from the middle of a completion.

A window at position t goes on from the context and y_<t, so it is a rollout like any other, by
`jopd.rollout.sampler.sample`, whose prompts are `prefixes` and whose rows are `window_rows`.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray


def prefixes(
    context: Int[Array, "b p"],
    context_valid: Bool[Array, "b p"],
    tokens: Int[Array, "b t"],
    mask: Bool[Array, "b t"],
    positions: Int[Array, "b w"],
) -> tuple[Int[Array, "b*w p+t"], Bool[Array, "b*w p+t"]]:
    """Left-padded prompts, and which of their tokens are valid: each row's context and completion up to its positions.

    Args:
      context, context_valid: left-padded, one row for each completion.
      tokens, mask: the completions, right-padded.
      positions: how many completion tokens each of a row's prompts keeps, in 0..t.
    """
    whole, valid = jnp.concatenate([context, tokens], axis=1), jnp.concatenate([context_valid, mask], axis=1)
    width = whole.shape[1]
    # Shifted right, so that the last column is the last token kept.
    source = jnp.arange(width)[None, None] + (positions - tokens.shape[1])[..., None]
    shifted = lambda x: jnp.take_along_axis(x[:, None], jnp.maximum(source, 0), axis=2)
    return shifted(whole).reshape(-1, width), (shifted(valid) & (source >= 0)).reshape(-1, width)


def window_rows(rows: Int[Array, " b"], windows: int) -> Int[Array, " r"]:
    """An id for each window, unique as the rows' are, of which its randomness is made."""
    return (rows[:, None] * windows + jnp.arange(windows, dtype=rows.dtype)[None]).reshape(-1)


def place_noise(rows: Int[Array, " b"], key: PRNGKeyArray, length: int) -> Float[Array, "b {length}"]:
    """Uniform numbers that depend on the key, the row's id and the position alone, for drawing places."""
    each = jax.vmap(jax.random.fold_in, (None, 0))
    keys = jax.vmap(each, (0, None))(each(key, rows), jnp.arange(length))
    return jax.vmap(jax.vmap(jax.random.uniform))(keys)
