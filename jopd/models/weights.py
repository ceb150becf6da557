"""Weights under their Hugging Face names: which stored tensor is which parameter, and safetensors.

`NAMES` is the one table; GGUF files are read through it too. A stored weight is `[out, in]` and
ours `[in, out]`, and the stored layers are separate tensors where ours are stacked. Tensors are
read by the slice, so a parameter goes straight onto its shards and no process holds more of it than
its own.
"""

import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from jopd.models.files import one_line, read_json, refuse_pointer

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

Key = tuple[str, ...]  # where a parameter is in the model's nested dict


class Tensor(NamedTuple):
    """A tensor in a file.

    Attributes:
      read: takes one slice an axis and brings only that part into memory.
      place: the file that it is in, for messages.
    """

    shape: tuple[int, ...]
    read: Callable[[tuple[slice, ...]], np.ndarray]
    place: str


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


def check_tensors(tensors: Mapping[str, Tensor], shapes: Mapping[Key, tuple[int, ...]]) -> None:
    """Raises ValueError where the files do not hold exactly these parameters; names the first few
    tensors and their files.
    """
    expected, few = stored_tensors(shapes), lambda names: ", ".join(sorted(names)[:4])
    files = ", ".join(sorted({tensor.place for tensor in tensors.values()})[:2]) or "the files"
    if missing := expected.keys() - tensors.keys():
        cure = (
            "set tie_word_embeddings to true"
            if missing == {"lm_head.weight"}
            else "fetch the whole checkpoint"
        )
        raise ValueError(
            f"tensors that config.json asks for are missing ({few(missing)}; {len(missing)} in all)"
            f" from {files}: {cure}"
        )
    extra = {
        name
        for name in tensors.keys() - expected.keys()
        if not name.endswith("rotary_emb.inv_freq")
    }
    # Some tied checkpoints store the embedding twice.
    if ("output_head",) not in shapes and "lm_head.weight" in extra:
        extra -= {"lm_head.weight"}
        if not same(tensors["lm_head.weight"], tensors["model.embed_tokens.weight"]):
            raise ValueError(
                "lm_head.weight differs from the embedding that config.json ties it to: set "
                "tie_word_embeddings to false"
            )
    if extra:
        raise ValueError(
            f"tensors that config.json does not account for ({few(extra)}; {len(extra)} in all) "
            f"are in {tensors[min(extra)].place}: use the config.json saved with them"
        )
    for name, shape in expected.items():
        if tensors[name].shape != shape:
            raise ValueError(
                f"{tensors[name].place}: {name} is {tensors[name].shape}, config.json says "
                f"{shape}: use the config.json saved with it"
            )


def same(a: Tensor, b: Tensor, band: int = 4096) -> bool:
    """Whether two matrices are equal, a band of rows at a time."""
    if a.shape != b.shape:
        return False
    rows = a.shape[0]
    bands = [(slice(start, min(start + band, rows)), slice(None)) for start in range(0, rows, band)]
    return all(np.array_equal(a.read(part), b.read(part)) for part in bands)


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


def open_safetensors(folder: Path) -> tuple[dict[str, Tensor], tuple[Path, ...]]:
    """A folder's tensors by name, and the files they are in: one, or many with an index.

    Raises:
      ValueError: a file is absent, cut short or not safetensors, or lacks a tensor that the index
        promises.
    """
    index, whole = folder / "model.safetensors.index.json", folder / "model.safetensors"
    indexed = index.is_file() and not whole.is_file()  # as transformers chooses
    promised = read_json(index).get("weight_map") if indexed else None
    if indexed and not (
        isinstance(promised, dict)
        and promised
        and all(isinstance(name, str) for name in promised.values())
    ):
        raise ValueError(f"{index.name} has no weight_map from tensors to files: fetch it again")
    names = {*promised.values()} if promised else {whole.name}
    files = tuple(folder / name for name in sorted(names))
    if absent := [file.name for file in files if not file.is_file()]:
        raise ValueError(
            f"{folder} lacks {', '.join(absent[:4])}: fetch the whole checkpoint, in safetensors "
            "format"
        )
    tensors = read_headers(files)
    for name, file in (promised or {}).items():
        if name not in tensors:
            raise ValueError(f"{file} lacks {name}, which {index.name} says it holds: fetch both")
    return tensors, files


