"""LoRA adapters as PEFT's folders: `adapter_config.json` and `adapter_model.safetensors`.

PEFT's matrices are turned against ours: A is `[rank, in]`, B `[out, rank]`.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from flax.traverse_util import flatten_dict

from jopd.models import sharding
from jopd.models.files import check_replaceable, replacing
from jopd.models.settings import LoRA
from jopd.models.weights import NAMES, Tensor, write_file

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
# PEFT's name of a matrix, of the layer's name and "A" or "B".
MATRIX = "base_model.model.{}.lora_{}.weight"
# Hugging Face's name of each linear layer, with a place for the number of its block.
LAYERS = {key[:-1]: name.removesuffix(".weight") for key, name in NAMES.items() if "kernel" in key}

Matrices = dict[str, tuple[np.ndarray, np.ndarray]]  # A and B, by the layer's name


class Pair(NamedTuple):
    """What an adapter folder adds to a stored weight: `scale * B @ A`."""

    a: Tensor
    b: Tensor
    scale: float


class Origin(NamedTuple):
    """What weights were made of.

    Attributes:
      base: the name of a model.
      added: what adapters have added to it, by the layer's name, one after the other.
    """

    base: str
    added: tuple[Mapping[str, Pair], ...] = ()


def save_adapter(folder: str | Path, params: dict, lora: LoRA, origin: Origin) -> None:
    """Writes the adapters of a model in PEFT's format; the folder appears whole, or not at all. On
    several processes all call this: each gives its parts of a matrix, and the first writes.

    Args:
      folder: is replaced where it holds an adapter.
      lora: the settings that the adapters were made with.
      origin: of what is under them. Adapters that it has merged are written too, as one with these,
        so that the base is a model that PEFT's readers find.

    Raises:
      ValueError: where `folder` holds something other than an adapter.
    """
    folder = Path(folder)
    check_replaceable(folder, CONFIG, "an adapter")
    matrices = matrices_of(params)
    if jax.process_index() != 0:
        return
    config = config_of(origin.base, lora.rank, lora.alpha, lora.targets)
    if origin.added:
        matrices = joined(matrices, lora.alpha / lora.rank, origin.added)
        rank = len(next(iter(matrices.values()))[0])
        config = config_of(origin.base, rank, float(rank), list(matrices))
    named = {
        MATRIX.format(layer, letter): np.ascontiguousarray(matrix)
        for layer, pair in matrices.items()
        for letter, matrix in zip("AB", pair, strict=True)
    }
    with replacing(folder) as new:
        write_file(new / WEIGHTS, named)
        (new / CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def matrices_of(params: dict) -> Matrices:
    """The adapters of a model, whole on every host."""
    arrays, matrices = flatten_dict(params), {}
    for owner, layer in LAYERS.items():
        if (*owner, "lora_a") in arrays:
            a, b = (sharding.on_host(arrays[*owner, name]) for name in ("lora_a", "lora_b"))
            for number in range(len(a)):
                pair = (a[number].T.astype(np.float32), b[number].T.astype(np.float32))
                matrices[layer.format(number)] = pair
    return matrices


def joined(last: Matrices, scale: float, added: Sequence[Mapping[str, Pair]]) -> Matrices:
    """Adapters one after the other as a single one of scale 1: their ranks side by side, filled up
    with zeros where a layer has fewer.
    """
    parts: dict[str, list[tuple[np.ndarray, np.ndarray]]] = {}
    whole = lambda tensor: tensor.read((slice(None), slice(None))).astype(np.float32)
    for pairs in added:
        for layer, pair in pairs.items():
            of_one = (whole(pair.a), np.float32(pair.scale) * whole(pair.b))
            parts.setdefault(layer, []).append(of_one)
    for layer, (a, b) in last.items():
        parts.setdefault(layer, []).append((a, np.float32(scale) * b))
    beside = {
        layer: (np.concatenate([a for a, _ in each]), np.concatenate([b for _, b in each], axis=1))
        for layer, each in parts.items()
    }
    rank = max(len(a) for a, _ in beside.values())
    return {
        layer: (
            np.pad(a, [(0, rank - len(a)), (0, 0)]),
            np.pad(b, [(0, 0), (0, rank - len(a))]),
        )
        for layer, (a, b) in beside.items()
    }


def config_of(base: str, rank: int, alpha: float, targets: Sequence[str]) -> dict[str, Any]:
    """An `adapter_config.json`; a path is written absolute."""
    path = Path(base).expanduser()
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": str(path.absolute()) if path.exists() else base,
        "r": rank,
        "lora_alpha": int(alpha) if alpha == int(alpha) else alpha,
        "target_modules": list(targets),
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": False,
        "use_rslora": False,
        "use_dora": False,
        "init_lora_weights": True,
        "inference_mode": True,
    }
