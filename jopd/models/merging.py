"""PEFT's adapter folders, merged into their base as its weights are read, in float32.

What PEFT computes and this does not is refused by name: an adapter that is half applied would be
another model, in silence.
"""

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import pydantic

from jopd.models.adapters import CONFIG, MATRIX, WEIGHTS, Origin, Pair
from jopd.models.files import read_json
from jopd.models.find import find
from jopd.models.huggingface import Checkpoint, check_vocabulary
from jopd.models.settings import TARGETS
from jopd.models.tokenizer import FILES as TOKENIZER_FILES
from jopd.models.tokenizer import tokenizer_from
from jopd.models.weights import Tensor, read_headers

INSTEAD = "merge it with PEFT's merge_and_unload(), and give the folder that it is then saved to"
# Keys that say nothing of what trained matrices compute.
UNREAD = (
    *("task_type", "auto_mapping", "peft_version", "inference_mode", "lora_dropout"),
    *("loftq_config", "eva_config", "corda_config", "lora_ga_config"),  # init_lora_weights decides
    *("megatron_core", "qalora_group_size"),
)


class Settings(pydantic.BaseModel):
    """The keys of `adapter_config.json` that are read, and what they may say. Any other must be
    off.
    """

    model_config = pydantic.ConfigDict(extra="allow", strict=True)

    peft_type: Literal["LORA"]
    base_model_name_or_path: str = pydantic.Field(min_length=1)
    revision: Literal["main"] | None = None
    r: pydantic.PositiveInt
    lora_alpha: pydantic.FiniteFloat
    use_rslora: bool = False
    rank_pattern: dict[re.Pattern[str], pydantic.PositiveInt] | None = None
    alpha_pattern: dict[re.Pattern[str], pydantic.FiniteFloat] | None = None
    target_modules: re.Pattern[str] | list[str]
    exclude_modules: re.Pattern[str] | list[str] | None = None
    layers_to_transform: int | list[int] | None = None
    layers_pattern: Literal["", "layers"] | list[Literal["layers"]] | None = None
    bias: Literal["none"] | None = None
    # The others begin by taking their own start out of the base, which the folder does not hold.
    init_lora_weights: Literal["gaussian", "eva", "orthogonal"] | bool | None = None


class Adapter(NamedTuple):
    """An adapter folder whose settings are checked.

    Attributes:
      tensors: by PEFT's names.
    """

    folder: Path
    settings: Settings
    tensors: Mapping[str, Tensor]

    @property
    def base(self) -> str:
        return self.settings.base_model_name_or_path


def under_adapters(path: Path) -> tuple[Path, list[Adapter]]:
    """The model that an adapter folder is for, through adapters of adapters, and all of these in
    the order in which they are added; any other path as it is.
    """
    adapters: list[Adapter] = []
    while (path / CONFIG).is_file():
        if path.resolve() in [adapter.folder.resolve() for adapter in adapters]:
            raise ValueError(
                f"{path / CONFIG}: base_model_name_or_path leads back to itself: write there the "
                "model that the adapter was trained on"
            )
        adapter = open_adapter(path)
        adapters.insert(0, adapter)
        try:
            path = find(adapter.base)
        except ValueError as error:
            raise ValueError(
                f"{path / CONFIG} says base_model_name_or_path={adapter.base!r}, and {error}, or "
                "write there where it is"
            ) from error
    return path, adapters


def open_adapter(folder: Path) -> Adapter:
    """Opens an adapter folder and checks what can be told without its base."""
    settings = settings_from(read_json(folder / CONFIG))
    if whole := sorted(folder.glob("model*.safetensors")):
        raise ValueError(
            f"{folder} holds a whole model ({whole[0].name}) and an adapter ({CONFIG}): move one "
            "of them to a folder of its own"
        )
    if not (folder / WEIGHTS).is_file():
        pickled = (folder / "adapter_model.bin").is_file()
        raise ValueError(
            f"{folder} has no {WEIGHTS}"
            f"{' (adapter_model.bin is a pickle, which is not read)' if pickled else ''}: save it "
            "with PEFT's save_pretrained(..., safe_serialization=True)"
        )
    return Adapter(folder, settings, read_headers([folder / WEIGHTS]))


def settings_from(config: Mapping[str, Any]) -> Settings:
    """The settings of an adapter.

    Raises:
      ValueError: one that is not computed here, or a value that is none, by its key.
    """
    if not config.get("base_model_name_or_path"):
        raise ValueError(
            f"{CONFIG} has no base_model_name_or_path: write there the folder or hub name of the "
            "model that the adapter was trained on"
        )
    try:
        settings = Settings.model_validate(config)
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        key = str(first["loc"][0])
        raise ValueError(
            f"{CONFIG}: {key}={config.get(key)!r} is not supported ({first['msg']}): {INSTEAD}"
        ) from None
    for key, value in (settings.model_extra or {}).items():
        if value and key not in UNREAD:
            raise ValueError(f"{CONFIG}: {key}={value!r} is not supported: {INSTEAD}")
    return settings


