"""Files as they came: JSON, a hash of them, and a broken download said with the file's name; and
folders that are written whole.
"""

import contextlib
import hashlib
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

POINTER = b"version https://git-lfs"


def read_json(file: Path) -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
      ValueError: it is a git-lfs pointer, not JSON, or not an object; the message names the file.
    """
    refuse_pointer(file)
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(
            f"{file.name} is not readable as JSON ({one_line(error)}): fetch it again"
        ) from error
    if not isinstance(content, dict):
        raise ValueError(
            f"{file.name} holds {type(content).__name__} where an object belongs: fetch it again"
        )
    return content


def refuse_pointer(file: Path) -> None:
    """Raises ValueError where git left its pointer in place of a large file."""
    with file.open("rb") as stream:
        if stream.read(len(POINTER)) == POINTER:
            raise ValueError(
                f"{file.name} is a git-lfs pointer, not the file itself: run `git lfs pull` in "
                f"{file.parent}"
            )


def one_line(error: Exception) -> str:
    """The first line of what an error says, or else its kind."""
    return str(error).strip().partition("\n")[0] or type(error).__name__


def fingerprint(settings: str, files: tuple[Path, ...]) -> str:
    """A hash of the settings, of each file's size and of 64 blocks spread over it: cheap, yet
    another checkpoint has another.
    """
    digest = hashlib.sha256(settings.encode())
    for file in files:
        size = file.stat().st_size
        digest.update(str(size).encode())
        with file.open("rb") as stream:
            for block in range(64):
                stream.seek(size * block // 64)
                digest.update(stream.read(4096))
    return digest.hexdigest()[:16]


def check_replaceable(folder: Path, mark: str, kind: str) -> None:
    """Raises ValueError where `folder` holds something, but not the file that marks its kind."""
    if folder.is_file() or (
        folder.exists() and not (folder / mark).is_file() and any(folder.iterdir())
    ):
        raise ValueError(f"{folder} holds something that is not {kind}: give another folder")


@contextlib.contextmanager
def replacing(folder: Path) -> Iterator[Path]:
    """A new folder, which takes the place of `folder` once it is whole."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as scratch:
        new, old = Path(scratch) / "new", Path(scratch) / "old"
        new.mkdir()
        yield new
        if folder.exists():
            folder.rename(old)
        new.rename(folder)
