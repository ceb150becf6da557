import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jopd.losses import evaluate
from jopd.losses.edge_opd import EvidenceGuidedOPD, evidence, evidence_mask
from jopd.losses.vocabulary import log_prob_of, log_softmax
from tests.losses import six_tokens
from tests.reference import divergences as reference

# The evidence and its regions.


def test_evidence_is_a_difference_without_gradient():
    privileged = jnp.asarray([-1.0, -3.0, -jnp.inf, -jnp.inf, -1.0])
    plain = jnp.asarray([-2.0, -1.5, -jnp.inf, -1.0, -jnp.inf])
    # A token that neither allows says nothing.
    np.testing.assert_array_equal(evidence(privileged, plain), [1.0, -1.5, 0, -jnp.inf, jnp.inf])
    for gradient in jax.grad(lambda a, b: evidence(a, b).sum(), argnums=(0, 1))(
        privileged[:2], plain[:2]
    ):
        np.testing.assert_array_equal(gradient, 0)


@pytest.mark.parametrize(
    "region, expected",
    [
        ("positive", [0, 0, 0, 0, 0, 1, 1]),
        ("negative", [1, 1, 0, 0, 0, 0, 0]),
        ("near_zero", [0, 0, 1, 1, 1, 0, 0]),
        ("all", [1] * 7),
    ],
)
def test_regions_by_hand(region, expected):
    # At the threshold itself a token is near zero.
    found = evidence_mask(
        jnp.asarray([-jnp.inf, -0.2, -0.1, 0.0, 0.1, 0.2, jnp.inf]), region=region, threshold=0.1
    )
    np.testing.assert_array_equal(found, np.array(expected, bool))


@given(st.lists(st.floats(-2, 2, width=32), min_size=9, max_size=9), st.floats(0, 1, width=32))
def test_three_regions_share_the_tokens_between_them(values, threshold):
    regions = [
        np.asarray(evidence_mask(jnp.asarray(values), region=region, threshold=threshold), int)
        for region in ("positive", "negative", "near_zero")
    ]
    np.testing.assert_array_equal(sum(regions), 1)


# The loss by hand, one row: pi = (1/4, 3/4), q = (1/2, 1/2) with the context, (3/4, 1/4) without.
# Its tokens 0 and 1 have the evidence log 2/3 and log 2, and the advantages log 2 and log 2/3. A
# third token is masked out.

PI, PRIVILEGED, PLAIN = [0.25, 0.75], [0.5, 0.5], [0.75, 0.25]
GRADIENT_0 = np.array([-0.75, 0.75]) * math.log(2)  # -A (e_y - pi)
GRADIENT_1 = np.array([0.25, -0.25]) * math.log(2 / 3)
LOSS_0, LOSS_1 = math.log(2) * math.log(4), math.log(2 / 3) * math.log(4 / 3)
KL, KL_GRADIENT = (
    reference.reverse_kl(PI, PLAIN),
    reference.reverse_kl_gradient(np.array(PI), np.array(PLAIN)),
)


@functools.partial(jax.jit, static_argnums=0)
def found(method, z, views, tokens, mask, inputs):
    loss = lambda z, views: evaluate(method, z, views, tokens, mask, **inputs)
    return jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)(z, views)


def by_hand(dtype=np.float32, weight=None, advantage=None, **settings):
    row = lambda p: np.log([[p, p, [0.9, 0.1]]]).astype(dtype)
    views = {"privileged": row(PRIVILEGED), "plain": row(PLAIN)}
    inputs = {} if weight is None else {"weight": np.array([weight], np.float32)}
    inputs |= {} if advantage is None else {"group_advantage": np.array([[advantage]], np.float32)}
    args = row(PI), views, np.array([[0, 1, 1]]), np.array([[1, 1, 0]]), inputs
    (value, metrics), (gradient, of_views) = jax.device_get(
        found(EvidenceGuidedOPD(**settings), *args)
    )
    np.testing.assert_array_equal(gradient[0, 2], 0)
    assert not any(gradient.any() for gradient in of_views.values())
    return value, gradient[0, :2].astype(np.float32), metrics


