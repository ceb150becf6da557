"""The studies' controls do what they say: none is told what it is a control for."""

import jax.numpy as jnp
import numpy as np
import pytest

from jopd import losses
from jopd.data import sources
from jopd.data.sources import DataConfig
from tests.scripts import EXPERIMENTS, neighbour

COIN = neighbour("coin_toss")


def logits_of(logp):
    """Two entries: the sampled token's log-probability, and the rest."""
    logp = np.asarray(logp, np.float64)
    return jnp.asarray(np.stack([logp, np.log1p(-np.exp(logp))], axis=-1), jnp.float32)


def test_another_solution_is_of_the_next_problem():
    named = f"{EXPERIMENTS / 'another_solution.py'}:problems"
    own = sources.load(DataConfig(source="builtin", max_steps=6, limit=50), "train")
    others = sources.load(DataConfig(source=named, limit=49), "train")
    assert [it.messages for it in others] == [it.messages for it in own[:49]]
    assert [it.answer for it in others] == [it.answer for it in own[:49]]
    assert [it.solution for it in others] == [it.solution for it in own[1:]]


def test_without_a_teacher_the_least_likely_fifth_is_pushed_down():
    method = neighbour("no_teacher").NoTeacher()
    # Of five tokens one, of two tokens one (the next whole number), of none none.
    logp = np.log([[0.5, 0.1, 0.3, 0.4, 0.2], [0.6, 0.7, 0.5, 0.5, 0.5], [0.5] * 5])
    mask = jnp.asarray([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0], [0, 0, 0, 0, 0]], bool)
    tokens = jnp.zeros(mask.shape, jnp.int32)
    value, _ = losses.evaluate(method, logits_of(logp), {}, tokens, mask)
    np.testing.assert_allclose(value, (np.log(0.1) + np.log(0.6)) / 7, rtol=1e-5)
    with pytest.raises(ValueError, match="least_likely=0"):
        neighbour("no_teacher").NoTeacher(least_likely=0.0)


def test_the_random_mask_keeps_as_many_tokens_a_row_and_others():
    method = neighbour("random_mask").RandomMask()
    generator = np.random.default_rng(0)
    mask = jnp.asarray(np.arange(40) < np.array([40, 17, 1, 0])[:, None])
    evidence = jnp.asarray(generator.normal(size=mask.shape), jnp.float32)
    of_step = lambda step: method.prepare(
        {"evidence": evidence}, mask, {"step": jnp.full((4, 1), step, jnp.float32)}
    )["kept"]
    positive = np.asarray(mask & (evidence > 0))
    kept, later = np.asarray(of_step(0)), np.asarray(of_step(1))
    np.testing.assert_array_equal(kept.sum(axis=1), positive.sum(axis=1))
    assert not (kept.astype(bool) & ~np.asarray(mask)).any()
    assert (kept != positive).any() and (kept != later).any()
    np.testing.assert_array_equal(kept, of_step(0))


def test_a_coin_toss_is_even_and_asks_nobody():
    said = [f"answer: {i}" for i in range(1000)]
    of_seven, of_eight = ([COIN.toss(text, it) for text in said] for it in ("7", "8"))
    assert 430 < sum(of_seven) < 570 and 430 < sum(of_eight) < 570
    assert of_seven == [COIN.toss(text, "7") for text in said] != of_eight
