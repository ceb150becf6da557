"""Checkpoints by Orbax: atomic, written in the background, the latest few kept and the best
evaluated one too.

A checkpoint that cannot be read is damaged: the newest whole one stands in for it, and the damaged
ones are moved aside, into `damaged-checkpoints/` of the run.
"""

import contextlib
import math
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import fsspec
import jax
import orbax.checkpoint as ocp
from etils import epath
from orbax.checkpoint.checkpoint_managers import AnyPreservationPolicy, BestN, LatestN

from jopd.training import processes
from jopd.training.console import say
from jopd.training.failures import is_out_of_room, is_unreachable
from jopd.training.room import check_room_for_one
from jopd.training.state import TrainState

# Of what a checkpoint holds; one without a format is of format 1, whose fingerprints of data are
# made in another way.
FORMAT = 2
DATA = ("train_fingerprint", "held_out_fingerprint")
# May differ between two starts of a run: which version it is does not say what it computes.
INFORMATIVE = ("format", "jopd")


class DamagedCheckpoints(Exception):
    """A run has checkpoints, and none of them can be read."""


def check_facts(folder: Path | epath.Path, facts: Mapping[str, Any]) -> None:
    """Refuses to go on from checkpoints that were made of something else, before anything large is
    read. One process asks for all.

    Raises:
      ValueError: naming what differs; or a checkpoint of a later format.
    """
    if not folder.is_dir():
        return
    alone = ocp.options.MultiprocessingOptions(
        active_processes={0}, barrier_sync_key_prefix="facts"
    )
    options = ocp.CheckpointManagerOptions(multiprocessing_options=alone, create=False)
    with ocp.CheckpointManager(epath.Path(folder), options=options) as manager:
        saved = None
        for step in sorted(manager.all_steps(), reverse=True):
            if (saved := _facts(manager, step)) is not None:
                break
        if saved is None:
            return
    if saved.get("format", 1) > FORMAT:
        raise ValueError(
            f"the checkpoints in {folder} have format {saved['format']}, and this version reads up "
            f"to {FORMAT}: update jopd, or choose another --output"
        )
    left_out = INFORMATIVE if saved.get("format", 1) > 1 else (*INFORMATIVE, *DATA)
    if changed := [
        f"{name} was {saved.get(name)}, is {value}"
        for name, value in facts.items()
        if name not in left_out and saved.get(name) != value
    ]:
        raise ValueError(
            f"cannot resume from step {step}: {'; '.join(changed)}. Bring back what they were, or "
            "choose another --output"
        )


def _facts(manager: ocp.CheckpointManager, step: int) -> dict[str, Any] | None:
    """What the checkpoint of a step was made of; None where it can't be read."""
    try:
        args = ocp.args.Composite(facts=ocp.args.JsonRestore())
        return manager.restore(step, args=args)["facts"]
    except Exception:  # whatever the libraries below make of a missing or broken file
        return None


def _abstract(like: TrainState) -> dict[str, Any]:
    """What a state looks like and where it lives, without its arrays."""
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), like._asdict()
    )


class _Manager(ocp.CheckpointManager):
    def _wait_for_checkpointers(self):
        # A write that fails on one process is told before Orbax waits for the others, which wait
        # for this one.
        with processes.telling():
            super()._wait_for_checkpointers()


