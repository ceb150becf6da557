"""`config.yaml`: a run's settings as a file, by which it is run again and known again.

    format: 3                     of the file; earlier ones are read too
    preset: default
    code: {/home/me/mine.py: 0123456789abcdef}      a user's own files that the settings name
    method: {name: opd, ...}      the method's name beside its settings
    ...

Values are validated by pydantic against the types of the settings' fields, in its strict JSON mode:
it knows unions, literals and tuples, and calls no text a number.
"""

import dataclasses
import datetime
import json
import typing
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import pydantic
import yaml

from jopd import losses, plugins
from jopd.config.settings import Config
from jopd.losses.method import Method
from jopd.nearest import did_you_mean

FORMAT = 3
# What a value must be, by the error that pydantic has for it.
WORDS = {
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "string_type": "text",
    "bool_type": "true or false",
    "tuple_type": "a list",
}


def to_dict(config: Config) -> dict[str, Any]:
    """Plain data, the method's name beside its settings; a user's own files by absolute path."""
    plain = _plain(dataclasses.asdict(config))
    plain["method"] = {"name": losses.name_of(config.method), **plain["method"]}
    for group, name, text in _code(plain):
        group[name] = text
    return plain


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, (list, tuple)) else value


def _code(plain: dict[str, Any]) -> Iterator[tuple[dict[str, Any], str, str]]:
    """What names a user's own code in plain settings: the group, its key, and the absolute name."""
    places = [("method", "name")] + [
        (group.name, field.name)
        for group in dataclasses.fields(Config)
        if dataclasses.is_dataclass(group.type)
        for field in dataclasses.fields(group.type)
        if field.metadata.get("code")
    ]
    for group, name in places:
        text = plain.get(group, {}).get(name)
        if isinstance(text, str) and plugins.is_named(text):
            yield plain[group], name, plugins.absolute(text)


def code_of(plain: dict[str, Any]) -> dict[str, str]:
    """The user's own files that plain settings name, with their fingerprints."""
    return {text.rpartition(":")[0]: plugins.fingerprint(text) for _, _, text in _code(plain)}


def save_yaml(path: Path, preset_name: str, config: Config) -> None:
    plain = to_dict(config)
    head = {"format": FORMAT, "preset": preset_name}
    if code := code_of(plain):
        head["code"] = code
    text = yaml.safe_dump({**head, **plain}, sort_keys=False, allow_unicode=True)
    # Whole or not at all: a kill may come here too.
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)


def load_yaml(path: Path, *, trusted: Collection[str] | None = ()) -> tuple[str, Config]:
    """The preset's name and the run that `save_yaml` wrote, of this format or an earlier one.

    Args:
      trusted: files of a user's own that may be run; None is all that it names.

    Raises:
      ValueError: the file is missing or of a later format; a key or value in it is not one of this
        version's settings; it names code that is not trusted or has changed since, which is then
        not run.
    """
    data = _read(path)
    if (of := data.pop("format", 1)) not in range(1, FORMAT + 1):
        raise ValueError(
            f"--config {path}: has format {of}, and this version reads up to {FORMAT}: update jopd"
        )
    if of < 3:
        _bring_up_to_format_3(data)
    recorded = data.pop("code", {})
    for file, fingerprint in code_of(data).items():
        if trusted is not None and file not in trusted:
            raise ValueError(
                f"--config {path}: runs code of {file}: look at that file, then add --trust-code"
            )
        if recorded.get(file, fingerprint) != fingerprint:
            raise ValueError(
                f"--config {path}: {file} has changed (fingerprint {recorded[file]} then, "
                f"{fingerprint} now): bring back what it was, or name it anew with --method or "
                "--data.* and another --output"
            )
    name, method = data.pop("preset", path.stem), dict(data.pop("method"))
    kind = type(losses.get(method.pop("name")))
    method = _build(kind, method, f"{path}: method.")
    return name, _build(Config, data, f"{path}: ", method=method)


