import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jopd import losses
from jopd.losses import topd
from jopd.losses.chunked import Scored, chunked_terms
from jopd.losses.stages import time_stage, whole_batch_counts
from jopd.losses.topd import TOPD, TrajectoryLoss
from jopd.losses.windows import Places, Window
from tests.reference import divergences

# The loss on windows.

ROWS, K, VOCABULARY = 3, 4, 160


@pytest.fixture(scope="module")
def windows():
    """Hidden states and a head, and target ids, two of them the same, with weights; the last window
    is not counted.
    """
    draw = np.random.default_rng(1)
    ids = draw.integers(VOCABULARY, size=(ROWS, 1, K)).repeat(K, axis=1).astype(np.int32)
    ids[0, :, 1] = ids[0, :, 0]
    extras = {
        "target_ids": ids,
        "target_weights": draw.dirichlet(np.ones(K), size=(ROWS, K)).astype(np.float32),
    }
    mask = np.arange(K) < np.array([4, 2, 0])[:, None]
    scored = Scored(
        *(draw.normal(size=s).astype(np.float32) for s in ((ROWS, K, 8), (8, VOCABULARY)))
    )
    return jax.tree.map(jnp.asarray, (scored, mask, extras))


def trajectory(logits, mask, extras, method=TrajectoryLoss(0.1)):
    return losses.evaluate(method, logits, {}, jnp.zeros(mask.shape, jnp.int32), mask, **extras)


value_and_gradient = jax.jit(jax.value_and_grad(trajectory, has_aux=True), static_argnums=3)


def test_the_trajectory_loss_is_cross_entropy_with_the_soft_targets(windows):
    scored, mask, extras = windows
    logits = scored.hidden @ scored.head
    (value, metrics), gradient = value_and_gradient(logits, mask, extras)
    pi = np.apply_along_axis(divergences.softmax, -1, logits)
    target = np.zeros_like(pi)
    for row, i in np.argwhere(mask):
        for j in range(K):
            target[row, i, extras["target_ids"][row, i, j]] += extras["target_weights"][row, i, j]
    cross_entropy = -(target * np.log(pi)).sum() / 6
    np.testing.assert_allclose(metrics["cross_entropy"], cross_entropy, rtol=1e-5)
    np.testing.assert_allclose(value, 0.1 * cross_entropy, rtol=1e-5)
    np.testing.assert_allclose(
        gradient, 0.1 * np.where(mask[..., None], pi - target, 0) / 6, atol=1e-7
    )
    # In bfloat16 it is the same to its rounding; a temperature divides the logits.
    half = value_and_gradient(logits.astype(jnp.bfloat16), mask, extras)
    np.testing.assert_allclose(half[0][0], value, rtol=1e-2)
    assert half[1].dtype == jnp.bfloat16
    cool = value_and_gradient(2 * logits, mask, extras, TrajectoryLoss(0.1, temperature=2.0))
    np.testing.assert_allclose(cool[0][0], value, rtol=1e-6)


def test_a_token_by_hand():
    # pi = (1/4, 3/4, 0): weights 1/2 on each of the first two, none on the third, whose
    # log-probability is -inf.
    logits = jnp.log(jnp.asarray([[[0.25, 0.75, 0.0]]]))
    extras = {
        "target_ids": jnp.asarray([[[1, 2, 0]]]),
        "target_weights": jnp.asarray([[[0.5, 0.0, 0.5]]]),
    }
    (value, _), gradient = value_and_gradient(logits, jnp.ones((1, 1)), extras, TrajectoryLoss(1.0))
    np.testing.assert_allclose(value, -(math.log(1 / 4) + math.log(3 / 4)) / 2, rtol=1e-6)
    np.testing.assert_allclose(gradient, [[[-1 / 4, 1 / 4, 0]]], atol=1e-7)


def test_windows_in_chunks_and_parts(windows):
    scored, mask, extras = windows
    method, tokens = TrajectoryLoss(0.1), jnp.zeros(mask.shape, jnp.int32)
    counts = whole_batch_counts(method, mask, {}, extras)
    assert counts["trajectory"] == 6

    @functools.partial(jax.jit, static_argnums=0)
    def in_chunks(chunk):
        terms = chunked_terms(
            method, scored, {}, tokens, mask, extras, chunk=chunk, vocabulary=VOCABULARY
        )
        return losses.batch_loss(time_stage(method, terms, mask, {})[0], counts)

    expected = trajectory(scored.hidden @ scored.head, mask, extras)[0]
    np.testing.assert_allclose([in_chunks(0), in_chunks(3)], expected, rtol=1e-5)


