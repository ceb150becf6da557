"""Hugging Face folders: `config.json` to an `Architecture` and back, tensor names, safetensors.

`NAMES` is the one table that says which stored tensor is which parameter; GGUF files are read
through it too. A stored weight is `[out, in]` and ours `[in, out]`, and the stored layers are
separate tensors where ours are stacked. Tensors are read by the slice, so a parameter goes straight
onto its shards and no process holds more of it than its own.
"""

import json
import math
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from jopd.models.transformer import Architecture, RopeScaling

FAMILIES = ("llama", "qwen2", "qwen3")

NAMES = {
    ("embedding",): "model.embed_tokens.weight",
    ("layers", "attention_norm", "weight"): "model.layers.{}.input_layernorm.weight",
    ("layers", "attention", "query", "kernel"): "model.layers.{}.self_attn.q_proj.weight",
    ("layers", "attention", "query", "bias"): "model.layers.{}.self_attn.q_proj.bias",
    ("layers", "attention", "query_norm", "weight"): "model.layers.{}.self_attn.q_norm.weight",
    ("layers", "attention", "key", "kernel"): "model.layers.{}.self_attn.k_proj.weight",
    ("layers", "attention", "key", "bias"): "model.layers.{}.self_attn.k_proj.bias",
    ("layers", "attention", "key_norm", "weight"): "model.layers.{}.self_attn.k_norm.weight",
    ("layers", "attention", "value", "kernel"): "model.layers.{}.self_attn.v_proj.weight",
    ("layers", "attention", "value", "bias"): "model.layers.{}.self_attn.v_proj.bias",
    ("layers", "attention", "output", "kernel"): "model.layers.{}.self_attn.o_proj.weight",
    ("layers", "mlp_norm", "weight"): "model.layers.{}.post_attention_layernorm.weight",
    ("layers", "mlp", "gate", "kernel"): "model.layers.{}.mlp.gate_proj.weight",
    ("layers", "mlp", "up", "kernel"): "model.layers.{}.mlp.up_proj.weight",
    ("layers", "mlp", "down", "kernel"): "model.layers.{}.mlp.down_proj.weight",
    ("norm", "weight"): "model.norm.weight",
    ("output_head",): "lm_head.weight",
}
TRANSPOSED = ("kernel", "output_head")

# Options that other members of these families set and that the model does not compute, with the one
# value that it does.
FIXED_OPTIONS = {
    "hidden_act": "silu",
    "attention_bias": False,
    "mlp_bias": False,
    "quantization_config": None,
}
ROPE_KEYS = {
    "rope_type",
    "type",
    "rope_theta",
    "partial_rotary_factor",
    "factor",
    "low_freq_factor",
    "high_freq_factor",
}
ROPE_KEYS |= {"original_max_position_embeddings"}

Key = tuple[str, ...]  # where a parameter is in the model's nested dict


class Tensor(NamedTuple):
    """A tensor in a file; `read` takes one slice an axis and brings only that part into memory."""

    shape: tuple[int, ...]
    read: Callable[[tuple[slice, ...]], np.ndarray]


class Checkpoint(NamedTuple):
    """What a model's files say, before any weight is read.

    Attributes:
      tensors: by Hugging Face name, whatever the file's format.
      stop_tokens: the ids that end a completion, ascending.
      files: what a fingerprint of the weights is taken from.
    """

    architecture: Architecture
    tensors: Mapping[str, Tensor]
    tokenizer: PreTrainedTokenizerBase
    stop_tokens: tuple[int, ...]
    files: tuple[Path, ...]