class Checkpoints:
    """The folder `checkpoints/` of a run.

    Args:
      folder: made when missing; a half-written checkpoint in it, left by a kill, is ignored and
        removed.
      keep: how many of the latest to keep.
      facts: what a resumed run must agree with (sources and fingerprints), as JSON data; saved
        beside each state.
    """

    def __init__(self, folder: Path | epath.Path, *, keep: int, facts: dict[str, Any]):
        score_of = lambda metrics: metrics["score"]
        # All have a score: what has none is what a kill left of deleting one.
        best = BestN(get_metric_fn=score_of, n=1, keep_checkpoints_without_metrics=False)
        options = ocp.CheckpointManagerOptions(
            preservation_policy=AnyPreservationPolicy([LatestN(keep), best]),
            # The policy alone would not write the scores down, and a resumed run would not know
            # its best.
            best_fn=score_of,
            cleanup_tmp_directories=True,
            enable_async_checkpointing=True,
        )
        self.folder, self.facts = epath.Path(folder), {"format": FORMAT, **facts}
        self.manager = _Manager(self.folder, options=options)
        self._best = self._best_on_disk()

    def save(self, step: int, state: TrainState, score: float | None) -> None:
        """Starts saving; `score` (higher is better) is the evaluation's at this step, if there was
        one.
        """
        self.wait()
        check_room_for_one(self.folder, state)
        # The copy to the host is done when this returns, so the state may be donated to the next
        # step.
        args = ocp.args.Composite(
            state=ocp.args.StandardSave(state._asdict()), facts=ocp.args.JsonSave(self.facts)
        )
        score = -math.inf if score is None else score
        # Kept here too: what is still being written can't be read.
        self._best = max(self._best, score)
        self.manager.save(step, args=args, metrics={"score": score})

    def would_be_best(self, score: float | None) -> bool:
        """Whether an evaluation's score, if it has one, is above those of all that are kept."""
        return score is not None and score > self._best

    def _best_on_disk(self) -> float:
        best = self.manager.best_step()
        known = None if best is None else self.manager.metrics(best)
        return -math.inf if known is None else known["score"]

    def restore(self, like: TrainState) -> tuple[int, TrainState] | None:
        """The latest step and its state, placed as `like` is, whose memory it takes; None where
        nothing was saved yet. Where the latest is damaged it is the one before, and that is said.

        Raises:
          DamagedCheckpoints: there are some, and none can be read.
        """
        abstract = _abstract(like)
        steps = sorted(self.manager.all_steps(), reverse=True)
        if steps:
            # Two states side by side may be more than a device holds.
            for leaf in jax.tree.leaves(like):
                leaf.delete()
        args = ocp.args.Composite(
            state=ocp.args.StandardRestore(abstract), facts=ocp.args.JsonRestore()
        )
        damaged = []
        for step in steps:
            try:
                state = self.manager.restore(step, args=args)["state"]
            except Exception as error:
                if is_out_of_room(error) or is_unreachable(error):
                    raise
                damaged.append(step)
                if processes.count() > 1:
                    # The others may have read their parts, and wait.
                    self._set_aside(damaged)
                    raise DamagedCheckpoints(
                        f"the checkpoint of step {step} in {self.folder} is damaged and was put "
                        "aside: the same command goes on from the one before"
                    ) from None
                continue
            self._set_aside(damaged)
            return step, TrainState(**state)
        if damaged:
            raise DamagedCheckpoints(
                f"none of the checkpoints in {self.folder} can be read (steps "
                f"{', '.join(map(str, damaged))}): restore them from a copy, remove the folder to "
                "begin anew, or choose another --output"
            )
        return None

    def restore_one(self, step: int, like: TrainState) -> TrainState:
        """The state of one step, placed as `like` is; a damaged one stays where it is.

        Raises:
          DamagedCheckpoints: it can't be read.
        """
        args = ocp.args.Composite(state=ocp.args.StandardRestore(_abstract(like)))
        try:
            return TrainState(**self.manager.restore(step, args=args)["state"])
        except Exception as error:
            if is_out_of_room(error) or is_unreachable(error):
                raise
            raise DamagedCheckpoints(
                f"the checkpoint of step {step} in {self.folder} can't be read: choose another of "
                f"its steps, {', '.join(map(str, self.manager.all_steps()))}"
            ) from None

    def _set_aside(self, steps: list[int]) -> None:
        """Moves damaged checkpoints out of the way of those that are written when their step comes
        again.
        """
        aside = self.folder.parent / "damaged-checkpoints"
        files, _ = fsspec.url_to_fs(str(aside))
        for step in steps:
            files.makedirs(aside, exist_ok=True)
            target = f"{aside}/{step}-{secrets.token_hex(2)}"
            with contextlib.suppress(FileNotFoundError):  # another process was first
                files.mv(f"{self.folder}/{step}", target, recursive=True)
            say(f"the checkpoint of step {step} is damaged: it is now {target}")
        if steps:
            self.manager.reload()
            self._best = self._best_on_disk()

    def wait(self) -> None:
        """Until what is being written is on the disk."""
        self.manager.wait_until_finished()

    def close(self) -> None:
        self.wait()
        self.manager.close()
