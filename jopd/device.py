"""What `python -m jopd.check device` does on the machine that it runs on: kernels against their
references, many devices against one, the sampler against the trainer, 16 bits against 32, and a
checkpoint there and back. Random weights, nothing is downloaded.
"""

import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float

from jopd import models
from jopd.config import MeshConfig
from jopd.models import Architecture, Compute, attention
from jopd.models.attention import Causal
from jopd.models.sharding import on_host, parameter_shardings
from jopd.rollout.sampler import Rollout, sample
from jopd.rollout.settings import Decoding
from jopd.training.checkpoint import Checkpoints
from jopd.training.mesh import batch_ways, make_mesh, place_batch
from jopd.training.state import TrainState
from jopd.training.worker import drift

Precision = Literal["float32", "bfloat16"]
WIDTH, PROMPT, ANSWER = 256, 32, 96
ARCHITECTURE = Architecture(
    vocabulary_size=2048, width=WIDTH, layers=2, heads=4, kv_heads=2, head_dim=64, mlp_width=512
)


class Finding(NamedTuple):
    """One check.

    Attributes:
      found, allowed: the same unit, which `what` names.
      instead: what to set where it is more than allowed.
    """

    what: str
    found: float
    allowed: float
    instead: str

    @property
    def good(self) -> bool:
        return self.found <= self.allowed  # so a NaN is not


def findings() -> Iterator[Finding]:
    """One after another, as they are done."""
    platform = jax.default_backend()
    both: tuple[Precision, Precision] = ("float32", "bfloat16")
    for dtype in both:
        kernel = attention.chosen(Compute(dtype), platform).attention
        if kernel != "matmul":
            yield of_kernel(kernel, dtype)
    weights, one = random_weights(), make_mesh(MeshConfig(), jax.local_devices()[:1])
    whole = {dtype: written(weights, dtype, one) for dtype in both}
    precise = "the environment variable JAX_DEFAULT_MATMUL_PRECISION=highest"
    for dtype, allowed, instead in (
        ("float32", 1e-3, precise),
        ("bfloat16", 2e-2, "--student.compute.dtype float32"),
    ):
        rollout, logp = whole[dtype]
        apart = float(drift(rollout.logp, logp, rollout.mask)["sampler_drift_mean"])
        what = f"sampler against trainer, {dtype}: mean nats a token"
        yield Finding(what, apart, allowed, instead)
    if jax.device_count() > 1:
        yield of_many_devices(weights, whole["float32"])
    yield of_precision(weights, whole["float32"], one)
    yield of_checkpoint()


def of_kernel(kernel: str, dtype: Precision) -> Finding:
    """The platform's attention against the reference: the largest difference of its result and of
    its gradients, as a share of the largest entry.
    """
    draw = jax.random.split(jax.random.key(0), 3)
    shapes = [(4, heads, 512, 128) for heads in (8, 2, 2)]
    inputs = [
        jax.random.normal(key, shape, jnp.dtype(dtype))
        for key, shape in zip(draw, shapes, strict=True)
    ]
    columns = jnp.arange(512)[None]
    valid = (columns >= jnp.array([[0], [100], [0], [300]])) & (
        columns < jnp.array([[512], [512], [200], [400]])
    )
    shown = valid[:, None, :, None]

    def of(attend: Callable) -> list[np.ndarray]:
        def loss(*inputs):
            out = jnp.where(shown, attend(*inputs), 0).astype(jnp.float32)
            weight = jnp.cos(jnp.arange(out.size, dtype=jnp.float32)).reshape(out.shape)
            return jnp.sum(out * weight), out

        (_, out), gradient = jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2), has_aux=True))(
            *inputs
        )
        return [np.asarray(x, np.float32) for x in (out, *gradient)]

    with jax.default_matmul_precision("highest"):
        reference = of(lambda q, k, v: attention.masked(q, k, v, attention.causal(valid)))
    found = of(lambda q, k, v: attention.attend(kernel, q, k, v, Causal(valid)))
    apart = max(
        float(np.abs(a - b).max() / np.abs(b).max()) for a, b in zip(found, reference, strict=True)
    )
    allowed = {"float32": 2e-2, "bfloat16": 5e-2}[dtype]
    what = f"attention {kernel} against matmul, {dtype}: largest difference, relative"
    return Finding(what, apart, allowed, "--student.compute.attention matmul")


def random_weights() -> dict:
    """Large enough for distributions that depend on what was read."""
    _, shapes = models.abstract(ARCHITECTURE)
    random = np.random.default_rng(0)

    def draw(path, leaf):
        scale = 1.0 if path[-1].key == "weight" else 1.5 * leaf.shape[-2] ** -0.5
        noise = random.normal(size=leaf.shape, scale=scale)
        return (1 + noise / 10 if path[-1].key == "weight" else noise).astype(np.float32)

    return jax.tree_util.tree_map_with_path(draw, shapes)


