"""Models by name: from wherever they are straight onto their shards, and back into a folder that
`transformers` loads.
"""

import functools
import json
import warnings
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.sharding import Mesh, SingleDeviceSharding
from transformers import PreTrainedTokenizerBase

from jopd import models
from jopd.models import huggingface, sharding, weights
from jopd.models.adapters import Origin
from jopd.models.attention import check_kernel
from jopd.models.families import config_from
from jopd.models.files import check_replaceable, fingerprint, replacing
from jopd.models.find import find
from jopd.models.gguf import open_gguf
from jopd.models.merging import merged, under_adapters
from jopd.models.settings import Architecture, Compute, LoRA
from jopd.models.transformer import Transformer

ADAPTER = ("lora_a", "lora_b")


class Opened(NamedTuple):
    """A model whose files are found and checked, before any weight is read.

    Attributes:
      graph, abstract: as from `jopd.models.abstract`.
      lora: the adapters that reading it adds.
      source: what it was asked for by.
      origin: what its weights are made of.
    """

    graph: nnx.GraphDef
    abstract: dict
    checkpoint: huggingface.Checkpoint
    lora: LoRA
    source: str
    origin: Origin

    @property
    def architecture(self) -> Architecture:
        return self.checkpoint.architecture

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        return self.checkpoint.tokenizer

    @property
    def stop_tokens(self) -> tuple[int, ...]:
        return self.checkpoint.stop_tokens

    @property
    def fingerprint(self) -> str:
        """Of the files' contents, the same on every machine."""
        return fingerprint(repr(self.architecture), self.checkpoint.files)

    @property
    def pad_id(self) -> int:
        return pad_id(self.tokenizer, self.stop_tokens)


class Loaded(NamedTuple):
    """A model with all that belongs to it.

    Attributes:
      graph, params: as from `jopd.models.split`.
      stop_tokens: the ids that end a completion, ascending; may be empty.
      source: what it was asked for by.
      fingerprint, origin: as of `Opened`.
    """

    graph: nnx.GraphDef
    params: dict
    architecture: Architecture
    tokenizer: PreTrainedTokenizerBase
    stop_tokens: tuple[int, ...]
    source: str
    fingerprint: str
    origin: Origin

    @property
    def pad_id(self) -> int:
        return pad_id(self.tokenizer, self.stop_tokens)


def load(
    source: str | Path,
    *,
    compute: Compute = Compute(),
    dtype: Literal["float32", "bfloat16"] = "float32",
    mesh: Mesh | None = None,
    lora: LoRA = LoRA(),
    seed: int = 0,
) -> Loaded:
    """Loads a model, each device reading the slices that it holds: `open_model`, then `read`.

    Args:
      source: a Hugging Face folder, a hub name, a GGUF file, "jopd:NAME" for a model that ships
        with the package, or "smollm2". A PEFT adapter, by folder or hub name, is merged into its
        base.
      dtype: of the parameters. Adapters are float32 whatever it is, because they are trained.
      mesh: where the parameters go, by `jopd.models.sharding`; None: the first device.
      lora: adds fresh adapters, drawn from `seed`.

    Raises:
      ValueError: where the source is not found, or holds anything that is not supported; the
        message names it.
    """
    check_kernel(compute, jax.default_backend())
    return read(open_model(source, compute=compute, lora=lora), dtype=dtype, mesh=mesh, seed=seed)


def open_model(source: str | Path, *, compute: Compute = Compute(), lora: LoRA = LoRA()) -> Opened:
    """Finds a model and checks all that can be told before its weights are read; see `load`."""
    path = find(str(source))
    try:
        path, adapters = under_adapters(path)
        origin = Origin(adapters[0].base if adapters else str(source))
        checkpoint = open_gguf(path) if path.is_file() else huggingface.open_folder(path)
        graph, abstract = models.abstract(checkpoint.architecture, compute, lora)
        weights.check_tensors(checkpoint.tensors, base_shapes(abstract))
        for adapter in adapters:
            checkpoint, origin = merged(checkpoint, origin, adapter)
    except ValueError as error:
        raise ValueError(f"model {str(source)!r}: {error}") from error
    checkpoint = checkpoint._replace(
        stop_tokens=huggingface.with_end_of_turn(checkpoint, str(source))
    )
    return Opened(graph, abstract, checkpoint, lora, str(source), origin)


def read(
    opened: Opened,
    *,
    dtype: Literal["float32", "bfloat16"] = "float32",
    mesh: Mesh | None = None,
    seed: int = 0,
) -> Loaded:
    """Reads the weights of an opened model; see `load`."""
    checkpoint, base = opened.checkpoint, base_shapes(opened.abstract)
    added = flat(opened.abstract).keys() - base.keys()
    one_device = SingleDeviceSharding(jax.local_devices()[0])
    places = (
        flat(sharding.parameter_shardings(mesh, opened.abstract))
        if mesh
        else dict.fromkeys([*base, *added], one_device)
    )

    def place(key, shape):
        parts = {}  # devices that hold the same slice share one reading of it

        def part(index):
            if str(index) not in parts:
                parts[str(index)] = weights.read_parameter(
                    checkpoint.tensors, key, shape, index, jnp.dtype(dtype)
                )
            return parts[str(index)]

        return jax.make_array_from_callback(shape, places[key], part)

    params = {key: place(key, shape) for key, shape in base.items()}
    if added:
        params |= fresh_adapters(
            checkpoint.architecture, opened.lora, seed, {key: places[key] for key in added}
        )
    return Loaded(
        graph=opened.graph,
        params=unflatten_dict(params),
        architecture=checkpoint.architecture,
        tokenizer=checkpoint.tokenizer,
        stop_tokens=checkpoint.stop_tokens,
        source=opened.source,
        fingerprint=opened.fingerprint,
        origin=opened.origin,
    )


