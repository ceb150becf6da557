import functools
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jopd.losses import divergences
from jopd.losses.divergences import (
    forward_kl,
    jensen_shannon,
    k1,
    k2,
    k3,
    reverse_kl,
    total_variation,
)
from jopd.losses.vocabulary import log_prob_of, log_softmax
from tests.reference import divergences as reference

# By hand: pi = (1/4, 3/4), q = (1/2, 1/2); log 2 and log 3/2 are all that is needed.
PI, Q = np.array([0.25, 0.75]), np.array([0.5, 0.5])
BLEND = np.array([5 / 16, 11 / 16])  # q / 4 + 3 pi / 4
BY_HAND = {
    "forward_kl": (forward_kl, math.log(4 / 3) / 2, [-1 / 4, 1 / 4]),
    "reverse_kl": (
        reverse_kl,
        math.log(1 / 2) / 4 + math.log(3 / 2) * 3 / 4,
        # pi_1 pi_2 (log(pi_1 / q_1) - log(pi_2 / q_2)) = 3/16 log(1/3)
        [-3 / 16 * math.log(3), 3 / 16 * math.log(3)],
    ),
    "jensen_shannon": (
        functools.partial(jensen_shannon, beta=0.25),
        (math.log(8 / 5) / 2 + math.log(8 / 11) / 2) / 4
        + (math.log(4 / 5) / 4 + math.log(12 / 11) * 3 / 4) * 3 / 4,
        # (1 - beta) log(pi / m) on each pi, through the softmax: 3/4 * 3/16 (log 4/5 - log 12/11)
        [9 / 64 * math.log(11 / 15), -9 / 64 * math.log(11 / 15)],
    ),
    "total_variation": (total_variation, 1 / 4, [-3 / 16, 3 / 16]),
}
ALL = {name: function for name, (function, _, _) in BY_HAND.items()}

# Rows of logits with ties and entries of no probability; the first is finite, so that there is a
# distribution.
ROWS = st.lists(st.sampled_from([-np.inf, -30.0, -2.0, 0.0, 0.5, 3.0]), min_size=4, max_size=4).map(
    lambda z: [1.0, *z]
)


@pytest.mark.parametrize("name", BY_HAND)
def test_value_and_gradient_worked_by_hand(name):
    function, value, gradient = BY_HAND[name]
    logits, teacher = (
        jnp.log(jnp.asarray([[PI]])),
        jnp.log(jnp.asarray([[Q]])),
    )  # [1, 1, V]: any leading axes
    found, slope = jax.jit(jax.value_and_grad(lambda z: function(log_softmax(z), teacher).sum()))(
        logits
    )
    assert function(logits, teacher).shape == (1, 1)
    np.testing.assert_allclose(found, value, rtol=1e-6)
    np.testing.assert_allclose(slope[0, 0], gradient, rtol=1e-5)


@jax.jit
def _values_and_gradients(student, teacher):
    student, teacher = jnp.asarray(student), log_softmax(teacher)
    return {
        name: jax.value_and_grad(lambda z, f=f: f(log_softmax(z), teacher))(student)
        for name, f in ALL.items()
    }


@given(ROWS, ROWS)
def test_all_agree_with_the_formulas_in_float64(student, teacher):
    pi, q = reference.softmax(student), reference.softmax(teacher)
    expected = {name: getattr(reference, name) for name in ALL} | {
        "jensen_shannon": functools.partial(reference.jensen_shannon, beta=0.25)
    }
    with jax.enable_x64(True):
        found = jax.device_get(_values_and_gradients(np.array(student), np.array(teacher)))
    for name, (value, gradient) in found.items():
        assert value.dtype == jnp.float64
        np.testing.assert_allclose(
            value, expected[name](pi, q), rtol=1e-12, atol=1e-14, err_msg=name
        )
        if np.isfinite(value):
            assert np.isfinite(gradient).all(), name
            np.testing.assert_allclose(gradient.sum(), 0, atol=1e-12)
            assert not gradient[pi == 0].any(), name
    np.testing.assert_allclose(
        found["forward_kl"][1], reference.forward_kl_gradient(pi, q), atol=1e-14
    )
    if pi.all() and q.all():
        np.testing.assert_allclose(
            found["reverse_kl"][1], reference.reverse_kl_gradient(pi, q), atol=1e-12
        )


@pytest.mark.parametrize("name", ALL)
def test_is_zero_with_zero_gradient_at_the_teacher(name):
    logits = (
        jnp.asarray(np.random.default_rng(0).normal(size=(3, 50)) * 5, jnp.float32)
        .at[0, 7]
        .set(-jnp.inf)
    )
    teacher = log_softmax(logits)
    value, gradient = jax.jit(
        jax.value_and_grad(lambda z: ALL[name](log_softmax(z), teacher).sum())
    )(logits)
    np.testing.assert_allclose(value, 0, atol=1e-6)
    np.testing.assert_allclose(gradient, 0, atol=1e-6)


