"""LoRA adapters as PEFT's folders: `adapter_config.json` and `adapter_model.safetensors`.

PEFT's matrices are turned against ours: A is `[rank, in]`, B `[out, rank]`.
"""

import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax.traverse_util import flatten_dict

from jopd.models import sharding
from jopd.models.files import check_replaceable, replacing
from jopd.models.settings import LoRA
from jopd.models.weights import NAMES, write_file

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
# PEFT's name of a matrix, of the layer's name and "A" or "B".
MATRIX = "base_model.model.{}.lora_{}.weight"
# Hugging Face's name of each linear layer, with a place for the number of its block.
LAYERS = {key[:-1]: name.removesuffix(".weight") for key, name in NAMES.items() if "kernel" in key}


def save_adapter(folder: str | Path, params: dict, lora: LoRA, base: str) -> None:
    """Writes the adapters of a model in PEFT's format; the folder appears whole, or not at all. On
    several processes all call this: each gives its parts of a matrix, and the first writes.

    Args:
      folder: is replaced where it holds an adapter.
      lora: the settings that the adapters were made with.
      base: the name of the model that they are for; a path is written absolute.

    Raises:
      ValueError: where `folder` holds something other than an adapter.
    """
    folder = Path(folder)
    check_replaceable(folder, CONFIG, "an adapter")
    arrays, matrices = flatten_dict(params), {}
    for owner, layer in LAYERS.items():
        for name, letter in (("lora_a", "A"), ("lora_b", "B")):
            stacked = arrays.get((*owner, name))
            for number, matrix in enumerate(() if stacked is None else sharding.on_host(stacked)):
                turned = np.ascontiguousarray(matrix.T, np.float32)
                matrices[MATRIX.format(layer.format(number), letter)] = turned
    if jax.process_index() != 0:
        return
    with replacing(folder) as new:
        write_file(new / WEIGHTS, matrices)
        text = json.dumps(config_of(lora, base), indent=2) + "\n"
        (new / CONFIG).write_text(text, encoding="utf-8")


def config_of(lora: LoRA, base: str) -> dict[str, Any]:
    """The `adapter_config.json` of these settings."""
    path = Path(base).expanduser()
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": str(path.absolute()) if path.exists() else base,
        "r": lora.rank,
        "lora_alpha": int(lora.alpha) if lora.alpha.is_integer() else lora.alpha,
        "target_modules": list(lora.targets),
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": False,
        "use_rslora": False,
        "use_dora": False,
        "init_lora_weights": True,
        "inference_mode": True,
    }