@pytest.mark.parametrize(
    "settings, value, gradient, kept",
    [
        ({"region": "all"}, (LOSS_0 + LOSS_1) / 2, [GRADIENT_0 / 2, GRADIENT_1 / 2], 1),
        ({}, LOSS_1, [0 * GRADIENT_0, GRADIENT_1], 1 / 2),
        ({"threshold": 0.7}, 0, [0 * GRADIENT_0, 0 * GRADIENT_1], 0),
        ({"region": "negative"}, LOSS_0, [GRADIENT_0, 0 * GRADIENT_1], 1 / 2),
        (
            {"region": "near_zero"},
            0,
            [0 * GRADIENT_0, 0 * GRADIENT_1],
            0,
        ),  # neither is within its .1
        ({"region": "near_zero", "threshold": 0.5}, LOSS_0, [GRADIENT_0, 0 * GRADIENT_1], 1 / 2),
        (
            {"log_ratio_clip": 0.25},
            LOSS_1 * 0.25 / math.log(1.5),
            [0 * GRADIENT_0, GRADIENT_1 * 0.25 / math.log(1.5)],
            1 / 2,
        ),
        # The task's reward is added to the advantage of what is kept.
        (
            {"reward_weight": 0.5, "advantage": 2.0},
            LOSS_1 + math.log(4 / 3),
            [0 * GRADIENT_0, GRADIENT_1 - np.array([-0.25, 0.25])],
            1 / 2,
        ),
        # The weighted mean is over what is kept; the KL to the plain view is over every token.
        (
            {"region": "all", "weight": [3.0, 1.0, 5.0]},
            (3 * LOSS_0 + LOSS_1) / 4,
            [GRADIENT_0 * 0.75, GRADIENT_1 / 4],
            1,
        ),
        (
            {"kl_coefficient": 0.5},
            LOSS_1 + KL / 2,
            [KL_GRADIENT / 4, GRADIENT_1 + KL_GRADIENT / 4],
            1 / 2,
        ),
    ],
)
def test_loss_worked_by_hand(settings, value, gradient, kept):
    found = by_hand(**settings)
    np.testing.assert_allclose(found[0], value, rtol=1e-5)
    np.testing.assert_allclose(found[1], gradient, rtol=1e-5, atol=1e-7)
    assert found[2]["kept"] == kept


def test_it_logs_its_evidence():
    metrics = by_hand(log_ratio_clip=0.5)[2]
    np.testing.assert_allclose(metrics["evidence"], (math.log(2 / 3) + math.log(2)) / 2, rtol=1e-5)
    np.testing.assert_allclose(metrics["advantage"], (0.5 + math.log(2 / 3)) / 2, rtol=1e-5)
    assert (metrics["rho_plus"], metrics["rho_lev"], metrics["rho_agree"]) == (0.5, 1, 0)
    assert metrics["log_ratio_clipped"] == 0.5


def test_bfloat16_logits_are_compared_in_float32():
    rounded = lambda p: np.asarray(jnp.log(jnp.asarray(p)).astype(jnp.bfloat16), np.float64)
    pi, privileged = (reference.softmax(rounded(p)) for p in (PI, PRIVILEGED))
    advantage = math.log(privileged[1] / pi[1])
    value, gradient, _ = by_hand(jnp.bfloat16)
    assert value.dtype == jnp.float32
    np.testing.assert_allclose(value, -advantage * math.log(pi[1]), rtol=1e-5)
    np.testing.assert_allclose(
        gradient[1], -advantage * (np.array([0, 1]) - pi), rtol=1e-2
    )  # rounded on its way out


@pytest.mark.parametrize(
    "settings, share",
    [
        ({"region": "positive"}, 2 / 6),
        ({"region": "negative", "threshold": 0.5}, 1 / 6),
        ({"region": "near_zero", "threshold": 0.5}, 2 / 6),
    ],
)
def test_the_share_that_rounding_decides_is_measured(settings, share):
    evidence = np.array([0.0, 5e-5, -5e-4, 0.50005, -0.50005, 2.0])
    privileged = np.full(6, 0.1)
    tokens = np.zeros((1, 6), int)
    rest = lambda p: np.stack([p, 1 - p], axis=-1)[None]
    views = {"privileged": rest(privileged), "plain": rest(privileged * np.exp(-evidence))}
    with jax.enable_x64(True):
        _, metrics = evaluate(
            EvidenceGuidedOPD(**settings),
            jnp.log(jnp.asarray(rest(np.full(6, 0.3)))),
            {view: jnp.log(jnp.asarray(p)) for view, p in views.items()},
            jnp.asarray(tokens),
            jnp.ones((1, 6), bool),
        )
    np.testing.assert_allclose(metrics["near_threshold"], share, atol=1e-6)


# Random batches; the second row is one token long, the third is empty.

MASK = np.arange(4) < np.array([4, 1, 0])[:, None]
SETTINGS = dict(kl_coefficient=0.05, region="near_zero", threshold=0.5)


def at_random(student, privileged, plain, mask=MASK):
    views, tokens = (
        {"privileged": privileged, "plain": plain},
        np.repeat([[3], [0], [0]], 4, axis=1),
    )
    (value, _), (gradient, _) = jax.device_get(
        found(EvidenceGuidedOPD(**SETTINGS), student, views, tokens, mask, {})
    )
    return value, gradient


def logits(extra=0):
    z = np.random.default_rng(0).normal(size=(3, *MASK.shape, 5))
    return np.concatenate([z, np.full((3, *MASK.shape, extra), -np.inf)], axis=-1).astype(
        np.float32
    )


