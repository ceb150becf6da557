import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jopd.losses.optimal_transport import soft_targets, transport
from tests.reference import transport as reference

solve = jax.jit(transport, static_argnames=("epsilon", "iterations"))

LENGTHS = ((6, 6), (3, 5), (5, 1), (1, 1), (0, 4), (4, 0), (0, 0))


@pytest.fixture(scope="module")
def pairs():
    """Pairs of windows of up to 6 tokens with embeddings of 3 channels, NaN where there is no
    token.
    """
    draw = np.random.default_rng(0).normal
    student, teacher = (draw(size=(len(LENGTHS), 6, 3)) for _ in range(2))
    masks = [np.arange(6) < np.array(lengths)[:, None] for lengths in zip(*LENGTHS, strict=True)]
    return [
        np.where(m[..., None], e, np.nan) for e, m in zip((student, teacher), masks, strict=True)
    ], masks


def solved(pairs, epsilon=0.1, iterations=300, dtype=jnp.float32):
    embeddings, masks = pairs
    return jax.device_get(
        solve(
            *(jnp.asarray(e, dtype) for e in embeddings),
            *map(jnp.asarray, masks),
            epsilon=epsilon,
            iterations=iterations,
        )
    )


def expected(pairs, epsilon=0.1, iterations=300):
    """Plans and costs of the same pairs, each without its padding."""
    (student, teacher), _ = pairs
    plans, costs = np.zeros((len(LENGTHS), 6, 6)), np.zeros(len(LENGTHS))
    for pair, (n, m) in enumerate(LENGTHS):
        if n and m:
            c = reference.cosine_costs(student[pair, :n], teacher[pair, :m])
            plans[pair, :n, :m] = reference.sinkhorn(c, epsilon, iterations)
            costs[pair] = (plans[pair, :n, :m] * c).sum()
    return plans, costs


def test_transport_is_sinkhorns_under_padding(pairs):
    plans, costs = expected(pairs)
    plan, cost = solved(pairs)
    np.testing.assert_allclose(plan, plans, atol=1e-5)
    np.testing.assert_allclose(cost, costs, atol=1e-5)
    assert plan.dtype == cost.dtype == np.float32
    # Few iterations too, where columns are still off: the order of the two matters.
    np.testing.assert_allclose(
        solved(pairs, iterations=1)[0], expected(pairs, iterations=1)[0], atol=1e-5
    )
    with jax.enable_x64(True):
        plan, cost = solved(pairs, dtype=jnp.float64)
        assert plan.dtype == cost.dtype == np.float64
    np.testing.assert_allclose(plan, plans, atol=1e-13)
    np.testing.assert_allclose(cost, costs, atol=1e-13)


def test_marginals_are_uniform_over_what_is_valid(pairs):
    (student, teacher), plan = pairs[1], solved(pairs, iterations=1)[0]
    both = student.any(1) & teacher.any(1)
    uniform = lambda mask: (mask / np.maximum(mask.sum(1, keepdims=True), 1)) * both[:, None]
    np.testing.assert_allclose(
        plan.sum(2), uniform(student), atol=1e-6
    )  # after any number of iterations
    np.testing.assert_allclose(solved(pairs)[0].sum(1), uniform(teacher), atol=1e-6)
    assert not plan[~(student[:, :, None] & teacher[:, None])].any()
    assert not plan[~both].any() and not solved(pairs)[1][~both].any()


def test_two_by_two_by_hand():
    # Orthogonal tokens in opposite order: the plan is symmetric, so a row is half of softmax((0,
    # -1) / epsilon), and the cost, 1 off the matches, is 1 / (1 + e^(1 / epsilon)). Lengths of
    # vectors do not count.
    student, teacher = jnp.asarray([[[2.0, 0], [0, 1e-30]]]), jnp.asarray([[[0, 3.0], [1e20, 0]]])
    plan, cost = solve(
        student, teacher, jnp.ones((1, 2)), jnp.ones((1, 2)), epsilon=0.5, iterations=3
    )
    off = 1 / (1 + math.exp(2))
    np.testing.assert_allclose(
        plan[0], [[off / 2, (1 - off) / 2], [(1 - off) / 2, off / 2]], rtol=1e-6
    )
    np.testing.assert_allclose(cost, [off], rtol=1e-6)


def test_a_small_epsilon_is_the_linear_program_and_a_large_one_pairs_all_with_all(pairs):
    real = [i for i, lengths in enumerate(LENGTHS) if all(lengths)]
    costs = [
        reference.cosine_costs(pairs[0][0][i, :n], pairs[0][1][i, :m])
        for i in real
        for n, m in [LENGTHS[i]]
    ]
    least, mean = np.array([reference.exact(c) for c in costs]), np.array([c.mean() for c in costs])
    (_, small), (_, middle), (plan, large) = (
        solved(pairs, 0.003, 3000),
        solved(pairs),
        solved(pairs, 3000.0, 3000),
    )
    assert (small[real] > least - 1e-4).all()  # its columns are not exact yet
    np.testing.assert_allclose(small[real], least, atol=5e-3)
    np.testing.assert_allclose(large[real], mean, atol=1e-3)
    np.testing.assert_allclose(plan[0], 1 / 36, rtol=1e-2)
    assert (small[:2] < middle[:2]).all() and (middle[:2] < large[:2]).all()  # more entropy, dearer


def test_nearly_exact_transport_of_equal_windows_is_a_permutation(pairs):
    targets = np.asarray(soft_targets(jnp.asarray(solved(pairs, 0.003, iterations=3000)[0])))[0]
    assert (np.sort(targets, axis=1)[:, -1] > 0.9).all() and set(targets.argmax(1)) == set(range(6))


def test_soft_targets_are_distributions(pairs):
    targets = soft_targets(jnp.asarray(solved(pairs)[0]))
    both = pairs[1][0] & pairs[1][1].any(1, keepdims=True)
    np.testing.assert_allclose(targets.sum(-1), both, atol=1e-6)


def test_transport_has_no_gradient(pairs):
    embeddings, masks = (jax.tree.map(jnp.asarray, x) for x in pairs)
    value = lambda e: sum(x.sum() for x in transport(*e, *masks, epsilon=0.1, iterations=3))
    for gradient in jax.jit(jax.grad(value))(tuple(embeddings)):
        np.testing.assert_array_equal(gradient, 0)


def test_transport_refuses(pairs):
    with pytest.raises(ValueError, match="epsilon=0"):
        solved(pairs, epsilon=0.0)
