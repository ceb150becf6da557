"""The two pure stages that a loss is made of.

    vocabulary stage   logits [*n, V] of student and teacher views  ->  terms [*n] of each token
    time stage         terms [B, T]                                 ->  sums and counts

The first alone sees the vocabulary, the second alone sees time. A method writes `token_terms` and
`reduce`; whoever runs it calls `vocabulary_stage` and `time_stage`, which hold what no method
should have to remember: the teacher's logits carry no gradient, and what stands outside the mask,
NaN included, does not exist.

The vocabulary stage of many methods has a tiled form too, of sums over the vocabulary in place of
logits (`jopd.losses.tiled`); `token_terms` is its reference.
"""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Shaped

from jopd.losses.method import Loss
from jopd.losses.types import (
    Inputs,
    Logits,
    LossTerm,
    Mask,
    Profiles,
    Stage,
    Sums,
    Terms,
    Tokens,
    Views,
    share,
)


def vocabulary_stage(
    stage: Stage,
    student_logits: Logits,
    teacher_logits: Views,
    tokens: Tokens,
    mask: Bool[Array, "*n"],
    extras: Inputs,
) -> Terms:
    """The stage's per-token terms; where the mask is off they are those of zeros and carry no
    gradient.

    >>> from jopd import losses
    >>> z, tokens, mask = jnp.zeros((1, 2, 4)), jnp.zeros((1, 2), int), jnp.array([[True, False]])
    >>> terms = vocabulary_stage(losses.get("opd"), z, {"teacher": z}, tokens, mask, {})
    >>> print(terms["student_entropy"].round(3))  # log 4
    [[1.386 1.386]]
    """
    teachers = {
        view: silence(jax.lax.stop_gradient(logits), mask)
        for view, logits in teacher_logits.items()
    }
    extras = {name: silence(values, mask) for name, values in extras.items()}
    return stage.token_terms(silence(student_logits, mask), teachers, silence(tokens, mask), extras)


def time_stage(method: Loss, terms: Terms, mask: Shaped[Array, "B T"], inputs: Inputs) -> Sums:
    """The method's sums and counts; terms and [B, T] inputs are zero outside the mask before the
    method sees them.

    >>> from jopd import losses
    >>> terms, mask = {"divergence": jnp.array([[0.5, 9.0]])}, jnp.array([[True, False]])
    >>> loss, metrics = time_stage(losses.get("opd"), terms, mask, {})
    >>> print(loss["divergence"].sum, loss["divergence"].count)
    0.5 1.0

    [B, 1] inputs stay as they are: they belong to rows.
    """
    return method.reduce(*_inside(terms, mask, inputs))


def profiled_tokens(
    method: Loss, terms: Terms, mask: Shaped[Array, "B T"], inputs: Inputs
) -> Profiles:
    """What the method has for profiles, of the terms and inputs that its time stage would see.

    >>> from jopd import losses
    >>> logp, mask = jnp.log(jnp.array([[0.5, 0.5]])), jnp.ones((1, 2), bool)
    >>> terms = {"student_logp": logp, "teacher_logp": jnp.log(jnp.array([[0.8, 0.2]]))}
    >>> print(profiled_tokens(losses.get("opd_pg"), terms, mask, {})["suppressed"][0])
    [[False  True]]
    """
    return method.profiled(*_inside(terms, mask, inputs))


def _inside(terms: Terms, mask: Shaped[Array, "B T"], inputs: Inputs) -> tuple[Terms, Mask, Inputs]:
    mask = mask.astype(bool)
    of_tokens = lambda values: values.shape[:2] == mask.shape
    terms = {name: silence(values, mask) for name, values in terms.items()}
    inputs = {
        name: silence(values, mask) if of_tokens(values) else values
        for name, values in inputs.items()
    }
    return terms, mask, inputs


def batch_loss(
    terms: Mapping[str, LossTerm], counts: Mapping[str, Float[Array, ""]] | None = None
) -> Float[Array, ""]:
    """Sum of coefficient * sum / count, with a whole batch's `counts` where `terms` are those of a
    micro-batch.

    >>> terms = {"divergence": LossTerm(2.0, jnp.array(3.0), jnp.array(4.0))}
    >>> print(batch_loss(terms), batch_loss(terms, {"divergence": jnp.array(8.0)}))
    1.5 0.75
    """
    counts = counts or {name: term.count for name, term in terms.items()}
    shares = [term.coefficient * share(term.sum, counts[name]) for name, term in terms.items()]
    return jnp.stack(shares).sum()


def whole_batch_counts(
    method: Loss, mask: Shaped[Array, "B T"], inputs: Inputs, extras: Inputs | None = None
) -> dict[str, Float[Array, ""]]:
    """What divides each summand of the loss, from a whole batch's mask and inputs, before there are
    any logits.

    >>> from jopd import losses
    >>> counts = whole_batch_counts(losses.get("opd"), jnp.array([[True, True, False]]), {})
    >>> print(counts["divergence"])
    2.0
    """
    # Only shapes are asked for, so any vocabulary will do that is larger than every top-k.
    logits = jax.ShapeDtypeStruct((*mask.shape, 1 << 16), jnp.float32)
    tokens = jax.ShapeDtypeStruct(mask.shape, jnp.int32)
    terms = jax.eval_shape(
        method.token_terms,
        logits,
        {view: logits for view in method.views},
        tokens,
        dict(extras or {}),
    )
    loss_terms, _ = time_stage(
        method, {name: jnp.zeros(a.shape, a.dtype) for name, a in terms.items()}, mask, inputs
    )
    return {name: term.count for name, term in loss_terms.items()}


def silence(values: Shaped[Array, "..."], mask: Bool[Array, "..."]) -> Shaped[Array, "..."]:
    """Zeros where the mask, on the leading axes, is off; for what enters a stage, as 0 * NaN in a
    gradient is NaN.

    >>> print(silence(jnp.array([[1.0, jnp.nan]]), jnp.array([[True, False]])))
    [[1. 0.]]
    """
    mask = jnp.expand_dims(mask, tuple(range(mask.ndim, values.ndim)))
    return jnp.where(mask, values, jnp.zeros((), values.dtype))