def read_headers(files: Iterable[Path]) -> dict[str, Tensor]:
    tensors = {}
    for file in files:
        refuse_pointer(file)
        try:
            handle = safe_open(file, framework="numpy")
        except (SafetensorError, OSError) as error:
            cut = truncation(file) or one_line(error)
            raise ValueError(
                f"{file.name} is not a whole safetensors file ({cut}): fetch it again"
            ) from error
        for name in handle.keys():  # noqa: SIM118 (not a dict)
            part = handle.get_slice(name)
            if part.get_dtype() not in ("F32", "F16", "BF16"):
                raise ValueError(
                    f"{file.name}: {name} is stored as {part.get_dtype()}: use a checkpoint in "
                    "F32, F16 or BF16"
                )
            tensors[name] = Tensor(tuple(part.get_shape()), part.__getitem__, file.name)
    return tensors


def truncation(file: Path) -> str | None:
    """ "truncated: N bytes of M" where the file's own header says that more belongs to it.

    The format: 8 bytes of length, a JSON header of that length, the tensors.
    """
    size = file.stat().st_size
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        if size < 8 + length:
            # A text or a picture reads as a length beyond any header's.
            return f"truncated: {size} bytes of at least {8 + length}" if length < 1e8 else None
        try:
            header = json.loads(stream.read(length))
            end = max(entry["data_offsets"][1] for key, entry in header.items() if key[0] != "_")
        except (ValueError, KeyError, TypeError, AttributeError, IndexError):
            return None
    whole = 8 + length + end
    return f"truncated: {size} bytes of {whole}" if size < whole else None


def tensors(shapes: Mapping[Key, tuple[int, ...]]) -> Iterator[tuple[Key, int | None]]:
    """Every tensor that is written of some parameters: its key, and its layer where all are stacked
    in one parameter.
    """
    for key in (key for key in NAMES if key in shapes):
        if key[0] == "layers":
            yield from ((key, layer) for layer in range(shapes[key][0]))
        else:
            yield key, None


def write_safetensors(
    folder: Path,
    shapes: Mapping[Key, tuple[int, ...]],
    value: Callable[[Key, int | None], np.ndarray],
    dtype,
    limit: int,
) -> None:
    """Writes parameters under their Hugging Face names: one file, or, above `limit` bytes, several
    and an index.

    `value` of a parameter and, where they are stacked, a layer is asked for once, when its file is
    written, so the host holds no more than a file of them at a time. They come in the order of
    `tensors`.
    """
    groups, size = [[]], 0
    for key, layer in tensors(shapes):
        whole = math.prod(shapes[key]) * np.dtype(dtype).itemsize
        count = whole if layer is None else whole // shapes[key][0]
        size += count
        if groups[-1] and size > limit:
            groups.append([])
            size = count
        groups[-1].append((key, layer))
    index = {}
    for number, group in enumerate(groups, 1):
        file = (
            "model.safetensors"
            if len(groups) == 1
            else f"model-{number:05}-of-{len(groups):05}.safetensors"
        )
        named = {}
        for key, layer in group:
            part = value(key, layer)
            named[NAMES[key].format(layer)] = np.ascontiguousarray(
                part.T if key[-1] in TRANSPOSED else part, dtype
            )
        write_file(folder / file, named)
        index |= dict.fromkeys(named, file)
    if len(groups) > 1:
        (folder / "model.safetensors.index.json").write_text(
            json.dumps({"metadata": {}, "weight_map": index}, indent=1), encoding="utf-8"
        )


def write_file(file: Path, tensors: dict[str, np.ndarray]) -> None:
    """One safetensors file, as Hugging Face's libraries take it."""
    save_file(tensors, file, metadata={"format": "pt"})
    # safetensors writes for the owner's eyes alone; whoever may read the folder may read the model.
    file.chmod(file.stat().st_mode | 0o044)
