"""The families that the model computes: `config.json` to an `Architecture` and back.

What a file says and the model does not compute is refused by name, wherever transformers 4 or 5
writes it: nothing that changes the forward pass is passed over.
"""

import math
from collections.abc import Mapping
from typing import Any

from jopd.models.settings import Architecture, RopeScaling

FAMILIES = ("llama", "qwen2", "qwen3")

SIZES = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
)
OPTIONAL_SIZES = ("num_key_value_heads", "head_dim", "max_position_embeddings")
POSITIVE_NUMBERS = ("rope_theta", "rms_norm_eps")

# Options that change the forward pass in these families or in code derived from them, and that the
# model does not compute, with the values that say so.
FIXED_OPTIONS: dict[str, tuple[Any, ...]] = {
    "hidden_act": ("silu", "swish"),
    "attention_bias": (False,),
    "mlp_bias": (False,),
    "quantization_config": (),
    "compression_config": (),
    "qk_norm": (False,),
    "use_qk_norm": (False,),
    "use_bias": (False,),
    "no_rope_layers": (),
    "rope_interleaved": (False,),
    "rope_local_base_freq": (),
    "rotary_pct": (1,),
    "alibi": (False,),
    "attention_chunk_size": (),
    "attn_logit_softcapping": (),
    "final_logit_softcapping": (),
    "query_pre_attn_scalar": (),
    "attention_multiplier": (),
    "embedding_multiplier": (1,),
    "residual_multiplier": (1,),
    "logits_scaling": (1,),
    "logit_scale": (1,),
    "scale_emb": (1,),
    "num_experts": (0,),
    "num_local_experts": (0,),
}

LLAMA3 = ("factor", "low_freq_factor", "high_freq_factor")
ROPE_KEYS = {"rope_type", "type", "rope_theta", "partial_rotary_factor", *LLAMA3}
ROPE_KEYS |= {"original_max_position_embeddings"}