def written(weights: dict, dtype: Precision, mesh: Mesh) -> tuple[Rollout, np.ndarray]:
    """What a model writes, and what a pass over it says of each token; on the host."""
    graph, params = placed(weights, dtype, mesh)
    # Every device has rows of its own, each set of 16 the same.
    again = batch_ways(mesh)
    batch = tuple(np.tile(x, (again, 1)) for x in prompts())
    ids = np.tile(np.arange(16, dtype=np.int32), again)
    decoding = Decoding(ANSWER, (1,), 0, ARCHITECTURE.vocabulary_size)

    @jax.jit
    def write(params, tokens, valid, ids, key):
        model = models.merge(graph, params)
        rollout = sample(model, tokens, valid, ids, key, decoding=decoding, samples=1)
        return rollout, scored(model, tokens, valid, rollout)

    with jax.set_mesh(mesh):
        found = on_host(write(params, *place_batch(mesh, (*batch, ids)), jax.random.key(2)))
    return jax.tree.map(lambda x: x[:16], found)


def prompts() -> tuple[np.ndarray, np.ndarray]:
    """Sixteen, left-padded: tokens and which are valid."""
    random = np.random.default_rng(1)
    tokens = random.integers(2, ARCHITECTURE.vocabulary_size, (16, PROMPT)).astype(np.int32)
    return tokens, np.arange(PROMPT)[None] >= random.integers(0, PROMPT - 4, (16, 1))


def placed(weights: dict, dtype: Precision, mesh: Mesh):
    """A model of the weights on a mesh."""
    graph, _ = models.abstract(ARCHITECTURE, Compute(dtype))
    return graph, jax.tree.map(jax.device_put, weights, parameter_shardings(mesh, weights))


def scored(model, tokens, valid, rollout: Rollout) -> Float[Array, "b t"]:
    """The log-probability of every written token, by one pass over prompt and answer."""
    logits = models.score(model, tokens, valid, rollout.tokens, rollout.mask)
    logp = jax.nn.log_softmax(logits)
    return jnp.take_along_axis(logp, rollout.tokens[..., None], axis=-1)[..., 0]


def of_many_devices(weights: dict, alone: tuple[Rollout, np.ndarray]) -> Finding:
    """All devices, weights spread over them, against one: tokens, or else log-probabilities."""
    rollout, logp = written(weights, "float32", make_mesh(MeshConfig(data=1, fsdp=-1)))
    same = rollout.tokens == alone[0].tokens
    # Up to where a row's tokens part, at a near tie.
    before = np.cumprod(same, axis=1).astype(bool) & alone[0].mask
    apart = float(np.where(before, np.abs(logp - alone[1]), 0).max())
    share = float(before.sum() / alone[0].mask.sum())
    what = f"{jax.device_count()} devices against one: largest nats on the tokens that agree"
    # Parting at once would leave nothing to compare.
    found = apart if share > 0.5 else float("nan")
    return Finding(what, found, 1e-3, "JAX_DEFAULT_MATMUL_PRECISION=highest, or one device")


def of_precision(weights: dict, precise: tuple[Rollout, np.ndarray], mesh: Mesh) -> Finding:
    """bfloat16 compute against float32 on the very same tokens."""
    rollout = precise[0]
    graph, params = placed(weights, "bfloat16", mesh)
    with jax.set_mesh(mesh):
        logp = jax.jit(lambda params, *read: scored(models.merge(graph, params), *read))(
            params, *prompts(), rollout
        )
    apart = float(drift(precise[1], logp, rollout.mask)["sampler_drift_mean"])
    what = "bfloat16 against float32 on the same tokens: mean nats a token"
    return Finding(what, apart, 0.1, "--student.compute.dtype float32")


def of_checkpoint() -> Finding:
    """A state written and read again: how many of its numbers differ."""
    leaf = jnp.asarray(np.random.default_rng(3).normal(size=(256, 256)), jnp.float32)
    state = TrainState(
        {"kernel": leaf}, {}, (), {}, {}, jnp.asarray(7, jnp.int32), jnp.zeros(2, jnp.uint32)
    )
    wanted = np.array(leaf)  # a copy: the restored state takes the memory
    with tempfile.TemporaryDirectory() as folder:
        checkpoints = Checkpoints(Path(folder) / "checkpoints", keep=1, facts={})
        checkpoints.save(7, state, None)
        checkpoints.wait()
        restored = checkpoints.restore(state)
        checkpoints.close()
    found = np.full_like(wanted, np.nan) if restored is None else restored[1].params["kernel"]
    differing = int(np.sum(np.asarray(found) != wanted))
    what = "a checkpoint written and read: numbers that differ"
    return Finding(what, float(differing), 0.0, "--output on another disk")
