"""The vocabulary stage in tiles of the vocabulary: many positions at once, a few entries at a time.

What most methods need of a token's distributions are a few sums over the vocabulary (`Moments`),
and a sum can be taken tile by tile: each tile's logits are made from hidden states and output
heads, added to the running sums under the largest logit so far, and dropped. Where `chunked` lets
autodiff find its way back through everything that a method does with whole logits, here the
gradient is written out: with p and q the two distributions and d = z_s - z_t, the gap between their
logits,

    of                    is                                         its gradient in z_s is
    log p(y)              z_s(y) - log Z_s                           [v = y] - p
    entropy of p          log Z_s - E_p[z_s]                         -p (log p + entropy)
    KL(p || q)            E_p[d] - log Z_s + log Z_t                 p (d - E_p[d])
    KL(q || p)            log Z_s - log Z_t - E_q[d]                 p - q
    a `SecondPass`        of sums once every Z is known              its own

so the way back makes each tile once more, from normalisers that are kept, and no tile of a teacher
that it does not need: a policy gradient needs none. Equal models have a d of 0, hence KLs and
gradients of exactly 0.

The running softmax is that of Milakov and Gimelshein, "Online normalizer calculation for softmax",
arXiv:1805.02867; making logits again instead of keeping them is what FlashAttention
(arXiv:2205.14135) does with scores.

Where the vocabulary is split over devices, each has its own sums, [B, T, shards], and they are put
together at the end. Nothing travels between tiles, but for the gradient of a tile of the head,
which is summed over the devices that split the batch; between blocks of positions, hidden states
and their gradients.
"""

import functools
from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero, custom_vjp_primal_tree_values
from jaxtyping import Array, Int

from jopd.losses.chunked import Scored, over_time
from jopd.losses.tiles import (
    OWN,
    OfReader,
    OfView,
    Sums,
    Tiling,
    by_shard,
    combined,
    gathered,
    starts,
    sums_of,
    tiles,
)
from jopd.losses.types import Compared, Further, Moments, Reading, SecondPass
from jopd.losses.vocabulary import accumulator, product


def moments(
    student: Scored,
    teachers: Mapping[str, Scored],
    tokens: Int[Array, "B T"],
    tiling: Tiling,
    second: SecondPass | None = None,
) -> Moments:
    """What the readers' distributions say at every token, differentiable in the student alone.

    >>> even, certain = (
    ...     Scored(jnp.ones((1, 1, 1)), jnp.log(jnp.array([row])))
    ...     for row in ([0.5, 0.5], [0.75, 0.25]))
    >>> made = moments(even, {"teacher": certain}, jnp.zeros((1, 1), int), Tiling(2, size=1))
    >>> print(made.teachers["teacher"].reverse_kl.round(4))
    [[0.1438]]

    Args:
      second: what is to be summed in a pass of its own.
    """
    if tiling.shards > 1:
        # Parts of a longer axis would not hold the same entries of every reader.
        cut = lambda scored: scored._replace(head=scored.head[:, : tiling.vocabulary])
        student, teachers = cut(student), {view: cut(of) for view, of in teachers.items()}
    return _moments(tiling, second, student, jax.lax.stop_gradient(dict(teachers)), tokens)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _moments(tiling, second, student, teachers, tokens):
    return _read(tiling, second, student, teachers, tokens)[0]


def _read(tiling, second, student, teachers, tokens):
    """The moments, and what the way back needs besides: normalisers and E_p[d]."""
    readers = {OWN: student, **teachers}

    def of_block(_, columns):
        hidden, tokens = columns
        return None, _sums_of_block(tiling, _with_hidden(readers, hidden), tokens)

    columns = {name: of.hidden for name, of in readers.items()}, tokens
    _, by_shard = over_time(of_block, columns, tiling.block or tokens.shape[1])
    sums, gaps = combined(by_shard, axis=-1)
    # A normaliser is kept in two parts: together they would cost the small differences digits.
    normalisers = {name: (of.top, jnp.log(of.mass)) for name, of in sums.items()}
    mean_gaps = {view: of.student / sums[OWN].mass for view, of in gaps.items()}
    made = _finished(sums, gaps, normalisers, mean_gaps)
    if second is not None:
        further = _second_sums(tiling, second, readers, tokens, normalisers)
        made = made._replace(further=Further(second.value(further), further))
    return made, (normalisers, mean_gaps)


