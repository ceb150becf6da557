"""The folder of a run: which one it is, whether it may be used, and what of it still holds.

    runs/PRESET-METHOD-seedN                      the preset with that method as it comes
    runs/PRESET-METHOD-seedN-top_k=16             ... and with that setting
    runs/PRESET-METHOD-seedN-3fa2c1               ... with settings too long to be written out

Settings that change no number are not in the name, and `steps` isn't either: a run may be made
longer.
"""

import hashlib
import json
import re
import shutil
import warnings
from pathlib import Path
from typing import Any

import filelock

from jopd import losses
from jopd.config import (
    Config,
    code_of,
    differences,
    load_yaml,
    same_numbers,
    save_yaml,
    to_dict,
    unchanged,
)
from jopd.training.console import say
from jopd.training.optimizer import rate_after

LOCK = ".lock"
WRITTEN = (
    *("config.yaml", "lengthened.json", "report.md", "report.json", "events.out.tfevents.*"),
    *("metrics.jsonl", "evaluations.jsonl", "samples.jsonl"),
    *("checkpoints", "damaged-checkpoints", "plots", "student"),
)
READABLE = re.compile(r"[\w.=,-]{1,60}")


def default_folder(name: str, config: Config) -> Path:
    """The folder of a run that names none."""
    method = config.method.name
    plain = told_apart(config)
    base = unchanged(name, losses.name_of(config.method))
    stem = f"runs/{name}-{method}-seed{config.seed}"
    # Of a preset that isn't known here, such as that of a copied config.yaml, all settings count.
    changed = differences({} if base is None else told_apart(base), plain)
    if not changed:
        return Path(stem)
    settings = [line.rsplit(" -> ", 1) for line in changed]
    words = ",".join(f"{key.split(':')[0].split('.')[-1]}={value}" for key, value in settings)
    if base is None or not READABLE.fullmatch(words):
        text = json.dumps(plain, sort_keys=True).encode()
        words = hashlib.blake2b(text, digest_size=3).hexdigest()
    return Path(f"{stem}-{words}")


def told_apart(config: Config) -> dict[str, Any]:
    """The settings that a folder's name tells, beside the method and the seed."""
    plain = same_numbers(to_dict(config), config)
    return {key: value for key, value in plain.items() if key not in ("steps", "seed")}


def output_folder(name: str, config: Config) -> Path:
    """The folder of a run; anything that it holds must be of this very run, which may have become
    longer, or of one that has saved nothing yet.

    Raises:
      ValueError: the folder holds something else, or a run with other settings, naming those that
        differ; or fewer steps are asked for than the run there has.
    """
    folder = Path(config.output).expanduser() if config.output else default_folder(name, config)
    other = f"choose another folder with --output, such as --output {folder}-2, or remove this one"
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"output={folder} is a file: {other}")
    # Names with a dot do not count: another program's, or what a kill left of writing config.yaml.
    if not folder.exists() or all(path.name.startswith(".") for path in folder.iterdir()):
        return folder
    if not (folder / "config.yaml").is_file():
        raise ValueError(f"output={folder} holds files that are not of a run: {other}")
    before = config_in(folder, config, other)
    if not has_result(folder):
        return folder
    if changed := changed_numbers(before, config):
        raise ValueError(
            f"output={folder} holds a run with other settings ({'; '.join(changed)}): {other}"
        )
    if config.steps < before.steps:
        raise ValueError(
            f"output={folder} holds a run of {before.steps} steps, and steps={config.steps} asks "
            f"for fewer: a run may only be made longer; {other}"
        )
    return folder


def config_in(folder: Path, now: Config, other: str) -> Config:
    """What the folder's run was told; of a user's own files it runs those alone that this start
    names as well, and none that has changed.
    """
    try:
        return load_yaml(folder / "config.yaml", trusted=code_of(to_dict(now)))[1]
    except ValueError as error:
        raise ValueError(
            f"output={folder} holds a run whose settings cannot be read ({error}): {other}"
        ) from None


