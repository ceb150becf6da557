"""Whether what a run writes fits on its disk: asked before the run begins, and before every
checkpoint, as a write that fails half-way is a dump of the libraries below.
"""

import errno
import math
import shutil
from pathlib import Path

import jax
from etils import epath

from jopd.training.home import Bucket, Disk
from jopd.training.state import TrainState


def check_room(home: Disk, state: TrainState, keep: int) -> None:
    """Raises ValueError where the disk of a run has less room than its checkpoints and its student
    can take: the `keep` latest, the best, and one that is being written.

    What its folder holds already counts as room, as a run that goes on replaces it.
    """
    folder = home.folder
    if isinstance(home, Bucket):
        if (free := free_at(folder)) < size(state.params):
            raise ValueError(
                f"output={home}: the student takes {megabytes(size(state.params))} and is written "
                f"to {folder} first, where {megabytes(free)} are free: name a larger disk by TMPDIR"
            )
        return
    needed = (keep + 2) * size(state) + size(state.params)
    free = free_at(folder) + sum(path.stat().st_size for path in folder.rglob("*"))
    if free < needed:
        raise ValueError(
            f"output={folder}: {megabytes(free)} are free there, and this run's checkpoints and "
            f"student take up to {megabytes(needed)} ({keep + 2} checkpoints of "
            f"{megabytes(size(state))}): free some room, lower --checkpoint.keep, or choose an "
            "--output on another disk"
        )


def check_room_for_one(folder: epath.Path, state: TrainState) -> None:
    """Raises OSError, as a full disk does, where one more checkpoint does not fit; there is always
    room in a bucket.
    """
    if "://" not in str(folder) and free_at(Path(folder)) < size(state):
        raise OSError(errno.ENOSPC, "No space left on device", str(folder))


def free_at(folder: Path) -> int:
    """Bytes free on the disk that a folder is on or will be on."""
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free


def size(tree) -> int:
    """Bytes of all arrays of a tree."""
    return sum(math.prod(x.shape) * x.dtype.itemsize for x in jax.tree.leaves(tree))


def megabytes(count: int) -> str:
    return f"{count / 1e6:,.0f} MB"