def test_no_window_no_loss(windows):
    scored, mask, extras = windows
    (value, _), gradient = value_and_gradient(
        scored.hidden @ scored.head * jnp.nan, jnp.zeros_like(mask), extras
    )
    assert value == 0 and not gradient.any()


# The loss on completions.


def test_the_first_term_is_the_reverse_kl():
    pi, q = np.array([0.25, 0.75]), np.array([0.5, 0.5])
    loss = lambda z: losses.evaluate(
        TOPD(),
        z,
        {"teacher": jnp.log(jnp.asarray([[q, q]], jnp.float32))},
        jnp.zeros((1, 2), int),
        jnp.asarray([[1, 0]]),
        streams={},
    )
    z = jnp.log(jnp.asarray([[pi, pi]], jnp.float32))
    (value, metrics), gradient = jax.jit(jax.value_and_grad(loss, has_aux=True))(z)
    np.testing.assert_allclose([value, metrics["kl"]], divergences.reverse_kl(pi, q), rtol=1e-5)
    np.testing.assert_allclose(
        gradient[0], [divergences.reverse_kl_gradient(pi, q), [0, 0]], atol=1e-7
    )


def test_the_scoring_pass_gives_the_divergence():
    student, teacher = jnp.log(jnp.asarray([[[0.25, 0.75]], [[0.5, 0.5]]]))
    method = TOPD(temperature=2.0)
    terms = method.scoring().token_terms(student, {"teacher": teacher}, jnp.zeros(1, int), {})
    made = method.prepare(terms, jnp.ones((1, 1), bool), {})
    pi = np.sqrt([0.25, 0.75]) / np.sqrt([0.25, 0.75]).sum()
    np.testing.assert_allclose(
        made["scored_divergence"], [divergences.reverse_kl(pi, np.array([0.5, 0.5]))], rtol=1e-5
    )


# Where windows begin.

choose = jax.jit(topd.choose, static_argnames=("windows", "apart", "share"))


