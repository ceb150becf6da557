"""What a model is and how it is computed: plain values, which need no JAX."""

import dataclasses
from typing import Literal

# The kernels of attention; see `jopd.models.attention`.
Kind = Literal["auto", "matmul", "splash", "cudnn"]


@dataclasses.dataclass(frozen=True)
class RopeScaling:
    """Llama 3's stretch of the low rotary frequencies (`rope_type: llama3` in `config.json`)."""

    factor: float
    low_frequency_factor: float
    high_frequency_factor: float
    original_max_positions: int


@dataclasses.dataclass(frozen=True)
class Architecture:
    """What the weights are; read from `config.json` by `jopd.models.huggingface`."""

    vocabulary_size: int
    width: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    mlp_width: int
    rope_theta: float = 10_000.0
    rope_scaling: RopeScaling | None = None
    norm_epsilon: float = 1e-6
    qkv_bias: bool = False
    qk_norm: bool = False
    tied_head: bool = True
    max_positions: int = 2048

    def __post_init__(self):
        if self.heads % self.kv_heads:
            raise ValueError(
                f"heads={self.heads} must be a multiple of kv_heads={self.kv_heads}: check "
                "config.json"
            )


@dataclasses.dataclass(frozen=True)
class Compute:
    """How the forward pass is computed; changes no parameter.

    Attributes:
      dtype: of activations and of the matrix products; norms, softmax and logits are float32
        whatever it is.
      attention: "auto", which takes the platform's kernel, or the name of one; see
        `jopd.models.attention`.
      remat: what the backward pass recomputes: "none", "layer" (everything inside a layer) or
        "dots" (all but matrix products). On a CPU "layer" is also the fastest: it is memory traffic
        that costs there.
    """

    dtype: Literal["float32", "bfloat16"] = "float32"
    attention: Kind = "auto"
    remat: Literal["none", "layer", "dots"] = dataclasses.field(
        default="layer", metadata={"changes_numbers": False}
    )


@dataclasses.dataclass(frozen=True)
class LoRA:
    """Low-rank adapters on every linear layer, 2106.09685: `x W + (alpha / rank) (x A) B`, B starts
    at zero.

    Attributes:
      rank: 0 trains the whole model.
      alpha: the adapter's scale is `alpha / rank`.
    """

    rank: int = 0
    alpha: float = 16.0

    def __post_init__(self):
        if self.rank < 0 or self.alpha <= 0:
            raise ValueError(
                f"lora.rank={self.rank}, lora.alpha={self.alpha}: rank must be 0 (off) or more and "
                "alpha above 0"
            )
