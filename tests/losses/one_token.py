"""A method at single tokens: worked by hand, in expectation over the vocabulary, and where arrays
end.
"""

import jax
import jax.numpy as jnp
import numpy as np

from jopd.losses import evaluate
from tests.reference.divergences import softmax


def at(method, student, views, tokens, mask=None, **inputs):
    """Loss, gradient on the logits and metrics of one row, from probabilities [T, V] of the student
    and of each view.
    """
    logits = lambda rows: jnp.log(jnp.asarray(rows, jnp.float32))[None]
    views = {view: logits(rows) for view, rows in views.items()}
    mask = np.ones(len(tokens), bool) if mask is None else np.asarray(mask, bool)
    inputs = {name: jnp.asarray(values, jnp.float32)[None] for name, values in inputs.items()}
    loss = lambda z: evaluate(
        method, z, views, jnp.asarray([tokens]), jnp.asarray(mask)[None], **inputs
    )
    (value, metrics), gradient = jax.jit(jax.value_and_grad(loss, has_aux=True))(logits(student))
    np.testing.assert_array_equal(gradient[0, ~mask], 0)
    return value, gradient[0], metrics


def expected_gradient(method, student, **views):
    """On the logits [V] of one state, in float64: each token is a row of its own, weighted by the
    policy that samples it.
    """
    size = len(student)
    with jax.enable_x64(True):
        spread = lambda row: jnp.broadcast_to(jnp.asarray(row), (size, 1, size))
        views = {view: spread(row) for view, row in views.items()}
        tokens, weight = jnp.arange(size)[:, None], jnp.asarray(softmax(student))[:, None]
        loss = lambda z: evaluate(
            method, spread(z), views, tokens, jnp.ones((size, 1)), weight=weight
        )[0]
        return jax.device_get(jax.jit(jax.grad(loss))(jnp.asarray(student)))


def holds_where_arrays_end(method):
    """A row of one token, a row of none, entries without weight on any side, bfloat16; the gradient
    is the student's alone.
    """
    draw = np.random.default_rng(0).normal(size=(1 + len(method.views), 3, 2, 5))
    draw[..., 4] = -np.inf
    mask = np.array([[1, 1], [1, 0], [0, 0]], bool)
    rows = jnp.asarray(np.where(mask[..., None], draw, np.nan), jnp.bfloat16)
    tokens = jnp.asarray([[0, 1], [3, 4], [4, 4]])

    def loss(rows):
        views = dict(zip(method.views, rows[1:], strict=True))
        return evaluate(method, rows[0], views, tokens, jnp.asarray(mask))

    value_and_gradient = jax.jit(jax.value_and_grad(loss, has_aux=True))
    (value, metrics), gradient = value_and_gradient(rows)
    assert np.isfinite(value) and all(np.isfinite(metric) for metric in metrics.values())
    student, views = np.asarray(gradient[0], np.float32), np.asarray(gradient[1:], np.float32)
    assert np.isfinite(student).all() and not views.any()
    assert (
        not student[~mask].any() and not student[..., 4].any() and student[mask].any(axis=-1).all()
    )
    # Whatever the logits' type, it is computed in float32.
    (wide, _), wide_gradient = value_and_gradient(rows.astype(jnp.float32))
    np.testing.assert_allclose(wide, value, rtol=1e-6)
    np.testing.assert_allclose(wide_gradient, np.asarray(gradient, np.float32), atol=4e-3)