@given(
    rows=st.lists(
        st.lists(st.integers(0, 9), max_size=40).map(lambda row: row * 2), min_size=3, max_size=3
    ),
    seed=st.integers(0, 1000),
    apart=st.sampled_from([1, 3, 20]),
)
def test_places(rows, seed, apart):
    length, share = 80, 0.1
    divergence = np.full((3, length), 99.0, np.float32)  # outside the mask, where it must not count
    for b, row in enumerate(rows):
        divergence[b, : len(row)] = row
    mask = np.arange(length) < np.array([len(row) for row in rows])[:, None]
    noise = np.random.default_rng(seed).random((3, length), np.float32)
    places = choose(
        jnp.asarray(divergence),
        jnp.asarray(mask),
        jnp.asarray(noise),
        windows=2,
        apart=apart,
        share=share,
    )
    positions, valid = np.asarray(places.positions), np.asarray(places.valid)
    assert positions.shape == valid.shape == (3, 3) and positions.dtype == np.int32
    assert (positions[~valid] == 0).all()
    for b, row in enumerate(rows):
        count = max(1, -(-len(row) // 10))
        left = sorted(range(len(row)), key=lambda t: (-row[t], t))[:count]
        taken = []
        while left and len(taken) < 2:
            taken.append(max(left, key=lambda t: noise[b, t]))
            left = [t for t in left if abs(t - taken[-1]) >= apart]
        assert positions[b, :2][valid[b, :2]].tolist() == taken
        low = [t for t in range(len(row)) if row[t] < np.median(row)]
        assert valid[b, 2] == bool(low)
        assert not low or positions[b, 2] == max(low, key=lambda t: noise[b, t])


@pytest.mark.parametrize("tokens, candidates", [(1, 1), (44, 1), (45, 2), (400, 9), (401, 10)])
def test_how_many_candidates(tokens, candidates):
    noise = jnp.asarray(np.random.default_rng(0).random((1, 401), np.float32))
    mask = jnp.arange(401)[None] < tokens
    places = choose(noise, mask, noise, windows=12, apart=1, share=0.0225)
    assert places.valid[0, :-1].sum() == candidates
    assert set(places.positions[0, :candidates].tolist()) == set(
        np.argsort(noise[0, :tokens])[-candidates:].tolist()
    )


# What the windows say. Tokens are 0: east, 1: north, 2: west, so that a window of one token has
# cost 0, 1 or 2.

COMPASS = np.array([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]], np.float32)


def window(tokens, lengths=1):
    tokens = np.asarray(tokens, np.int32).reshape(-1, np.shape(tokens)[-1])
    mask = np.arange(tokens.shape[1]) < np.reshape(lengths, (-1, 1))
    return Window(
        jnp.asarray(tokens), jnp.broadcast_to(mask, tokens.shape), jnp.asarray(COMPASS[tokens])
    )


compare_windows = jax.jit(TOPD.compare_windows, static_argnums=0)


def compare(method, places, student, teacher, divergence, state=None):
    divergence = jnp.asarray(divergence, jnp.float32)
    mask = jnp.isfinite(divergence)
    inputs = {"scored_divergence": jnp.where(mask, divergence, 0)}
    made = compare_windows(
        method, places, student, teacher, inputs, mask, state or method.init_state()
    )
    return jax.device_get(made)


# Two rows of four tokens, two high places and a probe each; the second high place of the second row
# is no place.
PLACES = Places(
    jnp.asarray([[0, 2, 1], [3, 0, 0]]), jnp.asarray([[True, True, True], [True, False, True]])
)
DIVERGENCES = [[5.0, 1.0, 4.0, 2.0], [1.0, 2.0, 3.0, 9.0]]
STUDENT = [[0, 0], [0, 0], [0, 0], [0, 0], [0, 0], [0, 0]]
TEACHER = [[2, 2], [0, 0], [0, 0], [1, 1], [2, 2], [1, 1]]  # costs 2, 0, probe 0; 1, (2), probe 1


def test_windows_above_the_low_loss_percentile_are_really_divergent():
    # Low costs 0 and 1, their 75th percentile .75: of 2, 0 and 1 the first and the third exceed it.
    made = compare(TOPD(window_tokens=2), PLACES, window(STUDENT), window(TEACHER, 2), DIVERGENCES)
    np.testing.assert_array_equal(
        made.mask, [[1, 0], [0, 0], [1, 0], [0, 0]]
    )  # the student's first tokens alone
    mean = {name: float(total.mean()) for name, total in made.metrics.items()}
    assert mean == pytest.approx(
        {
            "transport_high": 1.0,
            "transport_low": 0.5,
            "transport_threshold": 0.75,
            "false_alarms": 1 / 3,
            "divergent_windows": 1.0,
            "target_perplexity": 2.0,  # both of the teacher's tokens are the same
        },
        abs=1e-5,
    )
    np.testing.assert_allclose(made.points["transport"], [[2, 0, 0], [1, 2, 1]], atol=1e-6)
    np.testing.assert_array_equal(made.points["divergence"], [[5, 4, 1], [9, 1, 1]])
    np.testing.assert_array_equal(made.points["compared"], PLACES.valid)
    assert made.inputs == {}


def test_what_is_remembered_does_not_depend_on_the_order_of_the_rows():
    method, order = TOPD(window_tokens=2), np.array([1, 0])
    turned = Places(PLACES.positions[order], PLACES.valid[order], rows=jnp.asarray(order))
    of_rows = lambda x: np.asarray(x).reshape(2, 3, -1)[order].reshape(6, -1)
    whole = compare(method, PLACES, window(STUDENT), window(TEACHER, 2), DIVERGENCES)
    made = compare(
        method,
        turned,
        window(of_rows(STUDENT)),
        window(of_rows(TEACHER), 2),
        np.asarray(DIVERGENCES)[order],
    )
    assert whole.state["low_costs"][:2].tolist() == pytest.approx([0, 1], abs=1e-6)
    np.testing.assert_array_equal(made.state["low_costs"], whole.state["low_costs"])


def test_of_equal_windows_the_same_are_capped_in_any_order_of_the_rows():
    method, order = TOPD(window_tokens=2, down_weight="low_transport"), np.array([1, 0])
    turned = Places(PLACES.positions[order], PLACES.valid[order], rows=jnp.asarray(order))
    same = np.zeros_like(STUDENT)
    both = window(same), window(same, 2)
    whole = compare(method, PLACES, *both, DIVERGENCES).inputs["weight"]
    made = compare(method, turned, *both, np.asarray(DIVERGENCES)[order]).inputs["weight"]
    assert np.min(whole) < 1
    np.testing.assert_array_equal(np.asarray(made)[order], whole)


def test_the_stream_is_the_students_window_with_the_teachers_tokens_as_targets():
    # Epsilon 1/2: each of the student's tokens (east, north) takes its match with 1 / (1 + e^-2) of
    # (north, east).
    student, teacher = window([[0, 1]] * 6, 2), window([[1, 0]] * 6, 2)
    made = compare(TOPD(window_tokens=2, epsilon=0.5), PLACES, student, teacher, DIVERGENCES)
    np.testing.assert_array_equal(made.tokens, [[0, 1]] * 4)
    np.testing.assert_array_equal(made.extras["target_ids"], [[[1, 0], [1, 0]]] * 4)
    match = 1 / (1 + math.exp(-2))
    np.testing.assert_allclose(
        made.extras["target_weights"], [[[1 - match, match], [match, 1 - match]]] * 4, rtol=1e-5
    )


def test_the_control_trains_on_the_teachers_window():
    method = TOPD(window_tokens=2, target="teacher_window")
    made = compare(method, PLACES, window(STUDENT), window(TEACHER, 2), DIVERGENCES)
    np.testing.assert_array_equal(made.tokens, [[2, 2], [0, 0], [1, 1], [2, 2]])
    np.testing.assert_array_equal(made.mask, [[1, 1], [0, 0], [1, 1], [0, 0]])
    logits = jnp.asarray(np.random.default_rng(0).normal(size=(4, 2, 3)), jnp.float32)
    value, _ = losses.evaluate(
        TrajectoryLoss(1.0),
        logits,
        {},
        jnp.asarray(made.tokens),
        jnp.asarray(made.mask),
        **jax.tree.map(jnp.asarray, made.extras),
    )
    logp = np.log(np.apply_along_axis(divergences.softmax, -1, logits))
    np.testing.assert_allclose(value, -(logp[0, :, 2].sum() + logp[2, :, 1].sum()) / 4, rtol=1e-5)


def test_on_plain_arrays_the_windows_are_handed_in_and_never_left_out_in_silence():
    pi, q = np.array([0.25, 0.75]), np.array([0.5, 0.5])
    one = lambda row: jnp.log(jnp.asarray([[row]], jnp.float32))
    completions = (one(pi), {"teacher": one(q)}, jnp.zeros((1, 1), int), jnp.ones((1, 1), bool))
    # One window of one token, whose target is the entry 0.
    target = {"target_ids": jnp.zeros((1, 1, 1), int), "target_weights": jnp.ones((1, 1, 1))}
    windows = losses.Sequences(one(pi), {}, jnp.zeros((1, 1), int), jnp.ones((1, 1), bool), target)
    method = TOPD(trajectory_coefficient=100.0)
    with pytest.raises(ValueError, match=r"topd learns from further sequences too \(windows\)"):
        losses.evaluate(method, *completions)
    with pytest.raises(ValueError, match="did you mean 'windows'"):
        losses.evaluate(method, *completions, streams={"window": windows})
    kl = divergences.reverse_kl(pi, q)
    without, _ = losses.evaluate(method, *completions, streams={})
    np.testing.assert_allclose(without, kl, rtol=1e-5)
    loss, metrics = losses.evaluate(method, *completions, streams={"windows": windows})
    np.testing.assert_allclose(loss, kl + 100 * np.log(4), rtol=1e-5)
    np.testing.assert_allclose(metrics["windows_cross_entropy"], np.log(4), rtol=1e-5)


def test_an_empty_window_counts_for_nothing():
    made = compare(
        TOPD(window_tokens=2),
        PLACES,
        window(STUDENT),
        window(TEACHER, [0, 2, 2, 2, 2, 0]),
        DIVERGENCES,
    )
    np.testing.assert_array_equal(
        made.points["compared"], [[False, True, True], [True, False, False]]
    )
    assert made.state["written"] == 1 and made.metrics["transport_high"].count == 2
    np.testing.assert_array_equal(made.mask, [[0, 0], [0, 0], [1, 0], [0, 0]])


def test_before_any_low_loss_window_nothing_is_divergent():
    nowhere = PLACES._replace(valid=PLACES.valid & jnp.asarray([[True, True, False]]))
    made = compare(TOPD(window_tokens=2), nowhere, window(STUDENT), window(TEACHER, 2), DIVERGENCES)
    assert not made.mask.any() and made.state["written"] == 0
    assert made.metrics["false_alarms"] == (0, 0) and made.metrics["transport_threshold"] == (0, 0)


def test_the_percentile_looks_back_over_steps():
    state, low = TOPD().init_state(), np.random.default_rng(0).random(700).astype(np.float32)
    remember = jax.jit(topd.remember)
    seen = []
    for costs in np.split(
        low, [3, 200, 290, 291, 620]
    ):  # the last but one are more than are remembered
        valid = np.arange(len(costs)) % 3 != 1
        state = remember(state, jnp.asarray(costs), jnp.asarray(valid))
        seen.extend(costs[valid])
        assert state["written"] == len(seen)
        np.testing.assert_allclose(
            topd.threshold(state, 75.0), np.percentile(seen[-topd.REMEMBERED :], 75), rtol=1e-6
        )
    assert len(seen) > topd.REMEMBERED


@pytest.mark.parametrize(
    "which, weights",
    [
        # One of three (.3 of them, rounded) is capped: the cheapest, at 4 and a median of 3, or the
        # dearest, at 5.
        ("low_transport", [[1, 1, 3 / 4, 1], [1, 1, 1, 1]]),
        ("high_transport", [[3 / 5, 1, 1, 1], [1, 1, 1, 1]]),
    ],
)
def test_down_weighting_caps_the_loss_at_the_median(which, weights):
    method = TOPD(window_tokens=2, down_weight=which)
    made = compare(method, PLACES, window(STUDENT), window(TEACHER, 2), DIVERGENCES)
    np.testing.assert_allclose(made.inputs["weight"], weights, rtol=1e-6)
    # Through the time stage: the capped token counts as its weight, in value and in count.
    terms = {"divergence": jnp.asarray(DIVERGENCES)}
    summand = time_stage(
        method, terms, jnp.ones((2, 4)), {"weight": jnp.asarray(made.inputs["weight"])}
    )[0]["divergence"]
    np.testing.assert_allclose(summand.sum, np.sum(np.multiply(weights, DIVERGENCES)), rtol=1e-6)
    np.testing.assert_allclose(summand.count, np.sum(weights), rtol=1e-6)


def test_a_cap_needs_something_above_the_median():
    same = compare(
        TOPD(window_tokens=2, down_weight="low_transport"),
        PLACES,
        window(STUDENT),
        window(TEACHER, 2),
        np.zeros((2, 4)),
    )
    np.testing.assert_array_equal(same.inputs["weight"], 1)


# Itself.


def test_describes_itself():
    method = TOPD(target="teacher_window", down_weight="low_transport")
    assert all(method.variables()) and "capped" in method.variables().gates
    assert hash(method) == hash(TOPD(**dataclasses.asdict(method)))
    stream = method.streams["windows"]
    assert (
        stream == TrajectoryLoss(0.1, 1.0)
        and method.vanishes_at_teacher
        and not stream.vanishes_at_teacher
    )


@pytest.mark.parametrize(
    "settings",
    [
        {"windows": 0},
        {"window_tokens": 51},
        {"share": 0.6},
        {"epsilon": 0.0},
        {"iterations": 0},
        {"percentile": 101.0},
        {"trajectory_coefficient": -0.1},
        {"temperature": 0.0},
        {"target": "teacher"},
        {"down_weight": "low"},
        {"space": "hidden"},
    ],
    ids=str,
)
def test_refuses(settings, types_unchecked):
    (name,) = settings
    with pytest.raises(ValueError, match=name):
        TOPD(**settings)
