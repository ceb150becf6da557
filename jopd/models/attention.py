"""Attention of rows over themselves, causal and without their padding: the reference, and the
kernels that a platform has for it. All give the reference's numbers to rounding, on every column
that holds a token; what stands in the others is finite.

    matmul   explicit batched products over a [B, S, S] mask; fastest on a CPU
    splash   TPU: jax.experimental.pallas' splash attention, under shard_map; never holds S x S
    cudnn    GPU: cuDNN's flash attention, in 16 bits; never holds S x S
"""

import dataclasses
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu import splash_attention as splash
from jaxtyping import Array, Bool, Float

from jopd.models.settings import Compute
from jopd.models.sharding import spec

LANES = 128
# Of splash's forward and backward kernels.
BLOCKS = (
    *("block_q", "block_kv", "block_kv_compute"),
    *("block_q_dkv", "block_kv_dkv", "block_kv_dkv_compute", "block_q_dq", "block_kv_dq"),
)


class Causal(NamedTuple):
    """Each column sees those up to itself that hold a token.

    Attributes:
      valid: [B, S], which columns do; those of a row lie side by side.
    """

    valid: Bool[Array, "b s"]


class Branched(NamedTuple):
    """Rows, and behind them the columns of what branches off them.

    Attributes:
      rows: of the rows, among themselves.
      branches: [B, N, S + N], which columns the N behind see; few, so no array is S x S.
    """

    rows: Causal | Bool[Array, "b s s"]
    branches: Bool[Array, "b n m"]


Mask = Causal | Branched | Bool[Array, "b s t"]


def causal(valid: Bool[Array, "b s"]) -> Bool[Array, "b s s"]:
    """`Causal` as an array."""
    slots = jnp.arange(valid.shape[1])
    return (slots[:, None] >= slots[None])[None] & valid[:, None, :]


def chosen(compute: Compute, platform: str) -> Compute:
    """The settings with the platform's kernel in the place of "auto"."""
    if compute.attention != "auto":
        return compute
    kernel = "splash" if platform == "tpu" else "matmul"
    if platform in ("gpu", "cuda") and compute.dtype == "bfloat16":
        kernel = "cudnn"
    return dataclasses.replace(compute, attention=kernel)


def check_kernel(compute: Compute, platform: str) -> None:
    """Raises ValueError where a kernel is asked for by name that can't run there."""
    name, needs = compute.attention, {"splash": ("tpu",), "cudnn": ("gpu", "cuda")}
    if name in needs and platform not in needs[name]:
        machine = {"splash": "a TPU", "cudnn": "an NVIDIA GPU"}[name]
        raise ValueError(
            f"compute.attention={name} needs {machine}, and this machine has {platform}: leave it "
            "at auto, or set matmul"
        )
    if name == "cudnn" and compute.dtype != "bfloat16":
        raise ValueError(
            f"compute.attention=cudnn is for bfloat16, and compute.dtype={compute.dtype}: leave it "
            "at auto, or set the type too"
        )


def masked(
    q: Float[Array, "b h s d"],
    k: Float[Array, "b g t d"],
    v: Float[Array, "b g t d"],
    mask: Bool[Array, "b s t"],
) -> Float[Array, "b h s d"]:
    """The reference, over any mask; `h / g` query heads share a key head."""
    b, heads, s, d = q.shape
    # The query heads of one key head side by side make each product one plain batched matmul;
    # XLA's CPU backend is 2.5 times slower on the einsum that says the same.
    groups = heads // k.shape[1]
    q = q.reshape(b, -1, groups * s, d) * jnp.asarray(d**-0.5, q.dtype)
    scores = jnp.matmul(q, k.swapaxes(2, 3), preferred_element_type=jnp.float32).reshape(
        b, -1, groups, s, k.shape[2]
    )
    # A finite floor: a padded query sees no key at all, and must give numbers, not NaN.
    weights = jax.nn.softmax(
        jnp.where(mask[:, None, None], scores, jnp.finfo(jnp.float32).min), axis=-1
    )
    out = weights.astype(v.dtype).reshape(b, -1, groups * s, k.shape[2]) @ v
    return out.reshape(b, heads, s, d)