def save(
    folder: str | Path,
    graph: nnx.GraphDef,
    params: dict,
    architecture: Architecture,
    tokenizer: PreTrainedTokenizerBase,
    dtype: Literal["float32", "bfloat16"] = "float32",
    *,
    stop_tokens: tuple[int, ...] | None = None,
    file_bytes: int = 4 << 30,
) -> None:
    """Writes a Hugging Face folder, adapters merged into the kernels; the folder appears whole, or
    not at all. On several processes all call this: each gives its parts of a tensor, and the first
    writes.

    Args:
      folder: is replaced where it holds a saved model.
      dtype: of the stored tensors.
      stop_tokens: for generation_config.json; None: the tokenizer's end of sequence.
      file_bytes: a larger model is split into files of about this size.

    Raises:
      ValueError: where `folder` holds something other than a saved model.
    """
    folder = Path(folder)
    check_replaceable(folder, "config.json", "a saved model")
    arrays, model = flat(params), models.merge(graph, params)

    def value(key, layer):
        part = lambda key: sharding.on_host(arrays[key] if layer is None else arrays[key][layer])
        array, owner = part(key), key[:-1]
        if key[-1] != "kernel" or (*owner, "lora_a") not in arrays:
            return array
        a, b = (part((*owner, name)).astype(np.float32) for name in ADAPTER)
        linear: Any = functools.reduce(getattr, owner, model)
        return array.astype(np.float32) + np.float32(linear.scale) * (a @ b)

    shapes = {key: leaf.shape for key, leaf in arrays.items()}
    if jax.process_index() != 0:
        for key, layer in weights.tensors(shapes):
            value(key, layer)
        return

    eos = tokenizer.eos_token_id
    stops = [eos] if stop_tokens is None and eos is not None else list(stop_tokens or ())
    special = {
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": stops or None,
        "pad_token_id": tokenizer.pad_token_id,
    }
    with replacing(folder) as new:
        weights.write_safetensors(new, shapes, value, jnp.dtype(dtype), file_bytes)
        tokenizer.save_pretrained(new)
        for name, content in (
            ("config.json", config_from(architecture, dtype) | special),
            ("generation_config.json", special),
        ):
            (new / name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def pad_id(tokenizer: PreTrainedTokenizerBase, stop_tokens: tuple[int, ...]) -> int:
    """What fills rows outside the mask, where any id would do: the tokenizer's padding, else a stop
    token, else 0.
    """
    pad = tokenizer.pad_token_id
    return pad if isinstance(pad, int) else stop_tokens[0] if stop_tokens else 0


def require_same_tokenizer(student: Opened | Loaded, teacher: Opened | Loaded) -> int:
    """The number of leading vocabulary entries on which both models are compared; what is left out
    only pads an embedding.

    Warns where the stop tokens or the chat templates differ. Raises ValueError where the tokenizers
    give a token different ids, naming the first.
    """
    ours, theirs = student.tokenizer.get_vocab(), teacher.tokenizer.get_vocab()
    if differing := ours.items() ^ theirs.items():
        token, _ = min(differing, key=lambda item: (item[1], item[0]))
        raise ValueError(
            f"student.model={student.source} and teacher.model={teacher.source} need one "
            f"tokenizer, but {token!r} is {ours.get(token, 'absent')} in the student's and "
            f"{theirs.get(token, 'absent')} in the teacher's: choose models of one family"
        )
    if student.stop_tokens != teacher.stop_tokens:
        names = [
            model.tokenizer.convert_ids_to_tokens(list(model.stop_tokens))
            for model in (student, teacher)
        ]
        warnings.warn(
            f"the student stops at {names[0]}, the teacher at {names[1]}: the student's decide "
            "where a completion ends",
            stacklevel=2,
        )
    if student.tokenizer.chat_template != teacher.tokenizer.chat_template:
        warnings.warn(
            f"the teacher {teacher.source} has another chat template than the student "
            f"{student.source}: it reads conversations as the student's template writes them",
            stacklevel=2,
        )
    return min(student.architecture.vocabulary_size, teacher.architecture.vocabulary_size)


def base_shapes(abstract: dict) -> dict[weights.Key, tuple[int, ...]]:
    """The shapes of the parameters that a checkpoint has, so without adapters."""
    return {key: leaf.shape for key, leaf in flat(abstract).items() if key[-1] not in ADAPTER}


def flat(tree: dict) -> dict[weights.Key, Any]:
    """A nested dict by the path to each leaf."""
    return dict(flatten_dict(tree))


def fresh_adapters(architecture: Architecture, lora: LoRA, seed: int, places: dict) -> dict:
    """The adapters that a new model would have; the compiler drops the rest of it."""

    def draw():
        _, params = models.split(Transformer(architecture, lora=lora, rngs=nnx.Rngs(seed)))
        return {key: leaf for key, leaf in flat(params).items() if key in places}

    return jax.jit(draw, out_shardings=places)()
