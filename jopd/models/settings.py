"""What a model is and how it is computed: plain values, which need no JAX."""

import dataclasses
from typing import Literal

from jopd.nearest import did_you_mean

# The kernels of attention; see `jopd.models.attention`.
Kind = Literal["auto", "matmul", "splash", "cudnn"]

# The linear layers of a block, by the names that Hugging Face's families and PEFT have for them.
TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


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
    """Low-rank adapters on linear layers, 2106.09685: `x W + (alpha / rank) (x A) B`, B starts at
    zero.

    Attributes:
      rank: 0 trains the whole model.
      alpha: the adapter's scale is `alpha / rank`.
      targets: the layers that have one: of attention q_proj, k_proj, v_proj and o_proj, of the MLP
        gate_proj, up_proj and down_proj.
    """

    rank: int = 0
    alpha: float = 16.0
    targets: tuple[str, ...] = TARGETS

    def __post_init__(self):
        if self.rank < 0 or self.alpha <= 0:
            raise ValueError(
                f"lora.rank={self.rank}, lora.alpha={self.alpha}: rank must be 0 (off) or more and "
                "alpha above 0"
            )
        for name in self.targets:
            if name not in TARGETS:
                raise ValueError(
                    f"lora.targets has {name!r}{did_you_mean(name, TARGETS)}: name some of "
                    f"{', '.join(TARGETS)}"
                )
        if not self.targets:
            raise ValueError(
                f"lora.targets is empty: name some of {', '.join(TARGETS)}, or leave it unset for "
                "all"
            )
        # In one order and each once, so that the same layers are the same settings.
        in_order = tuple(name for name in TARGETS if name in self.targets)
        object.__setattr__(self, "targets", in_order)

    def on(self, target: str) -> "LoRA":
        """What the linear layer of that name has."""
        return self if target in self.targets else LoRA()
