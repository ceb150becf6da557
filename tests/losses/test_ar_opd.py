import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jopd.losses import evaluate
from jopd.losses.ar_opd import AnchoredResidualOPD, anchored_residual_target
from jopd.losses.stages import whole_batch_counts
from tests.reference import ar_opd as reference
from tests.reference import divergences

# Two tokens, by hand: residual (log 1.6, log .4).
PARTIAL, FULL = [0.5, 0.5], [0.8, 0.2]


solve = jax.jit(anchored_residual_target, static_argnames=("scale", "clip"))


def target(partial, full, **settings):
    with np.errstate(divide="ignore"):
        partial, full = (np.log(p, dtype=np.float32) for p in (partial, full))
    return np.exp(solve(partial, full, **settings))


@pytest.mark.parametrize(
    "scale, clip, expected",
    [
        (0, 5, PARTIAL),
        (1, 5, FULL),
        (0.5, 5, [2 / 3, 1 / 3]),  # sqrt 1.6 to sqrt .4
        (2, 5, [16 / 17, 1 / 17]),  # 1.6^2 to .4^2
        (1, math.log(2), [16 / 21, 5 / 21]),  # 1.6 to .5: log .4 is clipped
        (0.5, math.log(1.25), [5 / 9, 4 / 9]),  # both clipped: sqrt 1.25 to sqrt .8
    ],
)
def test_target_worked_by_hand(scale, clip, expected):
    np.testing.assert_allclose(target(PARTIAL, FULL, scale=scale, clip=clip), expected, rtol=1e-5)


def test_a_token_that_the_anchor_rules_out_stays_ruled_out():
    # Absent from both, from the anchor alone, from the full view alone (exp(-lam c) = 1/2 is left
    # of it), from neither.
    partial, full = [0, 0, 0.4, 0.6], [0, 0.5, 0, 0.5]
    clip = 2 * math.log(2)
    expected = np.array([0, 0, 0.4 / 2, 0.6 * math.sqrt(0.5 / 0.6)])
    np.testing.assert_allclose(
        target(partial, full, scale=0.5, clip=clip), expected / expected.sum(), rtol=1e-5
    )
    np.testing.assert_allclose(
        expected / expected.sum(), reference.target(partial, full, 0.5, clip), rtol=1e-12
    )


def test_target_has_no_gradient():
    of = lambda p, f: (jnp.arange(2.0) * anchored_residual_target(p, f, scale=0.6, clip=5)).sum()
    for gradient in jax.grad(of, argnums=(0, 1))(
        jnp.log(jnp.asarray(PARTIAL)), jnp.log(jnp.asarray(FULL))
    ):
        np.testing.assert_array_equal(gradient, 0)


# Loss. Rows of 6, 4, 3 and 1 tokens, three tokens skipped: 3 + 1 of them count.

LENGTHS = (6, 4, 3, 1)
MASK = np.arange(6) < np.array(LENGTHS)[:, None]
SETTINGS = dict(scale=0.8, clip=1.5, temperature=1.5)  # a clip that acts on part of the entries


def logits():
    """Of student, partial view and full view."""
    return np.random.default_rng(0).normal(size=(3, *MASK.shape, 7), scale=1.5).astype(np.float32)


@functools.partial(jax.jit, static_argnums=0)
def found(method, z, mask, weight):
    """((loss, metrics), gradients on the student's and on the views' logits)."""
    views, tokens = {"partial": z[1], "full": z[2]}, jnp.zeros(mask.shape, int)
    loss = lambda student, views: evaluate(method, student, views, tokens, mask, weight=weight)
    return jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)(z[0], views)


def on_host(z, mask=MASK, weight=1.0, **settings):
    method = AnchoredResidualOPD(**{**SETTINGS, **settings})
    return jax.device_get(
        found(method, z, mask, np.broadcast_to(np.asarray(weight, jnp.float32), mask.shape))
    )


def test_loss_and_gradient_and_metrics_equal_a_float64_reference():
    given, total, count = logits().astype(np.float64), 0.0, 0.0
    gradient = np.zeros(given.shape[1:])
    weight = np.random.default_rng(1).uniform(0.5, 2, size=MASK.shape)
    metrics = []
    for row, column in np.argwhere(MASK):
        pi, partial, full = (
            divergences.softmax(z[row, column] / SETTINGS["temperature"]) for z in given
        )
        q = reference.target(partial, full, SETTINGS["scale"], SETTINGS["clip"])
        residual = np.abs(reference.residual(partial, full))
        metrics.append(
            {
                "kl_full_partial": divergences.kl(full, partial),
                "kl_target_partial": divergences.kl(q, partial),
                "kl_full_student": divergences.kl(full, pi),
                "residual_size": (full * np.minimum(residual, SETTINGS["clip"])).sum(),
                "residual_clipped": full[residual > SETTINGS["clip"]].sum(),
            }
        )
        if column >= 3:
            total += weight[row, column] * divergences.kl(q, pi)
            count += weight[row, column]
            gradient[row, column] = weight[row, column] * (pi - q) / SETTINGS["temperature"]
    with jax.enable_x64(True):
        method = AnchoredResidualOPD(**SETTINGS)
        (loss, measured), (student, views) = jax.device_get(found(method, given, MASK, weight))
    np.testing.assert_allclose(loss, total / count, rtol=1e-10)
    np.testing.assert_allclose(student, gradient / count, atol=1e-12)
    for name in metrics[0]:
        np.testing.assert_allclose(
            measured[name], np.mean([one[name] for one in metrics]), rtol=1e-10, err_msg=name
        )
    assert 0.1 < measured["residual_clipped"] < 0.9
    assert not any(gradient.any() for gradient in views.values())


