"""A small random batch for any method, and the methods that every property is tested on."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jopd import losses
from jopd.losses.chunked import Scored, chunked_terms

BATCH, LENGTH, WIDTH, VOCABULARY = 4, 9, 8, 160
LENGTHS = (9, 1, 5, 2)

# Every registered method as it comes, and the settings that take another way through the code.
REGISTERED = [losses.get(name) for name in losses.names()]
UPDATES = losses.get("opd_pg", updates=2, ratio_clip=0.2, log_ratio_clip=1.0)
METHODS = [
    *REGISTERED,
    UPDATES,
    losses.get("opd", divergence="forward_kl", temperature=2.0),
    losses.get("opd", divergence="jensen_shannon", beta=0.1),
    losses.get("opd", divergence="total_variation"),
    losses.get("opd", divergence="k2"),
    losses.get("opd", divergence="k3"),
    losses.get("opd", top_k=3),
    losses.get("opd", divergence="forward_kl", top_k=3, support="student", tail="renormalise"),
    losses.get("opsd", entry_clamp=None),
]


class Problem(NamedTuple):
    student: Scored
    teachers: dict[str, Scored]
    tokens: jax.Array
    mask: jax.Array
    inputs: dict[str, jax.Array]
    extras: dict[str, jax.Array]


def problem(method: losses.Method, seed: int = 0) -> Problem:
    draw = np.random.default_rng(seed).normal
    scored = lambda: Scored(
        jnp.asarray(draw(size=(BATCH, LENGTH, WIDTH)), jnp.float32),
        jnp.asarray(draw(size=(WIDTH, VOCABULARY)) / 2, jnp.float32),
    )
    tokens = np.random.default_rng(seed + 1).integers(VOCABULARY, size=(BATCH, LENGTH))
    per_token = lambda names: {name: jnp.asarray(-3 + draw(size=(BATCH, LENGTH)), jnp.float32) for name in names}
    return Problem(
        student=scored(),
        teachers={view: scored() for view in method.views},
        tokens=jnp.asarray(tokens, jnp.int32),
        mask=jnp.arange(LENGTH)[None, :] < jnp.asarray(LENGTHS)[:, None],
        inputs=per_token(method.inputs),
        extras=per_token(method.extras),
    )


def loss_of(method: losses.Method, student: Scored, rest: Problem, *, chunk: int, counts=None):
    """Loss of a batch, or with the whole batch's `counts` the share of a micro-batch, through the chunked stage."""
    terms = chunked_terms(
        method, student, rest.teachers, rest.tokens, rest.mask, rest.extras, chunk=chunk, vocabulary=VOCABULARY
    )
    return losses.batch_loss(losses.time_stage(method, terms, rest.mask, rest.inputs)[0], counts)


def plain_loss(method: losses.Method, student_logits, teacher_logits, rest: Problem):
    """The same loss of the same batch from its logits [B, T, V], through the entry for plain arrays."""
    return losses.evaluate(
        method, student_logits, teacher_logits, rest.tokens, rest.mask, **rest.inputs, **rest.extras
    )[0]


def logits_of(scored: Scored) -> jax.Array:
    return scored.hidden @ scored.head
