"""A step, phase by phase, in the order of the data's way. Each is a pure function, jitted here:

    write.rollout    (state, fixed, context, rows, key)   the student's completions
    score.score      (state, fixed, batch, views)         the teacher's hidden states at each token
    score.prepare    (state, fixed, batch)                what a method counts of the whole batch
    windows.windows  (state, fixed, batch, rows, key)     both models write on (few methods)
    update.update    (state, fixed, batch)                the next state, and the metrics

and beside them what measures an evaluation's answers, `score.measure` and `seen.seen`.

A batch's rows are split over the mesh axes data and fsdp; nothing in these files names a device.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
from jax.sharding import NamedSharding, PartitionSpec

from jopd.training import score, seen, update, windows, write
from jopd.training.program import Program
from jopd.training.state import TrainState


class Jitted(NamedTuple):
    """A program's phases, compiled at their first call for each shape."""

    rollout: Callable
    guided_rollout: Callable
    teacher_rollout: Callable
    score: Callable
    prepare: Callable
    windows: Callable
    update: Callable
    measure: Callable
    seen: Callable


def everywhere(shardings: TrainState | None) -> NamedSharding | None:
    """A whole copy on each device of the state's mesh."""
    leaves = jax.tree.leaves(shardings)
    return NamedSharding(leaves[0].mesh, PartitionSpec()) if leaves else None


def jitted(program: Program, state_shardings: TrainState | None = None) -> Jitted:
    """Jits the phases of a program; `update` reuses the state's memory and, told where it lives,
    leaves it there.
    """

    def compiled(phase: Callable, *static: str, **how) -> Callable:
        return jax.jit(functools.partial(phase, program), static_argnames=static, **how)

    return Jitted(
        rollout=compiled(write.rollout, "decoding", "samples"),
        guided_rollout=compiled(write.guided_rollout, "decoding", "samples"),
        teacher_rollout=compiled(write.teacher_rollout, "decoding"),
        score=compiled(score.score, "views"),
        prepare=compiled(score.prepare),
        windows=compiled(windows.windows, "decoding"),
        # Every host has all metrics at once, whatever else is being computed when they are read.
        update=compiled(
            update.update,
            "watch",
            donate_argnums=0,
            out_shardings=(state_shardings, everywhere(state_shardings)),
        ),
        measure=compiled(score.measure, "stage"),
        seen=compiled(seen.seen),
    )
