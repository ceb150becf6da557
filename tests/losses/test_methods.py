import dataclasses
import functools
import math

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jopd import losses
from tests.losses.problem import (
    BATCH,
    LENGTH,
    METHODS,
    REGISTERED,
    UPDATES,
    logits_of,
    plain_loss,
    problem,
    short,
)
from tests.reference import divergences as reference

# By hand: pi = (1/4, 3/4), q = (1/2, 1/2).
PI, Q = [0.25, 0.75], [0.5, 0.5]
FORWARD_KL = math.log(4 / 3) / 2


def by_hand(method, token=0, student=PI, teacher=Q, **inputs):
    """Loss and gradient on the logits of one token of one row; the second token is masked out."""
    logits, view = (jnp.log(jnp.asarray([[row, [0.9, 0.1]]])) for row in (student, teacher))
    tokens, mask = jnp.asarray([[token, 1]]), jnp.asarray([[1, 0]])
    inputs = {name: jnp.asarray([[value, 0.0]]) for name, value in inputs.items()}
    loss = lambda z: losses.evaluate(
        method, z, {v: view for v in method.views}, tokens, mask, streams={}, **inputs
    )
    (value, metrics), gradient = jax.jit(jax.value_and_grad(loss, has_aux=True))(logits)
    np.testing.assert_array_equal(gradient[0, 1], 0)
    return value, gradient[0, 0], metrics


def agrees(found, value, gradient):
    np.testing.assert_allclose(found[0], value, rtol=1e-5)
    np.testing.assert_allclose(found[1], gradient, rtol=1e-5, atol=1e-7)


# Each method, worked by hand.


def test_sft_is_cross_entropy():
    found = by_hand(losses.get("sft"), token=0)
    agrees(found, math.log(4), [-3 / 4, 3 / 4])  # pi - e_y
    assert found[2]["top1_accuracy"] == 0


def test_opd_is_a_token_mean_over_the_whole_batch():
    # Rows of one and of three tokens: FKL at three of them, 0 at the fourth, so 3/4 FKL; a mean of
    # means would say 5/6.
    logits = jnp.log(jnp.asarray([[PI, PI, PI], [PI, PI, Q]]))
    mask = jnp.asarray([[True, False, False], [True, True, True]])
    teacher = {"teacher": jnp.log(jnp.asarray([[Q, Q, Q], [Q, Q, Q]]))}
    method = losses.get("opd", divergence="forward_kl")
    loss, metrics = jax.jit(losses.evaluate, static_argnums=0)(
        method, logits, teacher, jnp.zeros((2, 3), int), mask
    )
    np.testing.assert_allclose(loss, FORWARD_KL * 3 / 4, rtol=1e-6)
    np.testing.assert_allclose(metrics["divergence"], loss, rtol=1e-6)


def test_temperature_divides_both_and_the_logged_kl_ignores_it():
    # At temperature 2 pi ~ (1, sqrt 3), q stays even: FKL = log((1 + sqrt 3) / 2) - log(3) / 4.
    value, _, metrics = by_hand(losses.get("opd", divergence="forward_kl", temperature=2.0))
    np.testing.assert_allclose(value, math.log((1 + math.sqrt(3)) / 2) - math.log(3) / 4, rtol=1e-5)
    np.testing.assert_allclose(
        metrics["kl"], math.log(1 / 2) / 4 + math.log(3 / 2) * 3 / 4, rtol=1e-5
    )


def test_opd_pg_rewards_the_sampled_token():
    # A = log(1/2) - log(1/4) = log 2; loss -A log(1/4), gradient -A (e_y - pi).
    value, gradient, metrics = by_hand(losses.get("opd_pg"))
    agrees((value, gradient), 2 * math.log(2) ** 2, [-0.75 * math.log(2), 0.75 * math.log(2)])
    np.testing.assert_allclose(metrics["log_ratio"], math.log(2), rtol=1e-6)
    clipped = by_hand(losses.get("opd_pg", log_ratio_clip=0.5))
    agrees(clipped, 0.5 * math.log(4), [-0.375, 0.375])
    assert clipped[2]["log_ratio_clipped"] == 1


