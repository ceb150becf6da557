"""GGUF files: weights and config out of the one file that llama.cpp runs.

The weights are dequantised by the `gguf` package, row by row as they are read.
"""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from jopd.models.families import FAMILIES, architecture_from
from jopd.models.files import one_line, refuse_pointer
from jopd.models.gguf_tokenizer import Metadata, tokenizer_from
from jopd.models.huggingface import Checkpoint, check_vocabulary, token_ids
from jopd.models.weights import Tensor

LAYER_NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k": "self_attn.k_proj",
    "attn_k_norm": "self_attn.k_norm",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
# What is read of a family's own settings, or follows from what is read.
READ = (
    "vocab_size",
    "block_count",
    "context_length",
    "embedding_length",
    "feed_forward_length",
    "expert_count",
    "expert_used_count",
    "attention.head_count",
    "attention.head_count_kv",
    "attention.key_length",
    "attention.value_length",
    "attention.layer_norm_rms_epsilon",
    "attention.sliding_window",
    "rope.dimension_count",
    "rope.freq_base",
    "rope.scaling.type",
    "rope.scaling.factor",
    "rope.scaling.original_context_length",
    "rope.scaling.finetuned",
)
NAMES = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}


def open_gguf(file: Path) -> Checkpoint:
    """Opens a GGUF file of a supported family; raises ValueError, by name, on anything in it that
    is not supported.
    """
    try:
        import gguf
    except ModuleNotFoundError as error:
        raise ValueError(
            f"reading {file.name} needs the gguf package: pip install 'jopd[gguf]'"
        ) from error
    reader = read_header(file, gguf)
    stored = {tensor.name: tensor for tensor in reader.tensors}
    metadata = Metadata(reader)
    refuse_unread(metadata, file)
    frequencies = stored.pop("rope_freqs.weight", None)
    config = config_from(
        metadata, stored, None if frequencies is None else np.asarray(frequencies.data, np.float64)
    )
    architecture = architecture_from(config)

    tensors = {}
    for name, tensor in stored.items():
        refuse_undecodable(tensor, gguf.dequantize, file)
        rows = np.arange(int(tensor.shape[-1]))
        if config["model_type"] == "llama" and name.endswith((".attn_q.weight", ".attn_k.weight")):
            # llama.cpp turns neighbouring channels where Hugging Face turns halves, and orders the
            # rows of llama's q and k for that.
            if rows.size % architecture.head_dim:
                raise ValueError(
                    f"{file.name}: {name} has {rows.size} rows, no multiple of the head's "
                    f"{architecture.head_dim}: fetch the file again"
                )
            rows = rows.reshape(-1, architecture.head_dim // 2, 2).swapaxes(1, 2).reshape(-1)
        tensors[huggingface_name(name)] = open_tensor(tensor, rows, gguf.dequantize, file)
    ends = stop_tokens_from(metadata, architecture.vocabulary_size, file)
    tokenizer = tokenizer_from(metadata)
    check_vocabulary(tokenizer, architecture.vocabulary_size)
    return Checkpoint(architecture, tensors, tokenizer, ends, (file,))


def read_header(file: Path, gguf: Any) -> Any:
    """The reader of a file that is all there."""
    size = file.stat().st_size
    refuse_pointer(file)

    class Reader(gguf.GGUFReader):
        def _get(self, offset, dtype, count=1, override_order=None):
            if offset + np.dtype(dtype).itemsize * int(count) > size:
                raise ValueError(f"truncated: its header goes on after {size} bytes")
            return super()._get(offset, dtype, count, override_order)

        def _build_tensors(self, start_offs, fields):
            ends = [start_offs]
            for field in fields:
                *_, shape, kind, offset = field.parts
                block, block_bytes = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType(int(kind[0]))]
                length = math.prod(int(size) for size in shape) // block * block_bytes
                ends.append(start_offs + int(offset[0]) + length)
            if size < max(ends):
                raise ValueError(f"truncated: {size} bytes of {max(ends)}")
            super()._build_tensors(start_offs, fields)

    try:
        return Reader(file)
    # What a parser runs into where the bytes are others' is of many kinds.
    except (ValueError, IndexError, KeyError, TypeError, OverflowError, OSError) as error:
        raise ValueError(
            f"{file.name} is not a whole GGUF file ({one_line(error)}): fetch it again"
        ) from error


def refuse_unread(metadata: Metadata, file: Path) -> None:
    """Another family, a part of a model, or settings that change what it computes."""
    family = metadata.get("general.architecture")
    if family not in FAMILIES:
        raise ValueError(
            f"{file.name}: general.architecture={family!r} is not supported: use a dense model of "
            f"{', '.join(FAMILIES)}"
        )
    if (parts := metadata.get("split.count", 1)) > 1:
        raise ValueError(
            f"{file.name} is one of {parts} parts (split.count): join them with "
            "`llama-gguf-split --merge`"
        )
    names = {name for name in metadata.fields if name.startswith(f"{family}.")}
    if unread := sorted(names - {f"{family}.{name}" for name in READ}):
        raise ValueError(
            f"{file.name}: {unread[0]}={metadata.get(unread[0])!r} is not supported: use the "
            "Hugging Face folder of the same model"
        )
    value_length = metadata.get(f"{family}.attention.value_length")
    if value_length not in (None, metadata.get(f"{family}.attention.key_length", value_length)):
        raise ValueError(
            f"{file.name}: {family}.attention.value_length={value_length} is not supported: use a "
            "model whose keys and values have one length"
        )