def architecture_from(config: Mapping[str, Any]) -> Architecture:
    """Reads a `config.json` of transformers 4 or 5. Raises ValueError, by name, on every family or
    option that is not computed here.
    """
    family = config.get("model_type")
    if family not in FAMILIES:
        raise ValueError(
            f"model_type={family!r} is not supported: use a dense checkpoint of {', '.join(FAMILIES)} (no mixture of experts, no state space)"
        )
    for option, supported in FIXED_OPTIONS.items():
        if config.get(option, supported) != supported:
            raise ValueError(
                f"{option}={config[option]!r} is not supported: use a {family} checkpoint with {option}={supported!r}"
            )
    sizes = (
        "vocab_size",
        "hidden_size",
        "intermediate_size",
        "num_hidden_layers",
        "num_attention_heads",
    )
    if missing := [size for size in sizes if config.get(size) is None]:
        raise ValueError(
            f"config.json lacks {', '.join(missing)}: use the folder that transformers saved"
        )
    width, layers, heads = (
        config["hidden_size"],
        config["num_hidden_layers"],
        config["num_attention_heads"],
    )

    window = config.get("sliding_window") if config.get("use_sliding_window") else None
    slides = window is not None and config.get("max_window_layers", 28) < layers
    if any(
        kind != "full_attention"
        for kind in config.get("layer_types") or ["sliding_attention"] * slides
    ):
        raise ValueError(
            f"use_sliding_window=True (sliding_window={window}) is not supported: use a checkpoint whose layers all attend fully"
        )

    theta, scaling = rope_from(config)
    return Architecture(
        vocabulary_size=config["vocab_size"],
        width=width,
        layers=layers,
        heads=heads,
        kv_heads=config.get("num_key_value_heads") or heads,
        head_dim=config.get("head_dim") or (128 if family == "qwen3" else width // heads),
        mlp_width=config["intermediate_size"],
        rope_theta=theta,
        rope_scaling=scaling,
        norm_epsilon=config.get("rms_norm_eps") or 1e-6,
        qkv_bias=family == "qwen2",
        qk_norm=family == "qwen3",
        tied_head=config.get("tie_word_embeddings", False),
        max_positions=config.get("max_position_embeddings") or 2048,
    )


def rope_from(config: Mapping[str, Any]) -> tuple[float, RopeScaling | None]:
    """Rotary base and scaling: transformers 5 keeps both under `rope_parameters`, 4 in `rope_theta`
    and `rope_scaling`.
    """
    rope = {
        "rope_theta": config.get("rope_theta", 10_000.0),
        "partial_rotary_factor": config.get("partial_rotary_factor", 1.0),
    }
    rope |= config.get("rope_scaling") or {}
    rope |= config.get("rope_parameters") or {}
    kind = rope.get("rope_type", rope.get("type", "default"))
    if (
        kind not in ("default", "llama3")
        or rope["partial_rotary_factor"] != 1
        or rope.keys() - ROPE_KEYS
    ):
        raise ValueError(
            f"rope_parameters={rope} is not supported: use a checkpoint with rope_type 'default' or 'llama3' on all of head_dim"
        )
    if kind == "default":
        return rope["rope_theta"], None
    original = rope.get(
        "original_max_position_embeddings", config.get("max_position_embeddings", 2048)
    )
    return rope["rope_theta"], RopeScaling(
        rope["factor"], rope["low_freq_factor"], rope["high_freq_factor"], original
    )


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


def stored_tensors(shapes: Mapping[Key, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the tensors that hold these parameters (key to shape, stacked layers
    first).
    """
    stored = {}
    for key, name in NAMES.items():
        if key in shapes:
            layers, shape = (
                (shapes[key][0], shapes[key][1:]) if key[0] == "layers" else (1, shapes[key])
            )
            stored |= {
                name.format(layer): shape[::-1] if key[-1] in TRANSPOSED else shape
                for layer in range(layers)
            }
    return stored


def check_checkpoint(checkpoint: Checkpoint, shapes: Mapping[Key, tuple[int, ...]]) -> None:
    """Raises ValueError where the files do not hold exactly these parameters, or not for every
    token; names the first few.
    """
    size, largest = (
        checkpoint.architecture.vocabulary_size,
        max(checkpoint.tokenizer.get_vocab().values()),
    )
    if largest >= size:
        raise ValueError(
            f"the tokenizer has token id {largest}, vocab_size is {size}: use the tokenizer saved with the weights"
        )
    tensors = checkpoint.tensors
    expected, few = stored_tensors(shapes), lambda names: ", ".join(sorted(names)[:4])
    if missing := expected.keys() - tensors.keys():
        cure = (
            "set tie_word_embeddings to true"
            if missing == {"lm_head.weight"}
            else "fetch the whole checkpoint"
        )
        raise ValueError(
            f"tensors that config.json asks for are missing ({few(missing)}; {len(missing)} in all): {cure}"
        )
    extra = {
        name
        for name in tensors.keys() - expected.keys()
        if not name.endswith("rotary_emb.inv_freq")
    }
    if (
        ("output_head",) not in shapes and "lm_head.weight" in extra
    ):  # some tied checkpoints store the embedding twice
        extra -= {"lm_head.weight"}
        if not same(tensors["lm_head.weight"], tensors["model.embed_tokens.weight"]):
            raise ValueError(
                "lm_head.weight differs from the embedding that config.json ties it to: set tie_word_embeddings to false"
            )
    if extra:
        raise ValueError(
            f"tensors that config.json does not account for ({few(extra)}; {len(extra)} in all): use the config.json saved with them"
        )
    if wrong := [name for name in expected if tensors[name].shape != expected[name]]:
        found, wanted = tensors[wrong[0]].shape, expected[wrong[0]]
        raise ValueError(
            f"{wrong[0]} is {found}, config.json says {wanted}: use the config.json saved with it"
        )


def same(a: Tensor, b: Tensor, band: int = 4096) -> bool:
    """Whether two matrices are equal, a band of rows at a time."""
    rows = a.shape[0]
    bands = [(slice(start, min(start + band, rows)), slice(None)) for start in range(0, rows, band)]
    return a.shape == b.shape and all(np.array_equal(a.read(part), b.read(part)) for part in bands)


def read_parameter(
    tensors: Mapping[str, Tensor], key: Key, shape: tuple[int, ...], index: tuple[slice, ...], dtype
) -> np.ndarray:
    """The part `index` of the parameter at `key`, `shape` being that of the whole."""
    stacked, turned = key[0] == "layers", key[-1] in TRANSPOSED
    ranges = [range(*part.indices(size)) for part, size in zip(index, shape, strict=True)]
    inner = tuple(slice(r.start, r.stop) for r in ranges[stacked:])
    out = np.empty([len(r) for r in ranges], dtype)
    for i, layer in enumerate(ranges[0] if stacked else [0]):
        part = tensors[NAMES[key].format(layer)].read(inner[::-1] if turned else inner)
        (out[i] if stacked else out)[...] = part.T if turned else part
    return out


def open_folder(folder: Path) -> Checkpoint:
    """Opens a Hugging Face folder: config, tokenizer, and its safetensors, one file or many with an
    index.
    """
    if not (folder / "config.json").is_file():
        raise ValueError(
            f"{folder} has no config.json: give a Hugging Face folder, or the .gguf file itself"
        )
    config = json.loads((folder / "config.json").read_text())
    architecture = architecture_from(config)
    index = folder / "model.safetensors.index.json"
    names = (
        set(json.loads(index.read_text())["weight_map"].values())
        if index.is_file()
        else {"model.safetensors"}
    )
    files = tuple(folder / name for name in sorted(names))
    if absent := [file.name for file in files if not file.is_file()]:
        raise ValueError(
            f"{folder} lacks {', '.join(absent[:4])}: fetch the whole checkpoint, in safetensors format"
        )
    if not any(
        (folder / name).is_file() for name in ("tokenizer.json", "tokenizer.model", "vocab.json")
    ):
        raise ValueError(f"{folder} has no tokenizer: put its tokenizer.json beside config.json")
    generation = folder / "generation_config.json"
    eos = (json.loads(generation.read_text()) if generation.is_file() else config).get(
        "eos_token_id"
    )
    tokenizer = AutoTokenizer.from_pretrained(folder)
    return Checkpoint(
        architecture,
        open_safetensors(files),
        tokenizer,
        stop_tokens(eos, tokenizer.eos_token_id),
        files,
    )


def stop_tokens(*ids: Any) -> tuple[int, ...]:
    """The union of token ids, lists of ids and Nones, ascending."""
    flat = [[one] if isinstance(one, int) else one or [] for one in ids]
    return tuple(sorted({token for one in flat for token in one}))


def open_safetensors(files: Iterable[Path]) -> dict[str, Tensor]:
    tensors = {}
    for file in files:
        try:
            handle = safe_open(file, framework="numpy")
        except SafetensorError as error:
            raise ValueError(
                f"{file.name} is not a whole safetensors file ({error}): fetch it again"
            ) from error
        for name in handle.keys():  # noqa: SIM118 (not a dict)
            part = handle.get_slice(name)
            if part.get_dtype() not in ("F32", "F16", "BF16"):
                raise ValueError(
                    f"{file.name}: {name} is stored as {part.get_dtype()}: use a checkpoint in F32, F16 or BF16"
                )
            tensors[name] = Tensor(tuple(part.get_shape()), part.__getitem__)
    return tensors


def write_safetensors(
    folder: Path,
    shapes: Mapping[Key, tuple[int, ...]],
    value: Callable[[Key], np.ndarray],
    dtype,
    limit: int,
) -> None:
    """Writes parameters under their Hugging Face names: one file, or, above `limit` bytes, several
    and an index.

    `value` is asked for each parameter once, when its file is written, so the host holds no more
    than a file of them at a time.
    """
    groups, size = [[]], 0
    for key in (key for key in NAMES if key in shapes):
        size += math.prod(shapes[key]) * np.dtype(dtype).itemsize
        if groups[-1] and size > limit:
            groups.append([])
            size = math.prod(shapes[key]) * np.dtype(dtype).itemsize
        groups[-1].append(key)
    index = {}
    for number, group in enumerate(groups, 1):
        file = (
            "model.safetensors"
            if len(groups) == 1
            else f"model-{number:05}-of-{len(groups):05}.safetensors"
        )
        tensors = {}
        for key in group:
            for layer, part in enumerate(value(key) if key[0] == "layers" else [value(key)]):
                tensors[NAMES[key].format(layer)] = np.ascontiguousarray(
                    part.T if key[-1] in TRANSPOSED else part, dtype
                )
        save_file(tensors, folder / file, metadata={"format": "pt"})
        # safetensors writes for the owner's eyes alone; whoever may read the folder may read the
        # model.
        (folder / file).chmod((folder / file).stat().st_mode | 0o044)
        index |= dict.fromkeys(tensors, file)
    if len(groups) > 1:
        (folder / "model.safetensors.index.json").write_text(
            json.dumps({"metadata": {}, "weight_map": index}, indent=1)
        )