@pytest.mark.parametrize(
    "token, behaviour, ratio_clip, value, gradient",
    [
        (
            0,
            1 / 8,
            None,
            -2 * math.log(2),
            [-1.5 * math.log(2), 1.5 * math.log(2)],
        ),  # r = 2, not clipped
        (
            0,
            1 / 8,
            0.2,
            -1.2 * math.log(2),
            [0, 0],
        ),  # r = 2 > 1.2 with A > 0: the step has been taken
        (
            0,
            1 / 2,
            0.2,
            -0.5 * math.log(2),
            [-0.375 * math.log(2), 0.375 * math.log(2)],
        ),  # r = 1/2: still to go
        (
            1,
            3 / 8,
            0.2,
            2 * math.log(3 / 2),
            [-0.5 * math.log(3 / 2), 0.5 * math.log(3 / 2)],
        ),  # r = 2, A = log(2/3)
    ],
)
def test_opd_pg_clips_the_ratio_to_the_behaviour_policy(
    token, behaviour, ratio_clip, value, gradient
):
    method = losses.get("opd_pg", updates=2, ratio_clip=ratio_clip)
    agrees(by_hand(method, token=token, behaviour_logp=math.log(behaviour)), value, gradient)


def test_opsd_clamps_entries_from_above_only():
    # Entries 3/4 log 3 = .82, clamped to .05 without gradient, and -1/4 log 3, whose gradient is
    # -1/4 (e_2 - pi).
    clamped = losses.get("opsd", entry_clamp=0.05)
    found = by_hand(clamped, student=[0.25, 0.75], teacher=[0.75, 0.25])
    agrees(found, 0.05 - math.log(3) / 4, [1 / 16, -1 / 16])
    assert found[2]["clamped_entries"] == 1
    np.testing.assert_allclose(found[2]["clamped_mass"], 0.75, rtol=1e-6)
    agrees(by_hand(losses.get("opsd")), FORWARD_KL, [-1 / 4, 1 / 4])
    # Gaps of at most clamp / q are harmless: the entries are .0125 log 5 = .02 and less.
    near = {"student": [0.01, 0.99], "teacher": [0.05, 0.95]}
    unclamped = by_hand(losses.get("opsd"), **near)
    agrees(by_hand(losses.get("opsd", entry_clamp=0.081), **near), *unclamped[:2])


@pytest.mark.parametrize(
    "clamp, favourite",
    # With the clamp the loss is -.18 where the favourite is gone, and 0 at the teacher.
    [(None, 0.9), (0.05, 0.003)],
)
def test_where_gradient_descent_on_opsd_ends(clamp, favourite):
    method = losses.get("opsd", entry_clamp=clamp)
    teacher = jnp.log(jnp.asarray([[[0.9, *[0.02] * 5]]]))
    tokens, mask = jnp.zeros((1, 1), int), jnp.ones((1, 1), bool)
    loss = lambda z: losses.evaluate(method, z, {"privileged": teacher}, tokens, mask)[0]
    descend = lambda _, z: z - jax.grad(loss)(z)
    start = jnp.log(jnp.asarray([[[0.85, *[0.03] * 5]]]))
    end = jax.lax.fori_loop(0, 4000, descend, start)
    np.testing.assert_allclose(jax.nn.softmax(end)[0, 0, 0], favourite, atol=1e-3)


def test_opsd_alerts_where_its_clamp_acts_on_what_the_teacher_says():
    (alert,) = losses.get("opsd", entry_clamp=0.05).alerts
    assert alert.metric == "clamped_mass" and "entry_clamp" in alert.message
    assert losses.get("opsd").alerts == ()
    assert losses.stabilised(
        losses.get("opsd", entry_clamp=0.05), losses.Stabilisers(kl_to_initial=0.1)
    ).alerts == (alert,)