def by_splash(q, k, v, rows: Causal, *, interpret: bool = False) -> Float[Array, "b h s d"]:
    """As `masked` over `rows`, on each device of the mesh for its rows and heads.

    Args:
      interpret: runs the kernel's steps as plain JAX, on any platform.
    """
    _, heads, s, d = q.shape
    mesh = jax.sharding.get_abstract_mesh()
    if not mesh.empty and k.shape[1] % mesh.shape["tensor"]:
        # Split query heads would meet another's keys.
        k, v = (jnp.repeat(x, heads // k.shape[1], axis=1) for x in (k, v))
    # Whole blocks, and whole lanes of each head.
    block = next(size for size in (512, 256, LANES) if s >= 2 * size or size == LANES)
    to = lambda x, axis, multiple: jnp.pad(
        x, [(0, -x.shape[i] % multiple if i == axis else 0) for i in range(x.ndim)]
    )
    widen = lambda x: to(to(x, 2, block), 3, LANES)
    q, k, v = widen(q * jnp.asarray(d**-0.5, q.dtype)), widen(k), widen(v)
    blocks: dict[str, Any] = dict.fromkeys(BLOCKS, block)
    # Padding sees padding, tokens see tokens.
    segments = to(rows.valid.astype(jnp.int32), 1, block)

    def on_a_device(q, k, v, segments) -> Any:
        length = q.shape[2]
        kernel = splash.make_splash_mha(
            splash.MultiHeadMask([splash.CausalMask((length, length))] * q.shape[1]),
            block_sizes=splash.BlockSizes(**blocks),
            head_shards=1,
            q_seq_shards=1,
            interpret=interpret,
        )
        return jax.vmap(kernel)(q, k, v, splash.SegmentIds(segments, segments))

    if not mesh.empty:
        of = lambda x, *axes: spec(mesh, x.shape, axes)
        heads_first = ("batch", "heads", None, None)
        places = [of(x, *heads_first) for x in (q, k, v)]
        attend: Any = jax.shard_map(
            on_a_device,
            in_specs=(*places, of(segments, "batch", None)),
            out_specs=places[0],
            check_vma=False,
        )
    else:
        attend = on_a_device
    return attend(q, k, v, segments)[:, :, :s, :d].astype(v.dtype)


def by_cudnn(
    q, k, v, rows: Causal, *, implementation: Literal["cudnn", "xla"] = "cudnn"
) -> Float[Array, "b h s d"]:
    """As `masked` over `rows`.

    Args:
      implementation: "xla" says the same to any platform.
    """
    # cuDNN masks by length, so each row's tokens are brought to its beginning.
    first = jnp.argmax(rows.valid, axis=1)
    turn = lambda x, by: jax.vmap(lambda row, n: jnp.roll(row, n, axis=0))(x, by)
    by_column = lambda x: turn(x.swapaxes(1, 2), -first)
    # An empty row sees its first column: numbers, not NaN.
    lengths = jnp.maximum(rows.valid.sum(axis=1, dtype=jnp.int32), 1)
    out = jax.nn.dot_product_attention(
        by_column(q),
        by_column(k),
        by_column(v),
        query_seq_lengths=lengths,
        key_value_seq_lengths=lengths,
        is_causal=True,
        implementation=implementation,
    )
    return turn(out, first).swapaxes(1, 2)


def attend(kernel: str, q, k, v, mask: Mask) -> Float[Array, "b h s d"]:
    """Attention by a kernel where the mask is one that it knows, else by the reference."""
    if isinstance(mask, Branched):
        s = mask.branches.shape[2] - mask.branches.shape[1]
        of_rows = attend(kernel, q[:, :, :s], k[:, :, :s], v[:, :, :s], mask.rows)
        return jnp.concatenate([of_rows, masked(q[:, :, s:], k, v, mask.branches)], axis=2)
    if not isinstance(mask, Causal):
        return masked(q, k, v, mask)
    if kernel == "matmul":
        return masked(q, k, v, causal(mask.valid))
    return {"splash": by_splash, "cudnn": by_cudnn}[kernel](q, k, v, mask)