@pytest.mark.parametrize("name", ALL)
def test_an_entry_of_no_weight_adds_nothing(name):
    # The third entry is impossible for both; 1e-200 is impossible in float32 without being -inf.
    value_and_gradients = jax.jit(jax.value_and_grad(ALL[name], argnums=(0, 1)))
    for nothing in (-jnp.inf, -460.0):
        student = jnp.append(jnp.log(jnp.asarray(PI)), nothing)
        teacher = jnp.append(jnp.log(jnp.asarray(Q)), -jnp.inf)
        value, gradients = value_and_gradients(student, teacher)
        np.testing.assert_allclose(value, BY_HAND[name][1], rtol=1e-6)
        assert [gradient[2] for gradient in gradients] == [0, 0]


def test_one_sided_impossible_entries():
    certain, even = jnp.asarray([0.0, -jnp.inf]), jnp.log(jnp.asarray([0.5, 0.5]))
    assert forward_kl(certain, even) == math.inf
    np.testing.assert_allclose(reverse_kl(certain, even), math.log(2), rtol=1e-6)
    np.testing.assert_allclose(
        jensen_shannon(certain, certain[::-1], beta=0.5), math.log(2), rtol=1e-6
    )
    np.testing.assert_allclose(total_variation(certain, certain[::-1]), 1)
    assert reverse_kl(even, certain) == math.inf


def test_jensen_shannon_tends_to_both_kls():
    rows = np.random.default_rng(0).normal(size=(2, 20))
    with jax.enable_x64(True):
        student, teacher = log_softmax(jnp.asarray(rows))
        for beta in (1e-4, 1e-6):
            forward, reverse = (
                jensen_shannon(student, teacher, beta=b) / beta for b in (beta, 1 - beta)
            )
            np.testing.assert_allclose(forward, forward_kl(student, teacher), rtol=20 * beta)
            np.testing.assert_allclose(reverse, reverse_kl(student, teacher), rtol=20 * beta)


@pytest.mark.parametrize("name", ["forward_kl", "reverse_kl"])
def test_the_kls_equal_torch(name):
    torch = pytest.importorskip(
        "torch", reason="torch is not installed, so there is nothing to compare with"
    )
    student, teacher = np.random.default_rng(0).normal(size=(2, 3, 20)).astype(np.float32)
    z = torch.tensor(student, requires_grad=True)
    pi, q = torch.log_softmax(z, -1), torch.log_softmax(torch.tensor(teacher), -1)
    pair = (
        (pi, q) if name == "forward_kl" else (q, pi)
    )  # torch: (input, target) is KL(target || input)
    expected = torch.nn.functional.kl_div(*pair, reduction="none", log_target=True).sum(-1)
    expected.sum().backward()
    f = jax.jit(lambda z: ALL[name](log_softmax(z), log_softmax(jnp.asarray(teacher))))
    np.testing.assert_allclose(f(jnp.asarray(student)), expected.detach().numpy(), rtol=1e-5)
    np.testing.assert_allclose(
        jax.grad(lambda z: f(z).sum())(jnp.asarray(student)), z.grad.numpy(), atol=1e-6
    )


# Top-k supports.


@jax.jit
def _top_k_kls(student, teacher):
    student, teacher = log_softmax(student), log_softmax(teacher)
    return {
        (function.__name__, support, tail, k): jax.value_and_grad(function)(
            student, teacher, k=k, support=support, tail=tail
        )
        for function in (forward_kl, reverse_kl)
        for support in ("teacher", "student")
        for tail in ("bucket", "renormalise")
        for k in (1, 2, 4, 5)
        if (tail, k) != ("renormalise", 1)
    }


@given(ROWS, ROWS)
def test_top_k_agrees_with_the_reference(student, teacher):
    pi, q = reference.softmax(student), reference.softmax(teacher)
    with jax.enable_x64(True):
        found = jax.device_get(_top_k_kls(np.array(student), np.array(teacher)))
    for (name, support, tail, k), (value, gradient) in found.items():
        ids = reference.top(q if support == "teacher" else pi, k)
        expected = getattr(reference, name)(
            reference.restrict(pi, ids, tail), reference.restrict(q, ids, tail)
        )
        np.testing.assert_allclose(
            value, expected, rtol=1e-10, atol=1e-13, err_msg=str((name, support, tail, k))
        )
        assert np.isfinite(gradient).all() or not np.isfinite(value)
    for name in ("forward_kl", "reverse_kl"):
        for support in ("teacher", "student"):
            chain = [0.0, *(found[name, support, "bucket", k][0] for k in (1, 2, 4, 5))]
            # Splitting an outcome can only tell more: 0 <= KL_1 <= KL_2 <= ... <= the full KL,
            # which k = V is.
            assert all(a <= b + 1e-12 for a, b in itertools.pairwise(chain)), (name, support, chain)
            np.testing.assert_allclose(
                chain[-1], getattr(reference, name)(pi, q), rtol=1e-12, atol=1e-14
            )