@pytest.mark.parametrize("name", ["opd_pg", "cr_opd"])
def test_returns_on_cut_rows_are_alerted_of(name):
    (alert,) = losses.get(name, credit="return_to_go").alerts
    assert alert.metric == "truncation_rate" and alert.above == 0.05
    assert losses.get(name).alerts == ()


def test_which_methods_need_one_model_as_student_and_teacher():
    needing = {method.name for method in REGISTERED if method.one_model}
    assert needing == {"edge_opd"}
    assert losses.get("rlsd", verifier=False).one_model


@pytest.mark.parametrize("updates", [1, 2])
def test_the_policy_gradient_is_the_reverse_kls_in_expectation(updates):
    # Every token that could be sampled, one a row, weighted by the policy that samples: with
    # updates, another one.
    rows = np.random.default_rng(0).normal(size=(3, 5))
    pi, q, behaviour = (reference.softmax(row) for row in rows)
    sampler = pi if updates == 1 else behaviour
    with jax.enable_x64(True):
        method = losses.get("opd_pg", updates=updates)
        inputs = {"behaviour_logp": jnp.log(jnp.asarray(sampler))[:, None]} if updates > 1 else {}
        spread = lambda row: jnp.broadcast_to(jnp.asarray(row), (5, 1, 5))
        terms_of = lambda z: method.token_terms(
            spread(z), {"teacher": spread(rows[1])}, jnp.arange(5)[:, None], {}
        )

        def expected(z):
            # One token a row: the weights enter through the rows' shares of the loss.
            terms, total = terms_of(z), 0.0
            for row in range(5):
                one = {name: values[row : row + 1] for name, values in terms.items()}
                given = {name: values[row : row + 1] for name, values in inputs.items()}
                total += sampler[row] * losses.batch_loss(
                    losses.time_stage(method, one, jnp.ones((1, 1)), given)[0]
                )
            return total

        gradient = jax.device_get(jax.jit(jax.grad(expected))(jnp.asarray(rows[0])))
    np.testing.assert_allclose(gradient, reference.reverse_kl_gradient(pi, q), atol=1e-10)


def test_sft_equals_torch():
    torch = pytest.importorskip(
        "torch", reason="torch is not installed, so there is nothing to compare with"
    )
    given = problem(losses.get("sft"))
    logits = np.asarray(logits_of(given.student))
    labels = np.where(given.mask, given.tokens, -100)
    z = torch.tensor(logits, requires_grad=True)
    expected = torch.nn.functional.cross_entropy(
        z.flatten(0, 1), torch.tensor(labels, dtype=torch.long).flatten()
    )
    expected.backward()
    loss = jax.jit(jax.value_and_grad(lambda z: plain_loss(losses.get("sft"), z, {}, given)))
    loss, gradient = loss(jnp.asarray(logits))
    np.testing.assert_allclose(loss, expected.item(), rtol=1e-6)
    np.testing.assert_allclose(gradient, z.grad.numpy(), atol=1e-7)


# What holds for every method, those added later included.


@pytest.mark.parametrize(
    "method",
    [method for method in METHODS if method.views and method.vanishes_at_teacher],
    ids=short,
)
def test_identity(method):
    """A teacher that says what the student says teaches nothing."""
    given = problem(method)
    logits = logits_of(given.student)
    loss = lambda z: plain_loss(method, z, dict.fromkeys(method.views, logits), given)
    value, gradient = jax.jit(jax.value_and_grad(loss))(logits)
    # Returns add up the rounding of a row's rewards.
    np.testing.assert_allclose(value, 0, atol=1e-5)
    np.testing.assert_allclose(gradient, 0, atol=1e-6)


