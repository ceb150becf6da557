"""A user's own method, scorer or source, named as `path/to/file.py:Name`.

The file runs when it is loaded, as any Python program of yours does. Its fingerprint is kept with a
run, so that a run goes on with the code that it began with or says which file changed.
"""

import hashlib
import importlib.util
import re
import sys
import threading
from pathlib import Path
from types import ModuleType
from typing import Any

_RUNNING = threading.RLock()  # a file that runs is not yet whole for other threads
_NAMED = re.compile(r"(?P<path>.+\.py):(?P<attribute>[A-Za-z_]\w*)")


class Failed(ValueError):
    """A user's own code failed, or gave something that can't be used."""


def is_named(text: str) -> bool:
    """Whether `text` has the form `path/to/file.py:Name`."""
    return _NAMED.fullmatch(text) is not None


def absolute(text: str) -> str:
    """The same name with its path absolute and `~` expanded, so that it holds from any folder."""
    path, attribute = _parts(text)
    return f"{path}:{attribute}"


def fingerprint(text: str) -> str:
    """The first 16 hexadecimal digits of the SHA-256 of the named file's bytes; nothing is run.

    Raises:
      ValueError: there is no such file.
    """
    path, _ = _parts(text)
    return hashlib.sha256(_bytes(path)).hexdigest()[:16]


def load(text: str) -> Any:
    """What the file calls `Name`, after running the file.

    Raises:
      ValueError: there is no such file, it fails when run, or has nothing of that name.
    """
    path, attribute = _parts(text)
    names = vars(module(path))
    if attribute not in names:
        known = sorted(name for name in names if not name.startswith("_"))
        raise Failed(f"{path} has no {attribute}; it has {', '.join(known) or 'nothing'}")
    return names[attribute]


def module(path: Path) -> ModuleType:
    """The file as a module. The same contents are run once in a process, however often they are
    named: a class loaded twice is one class.

    Raises:
      ValueError: there is no such file, or it fails when run.
    """
    path = path.absolute()
    digest = hashlib.sha256(_bytes(path)).hexdigest()[:16]
    name = f"jopd_plugin_{path.stem}_{digest}"
    with _RUNNING:
        return sys.modules.get(name) or _run(path, name)


def name_of(thing: type) -> str | None:
    """The name, `path/to/file.py:Name`, of a class that a user's file defines; None for others."""
    if not thing.__module__.startswith("jopd_plugin_"):
        return None
    return f"{sys.modules[thing.__module__].__file__}:{thing.__qualname__}"


def _parts(text: str) -> tuple[Path, str]:
    match = _NAMED.fullmatch(text)
    if match is None:
        raise ValueError(f"{text!r} is not of the form path/to/file.py:Name")
    return Path(match["path"]).expanduser().absolute(), match["attribute"]


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ValueError(f"cannot read {path}: {error.strerror}") from error


def _run(path: Path, module_name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(module_name, path)
    assert spec is not None and spec.loader is not None  # a path that ends in .py always has both
    module = importlib.util.module_from_spec(spec)
    sys.modules[module_name] = module  # dataclasses and pickling look their module up
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        del sys.modules[module_name]
        where = ""
        frame = error.__traceback__
        while frame is not None:
            if frame.tb_frame.f_code.co_filename == str(path):
                where = f":{frame.tb_lineno}"
            frame = frame.tb_next
        raise Failed(f"{path}{where}: {type(error).__name__}: {error}") from error
    return module
