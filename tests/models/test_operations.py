import jax
import jax.numpy as jnp
import pytest

from jopd import models
from jopd.models import Architecture
from jopd.models.operations import attention, head, reading
from tests.training.problem import random_model


def test_xla_counts_the_same():
    """One layer, as XLA counts a scanned body once; it knows no mask, so all of attention's square,
    and a few operations an entry besides.
    """
    a = Architecture(
        vocabulary_size=512, width=128, layers=1, heads=8, kv_heads=2, head_dim=32, mlp_width=384
    )
    graph, params = random_model(a, 0)
    rows, columns = 4, 64

    def forward(params, tokens):
        model = models.merge(graph, params)
        return model.logits(model.hidden(tokens, jnp.ones(tokens.shape, bool)))

    tokens = jnp.zeros((rows, columns), jnp.int32)
    counted = jax.jit(forward).lower(params, tokens).compile().cost_analysis()["flops"]
    ours = rows * (reading(a, columns) + attention(a, columns**2) + 2 * head(a) * columns)
    assert counted == pytest.approx(ours, rel=0.04)


def test_reading_on_is_reading_the_rest():
    a = Architecture(
        vocabulary_size=7, width=4, layers=2, heads=2, kv_heads=1, head_dim=3, mlp_width=5
    )
    assert reading(a, 5) + reading(a, 3, before=5) == reading(a, 8)