@pytest.mark.parametrize("method", [*REGISTERED, UPDATES], ids=short)
def test_tokens_outside_the_mask_do_not_exist(method):
    batch = problem(method)
    student, teachers = (
        logits_of(batch.student),
        {view: logits_of(scored) for view, scored in batch.teachers.items()},
    )

    @jax.jit
    def value_and_gradients(mask, poison):
        def spoil(tree):
            spoilt = lambda a: jnp.where(
                jnp.expand_dims(mask, range(2, a.ndim)), a, poison.astype(a.dtype)
            )
            return jax.tree.map(spoilt, tree)

        rest = spoil(batch._replace(student=None, teachers={}))._replace(mask=mask)
        return jax.value_and_grad(lambda s, t: plain_loss(method, s, t, rest), argnums=(0, 1))(
            spoil(student), spoil(teachers)
        )

    @given(
        mask=st.lists(st.booleans(), min_size=BATCH * LENGTH, max_size=BATCH * LENGTH),
        poison=st.sampled_from([np.nan, np.inf, -1e30, 1e30]),
    )
    def holds(mask, poison):
        mask = np.array(mask).reshape(BATCH, LENGTH)
        clean, spoilt = (
            jax.device_get(value_and_gradients(mask, jnp.float32(p))) for p in (0, poison)
        )
        chex.assert_trees_all_equal(spoilt, clean)
        value, (gradient, teacher_gradients) = spoilt
        assert np.isfinite(value) and not gradient[~mask].any()
        assert not any(gradient.any() for gradient in teacher_gradients.values())

    holds()


@pytest.mark.parametrize("method", METHODS, ids=short)
def test_describes_itself(method):
    assert all(isinstance(word, str) and word for word in method.variables())
    assert hash(method) == hash(dataclasses.replace(method))  # static under jit
    assert method.source and method.completions in ("student", "reference", "mixed")


def test_who_writes_the_completions():
    shares = {
        share: losses.get("opd", on_policy_share=share).completions for share in (1.0, 0.3, 0.0)
    }
    assert shares == {1.0: "student", 0.3: "mixed", 0.0: "reference"}
    assert losses.get("sft").completions == "reference"


# Refusals.


@pytest.mark.parametrize(
    "name, settings, message",
    [
        ("odp", {}, "unknown method 'odp': did you mean 'opd'"),
        (
            "opd",
            {"divergance": "forward_kl"},
            "unknown setting of opd 'divergance': did you mean 'divergence'",
        ),
        ("sft", {"temperature": 1.0}, "unknown setting of sft 'temperature'"),
        ("opd", {"divergence": "k1"}, "opd_pg"),
        ("opd", {"temperature": 0.0}, "temperature=0.0 must be positive"),
        ("opd", {"on_policy_share": 1.5}, r"on_policy_share=1.5 must lie in \[0, 1\]"),
        (
            "opd",
            {"divergence": "k3", "on_policy_share": 0.5},
            "on_policy_share=0.5 estimates nothing",
        ),
        ("opd", {"top_k": 1, "tail": "renormalise"}, "identically 0"),
        ("opd", {"temperature": math.inf}, "temperature=inf must be positive and finite"),
        ("opd_pg", {"reward_weight": math.inf}, "reward_weight=inf must be finite"),
        ("opd_pg", {"updates": 0}, "updates=0 must be at least 1"),
        ("opd_pg", {"ratio_clip": 0.2}, "ratio_clip=0.2 can never act with updates=1"),
        ("opd_pg", {"updates": 2, "ratio_clip": 1.2}, r"ratio_clip=1.2 must lie in \(0, 1\)"),
        ("opd_pg", {"log_ratio_clip": -5.0}, "log_ratio_clip=-5.0 must be positive"),
        (
            "opsd",
            {"divergence": "jensen_shannon", "entry_clamp": 0.05},
            "entry_clamp=0.05 .*set entry_clamp to None",
        ),
        ("opsd", {"divergence": "k3"}, "unknown divergence 'k3'"),
        ("opsd", {"entry_clamp": 0.0}, "entry_clamp=0.0 must be positive"),
        ("opsd", {"teacher_update": "emma"}, "did you mean 'ema'"),
    ],
)
def test_bad_settings_are_refused_with_the_cure(name, settings, message, types_unchecked):
    with pytest.raises(ValueError, match=message):
        losses.get(name, **settings)


