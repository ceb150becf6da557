import jax
import jax.numpy as jnp
import numpy as np

from jopd.rollout.sampler import Rollout
from jopd.training.completions import mix, references
from tests.training.problem import mesh_of


def rollouts(rows: int):
    of = lambda value: Rollout(
        jnp.full((rows, 3), value),
        jnp.full((rows, 3), value > 1),
        jnp.full((rows, 3), 1.0 * value),
        jnp.full(rows, value),
    )
    return of(1), of(2)


def who_wrote(rows, share: float, key: int = 0) -> np.ndarray:
    """Which rows are the student's, after a check that each row comes whole from one of the two."""
    own, reference = rollouts(len(rows))
    mixed = mix(own, reference, jnp.asarray(rows, jnp.int32), jax.random.key(key), share)
    picked = np.asarray(mixed.stopped) == 1
    for leaf, mine, other in zip(mixed, own, reference, strict=True):
        choice = picked.reshape(-1, *[1] * (leaf.ndim - 1))
        np.testing.assert_array_equal(leaf, np.where(choice, mine, other))
    return picked


def test_which_rows_are_references_depends_on_their_ids_alone():
    rows = np.arange(400)
    chosen = who_wrote(rows, 0.3)
    order = np.random.default_rng(0).permutation(400)[:77]
    np.testing.assert_array_equal(who_wrote(rows[order], 0.3), chosen[order])
    assert (who_wrote(rows, 0.3, key=1) != chosen).any()
    assert not (chosen & ~who_wrote(rows, 0.6)).any()  # a larger share keeps those of a smaller one
    assert abs(chosen.mean() - 0.3) < 4 * np.sqrt(0.3 * 0.7 / 400)


def test_a_share_of_0_or_1_is_all_of_one_kind():
    assert who_wrote(range(50), 1.0).all() and not who_wrote(range(50), 0.0).any()


def test_references_are_rows_that_end():
    tokens, mask = np.arange(6, dtype=np.int32).reshape(2, 3), np.ones((2, 3), bool)
    reference = references(mesh_of(), {"tokens": tokens, "mask": mask}, samples=2)
    assert (reference.stopped > 0).all() and not reference.logp.any()
    np.testing.assert_array_equal(reference.tokens, tokens[[0, 0, 1, 1]])
    assert reference.mask.all()
