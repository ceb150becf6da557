"""A decoder-only Transformer in Flax NNX: Llama, Qwen2 and Qwen3 are settings of one definition.

The model is functional at its edges: `graph, params = split(model)` gives a static, hashable
description and a plain nested dict of arrays; `merge(graph, params)` gives the model back inside a
jitted function. The layers' parameters are stacked on a leading axis and the forward pass scans
over it, so compile time does not grow with depth.

Kernels are `[in, out]`. Attention is causal over the tokens marked valid, and a token's position is
the number of valid tokens before it, so a left-padded batch gives each row what it would get alone.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from jopd.models import sharding
from jopd.models.attention import Branched, Causal, Mask, attend, causal, chosen
from jopd.models.settings import Architecture, Compute, LoRA


class Cache(NamedTuple):
    """Keys and values already computed, for decoding.

    Attributes:
      keys, values: `[layers, batch, kv_heads, slots, head_dim]`, or a list of such of one layer
        each.
      valid: `[batch, slots]`, which slots hold a real token.
      length: scalar, how many slots are filled (padding included); the same for all rows.
    """

    keys: Float[Array, "l b h s d"] | list[Float[Array, "1 b h s d"]]
    values: Float[Array, "l b h s d"] | list[Float[Array, "1 b h s d"]]
    valid: Bool[Array, "b s"]
    length: Int[Array, ""]


class Branches(NamedTuple):
    """Sequences that go on from inside others, `w` from each row.

    Attributes:
      tokens, valid: `[batch * w, k]`, those of a row side by side.
      starts: `[batch, w]`, how many columns of its row each has before it; it sees none of the
        later ones.
    """

    tokens: Int[Array, "n k"]
    valid: Bool[Array, "n k"]
    starts: Int[Array, "b w"]


class Linear(nnx.Module):
    def __init__(
        self, inputs: int, outputs: int, *, bias: bool = False, lora: LoRA = LoRA(), rngs: nnx.Rngs
    ):
        self.kernel = nnx.Param(0.02 * jax.random.normal(rngs.params(), (inputs, outputs)))
        self.bias = nnx.Param(jnp.zeros(outputs)) if bias else None
        self.scale = lora.alpha / lora.rank if lora.rank else 0.0
        self.lora_a = (
            nnx.Param(jax.random.normal(rngs.params(), (inputs, lora.rank)) / math.sqrt(inputs))
            if lora.rank
            else None
        )
        self.lora_b = nnx.Param(jnp.zeros((lora.rank, outputs))) if lora.rank else None

    def __call__(self, x: Float[Array, "*n i"]) -> Float[Array, "*n o"]:
        y = x @ self.kernel[...].astype(x.dtype)
        if self.lora_a is not None and self.lora_b is not None:
            y += (
                self.scale
                * (x @ self.lora_a[...].astype(x.dtype))
                @ self.lora_b[...].astype(x.dtype)
            )
        return (
            y
            if self.bias is None
            else y + jnp.broadcast_to(self.bias[...].astype(x.dtype), y.shape)
        )


class RMSNorm(nnx.Module):
    def __init__(self, width: int, epsilon: float):
        self.weight = nnx.Param(jnp.ones(width))
        self.epsilon = epsilon

    def __call__(self, x: Float[Array, "*n d"]) -> Float[Array, "*n d"]:
        y = x.astype(jnp.float32)
        y *= jax.lax.rsqrt(jnp.mean(y * y, axis=-1, keepdims=True) + self.epsilon)
        # Rounded before the weight is applied, as the reference implementations do.
        return y.astype(x.dtype) * jnp.broadcast_to(self.weight[...].astype(x.dtype), x.shape)


class Attention(nnx.Module):
    def __init__(self, a: Architecture, compute: Compute, *, lora: LoRA, rngs: nnx.Rngs):
        self.architecture, self.compute = a, compute

        def linear(target: str, inputs: int, outputs: int, bias: bool = False) -> Linear:
            return Linear(inputs, outputs, bias=bias, lora=lora.on(target), rngs=rngs)

        self.query = linear("q_proj", a.width, a.heads * a.head_dim, a.qkv_bias)
        self.key = linear("k_proj", a.width, a.kv_heads * a.head_dim, a.qkv_bias)
        self.value = linear("v_proj", a.width, a.kv_heads * a.head_dim, a.qkv_bias)
        self.output = linear("o_proj", a.heads * a.head_dim, a.width)
        self.query_norm = RMSNorm(a.head_dim, a.norm_epsilon) if a.qk_norm else None
        self.key_norm = RMSNorm(a.head_dim, a.norm_epsilon) if a.qk_norm else None

    def project(self, x, turns):
        """Queries `[B, H, S, D]`, keys and values `[B, H_kv, S, D]`, rotated."""
        split = lambda y, heads: y.reshape(
            *y.shape[:2], heads, self.architecture.head_dim
        ).swapaxes(1, 2)
        q, k = (
            split(self.query(x), self.architecture.heads),
            split(self.key(x), self.architecture.kv_heads),
        )
        if self.query_norm is not None and self.key_norm is not None:
            q, k = self.query_norm(q), self.key_norm(k)
        return rotate(q, turns), rotate(k, turns), split(self.value(x), self.architecture.kv_heads)

    def __call__(self, q, k, v, mask: Mask) -> Float[Array, "b s d"]:
        b, heads, s, d = q.shape
        out = attend(self.compute.attention, q, k, v, mask)
        return self.output(out.swapaxes(1, 2).reshape(b, s, heads * d))


class MLP(nnx.Module):
    def __init__(self, a: Architecture, *, lora: LoRA, rngs: nnx.Rngs):
        self.gate = Linear(a.width, a.mlp_width, lora=lora.on("gate_proj"), rngs=rngs)
        self.up = Linear(a.width, a.mlp_width, lora=lora.on("up_proj"), rngs=rngs)
        self.down = Linear(a.mlp_width, a.width, lora=lora.on("down_proj"), rngs=rngs)

    def __call__(self, x: Float[Array, "b s d"]) -> Float[Array, "b s d"]:
        return self.down(jax.nn.silu(self.gate(x)) * self.up(x))


class Block(nnx.Module):
    def __init__(self, a: Architecture, compute: Compute, *, lora: LoRA, rngs: nnx.Rngs):
        self.attention_norm = RMSNorm(a.width, a.norm_epsilon)
        self.attention = Attention(a, compute, lora=lora, rngs=rngs)
        self.mlp_norm = RMSNorm(a.width, a.norm_epsilon)
        self.mlp = MLP(a, lora=lora, rngs=rngs)

    def __call__(self, x, attend):
        x = sharding.constrain(
            x + attend(self.attention, self.attention_norm(x)), "batch", None, None
        )
        return sharding.constrain(x + self.mlp(self.mlp_norm(x)), "batch", None, None)


class Transformer(nnx.Module):
    """A decoder-only language model without its softmax: hidden states out, and the head that turns
    them into logits.
    """

    def __init__(
        self,
        architecture: Architecture,
        compute: Compute = Compute(),
        *,
        lora: LoRA = LoRA(),
        rngs: nnx.Rngs,
    ):
        a = architecture
        self.architecture = a
        self.compute = compute = chosen(compute, jax.default_backend())
        self.embedding = nnx.Param(
            0.02 * jax.random.normal(rngs.params(), (a.vocabulary_size, a.width))
        )

        @nnx.split_rngs(splits=a.layers)
        @nnx.vmap
        def stack(rngs):
            return Block(a, compute, lora=lora, rngs=rngs)

        self.layers = stack(rngs)
        self.norm = RMSNorm(a.width, a.norm_epsilon)
        # A tied head is the embedding itself, one Variable used twice.
        head = (
            None
            if a.tied_head
            else 0.02 * jax.random.normal(rngs.params(), (a.width, a.vocabulary_size))
        )
        self.output_head = None if head is None else nnx.Param(head)

    def hidden(self, tokens: Int[Array, "b s"], valid: Bool[Array, "b s"]) -> Float[Array, "b s d"]:
        """Final hidden states, normalised, in the compute dtype; padding may be on either side."""
        return self._forward(tokens, jnp.cumsum(valid, axis=1) - 1, self._causal(valid))

    def branched(
        self, tokens: Int[Array, "b s"], valid: Bool[Array, "b s"], branches: Branches
    ) -> tuple[Float[Array, "b s d"], Float[Array, "n k d"]]:
        """Final hidden states of the rows, and of sequences that branch off, each as if its row
        ended where it begins.

        One pass over each row with its branches behind it: what comes before a branch is computed
        once, not once a branch.
        """
        (b, s), (w, k) = tokens.shape, (branches.starts.shape[1], branches.tokens.shape[1])
        before = valid[:, None] & (jnp.arange(s)[None, None] < branches.starts[..., None])
        in_branch = branches.valid.reshape(b, w, k)
        positions = before.sum(axis=2, keepdims=True) + jnp.cumsum(in_branch, axis=2) - 1
        # Of the columns row | branches, a branch sees its row's first ones and its own.
        same = jnp.repeat(jnp.eye(w, dtype=bool), k, axis=0).repeat(k, axis=1)
        to_branches = causal(in_branch.reshape(b, w * k)) & same[None]
        seen = jnp.concatenate([jnp.repeat(before, k, axis=1), to_branches], axis=2)
        mask = Branched(self._causal(valid), seen)
        side = lambda row, branch: jnp.concatenate([row, branch.reshape(b, w * k)], axis=1)
        x = self._forward(
            side(tokens, branches.tokens), side(jnp.cumsum(valid, axis=1) - 1, positions), mask
        )
        return x[:, :s], x[:, s:].reshape(b * w, k, -1)

    def _causal(self, valid: Bool[Array, "b s"]) -> Causal | Bool[Array, "b s s"]:
        """What the columns of a row see of it, made once for all layers where it is an array."""
        return causal(valid) if self.compute.attention == "matmul" else Causal(valid)

    def _forward(self, tokens, positions, mask: Mask):
        turns = rotary_turns(self.architecture, positions)

        def layer(x, block):
            return block(
                x, lambda attention, y: attention(*attention.project(y, turns), mask)
            ), None

        x, _ = jax.lax.scan(
            rematerialised(layer, self.compute.remat), self.embed(tokens), self.layers
        )
        return self.norm(x)

    def one_by_one(self, cache: Cache) -> tuple[list[Block], Cache]:
        """The layers, and what each has cached, as arrays of their own: for a loop of `extend`."""
        at = lambda tree, i: jax.tree.map(lambda x: x[i], tree)
        layers = range(self.architecture.layers)
        # The barrier keeps the loop from cutting each anew.
        blocks = jax.lax.optimization_barrier([at(self.layers, i) for i in layers])
        of_each = lambda x: [x[i : i + 1] for i in layers]
        return blocks, cache._replace(keys=of_each(cache.keys), values=of_each(cache.values))

    def extend(
        self,
        tokens: Int[Array, "b s"],
        valid: Bool[Array, "b s"],
        cache: Cache,
        blocks: list[Block] | None = None,
    ) -> tuple[Float[Array, "b s d"], Cache]:
        """Final hidden states of `tokens` placed after what `cache` holds, and the cache that holds
        them too.

        Args:
          blocks: the layers where cache and layers are those that `one_by_one` gives.
        """
        slots = cache.length + jnp.arange(tokens.shape[1])
        before = jnp.sum(cache.valid, axis=1, keepdims=True)
        turns = rotary_turns(self.architecture, before + jnp.cumsum(valid, axis=1) - 1)
        all_valid = jax.lax.dynamic_update_slice(
            cache.valid, valid, (jnp.zeros((), cache.length.dtype), cache.length)
        )
        mask = (slots[:, None] >= jnp.arange(cache.valid.shape[1])[None])[None] & all_valid[
            :, None, :
        ]
        # Without room for anything before them the tokens are a row's first, and see each other.
        alone = self._causal(valid) if tokens.shape[1] == cache.valid.shape[1] else None

        # All rows are equally long, so those slots that none has filled yet are left out.
        # To choose among programs a GPU waits for its host, so that there only much is worth it.
        bounds = slot_bounds(cache.valid.shape[1], at_least=512 if blocks is None else 1024)
        filled = jnp.searchsorted(jnp.asarray(bounds), slots[-1] + 1)

        # The cache rides in the carry, not in scanned inputs and outputs, so that each layer writes
        # its slice in place.
        def layer(carry, scanned):
            x, keys, values = carry
            block, index = scanned

            def attend(attention, y):
                nonlocal keys, values
                q, k, v = attention.project(y, turns)
                zero = jnp.zeros((), cache.length.dtype)
                at = (index, zero, zero, cache.length, zero)
                keys = jax.lax.dynamic_update_slice(keys, k[None].astype(keys.dtype), at)
                values = jax.lax.dynamic_update_slice(values, v[None].astype(values.dtype), at)
                if alone is not None:
                    return attention(q, k, v, alone)

                def over(slots: int):
                    """Attention to the first so many slots of this layer; the rest is not read."""
                    size = (1, *keys.shape[1:3], slots, keys.shape[4])
                    first = lambda x: jax.lax.dynamic_slice(x, (index, *[zero] * 4), size)[0]
                    return lambda q, keys, values, mask: attention(
                        q, first(keys), first(values), mask[:, :, :slots]
                    )

                if len(bounds) == 1:
                    return over(bounds[0])(q, keys, values, mask)
                return jax.lax.switch(filled, [*map(over, bounds)], q, keys, values, mask)

            return (block(x, attend), keys, values), None

        x, keys, values = self.embed(tokens), cache.keys, cache.values
        if blocks is None:
            indices = jnp.arange(self.architecture.layers, dtype=cache.length.dtype)
            (x, keys, values), _ = jax.lax.scan(layer, (x, keys, values), (self.layers, indices))
        else:
            keys, values = [*keys], [*values]
            only = jnp.zeros((), cache.length.dtype)
            for i, block in enumerate(blocks):
                (x, keys[i], values[i]), _ = layer((x, keys[i], values[i]), (block, only))
        return self.norm(x), Cache(keys, values, all_valid, cache.length + tokens.shape[1])

    def empty_cache(self, batch: int, slots: int) -> Cache:
        """A cache for `batch` rows of at most `slots` tokens, padding included."""
        a = self.architecture
        shape = (a.layers, batch, a.kv_heads, slots, a.head_dim)
        empty = sharding.constrain(
            jnp.zeros(shape, self.compute.dtype), None, "batch", "heads", None, None
        )
        return Cache(empty, empty, jnp.zeros((batch, slots), bool), jnp.zeros((), jnp.int32))

    def embed(self, tokens: Int[Array, "b s"]) -> Float[Array, "b s d"]:
        return sharding.constrain(
            self.embedding[...][tokens].astype(self.compute.dtype), "batch", None, None
        )

    def head(self) -> Float[Array, "d v"]:
        """The output head, in the dtype it is stored in."""
        return self.embedding[...].T if self.output_head is None else self.output_head[...]

    def logits(self, hidden: Float[Array, "*n d"]) -> Float[Array, "*n v"]:
        """Next-token logits in float32."""
        return project(hidden, self.head())


def slot_bounds(slots: int, *, at_least: int) -> list[int]:
    """How many slots of a cache may be read: all, or of a cache of at least so many quarters, in
    whole lanes; few, as each is a program of its own.
    """
    quarter = -(-slots // 4 // 128) * 128
    return [slots] if slots < at_least else [*range(quarter, slots, quarter), slots]


def project(hidden: Float[Array, "*n d"], head: Float[Array, "d v"]) -> Float[Array, "*n v"]:
    """Float32 logits of hidden states: the one definition that the sampler shares with everything
    that scores.
    """
    return jnp.matmul(hidden, head.astype(hidden.dtype), preferred_element_type=jnp.float32)


def rotary_turns(
    a: Architecture, positions: Int[Array, "b s"]
) -> tuple[Float[Array, "b 1 s d"], Float[Array, "b 1 s d"]]:
    """Cosine and sine of the angle by which each pair of channels turns at each position, in
    float32; `d` is half of `head_dim`.
    """
    frequencies = a.rope_theta ** (-jnp.arange(0, a.head_dim, 2, dtype=jnp.float32) / a.head_dim)
    if (scaling := a.rope_scaling) is not None:
        turns = scaling.original_max_positions * frequencies / (2 * math.pi)
        low, high = scaling.low_frequency_factor, scaling.high_frequency_factor
        keep = jnp.clip(
            (turns - low) / (high - low), 0, 1
        )  # 1: as trained; 0: stretched by the factor
        frequencies = keep * frequencies + (1 - keep) * frequencies / scaling.factor
    # Once a forward pass, not once a layer: sines are what a CPU is slowest at.
    angles = (
        jnp.maximum(positions, 0).astype(jnp.float32)[:, None, :, None]
        * frequencies[None, None, None]
    )
    return jnp.cos(angles), jnp.sin(angles)


def rotate(x: Float[Array, "b h s d"], turns) -> Float[Array, "b h s d"]:
    """Turns channel i together with channel i + d/2, as Hugging Face's checkpoints pair them."""
    cos, sin = turns
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate(
        [first * cos - second * sin, second * cos + first * sin], axis=-1
    ).astype(x.dtype)


def rematerialised(layer, remat: str):
    if remat == "none":
        return layer
    policy = jax.checkpoint_policies.dots_with_no_batch_dims_saveable if remat == "dots" else None
    return jax.checkpoint(layer, policy=policy, prevent_cse=False)
