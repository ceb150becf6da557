"""Near-future windows: what a model writes from the middle of a completion.

A window at position t goes on from the context and y_<t. Its model reads context and completion
once for all windows of a row: a window is a copy of the cache without what stands from t on.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from jopd.models.sharding import for_decoding
from jopd.models.transformer import Transformer
from jopd.rollout.sampler import Rollout, decode, in_compute_dtype, widen
from jopd.rollout.settings import Decoding


def write_on(
    model: Transformer,
    context: Int[Array, "b p"],
    context_valid: Bool[Array, "b p"],
    tokens: Int[Array, "b t"],
    mask: Bool[Array, "b t"],
    positions: Int[Array, "b w"],
    rows: Int[Array, " r"],
    key: PRNGKeyArray,
    *,
    decoding: Decoding,
) -> Rollout:
    """Completions of up to `decoding.max_new_tokens` tokens, `r = b w`, a row's side by side.

    Args:
      context, context_valid: left-padded, one row for each completion.
      tokens, mask: the completions, right-padded.
      positions: how many completion tokens each of a row's windows goes on from, in 0..t.
      rows: an id for each window (`window_rows`); its noise is made of it, as that of
        `jopd.rollout.sampler.sample` is.
    """
    model, windows = for_decoding(in_compute_dtype(model)), positions.shape[1]
    whole, valid = (
        jnp.concatenate([context, tokens], axis=1),
        jnp.concatenate([context_valid, mask], axis=1),
    )
    hidden, cache = model.extend(whole, valid, model.empty_cache(*whole.shape))
    ends = context.shape[1] + positions
    last = jnp.take_along_axis(hidden, ends[..., None] - 1, axis=1).reshape(len(rows), -1)
    cache = widen(cache, windows, decoding.max_new_tokens - 1)
    before = jnp.arange(cache.valid.shape[1])[None] < ends.reshape(-1, 1)
    return decode(
        model,
        last,
        cache._replace(valid=cache.valid & before),
        rows,
        key,
        decoding,
    )


def window_rows(rows: Int[Array, " b"], windows: int) -> Int[Array, " r"]:
    """An id for each window, unique as the rows' are, of which its randomness is made."""
    return (rows[:, None] * windows + jnp.arange(windows, dtype=rows.dtype)[None]).reshape(-1)


def place_noise(
    rows: Int[Array, " b"], key: PRNGKeyArray, length: int
) -> Float[Array, "b {length}"]:
    """Uniform numbers that depend on the key, the row's id and the position alone, for drawing
    places.
    """
    each = jax.vmap(jax.random.fold_in, (None, 0))
    keys = jax.vmap(each, (0, None))(each(key, rows), jnp.arange(length))
    return jax.vmap(jax.vmap(jax.random.uniform))(keys)