def refuse_undecodable(tensor: Any, dequantize: Callable, file: Path) -> None:
    try:
        dequantize(tensor.data[:1], tensor.tensor_type)
    except NotImplementedError as error:
        raise ValueError(
            f"{file.name}: {tensor.name} is stored as {tensor.tensor_type.name}, which the gguf "
            "package does not decode: use a file in Q8_0, F16 or another common type"
        ) from error


def stop_tokens_from(metadata: Metadata, vocabulary: int, file: Path) -> tuple[int, ...]:
    keys = [f"tokenizer.ggml.{kind}_token_id" for kind in ("eos", "eot", "eom")]
    ids = [token_ids({key: metadata.get(key)}, file.name, vocabulary, key) for key in keys]
    return tuple(sorted({token for some in ids for token in some}))


def huggingface_name(name: str) -> str:
    stem, _, kind = name.rpartition(".")
    if stem.startswith("blk."):
        _, layer, part = stem.split(".", 2)
        return f"model.layers.{layer}.{LAYER_NAMES.get(part, part)}.{kind}"
    return f"{NAMES.get(stem, stem)}.{kind}"


def open_tensor(tensor: Any, rows: np.ndarray, dequantize: Callable, file: Path) -> Tensor:
    """`rows[i]` is the stored row of row i. A quantised row decodes alone, so only the rows asked
    for are.
    """

    def read(index: tuple[slice, ...]) -> np.ndarray:
        return dequantize(tensor.data[rows[index[0]]], tensor.tensor_type)[
            (slice(None), *index[1:])
        ]

    place = f"{file.name} ({tensor.name})"
    return Tensor(tuple(int(size) for size in tensor.shape[::-1]), read, place)


def config_from(
    metadata: Metadata, stored: dict, frequency_factors: np.ndarray | None
) -> dict[str, Any]:
    """The `config.json` that the metadata amounts to."""
    family = metadata.get("general.architecture")
    of = lambda key, default=None: metadata.get(f"{family}.{key}", default)
    if of("expert_count"):
        family = f"{family} with {of('expert_count')} experts"
    heads, width = of("attention.head_count"), of("embedding_length")
    head_dim = of("attention.key_length") or (width and heads and width // heads)
    window, embedding = of("attention.sliding_window"), stored.get("token_embd.weight")
    config = {
        "model_type": family,
        "vocab_size": None if embedding is None else int(embedding.shape[-1]),
        "hidden_size": width,
        "intermediate_size": of("feed_forward_length"),
        "num_hidden_layers": of("block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": of("attention.head_count_kv"),
        "head_dim": head_dim,
        "rope_theta": of("rope.freq_base", 10_000.0),
        "rms_norm_eps": of("attention.layer_norm_rms_epsilon"),
        "partial_rotary_factor": of("rope.dimension_count", head_dim) / head_dim
        if head_dim
        else 1.0,
        "max_position_embeddings": of("context_length"),
        "tie_word_embeddings": "output.weight" not in stored,
        "use_sliding_window": bool(window),
        "sliding_window": window,
        "max_window_layers": 0,
    }
    if (scaling := of("rope.scaling.type", "none")) != "none":
        config["rope_scaling"] = {"rope_type": scaling}
    elif frequency_factors is not None:
        config["rope_scaling"] = rope_scaling_from(
            frequency_factors, config["rope_theta"], head_dim
        )
    return config


def rope_scaling_from(factors: np.ndarray, theta: float, head_dim: int) -> dict[str, Any]:
    """Llama 3's scaling from the factor that each frequency is divided by: all that llama.cpp's
    conversion keeps of it.

    The largest is the factor itself; the other settings are those of every Llama 3.1 to 3.3, and
    the factors must follow from them.
    """
    factor, low, high, original = float(factors.max()), 1.0, 4.0, 8192
    turns = original * theta ** (-np.arange(0, head_dim, 2) / head_dim) / (2 * np.pi)
    keep = np.clip((turns - low) / (high - low), 0, 1)
    if factors.shape != keep.shape or not np.allclose(
        factors * (keep + (1 - keep) / factor), 1, rtol=1e-4
    ):
        raise ValueError(
            "rope_freqs.weight is not the scaling of Llama 3.1: use the Hugging Face folder of the "
            "same model"
        )
    names = ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")
    return {"rope_type": "llama3", **dict(zip(names, (factor, low, high, original), strict=True))}