def test_nothing_is_learnt_from_nothing():
    z, others, more = logits()
    # The teacher is the student in both views; then it is another one, but all rows are masked.
    for case in ((z, z, z), (z, others, more, np.zeros_like(MASK))):
        value, gradient = at_random(*case)
        np.testing.assert_allclose(value, 0, atol=1e-7)
        np.testing.assert_allclose(gradient, 0, atol=1e-7)


def test_a_token_that_nobody_allows_is_harmless():
    value, gradient = at_random(*logits())
    assert value != 0 and gradient[:2].any() and not gradient[2].any()
    found, more = at_random(*logits(extra=1))
    np.testing.assert_allclose(found, value, rtol=1e-5)
    np.testing.assert_allclose(more[..., :-1], gradient, atol=1e-7)
    assert not more[..., -1].any()


# The six-token toy of section 4: what is ever learnt of a name that the student never says.


def learn(**settings):
    method = EvidenceGuidedOPD(**settings)
    return six_tokens.learn(six_tokens.loss_of(method), method.guided_share)


@pytest.mark.parametrize("region", ["all", "positive"])
def test_guided_it_learns_the_name(region):
    found = learn(region=region)
    np.testing.assert_allclose(found[six_tokens.NAME], 0.70, atol=0.005)
    if region == "all":
        np.testing.assert_allclose(found, np.exp(six_tokens.PRIVILEGED), atol=0.01)


@pytest.mark.parametrize(
    "settings",
    [
        {"region": "all", "guided_share": 0.0},
        {"region": "positive", "guided_share": 0.0},
        {"region": "negative"},
        {"region": "near_zero"},
    ],
)
def test_unguided_or_on_other_tokens_it_does_not(settings):
    found = learn(**settings)
    assert found[six_tokens.NAME] < 1e-6
    if settings["region"] == "all":
        # It has moved all the same: towards the teacher among the tokens that it does say.
        np.testing.assert_allclose(found[:5], 0.2, atol=0.03)


def literal(student_logits, views, tokens, mask):
    """The loss as it is printed, sum g (log pi - log q) / sum g, with the gradient that it has as
    it stands.
    """
    logp, privileged, plain = (
        log_prob_of(log_softmax(z), tokens)
        for z in (student_logits, views["privileged"], views["plain"])
    )
    kept = mask & (privileged > plain)
    return jnp.where(kept, logp - privileged, 0).sum() / jnp.maximum(kept.sum(dtype=logp.dtype), 1)


def test_the_literal_loss_unlearns_what_it_keeps():
    assert six_tokens.learn(literal, 0.5)[six_tokens.NAME] < math.exp(
        -20
    )  # less than it began with
    # Its gradient is that of log pi(y), whatever the teacher says: descent makes the kept token
    # less likely.
    row = lambda p: jnp.log(jnp.asarray([[p]]))
    tokens, mask = jnp.asarray([[1]]), jnp.asarray([[True]])
    for privileged in ([0.5, 0.5], [0.01, 0.99]):
        gradient = jax.grad(literal)(
            row(PI), {"privileged": row(privileged), "plain": row(PLAIN)}, tokens, mask
        )
        np.testing.assert_allclose(gradient[0, 0], [-0.25, 0.25], rtol=1e-5)  # e_y - pi


# Description and refusals.


def test_says_what_it_is():
    words = EvidenceGuidedOPD(
        kl_coefficient=0.05, log_ratio_clip=5.0, guided_writer="teacher"
    ).variables()
    assert words.state == "student rollouts, 0.5 of them written by the teacher with the context"
    assert words.gates == "log-ratio clip 5, positive evidence, threshold 0"
    assert words.regularisation == "0.05 x KL to the teacher without the context"
    words = EvidenceGuidedOPD(guided_share=0.0, region="all").variables()
    assert (words.state, words.gates, words.regularisation) == ("student rollouts", "none", "none")
    assert (
        EvidenceGuidedOPD(region="near_zero").variables().gates
        == "near_zero evidence, threshold 0.1"
    )


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"region": "positiv"}, "unknown region 'positiv': did you mean 'positive'"),
        ({"threshold": -0.1}, "threshold=-0.1 must not be negative"),
        ({"threshold": 0.1, "region": "all"}, "threshold=0.1 does nothing with region='all'"),
        ({"guided_share": 1.5}, r"guided_share=1.5 must lie in \[0, 1\]"),
        ({"guided_writer": "techer"}, "did you mean 'teacher'"),
        (
            {"guided_writer": "teacher", "guided_share": 0.0},
            "guided_writer='teacher' writes nothing",
        ),
        ({"kl_coefficient": -1.0}, "kl_coefficient=-1.0 must not be negative"),
        ({"log_ratio_clip": 0.0}, "log_ratio_clip=0.0 must be positive"),
        ({"temperature": 0.0}, "temperature=0.0 must be positive"),
    ],
)
def test_bad_settings_are_refused(settings, message, types_unchecked):
    with pytest.raises(ValueError, match=message):
        EvidenceGuidedOPD(**settings)
