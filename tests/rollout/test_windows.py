import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jopd import models
from jopd.models import Architecture
from jopd.rollout.sampler import sample
from jopd.rollout.settings import Decoding, Sampling
from jopd.rollout.windows import place_noise, window_rows, write_on

TINY = Architecture(
    vocabulary_size=40, width=16, layers=2, heads=4, kv_heads=2, head_dim=8, mlp_width=32
)
KEY = jax.random.key(3)

noise_of = jax.jit(place_noise, static_argnums=2)


def test_ids_are_unique():
    assert window_rows(jnp.asarray([7, 2]), 3).tolist() == [21, 22, 23, 6, 7, 8]


def test_noise_depends_on_row_and_position_alone():
    noise = noise_of(jnp.asarray([4, 9, 4]), KEY, 6)
    np.testing.assert_array_equal(noise[0], noise[2])
    np.testing.assert_array_equal(noise_of(jnp.asarray([9]), KEY, 3)[0], noise[1, :3])
    assert len(np.unique(noise)) == 12 and (noise >= 0).all() and (noise < 1).all()
    by_hand = jax.random.uniform(jax.random.fold_in(jax.random.fold_in(KEY, 9), 5))
    assert noise[1, 5] == by_hand


@pytest.fixture(scope="module")
def model():
    graph, shapes = models.abstract(TINY)
    draw = np.random.default_rng(0).normal
    return models.merge(
        graph, jax.tree.map(lambda x: jnp.asarray(draw(size=x.shape, scale=0.4), x.dtype), shapes)
    )


CONTEXT = np.random.default_rng(1).integers(40, size=(2, 4)).astype(np.int32)
VALID = np.array([[True] * 4, [False, False, True, True]])
POSITIONS = np.array([[0, 3, 7], [6, 1, 0]], np.int32)
DECODING = Decoding(max_new_tokens=10, stop_tokens=(), pad_id=0, vocabulary=40)


def test_a_greedy_window_of_a_greedy_completion_is_its_rest(model):
    """A window begins where it should, after all that it should: it says again what the completion
    says there.
    """
    greedy = dataclasses.replace(DECODING, sampling=Sampling(temperature=0.0))
    short = dataclasses.replace(greedy, max_new_tokens=3)

    @jax.jit
    def run(model):
        rows, context, valid = jnp.arange(2), jnp.asarray(CONTEXT), jnp.asarray(VALID)
        whole = sample(model, context, valid, rows, KEY, decoding=greedy, samples=1)
        ids = window_rows(rows, 3)
        given = (CONTEXT, VALID, whole.tokens, whole.mask, POSITIONS, ids, KEY)
        return whole, write_on(model, *map(jnp.asarray, given[:5]), *given[5:], decoding=short)

    whole, windows = run(model)
    for row in range(2):
        for w, t in enumerate(POSITIONS[row].tolist()):
            np.testing.assert_array_equal(windows.tokens[3 * row + w], whole.tokens[row, t : t + 3])
            np.testing.assert_allclose(
                windows.logp[3 * row + w], whole.logp[row, t : t + 3], atol=1e-5
            )


def test_a_window_is_the_completion_of_its_prefix(model):
    """Each as if its prefix had been a prompt of its own: the same tokens, stop and
    log-probabilities.
    """
    tokens = np.random.default_rng(2).integers(40, size=(2, 8)).astype(np.int32)
    mask = np.arange(8) < np.array([[8], [6]])
    ids = window_rows(jnp.asarray([4, 9]), 3)
    how = {"decoding": Decoding(5, (3, 5), 0, 40, Sampling(top_k=20))}
    given = map(jnp.asarray, (CONTEXT, VALID, tokens, mask, POSITIONS))
    windows = jax.jit(functools.partial(write_on, **how))(model, *given, ids, KEY)
    alone = jax.jit(functools.partial(sample, samples=1, **how))
    for row in range(2):
        for w, t in enumerate(POSITIONS[row].tolist()):
            prefix = np.concatenate([CONTEXT[row][VALID[row]], tokens[row, :t]])
            padded = np.zeros((1, 12), np.int32)
            padded[0, 12 - len(prefix) :] = prefix
            at = slice(3 * row + w, 3 * row + w + 1)
            expected = alone(model, padded, np.arange(12)[None] >= 12 - len(prefix), ids[at], KEY)
            for name in ("tokens", "mask", "stopped"):
                np.testing.assert_array_equal(getattr(windows, name)[at], getattr(expected, name))
            np.testing.assert_allclose(windows.logp[at], expected.logp, atol=1e-5)
    assert (windows.stopped > 0).any() and not windows.mask.all()
