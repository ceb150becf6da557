import functools

import hypothesis.extra.numpy as hnp
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import assume, given, settings

from jopd.rollout.truncation import at_least, ordered, truncate
from tests.reference import truncation as reference

RULES = [
    {"top_k": 1},
    {"top_k": 5},
    {"top_k": 99},
    {"top_p": 1e-6},
    {"top_p": 0.3},
    {"top_p": 0.9},
    {"min_p": 0.1},
    {"min_p": 1.0},
    {"top_k": 6, "top_p": 0.8},
    {"top_k": 9, "top_p": 0.7, "min_p": 0.2},
]
VOCABULARY = 24
# A coarse grid makes ties, the floats make the rest; some tokens are impossible.
LOGITS = st.one_of(
    hnp.arrays(
        np.float32, VOCABULARY, elements=st.sampled_from([-np.inf, -8.0, -1.0, 0.0, 0.5, 2.0])
    ),
    hnp.arrays(
        np.float32, VOCABULARY, elements=st.floats(-30, 30, width=32, allow_subnormal=False)
    ),
)


@functools.cache
def compiled(**rules):
    return jax.jit(functools.partial(truncate, **rules))


def log_softmax(logits):
    z = logits.astype(np.float64) - logits.max()
    return (z - np.log(np.exp(z).sum())).astype(np.float32)


def left(logp, **rules):
    out = np.asarray(compiled(**rules)(logp))
    np.testing.assert_array_equal(
        out[out > -np.inf], logp[out > -np.inf]
    )  # what stays is untouched
    return out > -np.inf


@settings(max_examples=200)
@given(logits=LOGITS, rules=st.sampled_from(RULES))
def test_keeps_what_the_sorted_reference_keeps(logits, rules):
    assume(logits.max() > -np.inf)
    logp = log_softmax(logits)
    expected, margin = reference.kept(logp, **rules)
    got = left(logp, **rules)
    assert got[logp.argmax()]  # never empty
    assume(margin > 1e-5)
    np.testing.assert_array_equal(got & (np.exp(logp) > 0), expected)


@pytest.mark.parametrize(
    ("rules", "expected"),
    [
        # p = 1/2, 1/4, 1/8, 1/16, 1/16: sums 1/2, 3/4, 7/8, 15/16, 1
        ({"top_k": 2}, [0, 1]),
        ({"top_k": 4}, [0, 1, 2, 3, 4]),  # a tie at the fourth place: both stay
        ({"top_p": 0.49}, [0]),
        ({"top_p": 0.51}, [0, 1]),
        ({"top_p": 0.9}, [0, 1, 2, 3, 4]),
        ({"min_p": 0.3}, [0, 1]),
        ({"min_p": 0.2}, [0, 1, 2]),
        # Renormalised after top-k: 4/6 and 2/6, of which the first is enough for 0.6 (it would not
        # be for top-p alone).
        ({"top_k": 2, "top_p": 0.6}, [0]),
        ({"top_p": 0.6}, [0, 1]),
        ({"top_k": 3, "min_p": 0.3}, [0, 1]),
    ],
)
def test_worked_by_hand(rules, expected):
    logp = np.log(np.array([1 / 2, 1 / 4, 1 / 8, 1 / 16, 1 / 16], np.float32))
    np.testing.assert_array_equal(np.flatnonzero(left(logp, **rules)), expected)


def test_equals_the_warpers_of_transformers_in_their_order():
    torch = pytest.importorskip(
        "torch", reason="compares with torch's transformers: pip install 'jopd[parity]'"
    )
    from transformers.generation.logits_process import (
        MinPLogitsWarper,
        TopKLogitsWarper,
        TopPLogitsWarper,
    )

    rules = {"top_k": 40, "top_p": 0.8, "min_p": 0.05}
    logits = np.random.default_rng(0).normal(size=(16, 300), scale=3).astype(np.float32)
    theirs = torch.tensor(logits)
    for warper in (TopKLogitsWarper(40), TopPLogitsWarper(0.8), MinPLogitsWarper(0.05)):
        theirs = warper(None, theirs)
    np.testing.assert_array_equal(
        left(np.asarray(jax.nn.log_softmax(logits)), **rules), np.isfinite(theirs.numpy())
    )


ANY_FLOAT = st.floats(width=32, allow_nan=False, allow_subnormal=False)
image = jax.jit(ordered)
three_largest = jax.jit(lambda x: at_least(x, lambda above: jnp.sum(above, axis=-1) >= 3))


@given(x=hnp.arrays(np.float32, 16, elements=ANY_FLOAT))
def test_the_integer_image_keeps_the_order(x):
    key = np.asarray(image(x))
    np.testing.assert_array_equal(key[:, None] < key, x[:, None] < x)
    np.testing.assert_array_equal(key[:, None] == key, x[:, None] == x)


@given(x=hnp.arrays(np.float32, (2, 16), elements=ANY_FLOAT))
def test_the_search_is_exact_over_all_of_float32(x):
    np.testing.assert_array_equal(three_largest(x), x >= np.sort(x)[:, -3:][:, :1])