@pytest.mark.parametrize(
    "method, changes, message",
    [
        (
            losses.get("opd"),
            {"teacher_logits": {}},
            "opd needs the teacher views teacher; missing: teacher",
        ),
        (
            losses.get("opsd"),
            {"teacher_logits": {"privilege": (2, 3, 4)}},
            "did you mean 'privileged'",
        ),
        (
            losses.get("opd"),
            {"teacher_logits": {"teacher": (2, 3, 5)}},
            "cut padded vocabulary rows off",
        ),
        (losses.get("opd"), {"tokens": (2, 4)}, r"tokens has shape \(2, 4\)"),
        (losses.get("opd"), {"mask": (3, 3)}, r"mask has shape \(3, 3\)"),
        (losses.get("opd"), {"behaviour_logp": (2, 3)}, "unknown input of opd 'behaviour_logp'"),
        (losses.get("opd_pg", updates=2), {}, "opd_pg needs the inputs behaviour_logp"),
        (
            losses.get("opd_pg", reward_weight=1.0),
            {"group_advantage": (2,)},
            r"group_advantage has shape \(2,\).*\(2, 1\)",
        ),
        (losses.get("opd"), {"weight": (3,)}, r"weight has shape \(3,\): give it \(2, 3\)"),
    ],
)
def test_evaluate_names_what_does_not_fit(method, changes, message):
    shapes = {
        "student_logits": (2, 3, 4),
        "teacher_logits": {v: (2, 3, 4) for v in method.views},
        "tokens": (2, 3),
    }
    shapes = {**shapes, "mask": (2, 3), **changes}
    arrays = jax.tree.map(jnp.ones, shapes, is_leaf=lambda shape: isinstance(shape, tuple))
    arrays["tokens"] = arrays["tokens"].astype(int)
    with pytest.raises(ValueError, match=message):
        losses.evaluate(method, **arrays)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"mask": [[1.0, 0.5]]}, "the mask holds 0.5.*`weight`"),
        ({"mask": [[1, 2]]}, "the mask holds 2"),
        ({"mask": [[1.0, math.nan]]}, "the mask holds nan"),
        ({"tokens": [[0, 4]]}, "id 4 inside the mask.*vocabulary of 4"),
        ({"tokens": [[-1, 0]]}, "id -1 inside the mask"),
    ],
)
def test_evaluate_refuses_what_no_completion_holds(changes, message):
    logits = jnp.zeros((1, 2, 4))
    arrays = {"tokens": [[0, 1]], "mask": [[1, 1]], **changes}
    arrays = {name: jnp.asarray(values) for name, values in arrays.items()}
    evaluate = functools.partial(losses.evaluate, losses.get("opd"), logits, {"teacher": logits})
    with pytest.raises(ValueError, match=message):
        evaluate(**arrays)
    # Outside the mask an id may be anything, and a traced array cannot be looked at.
    evaluate(jnp.asarray([[0, 4]]), jnp.asarray([[True, False]]))
    jax.jit(evaluate)(**arrays)


@pytest.mark.parametrize("method", METHODS, ids=short)
def test_a_mask_with_a_hole_is_refused_where_order_matters(method):
    given = problem(method)
    teachers = {view: logits_of(scored) for view, scored in given.teachers.items()}
    holed = given._replace(mask=given.mask.at[0, 1].set(False))
    loss = lambda: plain_loss(method, logits_of(given.student), teachers, holed)
    if method.ordered:
        with pytest.raises(ValueError, match="row 0 is off before a token"):
            loss()
    else:
        assert np.isfinite(loss())


def test_who_needs_the_order():
    ordered = {name for name in losses.names() if losses.get(name).ordered}
    assert ordered == {"ar_opd", "gae_opd", "iw_opd", "topd"}
    assert (
        losses.get("opd_pg", credit="return_to_go").ordered
        and losses.get("cr_opd", credit="gae").ordered
    )
    assert losses.stabilised(losses.get("opd"), losses.Stabilisers(position_half_life=5.0)).ordered
    assert not losses.get("ar_opd", skip_tokens=0).ordered