def merged(checkpoint: Checkpoint, origin: Origin, adapter: Adapter) -> tuple[Checkpoint, Origin]:
    """A model with an adapter in its weights, and what it is then made of. The tokenizer is the
    adapter's, where it has one.

    Raises:
      ValueError: a tensor of the adapter is missing, has no place in the model or doesn't fit.
    """
    pairs = pairs_of(adapter, checkpoint.tensors)
    sums = {
        f"{layer}.weight": _sum(checkpoint.tensors[f"{layer}.weight"], pair)
        for layer, pair in pairs.items()
    }
    checkpoint = checkpoint._replace(
        tensors={**checkpoint.tensors, **sums},
        files=(*checkpoint.files, adapter.folder / CONFIG, adapter.folder / WEIGHTS),
    )
    origin = origin._replace(added=(*origin.added, pairs))
    if not any((adapter.folder / name).is_file() for name in TOKENIZER_FILES):
        return checkpoint, origin
    tokenizer = tokenizer_from(adapter.folder)
    check_vocabulary(tokenizer, checkpoint.architecture.vocabulary_size)
    end: Any = tokenizer.eos_token_id
    stops = tuple(sorted({*checkpoint.stop_tokens, *(() if end is None else (end,))}))
    return checkpoint._replace(tokenizer=tokenizer, stop_tokens=stops), origin


def pairs_of(adapter: Adapter, weights: Mapping[str, Tensor]) -> dict[str, Pair]:
    """What an adapter adds to each layer of a model, by the layer's name."""
    layers = [name.removesuffix(".weight") for name in weights]
    layers = [
        layer
        for layer in layers
        if layer.rpartition(".")[2] in TARGETS and is_target(adapter.settings, layer)
    ]
    expected = {MATRIX.format(layer, letter) for layer in layers for letter in "AB"}
    few = lambda names: f"{', '.join(sorted(names)[:4])}; {len(names)} in all"
    if extra := adapter.tensors.keys() - expected:
        raise ValueError(
            f"{WEIGHTS} holds tensors that {CONFIG} does not account for, or that are not of "
            f"{', '.join(TARGETS)} ({few(extra)}): {INSTEAD}"
        )
    if missing := expected - adapter.tensors.keys():
        raise ValueError(
            f"{WEIGHTS} lacks tensors that {CONFIG} asks for ({few(missing)}): fetch the whole "
            "adapter, and see that its base is the one it was trained on"
        )
    if not layers:
        raise ValueError(f"{CONFIG} names no layer among {', '.join(TARGETS)}: {INSTEAD}")
    return {layer: _pair(adapter, layer, weights[f"{layer}.weight"]) for layer in layers}


def is_target(settings: Settings, layer: str) -> bool:
    """Whether a layer has an adapter, by PEFT's rules."""
    targets, chosen = settings.target_modules, settings.layers_to_transform
    if settings.exclude_modules and _names(settings.exclude_modules, layer):
        return False
    # They choose among the layers that a list names by their endings.
    if isinstance(targets, list) and layer not in targets and chosen not in (None, []):
        number = int(layer.split(".")[2])
        if number not in (chosen if isinstance(chosen, list) else [chosen]):
            return False
    return _names(targets, layer)


def _names(modules: re.Pattern[str] | list[str], layer: str) -> bool:
    if isinstance(modules, re.Pattern):
        return modules.pattern == "all-linear" or modules.fullmatch(layer) is not None
    return any(f".{layer}".endswith(f".{name}") for name in modules)


def _pair(adapter: Adapter, layer: str, weight: Tensor) -> Pair:
    settings, (outputs, inputs) = adapter.settings, weight.shape
    rank = _of_layer(settings.rank_pattern, layer, settings.r)
    alpha = _of_layer(settings.alpha_pattern, layer, settings.lora_alpha)
    a, b = (adapter.tensors[MATRIX.format(layer, letter)] for letter in "AB")
    if (a.shape, b.shape) != ((rank, inputs), (outputs, rank)):
        raise ValueError(
            f"{WEIGHTS}: the matrices of {layer} are {a.shape} and {b.shape}, where rank {rank} on "
            f"the base {adapter.base} has {(rank, inputs)} and {(outputs, rank)}: give the "
            f"{CONFIG} and the base that it was trained with"
        )
    return Pair(a, b, alpha / (math.sqrt(rank) if settings.use_rslora else rank))


def _of_layer(patterns: Mapping[re.Pattern[str], Any] | None, layer: str, default: Any) -> Any:
    """The value of the first pattern that a layer's name ends in."""
    for pattern, value in (patterns or {}).items():
        if re.match(rf"(.*\.)?({pattern.pattern})$", layer):
            return value
    return default


def _sum(weight: Tensor, pair: Pair) -> Tensor:
    def read(part: Sequence[slice]) -> np.ndarray:
        rows, columns = part
        b, a = pair.b.read((rows, slice(None))), pair.a.read((slice(None), columns))
        added = b.astype(np.float32) @ a.astype(np.float32)
        return weight.read((rows, columns)).astype(np.float32) + np.float32(pair.scale) * added

    return Tensor(weight.shape, read, weight.place)