def test_short_rows_count_nothing_and_rows_of_nothing_else_give_nothing():
    count = lambda mask, **settings: whole_batch_counts(AnchoredResidualOPD(**settings), mask, {})[
        "divergence"
    ]
    assert count(jnp.asarray(MASK)) == 3 + 1
    assert count(jnp.asarray(MASK), skip_tokens=0) == sum(LENGTHS)
    assert count(jnp.asarray(MASK[2:])) == 0
    for mask in (MASK & (np.arange(6) < 3), np.zeros_like(MASK)):
        (loss, _), (student, _) = on_host(logits(), mask)
        assert loss == 0 and not student.any()


def test_nothing_outside_the_mask_matters_and_bfloat16_is_accepted():
    given = logits().astype(jnp.bfloat16)
    (loss, _), (gradient, _) = on_host(given)
    (spoilt, _), (spoilt_gradient, _) = on_host(
        np.where(MASK[..., None], given, jnp.bfloat16(np.nan))
    )
    assert loss == spoilt and loss.dtype == np.float32 and gradient.dtype == jnp.bfloat16
    np.testing.assert_array_equal(spoilt_gradient, gradient)
    np.testing.assert_allclose(loss, on_host(given.astype(np.float32))[0][0], rtol=1e-6)


def test_a_token_that_nobody_allows_is_harmless():
    given = np.concatenate([logits(), np.full((3, *MASK.shape, 1), -np.inf, np.float32)], axis=-1)
    (loss, metrics), (gradient, _) = on_host(given)
    (without, _), (expected, _) = on_host(logits())
    np.testing.assert_allclose(loss, without, rtol=1e-5)
    np.testing.assert_allclose(gradient[..., :-1], expected, atol=1e-6)
    assert not gradient[..., -1].any() and all(np.isfinite(value) for value in metrics.values())


@pytest.mark.parametrize("scale, view", [(0.0, 1), (1.0, 2)])
def test_scale_0_is_partial_opd_and_1_full_opd(scale, view):
    pairs = [(logits()[view][at], logits()[0][at]) for at in zip(*np.nonzero(MASK), strict=True)]
    expected = np.mean([divergences.kl(*map(divergences.softmax, pair)) for pair in pairs])
    (loss, metrics), _ = on_host(logits(), scale=scale, clip=50.0, skip_tokens=0, temperature=1.0)
    np.testing.assert_allclose(loss, expected, rtol=1e-5)
    assert metrics["residual_clipped"] == 0
    # A clip that acts keeps Full OPD from being that, and does nothing to Partial OPD.
    (clipped, _), _ = on_host(logits(), scale=scale, clip=1.0, skip_tokens=0, temperature=1.0)
    assert (abs(clipped - expected) > 0.05) == bool(scale)


def test_is_nothing_where_student_and_teacher_agree():
    (loss, _), (gradient, _) = on_host(np.repeat(logits()[:1], 3, axis=0))
    np.testing.assert_allclose(loss, 0, atol=1e-6)
    np.testing.assert_allclose(gradient, 0, atol=1e-7)


def test_says_what_it_is():
    method = AnchoredResidualOPD()
    assert (method.scale, method.clip, method.skip_tokens, method.teacher_update) == (
        0.6,
        5.0,
        3,
        "ema",
    )
    assert method.variables().gates == "residual clip 5, first 3 tokens skipped"
    assert AnchoredResidualOPD(skip_tokens=0).variables().gates == "residual clip 5"
    assert method.variables().regularisation == "anchored at the partial view, 0.6 x residual"


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"scale": -0.1}, "scale=-0.1 must not be negative: 0 is Partial OPD"),
        ({"scale": math.nan}, "scale=nan"),
        ({"clip": 0.0}, "clip=0.0 must be positive and finite"),
        ({"clip": math.inf}, "clip=inf .* 1000 never acts"),
        ({"skip_tokens": -1}, "skip_tokens=-1 must not be negative"),
        ({"temperature": 0.0}, "temperature=0.0 must be positive"),
        ({"teacher_update": "emma"}, "did you mean 'ema'"),
    ],
)
def test_bad_settings_are_refused(settings, message, types_unchecked):
    with pytest.raises(ValueError, match=message):
        AnchoredResidualOPD(**settings)
