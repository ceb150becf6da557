import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jopd import models
from jopd.models import Architecture
from jopd.rollout.sampler import Sampling, sample
from jopd.rollout.windows import place_noise, prefixes, window_rows

TINY = Architecture(vocabulary_size=40, width=16, layers=2, heads=4, kv_heads=2, head_dim=8, mlp_width=32)
KEY = jax.random.key(3)

cut, noise_of = jax.jit(prefixes), jax.jit(place_noise, static_argnums=2)


@given(
    rows=st.lists(
        st.tuples(st.integers(1, 4), st.integers(1, 5)).flatmap(
            lambda n: st.tuples(st.just(n), st.tuples(*[st.integers(0, n[1])] * 3))
        ),
        min_size=2,
        max_size=2,
    )
)
def test_prefixes(rows):
    draw = np.random.default_rng(0).integers
    context, tokens = draw(100, size=(2, 4), dtype=np.int32), draw(100, size=(2, 5), dtype=np.int32)
    lengths, positions = (np.array(column) for column in zip(*rows, strict=True))
    valid = np.arange(4) >= 4 - lengths[:, :1]
    mask = np.arange(5) < lengths[:, 1:]
    found, found_valid = cut(*map(jnp.asarray, (context, valid, tokens, mask, positions.astype(np.int32))))
    assert found.shape == found_valid.shape == (6, 9)
    for row in range(2):
        for w in range(3):
            expected = [*context[row, valid[row]], *tokens[row, : positions[row, w]]]
            shown = np.asarray(found_valid[3 * row + w])
            assert found[3 * row + w][shown].tolist() == expected
            np.testing.assert_array_equal(shown, np.arange(9) >= 9 - len(expected))  # to the left, nothing in between


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
    return models.merge(graph, jax.tree.map(lambda x: jnp.asarray(draw(size=x.shape, scale=0.4), x.dtype), shapes))


def test_a_greedy_window_of_a_greedy_completion_is_its_rest(model):
    """A window begins where it should, after all that it should: it says again what the completion says there."""
    context = jnp.asarray(np.random.default_rng(1).integers(40, size=(2, 4)), jnp.int32)
    valid = jnp.asarray([[True] * 4, [False, False, True, True]])
    positions = jnp.asarray([[0, 3, 7], [6, 1, 0]], jnp.int32)
    write = functools.partial(
        sample, sampling=Sampling(temperature=0.0), samples=1, stop_tokens=(), pad_id=0, vocabulary=40
    )

    @jax.jit
    def run(model):
        rows = jnp.arange(2)
        whole = write(model, context, valid, rows, KEY, max_new_tokens=10)
        prompts = prefixes(context, valid, whole.tokens, whole.mask, positions)
        return whole, write(model, *prompts, window_rows(rows, 3), KEY, max_new_tokens=3)

    whole, windows = run(model)
    for row in range(2):
        for w, t in enumerate(positions[row].tolist()):
            np.testing.assert_array_equal(windows.tokens[3 * row + w], whole.tokens[row, t : t + 3])
            np.testing.assert_allclose(windows.logp[3 * row + w], whole.logp[row, t : t + 3], atol=1e-5)
