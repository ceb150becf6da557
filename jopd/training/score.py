"""Second phase: the teacher reads what was written, and what a method must know of the whole batch
is counted before any part of it is differentiated.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jopd import models
from jopd.losses.chunked import Scored, chunked_terms
from jopd.losses.types import Stage, Terms
from jopd.models import sharding
from jopd.training.batch import Batch, Context, batch_rows, parts, whole, widen
from jopd.training.program import Program
from jopd.training.state import Fixed, TrainState


def score(
    program: Program, state: TrainState, fixed: Fixed, batch: Batch, views: tuple[str, ...]
) -> dict[str, Float[Array, "b t _"]]:
    """The final hidden states of each view's reader at every completion token."""
    readers = {view: program.reader(view, state, fixed) for view in views}
    # One shape for all views: methods look at small differences between them.
    width = max((batch.contexts[view].tokens.shape[1] for view in views), default=0)

    def micro(part: Batch):
        context = {
            view: jax.tree.map(lambda x: widen(x, width), part.contexts[view]) for view in views
        }
        return {
            view: completion_hidden(reader, context[view], part.tokens, part.mask)[:, :-1]
            for view, reader in readers.items()
        }

    return in_parts(program, micro, batch)


def prepare(program: Program, state: TrainState, fixed: Fixed, batch: Batch) -> dict[str, Array]:
    """The method's further inputs, of its scoring pass over a scored batch."""
    stage = program.method.scoring()
    assert stage is not None
    terms = measure(program, state, fixed, batch, stage)
    return program.method.prepare(terms, batch.mask, batch.inputs)


def measure(program: Program, state: TrainState, fixed: Fixed, batch: Batch, stage: Stage) -> Terms:
    """Per-token terms `[B, T]` of a scored batch, without gradient."""
    student = program.student_model(state, fixed)
    heads = program.heads(state, fixed, batch.hidden)

    def micro(part: Batch):
        hidden = completion_hidden(student, part.contexts["student"], part.tokens, part.mask)
        return terms(program, student, hidden[:, :-1], heads, part, stage)

    return in_parts(program, micro, batch)


def terms(
    program: Program,
    student: models.Transformer,
    hidden: Float[Array, "b t d"],
    heads: dict[str, Float[Array, "_ _"]],
    part: Batch,
    stage: Stage,
) -> Terms:
    """A vocabulary stage over the completions: chunked, so that no `[B, T, V]` array exists."""
    # Gathered over fsdp here, once, and not again in every chunk.
    gathered = lambda head: sharding.constrain(head, None, "vocabulary")
    teachers = {view: Scored(value, gathered(heads[view])) for view, value in part.hidden.items()}
    return chunked_terms(
        stage,
        Scored(hidden, gathered(student.head())),
        teachers,
        part.tokens,
        part.mask,
        part.extras,
        chunk=program.chunk,
        vocabulary=program.decoding.vocabulary,
    )


def in_parts(program: Program, micro, batch: Batch):
    """`micro` of each micro-batch in turn, put together again."""
    split = parts(batch_rows(batch), program.micro_batches, len(batch.tokens))
    return whole(jax.lax.map(micro, split))


def completion_hidden(
    model: models.Transformer, context: Context, tokens: Int[Array, "b t"], mask: Bool[Array, "b t"]
) -> Float[Array, "b s d"]:
    """The hidden states that predict each completion token, the context's last being the first, and
    one more, after the last token.
    """
    hidden = model(
        jnp.concatenate([context.tokens, tokens], axis=1),
        jnp.concatenate([context.valid, mask], axis=1),
    )
    return hidden[:, context.tokens.shape[1] - 1 :]
