"""The folder of a run: which one it is, whether it may be used, and what of it still holds.

    runs/PRESET-METHOD-seedN                      the preset with that method as it comes
    runs/PRESET-METHOD-seedN-top_k=16             ... and with that setting
    runs/PRESET-METHOD-seedN-3fa2c1               ... with settings too long to be written out

Settings that change no number are not in the name, and `steps` isn't either: a run may be made
longer.
"""

import hashlib
import json
import os
import re
from pathlib import Path
from typing import Any

from orbax.checkpoint.utils import checkpoint_steps

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
from jopd.training import home as homes
from jopd.training import processes
from jopd.training.console import say
from jopd.training.home import Disk
from jopd.training.optimizer import rate_after

READABLE = re.compile(r"[\w.=,-]{1,60}")


def default_folder(name: str, config: Config) -> str:
    """The folder of a run that names none."""
    method = config.method.name
    plain = told_apart(config)
    base = unchanged(name, losses.name_of(config.method))
    stem = f"runs/{name}-{method}-seed{config.seed}"
    # Of a preset that isn't known here, such as that of a copied config.yaml, all settings count.
    changed = differences({} if base is None else told_apart(base), plain)
    if not changed:
        return stem
    settings = [line.rsplit(" -> ", 1) for line in changed]
    words = ",".join(f"{key.split(':')[0].split('.')[-1]}={value}" for key, value in settings)
    if base is None or not READABLE.fullmatch(words):
        text = json.dumps(plain, sort_keys=True).encode()
        words = hashlib.blake2b(text, digest_size=3).hexdigest()
    return f"{stem}-{words}"


def told_apart(config: Config) -> dict[str, Any]:
    """The settings that a folder's name tells, beside the method and the seed."""
    plain = same_numbers(to_dict(config), config)
    return {key: value for key, value in plain.items() if key not in ("steps", "seed")}


def home_of(name: str, config: Config) -> Disk:
    """Where a run lives; anything that is there must be of this very run, which may have become
    longer, or of one that has saved nothing yet.

    Raises:
      ValueError: something else is there, or a run with other settings, naming those that differ;
        or fewer steps are asked for than the run there has.
    """
    home = homes.at(processes.decided(_address, name, config))
    try:
        processes.decided(_check, home, config)
    except BaseException:
        home.leave()
        raise
    return home


def _address(name: str, config: Config) -> str:
    return os.path.expanduser(config.output or default_folder(name, config))


def _check(home: Disk, config: Config) -> None:
    other = f"choose another folder with --output, such as --output {home}-2, or remove this one"
    folder = home.folder
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"output={home} is a file: {other}")
    home.fetch()
    # Names with a dot do not count: another program's, or what a kill left of writing config.yaml.
    if all(name.startswith(".") for name in home.names()):
        return
    if not (folder / "config.yaml").is_file():
        raise ValueError(f"output={home} holds files that are not of a run: {other}")
    before = config_in(home, config, other)
    if not has_result(home):
        return
    if changed := changed_numbers(before, config):
        raise ValueError(
            f"output={home} holds a run with other settings ({'; '.join(changed)}): {other}"
        )
    if config.steps < before.steps:
        raise ValueError(
            f"output={home} holds a run of {before.steps} steps, and steps={config.steps} asks "
            f"for fewer: a run may only be made longer; {other}"
        )


def config_in(home: Disk, now: Config, other: str) -> Config:
    """What the run that is there was told; of a user's own files those alone are run that this
    start names as well, and none that has changed.
    """
    try:
        return load_yaml(home.folder / "config.yaml", trusted=code_of(to_dict(now)))[1]
    except ValueError as error:
        raise ValueError(
            f"output={home} holds a run whose settings cannot be read ({error}): {other}"
        ) from None


def changed_numbers(before: Config, after: Config) -> list[str]:
    """What two configs of one folder may not differ in."""
    of = lambda config: same_numbers(to_dict(config), config) | {"steps": 0}
    return differences(of(before), of(after))


def has_result(home: Disk) -> bool:
    """Whether there is something to lose: a checkpoint, or a report."""
    return bool(checkpoint_steps(home.checkpoints)) or (home.folder / "report.json").is_file()


def settle(home: Disk, name: str, config: Config, updates: int) -> None:
    """Writes the run's `config.yaml`, after what an earlier start left has been dealt with: a run
    that had saved nothing is cleared away, and one that becomes longer is told so, and has the jump
    of its learning rate on file.

    Args:
      updates: optimiser steps a rollout batch.
    """
    folder = home.folder
    path, longer = folder / "config.yaml", lengthened(folder)
    if path.is_file():
        before = config_in(home, config, "choose another folder with --output")
        if not has_result(home):
            if changed_numbers(before, config) or before.steps != config.steps:
                home.clear()
        elif before.steps < config.steps:
            at = max(checkpoint_steps(home.checkpoints), default=before.steps)
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
    home.push()


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