def changed_numbers(before: Config, after: Config) -> list[str]:
    """What two configs of one folder may not differ in."""
    of = lambda config: same_numbers(to_dict(config), config) | {"steps": 0}
    return differences(of(before), of(after))


def has_result(folder: Path) -> bool:
    """Whether there is something to lose: a checkpoint, or a report."""
    return bool(saved_steps(folder)) or (folder / "report.json").is_file()


def saved_steps(folder: Path) -> list[int]:
    """The steps that a run has checkpoints of."""
    names = [path.name for path in (folder / "checkpoints").glob("*")]
    return sorted(int(name) for name in names if name.isdigit())


def claim(folder: Path) -> filelock.BaseFileLock:
    """Makes the folder of a run, and keeps every other process out of it until the lock is released
    or this process ends.

    Raises:
      ValueError: the folder can't be made or written to, or another process is at it.
    """
    lock = filelock.FileLock(folder / LOCK)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=0)
    except filelock.Timeout:
        raise ValueError(
            f"output={folder} is in use by another process: wait for it or stop it, or choose "
            "another folder with --output"
        ) from None
    except NotImplementedError:
        warnings.warn(
            f"output={folder} lies on a file system without locks: keep other processes out of it",
            stacklevel=2,
        )
    except OSError as error:
        raise ValueError(
            f"output={folder} can't be used ({error}): choose another folder with --output"
        ) from None
    return lock


def leave(folder: Path, lock: filelock.BaseFileLock) -> None:
    """Lets others into the folder; one that nothing was written to is gone again."""
    if [path.name for path in folder.iterdir()] == [LOCK]:
        shutil.rmtree(folder, ignore_errors=True)
    lock.release()


def settle(folder: Path, name: str, config: Config, updates: int) -> None:
    """Writes the run's `config.yaml`, after what an earlier start left has been dealt with: a run
    that had saved nothing is cleared away, and one that becomes longer is told so, and has the jump
    of its learning rate on file.

    Args:
      updates: optimiser steps a rollout batch.
    """
    path, longer = folder / "config.yaml", lengthened(folder)
    if path.is_file():
        before = config_in(folder, config, "choose another folder with --output")
        if not has_result(folder):
            if changed_numbers(before, config) or before.steps != config.steps:
                clear(folder)
        elif before.steps < config.steps:
            at = max(saved_steps(folder), default=before.steps)
            of_now = jump(before, config, at, updates)
            # A kill may have come between this file and config.yaml.
            longer = [*(entry for entry in longer if entry != of_now), of_now]
            old, new = of_now["learning_rate"]
            say(
                f"the run becomes longer, {config.steps} steps instead of {before.steps}: after "
                f"step {at} the learning rate is that of the longer schedule, {new:.3g} instead of "
                f"{old:.3g}"
            )
    folder.mkdir(parents=True, exist_ok=True)
    if longer:
        (folder / "lengthened.json").write_text(json.dumps(longer), encoding="utf-8")
    save_yaml(path, name, config)


def jump(before: Config, after: Config, at: int, updates: int) -> dict[str, Any]:
    """How a run was made longer: `from` and `to` steps, and the learning rate after the step `at`
    under the old and the new schedule.
    """
    rates = [
        rate_after(after.optimizer, run.steps * updates, at * updates) for run in (before, after)
    ]
    return {"at": at, "from": before.steps, "to": after.steps, "learning_rate": rates}


def lengthened(folder: Path) -> list[dict[str, Any]]:
    """Every `jump` of a run."""
    path = folder / "lengthened.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else []


def clear(folder: Path) -> None:
    """Removes what a run has written, and nothing else."""
    for path in (path for pattern in WRITTEN for path in folder.glob(pattern)):
        shutil.rmtree(path) if path.is_dir() else path.unlink()