def _second_sums(
    tiling: Tiling, second: SecondPass, readers: Mapping[str, Scored], tokens, normalisers
) -> dict[str, Array]:
    """The sums of a second pass, by name."""
    readers = {name: of for name, of in readers.items() if name in (OWN, *second.views)}

    def of_block(_, columns):
        hidden, tokens, normalisers = columns
        tile_at = tiles(tiling, _with_hidden(readers, hidden), tokens)

        def of_tile(first):
            tile = tile_at(first)
            entries = second.entries(*_log_probabilities(tile, normalisers))
            return {
                name: jnp.sum(jnp.where(tile.own, it, 0), axis=-1) for name, it in entries.items()
            }

        add = lambda running, first: (jax.tree.map(jnp.add, running, of_tile(first)), None)
        first = starts(tiling, tokens)
        zero = lambda of: tiling.constrain(
            jnp.zeros(of.shape, of.dtype), "stage_rows", None, "stage_entries"
        )
        nothing = jax.tree.map(zero, jax.eval_shape(of_tile, first[0]))
        return None, jax.lax.scan(add, nothing, first)[0]

    columns = {name: of.hidden for name, of in readers.items()}, tokens, normalisers
    _, by_shard = over_time(of_block, columns, tiling.block or tokens.shape[1])
    return {name: jnp.sum(values, axis=-1) for name, values in by_shard.items()}


def _with_hidden(readers: Mapping[str, Scored], hidden: Mapping[str, Array]) -> dict[str, Scored]:
    """The readers at some of their positions."""
    return {name: readers[name]._replace(hidden=values) for name, values in hidden.items()}


def _sums_of_block(
    tiling: Tiling, readers: Mapping[str, Scored], tokens: Int[Array, "B c"]
) -> Sums:
    """The sums over each shard's entries, at some positions."""
    tile_at = tiles(tiling, readers, tokens)
    dtype = accumulator(readers[OWN].hidden.dtype)
    zero = jnp.zeros((*tokens.shape, tiling.shards), dtype)
    zero = tiling.constrain(zero, "stage_rows", None, "stage_entries")
    nothing = (
        {
            name: OfReader(jnp.full_like(zero, jnp.finfo(dtype).min), *[zero] * 3)
            for name in readers
        },
        {view: OfView(zero, zero, zero > 0) for view in readers if view != OWN},
    )

    def add(running: Sums, start):
        both = jax.tree.map(lambda *two: jnp.stack(two), running, sums_of(tile_at(start)))
        return combined(both, axis=0), None

    return jax.lax.scan(add, nothing, starts(tiling, tokens))[0]


def _finished(sums, gaps, normalisers, mean_gaps) -> Moments:
    """Moments of the sums over the whole vocabulary, by the formulas above."""
    own = sums[OWN]
    top, log_mass = normalisers[OWN]
    logp = {name: of.token - of.top - normalisers[name][1] for name, of in sums.items()}
    entropy = {name: normalisers[name][1] - of.excess / of.mass for name, of in sums.items()}

    def compared(view: str) -> Compared:
        teacher_top, teacher_log_mass = normalisers[view]
        shift = (top - teacher_top) + (log_mass - teacher_log_mass)
        return Compared(
            logp[view],
            entropy[view],
            reverse_kl=mean_gaps[view] - shift,
            forward_kl=shift - gaps[view].teacher / sums[view].mass,
            top1_agreement=gaps[view].agree.astype(top.dtype),
        )

    is_top = (own.token == own.top).astype(top.dtype)
    return Moments(
        Reading(logp[OWN], entropy[OWN], is_top), {view: compared(view) for view in gaps}
    )


def _forward(tiling, second, *arguments):
    arguments = custom_vjp_primal_tree_values(arguments)
    made, normalised = _read(tiling, second, *arguments)
    sums = made.further.sums if made.further else {}
    return made, (*arguments, *normalised, made.student.entropy, sums)


