"""Second phase: the teacher reads what was written, and what a method must know of the whole batch
is counted before any part of it is differentiated.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jopd import models
from jopd.losses.chunked import Scored, chunked_terms
from jopd.losses.tiled import tiled_terms
from jopd.losses.types import Stage, Terms
from jopd.models import sharding
from jopd.training.batch import Batch, Context, batch_rows, in_width, parts, whole, widen
from jopd.training.program import Program
from jopd.training.state import Fixed, TrainState


def score(
    program: Program, state: TrainState, fixed: Fixed, batch: Batch, views: tuple[str, ...]
) -> dict[str, Float[Array, "b t _"]]:
    """The final hidden states of each view's reader at every completion token."""
    readers = {view: program.reader(view, state, fixed) for view in views}
    # One shape for all views: methods look at small differences between them.
    width = max((batch.contexts[view].tokens.shape[1] for view in views), default=0)

    def micro(part: Batch) -> dict[str, Array]:
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

    def micro(part: Batch) -> Terms:
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
    *,
    chunks: int = 1,
) -> Terms:
    """A vocabulary stage over the completions, in tiles of the vocabulary where the stage has that
    form and otherwise in chunks of time, so that no `[B, T, V]` array exists; a stage that keeps
    more logits at once than others asks for more `chunks` in place of each.

    The vocabulary lies over all devices but those that split the batch alone: no head is whole
    anywhere, and its gradient is summed where its columns are.
    """
    split = lambda head: sharding.constrain(head, None, "stage_entries")
    teachers = {view: Scored(value, split(heads[view])) for view, value in part.hidden.items()}
    readers = Scored(hidden, split(student.head())), teachers
    chunk = columns(program.chunk_tokens, len(part.tokens) * chunks)
    vocabulary = program.decoding.vocabulary
    if (tiled := program.in_tiles(stage)) is not None:
        terms = tiled_terms(
            tiled,
            *readers,
            part.tokens,
            part.mask,
            chunk=chunk,
            vocabulary=vocabulary,
            shards=sharding.ways(vocabulary, "stage_entries"),
            constrain=sharding.constrain,
        )
    else:
        terms = chunked_terms(
            stage,
            *readers,
            part.tokens,
            part.mask,
            part.extras,
            chunk=chunk,
            vocabulary=vocabulary,
            gather=lambda hidden: sharding.constrain(hidden, "stage_rows", None, None),
        )
    by_row = lambda x: sharding.constrain(x, "batch", *(None,) * (x.ndim - 1))
    return jax.tree.map(by_row, terms)


def columns(chunk_tokens: int, rows: int) -> int:
    """How many columns of time a chunk of so many tokens a device has; 0 for all of them."""
    mesh = jax.sharding.get_abstract_mesh()
    ways = 1 if mesh.empty else mesh.shape["data"] * mesh.shape["fsdp"]
    return max(1, chunk_tokens * ways // rows) if chunk_tokens else 0


def in_parts(
    program: Program, micro: Callable[[Batch], dict[str, Array]], batch: Batch
) -> dict[str, Array]:
    """Per-token arrays `[B, T, ...]`, made of each micro-batch in turn, put together again."""
    count = program.micro_batches
    of_part = lambda part: in_width(lambda it: (micro(it), ()), part, count=count)[0]
    return whole(jax.lax.map(of_part, parts(batch_rows(batch), count, len(batch.tokens))))


def completion_hidden(
    model: models.Transformer, context: Context, tokens: Int[Array, "b t"], mask: Bool[Array, "b t"]
) -> Float[Array, "b s d"]:
    """The hidden states that predict each completion token, the context's last being the first, and
    one more, after the last token.
    """
    hidden = model.hidden(
        jnp.concatenate([context.tokens, tokens], axis=1),
        jnp.concatenate([context.valid, mask], axis=1),
    )
    return hidden[:, context.tokens.shape[1] - 1 :]


def with_branches(
    model: models.Transformer,
    context: Context,
    tokens: Int[Array, "b t"],
    mask: Bool[Array, "b t"],
    branch_tokens: Int[Array, "n k"],
    branch_mask: Bool[Array, "n k"],
    starts: Int[Array, "b w"],
) -> tuple[Float[Array, "b s d"], Float[Array, "n k d"]]:
    """The hidden states after every token of context and completion, and after those of sequences
    that go on from inside the completions, each behind `starts` of its row's tokens.
    """
    starts = context.tokens.shape[1] + starts
    return model.branched(
        jnp.concatenate([context.tokens, tokens], axis=1),
        jnp.concatenate([context.valid, mask], axis=1),
        models.Branches(branch_tokens, branch_mask, starts),
    )
