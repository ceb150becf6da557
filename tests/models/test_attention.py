"""Every kernel against the reference, in its portable form: splash's steps interpreted, and what
cuDNN is given computed by XLA.
"""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jopd.models import Compute
from jopd.models.attention import (
    Causal,
    by_cudnn,
    by_splash,
    causal,
    check_kernel,
    chosen,
    masked,
)
from tests.training.problem import mesh_of

KERNELS = {
    "splash": functools.partial(by_splash, interpret=True),
    "cudnn": functools.partial(by_cudnn, implementation="xla"),
}


def rows(heads: int, kv_heads: int, length: int, seed: int = 0):
    """Eight rows with padding on either side, on both, on none, and one of padding alone."""
    draw = np.random.default_rng(seed).normal
    of = lambda count: jnp.asarray(draw(size=(8, count, length, 16)), jnp.float32)
    begin = np.array([0, 5, 0, 3, 1, length - 1, 0, length])[:, None]
    end = np.array([length, length, length - 4, length - 2, 2, length, 1, length])[:, None]
    columns = np.arange(length)[None]
    return of(heads), of(kv_heads), of(kv_heads), jnp.asarray((columns >= begin) & (columns < end))


def loss(attend, q, k, v, valid):
    """A number that every output of a token counts in, each in its own way."""
    out = attend(q, k, v)
    weight = jnp.cos(jnp.arange(out.size, dtype=jnp.float32)).reshape(out.shape)
    return jnp.sum(jnp.where(valid[:, None, :, None], out * weight, 0)), out


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("heads, kv_heads, length", [(4, 2, 24), (2, 2, 130), (4, 1, 300)])
def test_a_kernel_and_its_gradient_are_the_references(kernel, heads, kv_heads, length):
    q, k, v, valid = rows(heads, kv_heads, length)
    both = []
    for attend in (
        lambda *x: KERNELS[kernel](*x, Causal(valid)),
        lambda *x: masked(*x, causal(valid)),
    ):
        step = jax.value_and_grad(functools.partial(loss, attend), argnums=(0, 1, 2), has_aux=True)
        (value, out), gradient = jax.jit(step)(q, k, v, valid)
        assert np.isfinite(out).all()
        both.append((value, jnp.where(valid[:, None, :, None], out, 0), gradient))
    chex.assert_trees_all_close(*both, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("kv_heads", [2, 1], ids=["heads divide", "heads do not"])
def test_splash_on_a_mesh_gives_each_device_its_rows_and_heads(kv_heads):
    q, k, v, valid = rows(4, kv_heads, 24)
    with jax.set_mesh(mesh_of(2, 2, 2)):
        found = jax.jit(lambda *x: KERNELS["splash"](*x, Causal(valid)))(q, k, v)
    wanted = masked(q, k, v, causal(valid))
    shown = np.broadcast_to(valid[:, None, :, None], found.shape)
    np.testing.assert_allclose(found[shown], wanted[shown], rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize(
    "platform, dtype, kernel",
    [
        ("cpu", "bfloat16", "matmul"),
        ("tpu", "float32", "splash"),
        ("gpu", "bfloat16", "cudnn"),
        ("gpu", "float32", "matmul"),
    ],
)
def test_a_platform_has_its_kernel_and_a_name_is_taken_as_it_is(platform, dtype, kernel):
    assert chosen(Compute(dtype), platform).attention == kernel
    assert chosen(Compute(dtype, "matmul"), platform).attention == "matmul"
    check_kernel(chosen(Compute(dtype), platform), platform)


@pytest.mark.parametrize(
    "compute, platform, message",
    [
        (Compute("float32", "splash"), "cpu", "attention=splash needs a TPU, and this .* has cpu"),
        (Compute("bfloat16", "cudnn"), "tpu", "attention=cudnn needs an NVIDIA GPU"),
        (Compute("float32", "cudnn"), "gpu", "is for bfloat16, and compute.dtype=float32"),
    ],
)
def test_a_kernel_that_cannot_run_is_refused(compute, platform, message):
    with pytest.raises(ValueError, match=message):
        check_kernel(compute, platform)