def _bring_up_to_format_3(data: dict[str, Any]) -> None:
    if "chunk" in data:
        # Columns of time, of all rows: on one device the same as this.
        rows = data.get("prompts", 1) * data.get("rollout", {}).get("samples", 1)
        data["chunk_tokens"] = data.pop("chunk") * max(rows // data.get("micro_batches", 1), 1)
    for role in ("student", "teacher"):
        compute = data.get(role, {}).get("compute", {})
        if compute.get("attention") == "dot_product":  # it never picked a kernel
            compute["attention"] = "auto"


def _read(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise ValueError(f"--config {path}: no such file")
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, ValueError) as error:  # ValueError: not UTF-8, or a day that isn't
        raise ValueError(f"--config {path}: not YAML ({' '.join(str(error).split())})") from None
    method = data.get("method") if isinstance(data, dict) else None
    if not isinstance(method, dict) or not isinstance(method.get("name"), str):
        raise ValueError(
            f"--config {path}: not a config.yaml of a run (it has no `method` with a `name`)"
        )
    for field in dataclasses.fields(Config):
        if dataclasses.is_dataclass(field.type) and not isinstance(data.get(field.name, {}), dict):
            raise ValueError(
                f"--config {path}: {field.name}={data[field.name]!r} must be a group of settings"
            )
    return data


def _build(cls: type, data: dict[str, Any], where: str, **built: Any) -> Any:
    """`cls` from plain data; `built` are fields that are ready."""
    hints = typing.get_type_hints(cls)
    known = [field.name for field in dataclasses.fields(cls)]
    values = {}
    for key, value in data.items():
        if key not in known:
            raise ValueError(
                f"{where}{key} is no setting{did_you_mean(str(key), known)}; known: "
                f"{', '.join(known)}"
            )
        if dataclasses.is_dataclass(hints[key]) and isinstance(value, dict):
            values[key] = _build(hints[key], value, f"{where}{key}.")  # pyright: ignore
        else:
            values[key] = _validated(value, hints[key], f"{where}{key}")
    return cls(**values, **built)


def _validated(value: Any, hint: Any, name: str) -> Any:
    """A value of a field's type, or ValueError with what it must be."""
    if dataclasses.is_dataclass(hint):
        raise ValueError(f"{name}={value!r} must be a group of settings")

    def as_text(part: Any) -> str:
        if isinstance(part, datetime.date):  # YAML makes a day of 2025-01-01
            return part.isoformat()
        raise ValueError(f"{name}={value!r} must be text, numbers or lists of them")

    text = json.dumps(value, default=as_text)
    try:
        return pydantic.TypeAdapter(hint).validate_json(text, strict=True)
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        expected = first.get("ctx", {}).get("expected", "").replace(", ", " or ")
        words = WORDS.get(first["type"]) or expected or first["msg"]
        if type(None) in typing.get_args(hint):
            words += " or null"
        if words.startswith("a number") and isinstance(value, str):
            words += " (YAML reads 1e-3 as text: write 1.0e-3)"
        raise ValueError(f"{name}={value!r} must be {words}") from None


def differences(a: dict[str, Any], b: dict[str, Any], prefix: str = "") -> list[str]:
    """`name: old -> new` of every setting in which two plain configs differ."""
    changed = []
    for key in sorted(set(a) | set(b)):
        old, new = a.get(key), b.get(key)
        if isinstance(old, dict) and isinstance(new, dict):
            changed += differences(old, new, f"{prefix}{key}.")
        elif old != new:
            changed.append(f"{prefix}{key}: {old} -> {new}")
    return changed


def same_numbers(plain: dict[str, Any], settings: Any) -> dict[str, Any]:
    """The part of plain settings that decides what a run computes."""
    deciding = {}
    for key, value in plain.items():
        field = next((it for it in dataclasses.fields(settings) if it.name == key), None)
        if field is not None and not field.metadata.get("changes_numbers", True):
            continue
        inner = getattr(settings, key, None)
        nested = dataclasses.is_dataclass(inner) and not isinstance(inner, Method)
        deciding[key] = same_numbers(value, inner) if nested else value
    return deciding
