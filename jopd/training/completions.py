"""Completions that nobody sampled, and batches that mix them with the student's own."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Int, PRNGKeyArray

from jopd.data.batching import Reference
from jopd.rollout.sampler import Rollout
from jopd.training import mesh as meshes
from jopd.training.state import MIXING


def references(mesh: Mesh, reference: Reference, samples: int) -> Rollout:
    """Reference completions `[N, T]`, each `samples` times, in the form of a rollout: they have no
    behaviour log-probabilities, and all of them end.
    """
    repeated = lambda name: np.repeat(reference[name], samples, axis=0)
    tokens, mask = repeated("tokens"), repeated("mask")
    logp, stopped = np.zeros(tokens.shape, np.float32), np.ones(len(tokens), np.int32)
    return Rollout(*meshes.place_batch(mesh, (tokens, mask, logp, stopped)))


def chosen(rows: Int[Array, " b"], key: PRNGKeyArray, share: float) -> Bool[Array, " b"]:
    """Which rows belong to a share of them, drawn for each on its own: it depends on the row's id
    alone.
    """
    return jax.vmap(lambda row: jax.random.uniform(jax.random.fold_in(key, row)))(rows) < share


def mix(
    rollout: Rollout, reference: Rollout, rows: Int[Array, " b"], key: PRNGKeyArray, share: float
) -> Rollout:
    """The student's completion in a share of the rows, the reference in the others."""
    of_student = chosen(rows, jax.random.fold_in(key, MIXING), share)
    choose = lambda student, other: jnp.where(
        of_student.reshape(-1, *[1] * (student.ndim - 1)), student, other
    )
    return jax.tree.map(choose, rollout, reference)
