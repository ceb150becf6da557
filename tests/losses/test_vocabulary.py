import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from jopd.losses.vocabulary import _grouped_top_k, in_top_k, log_prob_of, log_softmax, top_k


def tied(vocabulary: int, seed: int = 0) -> jax.Array:
    """Three values, so that ties are everywhere, the kth entry included."""
    x = jnp.asarray(np.random.default_rng(seed).integers(3, size=(2, 5, vocabulary)), jnp.float32)
    return jnp.where(x == 0, -jnp.inf, x)


@pytest.mark.parametrize("vocabulary", [7, 16, 160])  # one group, groups of one, groups of ten
@pytest.mark.parametrize("k", [1, 7, 200])
def test_top_k_is_lax_top_k(vocabulary, k):
    x, clipped = tied(vocabulary, seed=k), min(k, vocabulary)
    found, on_tpu, inside, expected = jax.jit(
        lambda x: (
            top_k(x, k),
            _grouped_top_k(x, clipped),
            in_top_k(x, k),
            jax.lax.top_k(x, clipped),
        )
    )(x)
    for values, ids in (found, on_tpu):
        np.testing.assert_array_equal(values, expected[0])
        np.testing.assert_array_equal(ids, expected[1])
    members = np.zeros(x.shape, bool)
    np.put_along_axis(members, np.asarray(expected[1]), True, axis=-1)
    np.testing.assert_array_equal(inside, members)


@pytest.mark.parametrize(
    ("vocabulary", "axes"),
    [(160, "tensor"), (160, ("data", "tensor")), (10, "tensor"), (160, None)],
)
def test_top_k_of_a_vocabulary_that_is_cut_over_devices(vocabulary, axes):
    mesh = jax.make_mesh((2, 4), ("data", "tensor"), axis_types=(AxisType.Auto,) * 2)
    x = tied(vocabulary)
    # Ten entries do not go evenly over four devices, so here they are cut inside the program.
    cut = lambda x: jax.lax.with_sharding_constraint(
        x, NamedSharding(mesh, PartitionSpec(None, None, axes))
    )
    found, expected = jax.jit(lambda x: (top_k(cut(x), 7), jax.lax.top_k(x, 7)))(x)
    np.testing.assert_array_equal(found[0], expected[0])
    np.testing.assert_array_equal(found[1], expected[1])


def test_top_k_under_vmap_and_grad():
    x = jnp.asarray(np.random.default_rng(0).normal(size=(4, 3, 32)), jnp.float32)
    ids, expected = jax.jit(
        lambda x: (jax.vmap(lambda row: top_k(row, 3)[1])(x), jax.lax.top_k(x, 3)[1])
    )(x)
    np.testing.assert_array_equal(ids, expected)
    kept = jax.jit(jax.vmap(jax.grad(lambda x: jnp.sum(jnp.where(in_top_k(x, 3), x, 0)))))(x)
    np.testing.assert_array_equal(kept.sum(-1), 3)


@given(
    st.lists(st.sampled_from([-np.inf, -1.0, 0.0, 2.0]), min_size=5, max_size=5), st.integers(0, 4)
)
def test_a_chosen_log_prob_does_not_see_the_others(row, token):
    row = jnp.asarray(row, jnp.float32)
    value, gradient = jax.value_and_grad(log_prob_of)(row, jnp.asarray(token))
    assert value == row[token]
    np.testing.assert_array_equal(gradient, np.eye(5)[token])


@pytest.mark.parametrize("temperature", [1e-2, 1e-8, 1e-30])
def test_a_small_temperature_keeps_the_best_entry(temperature):
    # 20,000 - 19,999.99 divided by 1e-8 is 1e6 nats: divided first, both would round to 2e12.
    logits = jnp.asarray([20000.0, 19999.99, -5.0, -jnp.inf])
    logp, vjp = jax.vjp(lambda z: log_softmax(z, temperature), logits)
    gap = (np.float64(logits[0]) - np.float64(logits[1])) / temperature
    np.testing.assert_allclose(logp[0], -np.log1p(np.exp(-gap)), atol=1e-6)
    np.testing.assert_allclose(logp[1], -gap - np.log1p(np.exp(-gap)), rtol=1e-5)
    assert np.isfinite(vjp(jnp.asarray([1.0, 0, 0, 0]))[0]).all()


def test_log_softmax_is_float32_or_wider():
    logits = np.array([[1.0, 2.0, 3.0]])
    expected = np.log(np.exp(logits / 2) / np.exp(logits / 2).sum())
    half = log_softmax(jnp.asarray(logits, jnp.bfloat16), 2.0)
    assert half.dtype == jnp.float32
    np.testing.assert_allclose(half, expected, rtol=1e-6)
    with jax.enable_x64(True):
        double = log_softmax(jnp.asarray(logits, jnp.float64), 2.0)
        assert double.dtype == jnp.float64
        np.testing.assert_allclose(double, expected, rtol=1e-14)
