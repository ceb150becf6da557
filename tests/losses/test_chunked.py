import functools
import re

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from jopd import losses
from jopd.losses.chunked import Scored, chunked_terms
from tests.losses.problem import (
    BATCH,
    LENGTH,
    METHODS,
    REGISTERED,
    VOCABULARY,
    largest_array,
    logits_of,
    loss_of,
    plain_loss,
    prepared,
    problem,
    short,
)


@functools.cache
def unchunked(method):
    """Loss and gradients on hidden states and head, from plain logits of the whole batch."""
    given = problem(method)
    teachers = {view: logits_of(scored) for view, scored in given.teachers.items()}
    loss = lambda student: plain_loss(method, logits_of(student), teachers, given)
    return jax.device_get(jax.jit(jax.value_and_grad(loss))(given.student))


def assert_same(found, expected):
    chex.assert_trees_all_close(found, expected, rtol=2e-5, atol=2e-6)


TOP_K = losses.get("opd", top_k=3)


def rows_of(given, rows):
    """A part of a batch, of rows `rows`."""
    part = jax.tree.map(lambda a: a[rows], given._replace(student=None, teachers={}))
    return part._replace(
        teachers={view: Scored(s.hidden[rows], s.head) for view, s in given.teachers.items()}
    )


def on_a_mesh(method, chunk=4):
    """On eight devices, the batch split in two and the vocabulary in four, in two micro-batches of
    unequal lengths.

    Returns the jitted loss with its gradient, and its arguments.
    """
    mesh = jax.make_mesh((2, 4), ("data", "tensor"), axis_types=(AxisType.Auto,) * 2)
    put = lambda a, *axes: jax.device_put(a, NamedSharding(mesh, PartitionSpec(*axes)))
    shard = lambda scored: Scored(put(scored.hidden, "data"), put(scored.head, None, "tensor"))
    given = problem(method)
    rest = jax.tree.map(lambda a: put(a, "data"), given._replace(student=None, teachers={}))
    rest = rest._replace(teachers={view: shard(scored) for view, scored in given.teachers.items()})

    def loss(student, rest):
        rest = prepared(method, jax.lax.stop_gradient(student), rest, chunk=chunk)
        counts = losses.whole_batch_counts(method, rest.mask, rest.inputs, rest.extras)
        shares = []
        for rows in (slice(0, 2), slice(2, 4)):
            part = Scored(student.hidden[rows], student.head)
            shares.append(loss_of(method, part, rows_of(rest, rows), chunk=chunk, counts=counts))
        return shares[0] + shares[1]

    return jax.jit(jax.value_and_grad(loss)), (shard(given.student), rest)


@pytest.mark.parametrize("method", [*REGISTERED, TOP_K], ids=short)
def test_chunks_micro_batches_and_devices_change_nothing_and_no_vocabulary_is_gathered(method):
    step, arguments = on_a_mesh(method)
    program = step.lower(*arguments).compile()
    assert_same(program(*arguments), unchunked(method))
    for line in program.as_text().splitlines():
        if found := re.search(
            r"= \(?\w+\[([\d,]*)\]\S* (?:all-gather|all-to-all|collective-permute)", line
        ):
            shape = [int(size) for size in found[1].split(",") if size]
            # A top-k's candidates may travel, 16 * k a position; a row of logits, or of a head, may
            # not.
            assert VOCABULARY not in shape, line


@pytest.mark.parametrize("chunk", [1, 7, 0])
def test_any_chunk_gives_the_same_loss_and_gradient(chunk):
    method = losses.get("opd")
    given = problem(method)
    loss = jax.jit(jax.value_and_grad(lambda student: loss_of(method, student, given, chunk=chunk)))
    assert_same(loss(given.student), unchunked(method))


def largest_of_a_step(method, chunk):
    given = problem(method)

    def loss(student):
        rest = prepared(method, jax.lax.stop_gradient(student), given, chunk=chunk)
        return loss_of(method, student, rest, chunk=chunk)

    return largest_array(jax.make_jaxpr(jax.value_and_grad(loss))(given.student).jaxpr)


@pytest.mark.parametrize("method", METHODS, ids=short)
def test_no_array_has_the_size_of_all_logits(method):
    assert largest_of_a_step(method, chunk=2) < BATCH * LENGTH * VOCABULARY / 4


def test_unchunked_there_is_such_an_array():
    assert largest_of_a_step(losses.get("opd"), chunk=0) >= BATCH * LENGTH * VOCABULARY


def test_hidden_states_outside_the_mask_do_not_exist():
    method = losses.get("opd")
    given = problem(method)
    spoil = lambda scored: scored._replace(
        hidden=jnp.where(given.mask[:, :, None], scored.hidden, jnp.nan)
    )
    spoilt = given._replace(
        teachers={view: spoil(scored) for view, scored in given.teachers.items()}
    )
    loss = jax.jit(jax.value_and_grad(lambda student: loss_of(method, student, spoilt, chunk=4)))
    value, gradient = loss(spoil(given.student))
    assert_same((value, gradient), unchunked(method))
    assert not gradient.hidden[~given.mask].any()


def test_columns_that_pad_a_head_do_not_exist():
    method = losses.get("opd")
    given = problem(method)
    pad = lambda scored, columns: scored._replace(
        head=jnp.pad(scored.head, ((0, 0), (0, columns)), constant_values=9.0)
    )
    padded = given._replace(
        teachers={view: pad(scored, 32) for view, scored in given.teachers.items()}
    )
    loss = jax.jit(jax.value_and_grad(lambda student: loss_of(method, student, padded, chunk=4)))
    value, gradient = loss(pad(given.student, 8))
    assert not gradient.head[:, VOCABULARY:].any()
    assert_same((value, gradient._replace(head=gradient.head[:, :VOCABULARY])), unchunked(method))


def test_a_bfloat16_forward_leaves_the_heads_gradient_float32():
    method = losses.get("opd")
    given = problem(method)
    narrow = lambda scored: scored._replace(hidden=scored.hidden.astype(jnp.bfloat16))
    rest = given._replace(
        teachers={view: narrow(scored) for view, scored in given.teachers.items()}
    )
    gradient = jax.jit(jax.grad(lambda student: loss_of(method, student, rest, chunk=1)))(
        narrow(given.student)
    )
    assert gradient.hidden.dtype == jnp.bfloat16 and gradient.head.dtype == jnp.float32
    exact = unchunked(method)[1].head
    assert np.linalg.norm(gradient.head - exact) < 0.02 * np.linalg.norm(exact)


# Refusals.


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"chunk": -1, "vocabulary": VOCABULARY}, "chunk=-1"),
        (
            {"chunk": 4, "vocabulary": VOCABULARY + 1},
            "vocabulary=161, but the head of 'student' has 160 columns",
        ),
    ],
)
def test_refusals_say_the_cure(settings, message):
    given = problem(losses.get("opd"))
    with pytest.raises(ValueError, match=message):
        chunked_terms(
            losses.get("opd"),
            given.student,
            given.teachers,
            given.tokens,
            given.mask,
            {},
            **settings,
        )