def architecture_from(config: Mapping[str, Any]) -> Architecture:
    """Reads a `config.json` of transformers 4 or 5.

    Raises:
      ValueError: a family or option that is not computed here, or a value that is none, by name.
    """
    family = config.get("model_type")
    if family not in FAMILIES:
        raise ValueError(
            f"model_type={family!r} is not supported: use a dense checkpoint of "
            f"{', '.join(FAMILIES)} (no mixture of experts, no state space)"
        )
    refuse_options(config, family)
    check_values(config)
    refuse_sliding_windows(config)
    theta, scaling = rope_from(config)
    width, heads = config["hidden_size"], config["num_attention_heads"]
    return Architecture(
        vocabulary_size=config["vocab_size"],
        width=width,
        layers=config["num_hidden_layers"],
        heads=heads,
        kv_heads=config.get("num_key_value_heads") or heads,
        head_dim=config.get("head_dim") or (128 if family == "qwen3" else width // heads),
        mlp_width=config["intermediate_size"],
        rope_theta=theta,
        rope_scaling=scaling,
        norm_epsilon=config.get("rms_norm_eps") or 1e-6,
        qkv_bias=family == "qwen2",
        qk_norm=family == "qwen3",
        tied_head=bool(config.get("tie_word_embeddings")),
        max_positions=positions(config),
    )


def positions(config: Mapping[str, Any]) -> int:
    default = 2048 if config["model_type"] == "llama" else 32768
    return config.get("max_position_embeddings") or default


def refuse_options(config: Mapping[str, Any], family: str) -> None:
    for option, supported in FIXED_OPTIONS.items():
        if (value := config.get(option)) is not None and value not in supported:
            cure = f"with {option}={supported[0]!r}" if supported else f"without {option}"
            raise ValueError(
                f"{option}={value!r} is not supported: use a {family} checkpoint {cure}"
            )
    if "AutoModelForCausalLM" in (config.get("auto_map") or {}):
        raise ValueError(
            f"auto_map={config['auto_map']!r} has the model computed by code of its own: use a "
            f"{family} checkpoint without"
        )


def check_values(config: Mapping[str, Any]) -> None:
    if missing := [size for size in SIZES if config.get(size) is None]:
        raise ValueError(
            f"config.json lacks {', '.join(missing)}: use the folder that transformers saved"
        )
    whole = lambda value: isinstance(value, int) and not isinstance(value, bool)
    number = lambda value: whole(value) or isinstance(value, float)
    kinds = (
        (
            SIZES + OPTIONAL_SIZES,
            lambda value: whole(value) and value > 0,
            "a whole number above 0",
        ),
        (POSITIVE_NUMBERS, lambda value: number(value) and 0 < value < math.inf, "above 0"),
        (("tie_word_embeddings",), lambda value: isinstance(value, bool), "true or false"),
    )
    for names, fits, words in kinds:
        for name in names:
            if (value := config.get(name)) is not None and not fits(value):
                raise ValueError(
                    f"config.json: {name}={value!r} must be {words}: use the config.json saved "
                    "with the weights"
                )


def refuse_sliding_windows(config: Mapping[str, Any]) -> None:
    """A window that reaches no layer is no obstacle; transformers' defaults are 4096 tokens, from
    layer 28.
    """
    if kinds := sorted({*(config.get("layer_types") or ())} - {"full_attention"}):
        raise ValueError(
            f"layer_types holds {kinds[0]!r} (sliding_window={config.get('sliding_window')}), "
            "which is not supported: use a checkpoint whose layers all attend fully"
        )
    window = config.get("sliding_window", 4096) if config.get("use_sliding_window") else None
    if config.get("layer_types") or window is None:
        return
    if config.get("max_window_layers", 28) < config["num_hidden_layers"]:
        raise ValueError(
            f"use_sliding_window=True (sliding_window={window}) is not supported: use a checkpoint "
            "whose layers all attend fully"
        )


def rope_from(config: Mapping[str, Any]) -> tuple[float, RopeScaling | None]:
    """Rotary base and scaling: transformers 5 keeps both under `rope_parameters`, 4 in `rope_theta`
    and `rope_scaling`. A file may say it in both places, if they agree.
    """
    names = ("rope_theta", "partial_rotary_factor")
    rope = {name: config[name] for name in names if config.get(name) is not None}
    for place in ("rope_scaling", "rope_parameters"):
        settings = config.get(place) or {}
        check_rope(settings, place)
        settings = {("rope_type" if key == "type" else key): settings[key] for key in settings}
        if place == "rope_parameters" and settings:
            settings.setdefault("rope_type", "default")
        for name, value in settings.items():
            if rope.setdefault(name, value) != value:
                raise ValueError(
                    f"config.json says {name}={rope[name]!r} and, in {place}, {value!r}: leave the "
                    "one that the model was trained with"
                )
    if rope.get("partial_rotary_factor", 1) != 1:
        raise ValueError(
            f"partial_rotary_factor={rope['partial_rotary_factor']} is not supported: use a "
            "checkpoint that turns all of head_dim"
        )
    theta = rope.get("rope_theta", 10_000.0)
    if rope.get("rope_type", "default") == "default":
        return theta, None
    original = rope.get("original_max_position_embeddings", positions(config))
    factor, low, high = (rope[name] for name in LLAMA3)
    return theta, RopeScaling(factor, low, high, original)


def check_rope(settings: Any, place: str) -> None:
    """Refuses what is neither no scaling nor Llama 3's: another type, settings by kind of layer, a
    setting that is missing or no number.
    """
    known = isinstance(settings, Mapping) and not settings.keys() - ROPE_KEYS
    types = [settings.get(key, "default") for key in ("rope_type", "type")] if known else [None]
    computed = all(kind in ("default", "llama3") for kind in types)
    if not computed or ("factor" in settings and "llama3" not in types):
        raise ValueError(
            f"{place}={settings!r} is not supported: use a checkpoint with rope_type 'default' or "
            "'llama3', the same for all layers"
        )
    needed = LLAMA3 if "llama3" in types else ()
    values = {name: settings.get(name) for name in (*needed, *settings) if "type" not in name}
    for name, value in values.items():
        if isinstance(value, bool) or not isinstance(value, int | float) or not value > 0:
            raise ValueError(f"{place}: {name}={value!r} must be a number above 0")


def config_from(a: Architecture, dtype: str) -> dict[str, Any]:
    """The `config.json` of an architecture, in the spelling that transformers 4 and 5 and other
    readers all take.
    """
    if a.qkv_bias and a.qk_norm:
        raise ValueError(
            "qkv_bias=True with qk_norm=True has no Hugging Face family: set one of them to False"
        )
    family = "qwen2" if a.qkv_bias else "qwen3" if a.qk_norm else "llama"
    scaling = a.rope_scaling and {
        "rope_type": "llama3",
        "factor": a.rope_scaling.factor,
        "low_freq_factor": a.rope_scaling.low_frequency_factor,
        "high_freq_factor": a.rope_scaling.high_frequency_factor,
        "original_max_position_embeddings": a.rope_scaling.original_max_positions,
    }
    return {
        "architectures": [f"{family.capitalize()}ForCausalLM"],
        "model_type": family,
        "dtype": dtype,
        "vocab_size": a.vocabulary_size,
        "hidden_size": a.width,
        "intermediate_size": a.mlp_width,
        "num_hidden_layers": a.layers,
        "num_attention_heads": a.heads,
        "num_key_value_heads": a.kv_heads,
        "head_dim": a.head_dim,
        "rope_theta": a.rope_theta,
        "rope_scaling": scaling,
        "rms_norm_eps": a.norm_epsilon,
        "tie_word_embeddings": a.tied_head,
        "max_position_embeddings": a.max_positions,
        "hidden_act": "silu",
    }
