"""GGUF files: weights, config and tokenizer out of the one file that llama.cpp runs.

The weights are dequantised by the `gguf` package, row by row as they are read. The tokenizer is
built from the metadata with `tokenizers`, since transformers reads GGUF only where torch is
installed.
"""

from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
)
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from jopd.models.huggingface import Checkpoint, Tensor, architecture_from, stop_tokens

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
NAMES = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}

# How text is cut before byte pairs are merged, by `tokenizer.ggml.pre`. The two regular expressions
# differ in how many digits stay together.
WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}%s| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
SPLITS = {
    "gpt-2": [pre_tokenizers.ByteLevel(add_prefix_space=False)],
    "smollm": [
        pre_tokenizers.Digits(individual_digits=True),
        pre_tokenizers.ByteLevel(add_prefix_space=False),
    ],
    "llama-bpe": [
        pre_tokenizers.Split(Regex(WORDS % "{1,3}"), "isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ],
    "qwen2": [
        pre_tokenizers.Split(Regex(WORDS % ""), "isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ],
}
CONTROL, USER_DEFINED, UNUSED = 3, 4, 5  # `tokenizer.ggml.token_type`


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
    reader = gguf.GGUFReader(file)
    stored = {tensor.name: tensor for tensor in reader.tensors}
    metadata = Metadata(reader)
    frequencies = stored.pop("rope_freqs.weight", None)
    config = config_from(
        metadata, stored, None if frequencies is None else np.asarray(frequencies.data, np.float64)
    )
    architecture = architecture_from(config)

    tensors = {}
    for name, tensor in stored.items():
        rows = np.arange(int(tensor.shape[-1]))
        if config["model_type"] == "llama" and name.endswith((".attn_q.weight", ".attn_k.weight")):
            # llama.cpp turns neighbouring channels where Hugging Face turns halves, and orders the
            # rows of llama's q and k for that.
            rows = rows.reshape(-1, architecture.head_dim // 2, 2).swapaxes(1, 2).reshape(-1)
        tensors[huggingface_name(name)] = open_tensor(tensor, rows, gguf.dequantize)
    tokenizer = tokenizer_from(metadata)
    ends = [metadata.get(f"tokenizer.ggml.{kind}_token_id") for kind in ("eos", "eot", "eom")]
    return Checkpoint(architecture, tensors, tokenizer, stop_tokens(*ends), (file,))


class Metadata:
    """The key-value part of a file, decoded a field at a time: the vocabulary alone takes a second."""

    def __init__(self, reader):
        self.fields = reader.fields

    def get(self, key: str, default: Any = None) -> Any:
        return self.fields[key].contents() if key in self.fields else default


def huggingface_name(name: str) -> str:
    stem, _, kind = name.rpartition(".")
    if stem.startswith("blk."):
        _, layer, part = stem.split(".", 2)
        return f"model.layers.{layer}.{LAYER_NAMES.get(part, part)}.{kind}"
    return f"{NAMES.get(stem, stem)}.{kind}"


def open_tensor(tensor, rows: np.ndarray, dequantize) -> Tensor:
    """`rows[i]` is the stored row of row i. A quantised row decodes alone, so only the rows asked
    for are.
    """

    def read(index: tuple[slice, ...]) -> np.ndarray:
        return dequantize(tensor.data[rows[index[0]]], tensor.tensor_type)[
            (slice(None), *index[1:])
        ]

    return Tensor(tuple(int(size) for size in tensor.shape[::-1]), read)


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
            "rope_freqs.weight is not the scaling of Llama 3.1: use the Hugging Face folder of the same model"
        )
    names = ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")
    return {"rope_type": "llama3", **dict(zip(names, (factor, low, high, original), strict=True))}


def tokenizer_from(metadata: Metadata) -> PreTrainedTokenizerBase:
    """The byte-level BPE tokenizer that the metadata describes, chat template included."""
    of = lambda key, default=None: metadata.get(f"tokenizer.ggml.{key}", default)
    kind, pre = of("model"), of("pre")
    if kind != "gpt2" or pre not in SPLITS:
        known = f"tokenizer.ggml.model 'gpt2' with tokenizer.ggml.pre of {', '.join(SPLITS)}"
        raise ValueError(
            f"tokenizer {kind!r}, {pre!r} is not supported ({known}): use the Hugging Face folder of the same model"
        )
    tokens = of("tokens")
    types = of("token_type", [])
    typed = lambda wanted: [
        token for token, has in zip(tokens, types, strict=False) if has == wanted
    ]
    fillers = set(typed(UNUSED))  # rows that only pad the embedding
    vocabulary = {token: i for i, token in enumerate(tokens) if token not in fillers}
    merges = [tuple(merge.split(" ")) for merge in of("merges")]

    tokenizer = Tokenizer(models.BPE(vocabulary, merges, ignore_merges=pre == "llama-bpe"))
    tokenizer.normalizer = normalizers.NFC() if pre == "qwen2" else None
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(SPLITS[pre])
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, normalized=False) for token in typed(CONTROL)])
    tokenizer.add_tokens([AddedToken(token, normalized=False) for token in typed(USER_DEFINED)])
    roles = {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding"}
    ids = {role: of(f"{name}_token_id") for role, name in roles.items()}
    if ids["bos"] is not None and of("add_bos_token", pre == "llama-bpe"):
        bos = tokens[ids["bos"]]
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", pair=f"{bos} $A {bos}:1 $B:1", special_tokens=[(bos, ids["bos"])]
        )
    special = {f"{role}_token": tokens[i] for role, i in ids.items() if i is not None}
    template = metadata.get("tokenizer.chat_template")
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        chat_template=template,
        clean_up_tokenization_spaces=False,
        **special,
    )