def test_a_k_beyond_the_vocabulary_is_the_full_kl():
    student, teacher = jnp.log(jnp.asarray(PI)), jnp.log(jnp.asarray(Q))
    for tail in ("bucket", "renormalise"):
        np.testing.assert_array_equal(
            forward_kl(student, teacher, k=9, tail=tail), forward_kl(student, teacher)
        )


def test_a_tail_far_below_rounding_still_counts():
    # The tail holds u = e^-20 of the student and e^-40 of the teacher, both lost in 1 - sum. By
    # hand: the reverse KL is 20 u + (1 - u) log(1 - u) + O(e^-40), where float32 has nothing left
    # of the second part, -u.
    student, teacher = (
        log_softmax(jnp.asarray([0.0, -20.0])),
        log_softmax(jnp.asarray([0.0, -40.0])),
    )
    value, gradient = jax.jit(jax.value_and_grad(lambda s: reverse_kl(s, teacher, k=1)))(student)
    np.testing.assert_allclose(value, 20 * math.exp(-20), rtol=1e-5)
    np.testing.assert_allclose(
        gradient[1], 21 * math.exp(-20), rtol=1e-5
    )  # d(u (log u - log q)) / d log u


# Sampled estimators, by enumerating the tokens that could be sampled.


def test_expectations_of_the_sampled_estimators():
    rows = np.random.default_rng(0).normal(size=(2, 5))
    pi, q = reference.softmax(rows[0]), reference.softmax(rows[1])
    with jax.enable_x64(True):
        logits, teacher, tokens = (
            jnp.asarray(rows[0]),
            log_softmax(jnp.asarray(rows[1])),
            jnp.arange(5),
        )

        def expected(estimator, z):
            student = jnp.broadcast_to(log_softmax(z), (5, 5))
            values = estimator(
                log_prob_of(student, tokens), log_prob_of(jnp.broadcast_to(teacher, (5, 5)), tokens)
            )
            return jnp.sum(jnp.asarray(pi) * values)  # sampling is not differentiated

        both = jax.jit(
            lambda z: [jax.value_and_grad(functools.partial(expected, f))(z) for f in (k1, k2, k3)]
        )
        values, gradients = zip(*jax.device_get(both(logits)), strict=True)
    kl = reference.reverse_kl(pi, q)
    np.testing.assert_allclose([values[0], values[2]], kl, rtol=1e-12)
    assert abs(values[1] - kl) > 1e-3  # biased
    expected = [
        np.zeros(5),
        reference.reverse_kl_gradient(pi, q),
        reference.forward_kl_gradient(pi, q),
    ]
    np.testing.assert_allclose(gradients, expected, atol=1e-12)


# What is logged.


def test_comparison_worked_by_hand():
    terms = divergences.comparison(
        jnp.log(jnp.asarray([PI, PI])), jnp.log(jnp.asarray([Q, [0.2, 0.8]]))
    )
    assert {name: values.shape for name, values in terms.items()} == dict.fromkeys(terms, (2,))
    np.testing.assert_allclose(terms["kl"][0], BY_HAND["reverse_kl"][1], rtol=1e-6)
    np.testing.assert_allclose(
        terms["student_entropy"][0], math.log(4) - 0.75 * math.log(3), rtol=1e-6
    )
    np.testing.assert_allclose(terms["teacher_entropy"][0], math.log(2), rtol=1e-6)
    np.testing.assert_array_equal(
        terms["top1_agreement"], [1, 1]
    )  # a tie of the teacher's agrees with either
    assert divergences.entropy(jnp.asarray([0.0, -jnp.inf])) == 0


# Refusals.

ROW = jnp.log(jnp.asarray(Q))


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: jensen_shannon(ROW, ROW, beta=0.0), r"beta=0.0 .*forward_kl .*reverse_kl"),
        (lambda: jensen_shannon(ROW, ROW, beta=1.0), r"beta=1.0 .*forward_kl .*reverse_kl"),
        (lambda: jensen_shannon(ROW, ROW, beta=math.nan), "beta=nan"),
        (lambda: forward_kl(ROW, ROW, k=0), "top_k=0 must be at least 1"),
        (lambda: reverse_kl(ROW, ROW, k=1, tail="renormalise"), "identically 0.*bucket"),
        (lambda: reverse_kl(ROW, ROW, k=1, support="techer"), "did you mean 'teacher'"),
        (lambda: forward_kl(ROW, ROW, tail="renormalize"), "did you mean 'renormalise'"),
        (lambda: divergences.choose("k1"), "expected gradient is 0.*opd_pg"),
        (lambda: divergences.choose("reverse-kl"), "did you mean 'reverse_kl'"),
        (
            lambda: divergences.choose("reverse_kl", beta=0.5),
            "beta=0.5 is a setting of jensen_shannon",
        ),
        (lambda: divergences.choose("jensen_shannon", beta=2.0), "beta=2.0 must lie in"),
        (lambda: divergences.choose("total_variation", k=3), "top_k=3"),
        (lambda: divergences.choose("forward_kl", support="student"), "set top_k"),
    ],
)
def test_refusals_say_the_cure(call, message):
    with pytest.raises(ValueError, match=message):
        call()
