"""Per-token values put together: along a completion, by its length, and over a whole batch.

Two kinds of functions. What an evaluation reports runs on the host, in NumPy, and gives numbers
with intervals. What a training step logs runs inside it, in JAX, and gives a `Total` wherever
micro-batches can simply be added up; a quantile and an effective sample size can not, and want the
arrays of the whole batch.

A token's relative position is `(t + 1/2) / length`: a completion of one token stands in the middle,
whatever the number of bins.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Shaped

from jopd.diagnostics.intervals import token_mean, wilson
from jopd.losses.method import Loss
from jopd.losses.stages import time_stage
from jopd.losses.totals import masked_total
from jopd.losses.types import Inputs, Mask, Profiles, Total
from jopd.losses.vocabulary import accumulator

POSITIONS = 10  # bins of a completion's relative position
LATE_SHARE = (
    0.2  # what "late" means, of a completion's positions: AR-OPD's "late-stage", reconstruction
)
QUANTILES = (0.01, 0.25, 0.5, 0.75, 0.99)
MOVES = 1e-3  # nats: a token with less moves nothing
USUAL_CLIP = 5.0  # nats: the survey's clip of log-ratios

HostMask = Bool[np.ndarray, "B T"]
HostValues = Shaped[np.ndarray, "B T"]


# Where a token stands. Given a NumPy mask these answer in NumPy, given a JAX mask in JAX, and both
# alike: integers alone.


def position_bins(mask: Shaped[Any, "B T"], bins: int = POSITIONS) -> Shaped[Any, "B T"]:
    """The bin, 0 to bins - 1, of each token's relative position; without sense outside the mask."""
    lengths = mask.sum(axis=1, keepdims=True).clip(1)
    doubled = 2 * mask.__array_namespace__().arange(mask.shape[1])[None] + 1
    return (doubled * bins // (2 * lengths)).clip(0, bins - 1)


def length_bins(mask: Shaped[Any, "B T"], edges: Sequence[int]) -> Shaped[Any, "B 1"]:
    """The bin of each row's length: 0 below the first edge, len(edges) from the last edge on."""
    lengths = mask.sum(axis=1, keepdims=True)
    begins = mask.__array_namespace__().asarray(edges, lengths.dtype)
    return (lengths[..., None] >= begins[None, None]).sum(axis=-1)


def quarters(longest: int) -> tuple[int, ...]:
    """The edges that cut lengths up to `longest` in four; AR-OPD's 256, 512 and 768 for 1024."""
    return tuple(sorted({longest * part // 4 for part in (1, 2, 3)} - {0}))


def late(mask: Shaped[Any, "B T"], share: float = LATE_SHARE) -> Shaped[Any, "B T"]:
    """The mask of the last `share` of each completion's positions; short completions may have none
    of them.

    The mean of `KL(q_full || pi)` over it is AR-OPD's late-stage drift.
    """
    # In thousandths, so that what is exactly four fifths on its way is so in any precision.
    return mask & (position_bins(mask, 1000) >= round(1000 * (1 - share)))


# On the host.


def mean(values: HostValues, mask: HostMask) -> dict[str, Any] | None:
    """The mean over tokens, its interval taken over rows, and the number of rows; None without a
    token.
    """
    sums, counts = np.where(mask, values, 0).sum(1), mask.sum(1)
    if not counts.any():
        return None
    low, high = token_mean(sums.tolist(), counts.tolist())
    return {"value": float(sums.sum() / counts.sum()), "low": low, "high": high, "count": len(sums)}


def by_position(values: HostValues, mask: HostMask, bins: int = POSITIONS) -> list[float | None]:
    """Means over tokens in bins of relative position; None where a bin holds no token."""
    index = position_bins(mask, bins)
    inside = [mask & (index == place) for place in range(bins)]
    return [float(values[chosen].mean()) if chosen.any() else None for chosen in inside]


def by_length(values: HostValues, mask: HostMask, edges: Sequence[int]) -> list[dict[str, Any]]:
    """`mean` in each bucket of lengths, shortest first.

    A bucket is `{"from": 32, "to": 64, "value": ..., "low": ..., "high": ..., "count": rows}` for
    the lengths from 32 to 63; the last one's "to" is None, and a bucket without rows has a count of
    0 and no value.
    """
    index = length_bins(mask, edges)[:, 0]
    of_buckets = [
        mean(values[index == bucket], mask[index == bucket]) for bucket in range(len(edges) + 1)
    ]
    return _buckets(edges, of_buckets)


def share_by_length(
    outcomes: Sequence[bool], lengths: Sequence[int] | Int[np.ndarray, " B"], edges: Sequence[int]
) -> list[dict[str, Any]]:
    """The share of true outcomes, such as right answers, in each bucket of lengths, with Wilson's
    interval.

    The result has the form of `by_length`'s.
    """
    of_buckets = []
    for low, high in zip((0, *edges), (*edges, float("inf")), strict=True):
        inside = [
            bool(outcome)
            for outcome, length in zip(outcomes, lengths, strict=True)
            if low <= length < high
        ]
        bounds = wilson(sum(inside), len(inside))
        value = (
            {"value": sum(inside) / len(inside), "low": bounds[0], "high": bounds[1]}
            if inside
            else {}
        )
        of_buckets.append({**value, "count": len(inside)})
    return _buckets(edges, of_buckets)


def repeats(
    tokens: Int[np.ndarray, "B T"], mask: HostMask, n: int = 4
) -> tuple[HostMask, HostMask]:
    """Which tokens end an n-gram that the completion has had before, and which end an n-gram at
    all.

    The first over the second, `mean(*repeats(tokens, mask))`, is the repetition rate. Masks are on
    from the first column.
    """
    repeated, complete = np.zeros_like(mask), np.zeros_like(mask)
    for row, length in enumerate(mask.sum(1)):
        so_far = set()
        for end in range(n - 1, length):
            gram = tuple(tokens[row, end - n + 1 : end + 1].tolist())
            repeated[row, end], complete[row, end] = gram in so_far, True
            so_far.add(gram)
    return repeated, complete


def _buckets(edges, found):
    bounds = zip((0, *edges), (*edges, None), strict=True)
    return [
        {"from": low, "to": high, **(what or {"count": 0})}
        for (low, high), what in zip(bounds, found, strict=True)
    ]


# In the training step.


def binned(values: Shaped[Array, "B T"], mask: Mask, index: Int[Array, "B _"], bins: int) -> Total:
    """Sums and counts `[bins]` of the values where the mask is on, by the bin that `index` gives
    tokens or rows.

    With `position_bins` a profile along the completion, with `length_bins` one over lengths; a bin
    without tokens has a count of 0.
    """
    inside = mask[..., None] & (index[..., None] == jnp.arange(bins, dtype=index.dtype)[None, None])
    dtype = accumulator(values.dtype)
    # where, not a product: 0 * inf is NaN.
    return Total(
        jnp.where(inside, values.astype(dtype)[..., None], 0).sum(axis=(0, 1)),
        inside.sum(axis=(0, 1), dtype=dtype),
    )


def repetition(tokens: Int[Array, "B T"], mask: Mask, n: int = 4) -> Total:
    """How many n-grams their completion has had before, and how many there are: `repeats`, for a
    training step.
    """
    starts = jnp.pad(tokens, [(0, 0), (0, n - 1)])
    grams = [starts[:, shift : shift + tokens.shape[1]] for shift in range(n)]
    complete = jnp.pad(mask, [(0, 0), (0, n - 1)])[:, n - 1 :]
    # Sorted, equal ones stand together, and all but one of them were repetitions.
    complete, *grams = jax.lax.sort([complete, *grams], dimension=1, num_keys=n + 1)
    equal = (
        jnp.stack([gram[:, 1:] == gram[:, :-1] for gram in grams]).all(axis=0)
        & complete[:, 1:]
        & complete[:, :-1]
    )
    return Total(equal.sum(dtype=jnp.float32), complete.sum(dtype=jnp.float32))


def quantiles(
    values: Float[Array, "B T"], mask: Mask, at: Sequence[float] = QUANTILES
) -> Float[Array, " q"]:
    """Quantiles of a whole batch's values where the mask is on, interpolated as NumPy's are; NaN
    without a token.
    """
    ordered = jnp.sort(jnp.where(mask, values, jnp.inf).reshape(-1))
    count = mask.sum(dtype=jnp.int32)
    place = jnp.asarray(at, values.dtype) * jnp.maximum(count - 1, 0).astype(values.dtype)
    below = jnp.floor(place)
    step = place - below
    at_place = lambda x: ordered[x.astype(jnp.int32)]
    lower, upper = at_place(below), at_place(jnp.ceil(place))
    # Not by way of a product with 0, nor of a difference, so that infinite values are no worse than
    # others.
    between = jnp.where(step > 0, lower * (1 - step) + upper * step, lower)
    return jnp.where(count > 0, between, jnp.nan)


def effective_sample_size(size: Float[Array, "B T"], mask: Mask) -> Float[Array, ""]:
    """`(sum x)^2 / sum x^2` over a whole batch's tokens: how many of them would carry an update of
    this spread, if evenly.

    Args:
      size: `x`, a token's weight times its advantage's absolute value.

    The number of tokens where all are equal, 1 where one has everything, 0 where all are 0.

    Source: the survey (arXiv:2606.22793), grade P; the estimate is Kish's.
    """
    x = jnp.where(mask, size, 0)
    # Scaled first: the square of a large sum overflows.
    x = x / jnp.maximum(jnp.max(jnp.abs(x)), jnp.finfo(x.dtype).tiny)
    square = jnp.sum(x * x)
    return jnp.square(jnp.sum(x)) / jnp.maximum(square, jnp.finfo(x.dtype).tiny)


def update_size(
    loss: Loss,
    terms: Mapping[str, Float[Array, "..."]],
    mask: Mask,
    inputs: Inputs,
    log_ratio: Float[Array, "B T"],
) -> Float[Array, "B T"]:
    """How much each token is made of by a loss: weight times gate times |advantage|, whatever these
    are in its method.

    That is `|d loss / d log pi(y_t)|` of the time stage, before the loss is divided by its count. A
    direct loss has no advantage: its weight and gate, `sum |d loss / d term_t|`, multiply the size
    of the log-ratio.
    """
    slopes = time_slopes(loss, terms, mask, inputs)
    if "student_logp" in slopes:
        return jnp.abs(slopes["student_logp"])
    weight = sum(jnp.abs(slope) for slope in slopes.values() if slope.shape == mask.shape)
    return weight * jnp.abs(log_ratio)


def time_slopes(
    loss: Loss, terms: Mapping[str, Float[Array, "..."]], mask: Mask, inputs: Inputs
) -> dict[str, Float[Array, "..."]]:
    """`d loss / d term` of the time stage for each of the terms, before the loss is divided by its
    counts.
    """
    total = lambda terms: sum(
        term.coefficient * term.sum for term in time_stage(loss, terms, mask, inputs)[0].values()
    )
    return jax.grad(total)(dict(terms))


def of_a_batch(
    terms: Mapping[str, Float[Array, "B T"]],
    tokens: Int[Array, "B T"],
    mask: Mask,
    edges: Sequence[int],
    profiled: Profiles,
) -> dict[str, Array]:
    """All that a training step logs of its batch's per-token diagnostics; bins without tokens are
    NaN.

    Args:
      terms: of every token, among them its `log_ratio` and its `update_size`.
      edges: of the bins of lengths.
      profiled: of some tokens, each with the mask of those.

    Returns:
      Of all these, of the share of tokens that an update moves and of the share that a clip at 5
      nats would change, the mean, `NAME_by_position` `[POSITIONS]` and `NAME_by_length`
      `[len(edges) + 1]`. Of the log-ratio also its quantiles, `[q]` and by position `[POSITIONS,
      q]`, and of the sizes of the updates the effective sample size, alike.
    """
    mean = lambda total: jnp.where(
        total.count > 0, total.sum / jnp.maximum(total.count, 1), jnp.nan
    )
    places, rows = position_bins(mask), length_bins(mask, edges)
    ratio, size = terms["log_ratio"], terms["update_size"]
    shares = {"effective_update_share": size > MOVES, "clip_share": jnp.abs(ratio) > USUAL_CLIP}
    record = {"repetition_rate": mean(repetition(tokens, mask))}
    everywhere = {name: (values, mask) for name, values in {**terms, **shares}.items()}
    for name, (values, where) in {**everywhere, **profiled}.items():
        record[name] = mean(masked_total(values, where))
        record[f"{name}_by_position"] = mean(binned(values, where, places, POSITIONS))
        record[f"{name}_by_length"] = mean(binned(values, where, rows, len(edges) + 1))
    inside = mask[None] & (places[None] == jnp.arange(POSITIONS)[:, None, None])
    for name, of, values in (
        ("log_ratio_quantiles", quantiles, ratio),
        ("effective_sample_size", effective_sample_size, size),
    ):
        record[name] = of(values, mask)
        record[f"{name}_by_position"] = jax.vmap(of, in_axes=(None, 0))(values, inside)
    return record