def _backward(tiling, second, saved, cotangents: Moments):
    student, teachers, tokens, *normalised = saved
    asked = _Asked(
        _asked(cotangents.student),
        {view: _asked(of) for view, of in cotangents.teachers.items()},
        _asked(cotangents.further).value if cotangents.further else None,
    )
    needs = second.views if asked.further is not None else ()
    read = [view for view, of in asked.views.items() if view in needs or _reads_logits(of)]
    readers = {OWN: student, **{view: teachers[view] for view in read}}

    def of_block(of_head, columns):
        hidden, *rest = columns
        readers_here = _with_hidden(readers, hidden)
        return _block_gradient(tiling, second, readers_here, of_head, *rest)

    hidden = {name: of.hidden for name, of in readers.items()}
    columns = hidden, tokens, asked, *normalised
    empty = by_shard(tiling, jnp.zeros_like(student.head))
    of_head, of_hidden = over_time(of_block, columns, tiling.block or tokens.shape[1], empty)
    return Scored(of_hidden, of_head.reshape(student.head.shape)), None, None


def _block_gradient(tiling, second, readers, of_head, tokens, asked, *normalised):
    """The head's gradient with what a block of positions adds, and that of its hidden states."""
    tile_at = tiles(tiling, readers, tokens)
    hidden = gathered(tiling, readers[OWN].hidden)

    def add(gradients, first):
        of_hidden, of_head = gradients
        tile = tile_at(first)
        of_logits = _gradient_in_logits(tile, second, asked, *normalised)
        # In the type of the product forward, as is usual in a narrow model's way back.
        of_logits = of_logits.astype(hidden.dtype)
        of_hidden += product("btsv,dsv->btsd", of_logits, tile.head)
        columns = product("btd,btsv->dsv", hidden, of_logits).astype(of_head.dtype)
        before = jax.lax.dynamic_slice_in_dim(of_head, tile.start, tiling.size, axis=2)
        of_head = jax.lax.dynamic_update_slice_in_dim(of_head, before + columns, tile.start, axis=2)
        return (of_hidden, of_head), None

    zero = jnp.zeros((*tokens.shape, tiling.shards, hidden.shape[-1]), accumulator(hidden.dtype))
    zero = tiling.constrain(zero, "stage_rows", None, "stage_entries", None)
    (of_hidden, of_head), _ = jax.lax.scan(add, (zero, of_head), starts(tiling, tokens))
    return of_head, of_hidden.sum(axis=2).astype(hidden.dtype)


def _gradient_in_logits(tile, second, asked: "_Asked", normalisers, mean_gaps, entropy, sums):
    """The gradient in the student's logits of a tile, by the formulas above."""
    z = tile.logits
    logp, of_teachers = _log_probabilities(tile, normalisers)
    p = jnp.exp(logp)
    gradient = jnp.zeros_like(p)
    if asked.student.logp is not None:
        gradient += _beside(asked.student.logp) * (tile.sampled.astype(p.dtype) - p)
    if asked.student.entropy is not None:
        gradient -= _beside(asked.student.entropy) * p * (logp + _beside(entropy))
    for view, of in asked.views.items():
        if of.reverse_kl is not None:
            gap = z[OWN] - z[view]
            gradient += _beside(of.reverse_kl) * p * (gap - _beside(mean_gaps[view]))
        if of.forward_kl is not None:
            gradient += _beside(of.forward_kl) * (p - jnp.exp(of_teachers[view]))
    if asked.further is not None:
        slope = second.slope(logp, of_teachers, jax.tree.map(_beside, sums))
        # Columns that fill up a block have sums of 0, by which a slope may divide.
        further = _beside(asked.further)
        gradient += jnp.where(further == 0, 0, further * slope)
    return jnp.where(tile.own, gradient, 0)


def _log_probabilities(tile, normalisers):
    """Of a tile's entries, the student's and by view the teachers'."""

    def of(reader):
        top, log_mass = normalisers[reader]
        return tile.logits[reader] - _beside(top) - _beside(log_mass)

    return of(OWN), {view: of(view) for view in tile.logits if view != OWN}


def _beside(values):
    """Values [B, T] beside a tile's entries."""
    return values[..., None, None]


class _Asked(NamedTuple):
    """Cotangents of the moments, None where no gradient comes from."""

    student: Reading
    views: dict[str, Compared]
    further: Array | None


def _asked(cotangents):
    """The same with None where no gradient comes from."""
    return type(cotangents)(*(None if isinstance(x, SymbolicZero) else x for x in cotangents))


def _reads_logits(of_view: Compared) -> bool:
    """Whether a gradient flows through what both logits of an entry make."""
    return of_view.reverse_kl is not None or of_view.forward_kl is not None


_moments.defvjp(_forward, _backward, symbolic_zeros=True)
