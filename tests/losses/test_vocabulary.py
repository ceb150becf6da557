import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jopd.losses.vocabulary import in_top_k, log_prob_of, log_softmax, top_k


@pytest.mark.parametrize("vocabulary", [7, 16, 160])  # one group, groups of one, groups of ten
@pytest.mark.parametrize("k", [1, 7, 200])
def test_top_k_is_lax_top_k(vocabulary, k):
    # Three values, so that ties are everywhere, the kth entry included.
    x = jnp.asarray(np.random.default_rng(k).integers(3, size=(2, 5, vocabulary)), jnp.float32)
    x = jnp.where(x == 0, -jnp.inf, x)
    found, inside, expected = jax.jit(lambda x: (top_k(x, k), in_top_k(x, k), jax.lax.top_k(x, min(k, vocabulary))))(x)
    np.testing.assert_array_equal(found[0], expected[0])
    np.testing.assert_array_equal(found[1], expected[1])
    members = np.zeros(x.shape, bool)
    np.put_along_axis(members, np.asarray(expected[1]), True, axis=-1)
    np.testing.assert_array_equal(inside, members)


def test_top_k_under_vmap_and_grad():
    x = jnp.asarray(np.random.default_rng(0).normal(size=(4, 3, 32)), jnp.float32)
    ids, expected = jax.jit(lambda x: (jax.vmap(lambda row: top_k(row, 3)[1])(x), jax.lax.top_k(x, 3)[1]))(x)
    np.testing.assert_array_equal(ids, expected)
    kept = jax.jit(jax.vmap(jax.grad(lambda x: jnp.sum(jnp.where(in_top_k(x, 3), x, 0)))))(x)
    np.testing.assert_array_equal(kept.sum(-1), 3)


@given(st.lists(st.sampled_from([-np.inf, -1.0, 0.0, 2.0]), min_size=5, max_size=5), st.integers(0, 4))
def test_a_chosen_log_prob_does_not_see_the_others(row, token):
    row = jnp.asarray(row, jnp.float32)
    value, gradient = jax.value_and_grad(log_prob_of)(row, jnp.asarray(token))
    assert value == row[token]
    np.testing.assert_array_equal(gradient, np.eye(5)[token])


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
