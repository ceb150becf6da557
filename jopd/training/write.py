"""First phase: the student writes, or the teacher does where that is asked for."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int, PRNGKeyArray

from jopd.models import Transformer
from jopd.rollout.sampler import Rollout, sample
from jopd.rollout.settings import Decoding
from jopd.training.batch import Context, widen
from jopd.training.program import Program
from jopd.training.state import Fixed, TrainState


def rollout(
    program: Program,
    state: TrainState,
    fixed: Fixed,
    context: Context,
    rows: Int[Array, " b"],
    key: PRNGKeyArray,
    *,
    decoding: Decoding,
    samples: int,
) -> Rollout:
    """The student's completions; `rows` are ids unique over the run, so every row draws its own
    noise.
    """
    return write(program.student_model(state, fixed), context, rows, key, decoding, samples)


def guided_rollout(
    program: Program,
    state: TrainState,
    fixed: Fixed,
    contexts: dict[str, Context],
    guided: Bool[Array, " b"],
    rows: Int[Array, " b"],
    key: PRNGKeyArray,
    *,
    decoding: Decoding,
    samples: int,
) -> Rollout:
    """Completions of which the `guided` are sampled with the privileged context in the prompt."""
    plain, guide = contexts["student"], contexts["privileged"]
    student = program.student_model(state, fixed)
    choose = lambda yes, no: jnp.where(guided.reshape(-1, *[1] * (yes.ndim - 1)), yes, no)
    if program.method.guided_writer == "teacher":
        teacher = program.teacher_model(state, fixed)
        by_student = write(student, plain, rows, key, decoding, samples)
        by_teacher = write(teacher, guide, rows, key, decoding, samples)
        return jax.tree.map(choose, by_teacher, by_student)
    # A prompt's samples may now differ in their context, so each has a row, and a prefill, of
    # its own.
    width = max(plain.tokens.shape[1], guide.tokens.shape[1])
    a_row_each = lambda x: jnp.repeat(widen(x, width), samples, axis=0)
    plain, guide = (jax.tree.map(a_row_each, context) for context in (plain, guide))
    return write(student, jax.tree.map(choose, guide, plain), rows, key, decoding, samples=1)


def teacher_rollout(
    program: Program,
    state: TrainState,
    fixed: Fixed,
    context: Context,
    rows: Int[Array, " b"],
    key: PRNGKeyArray,
    *,
    decoding: Decoding,
) -> Rollout:
    """What the teacher itself would answer: measured once, not trained on."""
    teacher = program.teacher_model(state, fixed)
    # That devices have room for all of a student says nothing of a larger teacher.
    size = lambda model: sum(leaf.size for leaf in jax.tree.leaves(model))
    small = size(teacher) <= size(program.student_model(state, fixed))
    how = {"decoding": decoding, "samples": 1, "gathered": small}
    return sample(teacher, *context, rows, key, **how)


def write(
    model: Transformer,
    context: Context,
    rows: Int[Array, " b"],
    key: PRNGKeyArray,
    decoding: Decoding,
    samples: int,
) -> Rollout:
    """`samples` completions of each row of a context."""
    return sample(model, *context, rows, key, decoding=decoding, samples=samples)
