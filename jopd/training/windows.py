"""Third phase, of methods with windows: both models write on from places in the completions."""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray

from jopd import models
from jopd.losses.windows import Compared, Window
from jopd.models import sharding
from jopd.rollout.sampler import Rollout
from jopd.rollout.settings import Decoding
from jopd.rollout.windows import place_noise, window_rows, write_on
from jopd.training.batch import Batch, batch_rows, parts, whole
from jopd.training.program import Program
from jopd.training.score import with_branches
from jopd.training.state import Fixed, Params, TrainState


class WithWindows(NamedTuple):
    """A batch after its windows.

    Attributes:
      batch: with the stream "windows" and the inputs that came of it.
      method_state: the method's next.
      metrics: scalars.
      points: an array `[B, W]` a name, a value for each place.
    """

    batch: Batch
    method_state: Params
    metrics: dict[str, Float[Array, ""]]
    points: dict[str, Array]


def windows(
    program: Program,
    state: TrainState,
    fixed: Fixed,
    batch: Batch,
    rows: Int[Array, " b"],
    key: PRNGKeyArray,
    *,
    decoding: Decoding,
) -> WithWindows:
    """Both models write on in a prepared batch, and the method compares what they wrote."""
    near_future, batch = program.method.near_future, batch_rows(batch)
    assert near_future is not None
    place_key, student_key, teacher_key = jax.random.split(key, 3)
    noise = place_noise(rows, place_key, batch.mask.shape[1])
    places = near_future.choose_windows(batch.inputs, batch.mask, noise)._replace(rows=rows)
    ids = window_rows(rows, places.positions.shape[1])
    decoding = dataclasses.replace(decoding, max_new_tokens=near_future.window_tokens)
    student = program.student_model(state, fixed)
    teacher_view = program.method.views[0]
    teacher = program.teacher_model(state, fixed)

    def embeddings(part: Batch, positions: Int[Array, "b w"], written: Rollout):
        if near_future.space == "embeddings":
            return student.embedding[...][written.tokens]
        context = part.contexts[teacher_view]
        branches = written.tokens, written.mask, positions
        return with_branches(teacher, context, part.tokens, part.mask, *branches)[1]

    def write(model: models.Transformer, view: str, key: PRNGKeyArray) -> Window:
        def micro(split: tuple[Batch, Array, Array]) -> Window:
            part, positions, ids = split
            context = part.contexts[view]
            written = write_on(
                model, *context, part.tokens, part.mask, positions, ids, key, decoding=decoding
            )
            vectors = embeddings(part, positions, written)
            vectors = sharding.constrain(vectors, "batch", None, None)
            return Window(written.tokens, written.mask, vectors)

        # As many windows a row, so as much more memory: in the parts that the other passes take.
        split = parts((batch, places.positions, ids), program.micro_batches, len(rows))
        return whole(jax.lax.map(micro, split), places.positions.shape[1])

    by_student = write(student, "student", student_key)
    by_teacher = write(teacher, teacher_view, teacher_key)
    compared = near_future.compare_windows(
        places, by_student, by_teacher, batch.inputs, batch.mask, state.method
    )
    metrics = {name: total.mean() for name, total in compared.metrics.items()} | {
        "student_window_tokens": by_student.mask.sum(dtype=jnp.float32),
        "teacher_window_tokens": by_teacher.mask.sum(dtype=jnp.float32),
    }
    batch = with_stream(batch, compared, places.positions)
    return WithWindows(batch, compared.state, metrics, compared.points)


def with_stream(batch: Batch, compared: Compared, positions: Int[Array, "b w"]) -> Batch:
    """The batch with what its windows are good for."""
    # The last place is a probe, which nothing is learnt from.
    stream = Batch(
        {}, compared.tokens, compared.mask, extras=compared.extras, starts=positions[:, :-1]
    )
    inputs = batch.inputs | compared.inputs
    if "weight" in compared.inputs and "weight" in batch.inputs:
        inputs["weight"] = compared.inputs["weight"] * batch.inputs["weight"]
    return batch._replace(inputs=inputs, streams={"windows": stream})
