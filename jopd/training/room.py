"""Whether a run's files will fit on its disk, asked before the run begins."""

import math
import shutil
from pathlib import Path

import jax

from jopd.training.state import TrainState


def check_room(folder: Path, state: TrainState, *, keep: int) -> None:
    """Raises ValueError where the disk of `folder` has less room than a run's checkpoints and its
    student can take: the `keep` latest, the best, and one that is being written.

    What the folder holds already counts as room, as a run that goes on replaces it.
    """
    size = lambda tree: sum(math.prod(x.shape) * x.dtype.itemsize for x in jax.tree.leaves(tree))
    needed = (keep + 2) * size(state) + size(state.params)
    parent = folder
    while not parent.exists():
        parent = parent.parent
    held = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    free = shutil.disk_usage(parent).free + held
    if free < needed:
        raise ValueError(
            f"output={folder}: {free / 1e9:,.1f} GB are free there, and this run's checkpoints and "
            f"student take up to {needed / 1e9:,.1f} GB ({keep + 2} checkpoints of "
            f"{size(state) / 1e9:,.1f} GB): free some room, lower --checkpoint.keep, or choose an "
            "--output on another disk"
        )
