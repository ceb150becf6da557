"""Checkpoints by Orbax: atomic, written in the background, the latest few kept and the best
evaluated one too.
"""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from orbax.checkpoint.checkpoint_managers import AnyPreservationPolicy, BestN, LatestN

from jopd.training.state import TrainState


def check_facts(folder: Path, facts: Mapping[str, Any]) -> None:
    """Refuses to go on from checkpoints that were made of something else, before anything large is
    read.

    Raises:
      ValueError: naming what differs.
    """
    if not folder.is_dir():
        return
    with ocp.CheckpointManager(folder.absolute()) as manager:
        if (step := manager.latest_step()) is None:
            return
        saved = manager.restore(step, args=ocp.args.Composite(facts=ocp.args.JsonRestore()))[
            "facts"
        ]
    if changed := [
        f"{name} was {saved.get(name)}, is {value}"
        for name, value in facts.items()
        if saved.get(name) != value
    ]:
        raise ValueError(
            f"cannot resume from step {step}: {'; '.join(changed)}. Bring back what they were, or choose another --output"
        )


class Checkpoints:
    """The folder `checkpoints/` of a run.

    Args:
      folder: made when missing; a half-written checkpoint in it, left by a kill, is ignored and
        removed.
      keep: how many of the latest to keep.
      facts: what a resumed run must agree with (sources and fingerprints), as JSON data; saved
        beside each state.
    """

    def __init__(self, folder: Path, *, keep: int, facts: dict[str, Any]):
        score_of = lambda metrics: metrics["score"]
        # All have a score: what has none is what a kill left of deleting one.
        best = BestN(get_metric_fn=score_of, n=1, keep_checkpoints_without_metrics=False)
        options = ocp.CheckpointManagerOptions(
            preservation_policy=AnyPreservationPolicy([LatestN(keep), best]),
            best_fn=score_of,  # the policy alone would not write the scores down, and a resumed run would not know its best
            cleanup_tmp_directories=True,
            enable_async_checkpointing=True,
        )
        self.facts = facts
        self.manager = ocp.CheckpointManager(folder.absolute(), options=options)

    def save(self, step: int, state: TrainState, score: float | None) -> None:
        """Starts saving; `score` (higher is better) is the evaluation's at this step, if there was
        one.
        """
        # The copy to the host is done when this returns, so the state may be donated to the next
        # step.
        args = ocp.args.Composite(
            state=ocp.args.StandardSave(state._asdict()), facts=ocp.args.JsonSave(self.facts)
        )
        self.manager.save(step, args=args, metrics={"score": -math.inf if score is None else score})

    def restore(self, like: TrainState) -> tuple[int, TrainState] | None:
        """The latest step and its state, placed as `like` is, whose memory it takes; None where
        nothing was saved yet.
        """
        step = self.manager.latest_step()
        if step is None:
            return None
        abstract = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), like._asdict()
        )
        # Two states side by side may be more than a device holds.
        for leaf in jax.tree.leaves(like):
            leaf.delete()
        return step, TrainState(
            **self.manager.restore(
                step, args=ocp.args.Composite(state=ocp.args.StandardRestore(abstract))
            )["state"]
        )

    def wait(self) -> None:
        """Until what is being written is on the disk."""
        self.manager.wait_until_finished()

    def close(self) -> None:
        self.wait()
        self.manager.close()
