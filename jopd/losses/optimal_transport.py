"""Entropic optimal transport between the tokens of two windows, by Sinkhorn's scaling.

Source: arXiv:1306.0895 (S). That TOPD, arXiv:2606.00305, solves its transport so is our
reconstruction (R).
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Shaped

from jopd.losses import base
from jopd.losses.vocabulary import accumulator


def transport(
    student_embeddings: Float[Array, "*n K d"],
    teacher_embeddings: Float[Array, "*n K d"],
    student_mask: Shaped[Array, "*n K"],
    teacher_mask: Shaped[Array, "*n K"],
    *,
    epsilon: float,
    iterations: int,
) -> tuple[Float[Array, "*n K K"], Float[Array, "*n"]]:
    """Entropic optimal transport between the tokens of two windows, each token of a window weighing
    the same.

    >>> one, other, on = jnp.eye(2)[None], jnp.eye(2)[None, ::-1], jnp.ones((1, 2), bool)
    >>> plan, cost = transport(one, other, on, on, epsilon=0.05, iterations=50)
    >>> print(plan.round(3)[0].tolist(), cost.round(3))
    [[0.0, 0.5], [0.5, 0.0]] [0.]

    Sinkhorn's scaling in the log domain, columns and then rows, so that the rows of the plan are
    exact and its columns as good as the iterations. Without gradient.

    Args:
      student_embeddings: [B, K, d], of any length, zero included; where the mask is off they may
        hold anything.
      teacher_embeddings: the same of the other window.
      student_mask: [B, K] bool or 0/1.
      teacher_mask: [B, K] bool or 0/1.
      epsilon: weight of the plan's entropy, in the unit of the cost 1 - cos.
      iterations: of columns and rows.

    Returns:
      The plans [B, K, K], student's tokens first, 0 where a mask is off; and their costs [B].
      Float32 or wider. If either window is empty both are 0.

    Raises:
      ValueError: epsilon not above 0, or no iteration.
    """
    check_solver(epsilon, iterations)
    pairs = student_mask.astype(bool)[..., :, None] & teacher_mask.astype(bool)[..., None, :]
    rows, columns = jnp.any(pairs, axis=-1), jnp.any(pairs, axis=-2)
    student, teacher = (
        _directions(student_embeddings, rows),
        _directions(teacher_embeddings, columns),
    )
    # In full precision even where a matrix product is not: epsilon divides what it rounds.
    cosine = jnp.matmul(student, jnp.swapaxes(teacher, -1, -2), precision=jax.lax.Precision.HIGHEST)
    cost = jnp.where(pairs, 1 - cosine, 0)
    log_kernel = jnp.where(pairs, -cost / epsilon, -jnp.inf)

    def scale(scores, where, axis):
        """What brings the sums of exp(scores) to their marginals; 0 where there is none."""
        marginal = -jnp.log(jnp.maximum(where.sum(axis=-1, keepdims=True), 1).astype(scores.dtype))
        return jnp.where(where, marginal - jax.nn.logsumexp(scores, axis=axis), 0)

    columns_after = lambda of_rows: scale(log_kernel + of_rows[..., :, None], columns, -2)
    rows_after = lambda of_columns: scale(log_kernel + of_columns[..., None, :], rows, -1)
    first = columns_after(jnp.zeros(rows.shape, cost.dtype))
    of_columns = jax.lax.fori_loop(
        1, iterations, lambda _, scales: columns_after(rows_after(scales)), first
    )
    # The last scaling of rows as a softmax: the same, but exact where costs are many epsilons.
    scores = jnp.where(pairs, log_kernel + of_columns[..., None, :], jnp.finfo(cost.dtype).min)
    plan = (
        jax.nn.softmax(scores, axis=-1)
        / jnp.maximum(rows.sum(axis=-1), 1).astype(cost.dtype)[..., None, None]
    )
    plan = jnp.where(pairs, plan, 0)
    return plan, jnp.sum(plan * cost, axis=(-2, -1))


def soft_targets(plan: Float[Array, "*n K K"]) -> Float[Array, "*n K K"]:
    """The plan's rows as distributions: over the teacher's tokens, for each of the student's; 0 for
    those without.

    >>> print(soft_targets(jnp.array([[0.25, 0.25], [0.0, 0.0]])))
    [[0.5 0.5]
     [0.  0. ]]
    """
    total = plan.sum(axis=-1, keepdims=True)
    return plan / jnp.where(total > 0, total, 1)


def check_solver(epsilon: float, iterations: int) -> None:
    """Raises ValueError unless a plan can be found in that way.

    >>> check_solver(epsilon=0.05, iterations=200)
    """
    if not 0 < epsilon < float("inf"):
        raise ValueError(
            f"epsilon={epsilon} must be positive: exact transport, at 0, has no soft target; 0.05 "
            "is usual"
        )
    if iterations < 1:
        raise ValueError(f"iterations={iterations} of the transport's solver must be at least 1")


def _directions(embeddings, mask):
    """Unit vectors, or 0 for a vector of 0."""
    embeddings = base.silence(jax.lax.stop_gradient(embeddings), mask).astype(
        accumulator(embeddings.dtype)
    )
    # Scaled first: the square of a small number may be none.
    largest = jnp.max(jnp.abs(embeddings), axis=-1, keepdims=True)
    embeddings = embeddings / jnp.where(largest > 0, largest, 1)
    norm = jnp.sqrt(jnp.sum(jnp.square(embeddings), axis=-1, keepdims=True))
    return embeddings / jnp.where(norm > 0, norm, 1)
