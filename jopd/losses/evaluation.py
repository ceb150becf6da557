"""A method on plain arrays: the entry for notebooks and tests."""

from collections.abc import Iterable, Mapping
from typing import NamedTuple

import jax
from jaxtyping import Array, Float, Int, Shaped

from jopd.losses.checks import check_contiguous, check_known, check_written
from jopd.losses.method import Loss, Method
from jopd.losses.stages import batch_loss, time_stage, vocabulary_stage


class Sequences(NamedTuple):
    """Further sequences that a method learns from, such as the windows of TOPD; as `evaluate` takes
    them, with their own batch size R and length K.
    """

    student_logits: Float[Array, "R K V"]
    teacher_logits: Mapping[str, Float[Array, "R K V"]]
    tokens: Int[Array, "R K"]
    mask: Shaped[Array, "R K"]
    inputs: Mapping[str, Shaped[Array, "..."]] = {}


# Sizes are anonymous in this signature so that the messages below, and not a type checker's, name
# what does not fit.
def evaluate(
    method: Loss,
    student_logits: Float[Array, "_ _ _"],
    teacher_logits: Mapping[str, Float[Array, "_ _ _"]],
    tokens: Int[Array, "_ _"],
    mask: Shaped[Array, "_ _"],
    *,
    streams: Mapping[str, Sequences] | None = None,
    **inputs: Shaped[Array, "..."],
) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
    """Loss and metrics of a whole batch of plain arrays, both stages at once: the entry for
    notebooks and tests.

    >>> import jax.numpy as jnp
    >>> from jopd import losses
    >>> student, teacher = jnp.zeros((1, 1, 2)), jnp.log(jnp.array([[[0.75, 0.25]]]))
    >>> tokens, mask = jnp.zeros((1, 1), int), jnp.ones((1, 1), bool)
    >>> loss, _ = losses.evaluate(
    ...     losses.get("opd"), student, {"teacher": teacher}, tokens, mask)
    >>> round(float(loss), 4)
    0.1438

    Args:
      method: as `jopd.losses.get` gives it.
      student_logits: [B, T, V]; column t is the distribution that token t was drawn from.
      teacher_logits: {view: [B, T, V]}, exactly the method's views; no gradient flows into them.
      tokens: [B, T] int, the completions.
      mask: [B, T] bool or 0/1, on where a token was written.
      streams: the further sequences that the method's `streams` name, which a trainer draws and
        plain arrays don't contain; {} for a batch without any.
      **inputs: the method's `inputs`, `module_inputs` and `extras`, by name, and for any method
        `weight` [B, T].

    Returns:
      The loss, a scalar differentiable in `student_logits`, and the metrics' means; those of a
      stream carry its name in front.

    Raises:
      ValueError: a view, input or stream is missing or unknown, or a shape does not fit, saying
        which; a mask that is not of 0 and 1, or has a hole where the method needs the tokens'
        order; an id outside the vocabulary. What is traced is not looked into.
    """
    _check_names(method, "teacher view", teacher_logits, method.views)
    needed = method.inputs + method.module_inputs + method.extras
    _check_names(method, "input", [name for name in inputs if name != "weight"], needed)
    _check_shapes(method, student_logits, teacher_logits, tokens, mask, inputs)
    check_written(tokens, mask, student_logits.shape[-1])
    mask = mask.astype(bool)
    if method.ordered:
        check_contiguous(mask)
    extras = {name: inputs[name] for name in method.extras}
    of_time = {name: values for name, values in inputs.items() if name not in extras}
    if (scoring := method.scoring()) is not None:
        detached = jax.lax.stop_gradient(student_logits)
        scored = vocabulary_stage(scoring, detached, teacher_logits, tokens, mask, extras)
        of_time |= method.prepare(scored, mask, of_time)
    terms = vocabulary_stage(method, student_logits, teacher_logits, tokens, mask, extras)
    loss_terms, totals = time_stage(method, terms, mask, of_time)
    loss, metrics = batch_loss(loss_terms), {name: it.mean() for name, it in totals.items()}
    for name, (stream, grown) in _streams(method, streams).items():
        share, of_stream = evaluate(
            stream,
            grown.student_logits,
            grown.teacher_logits,
            grown.tokens,
            grown.mask,
            streams={},
            **grown.inputs,
        )
        loss += share
        metrics |= {f"{name}_{key}": value for key, value in of_stream.items()}
    return loss, metrics


def _streams(
    method: Loss, streams: Mapping[str, Sequences] | None
) -> dict[str, tuple[Loss, Sequences]]:
    """Each stream's loss and its sequences, which must be said where a method has any."""
    learnt_from = method.streams if isinstance(method, Method) else {}
    if learnt_from and streams is None:
        names = ", ".join(learnt_from)
        raise ValueError(
            f"{method.name} learns from further sequences too ({names}), which are drawn while "
            "training: give them as `streams`, or streams={} for a batch without any"
        )
    check_known(f"stream of {method.name}", streams or {}, learnt_from)
    return {name: (learnt_from[name], grown) for name, grown in (streams or {}).items()}


def _check_names(method: Loss, what: str, names: Iterable[str], needed: tuple[str, ...]) -> None:
    check_known(f"{what} of {method.name}", names, needed)
    if missing := [name for name in needed if name not in names]:
        raise ValueError(
            f"{method.name} needs the {what}s {', '.join(needed)}; missing: {', '.join(missing)}"
        )


def _check_shapes(method: Loss, student_logits, teacher_logits, tokens, mask, inputs) -> None:
    by_token = {"tokens": tokens.shape, "mask": mask.shape}
    by_token |= {name: x.shape[:2] for name, x in inputs.items() if name in method.extras}
    for name, shape in by_token.items():
        if shape != student_logits.shape[:2]:
            raise ValueError(
                f"{name} has shape {shape}, but student_logits {student_logits.shape}: "
                "both start with the same [B, T]"
            )
    for view, logits in teacher_logits.items():
        if logits.shape != student_logits.shape:
            raise ValueError(
                f"the teacher view {view!r} has logits {logits.shape}, but the student "
                f"{student_logits.shape}: align both at the completion's first token and cut "
                "padded vocabulary rows off"
            )
    rows, length = tokens.shape
    for name, values in inputs.items():
        if name not in method.extras and values.shape[:2] not in ((rows, length), (rows, 1)):
            raise ValueError(
                f"the input {name} has shape {values.shape}: give it {(rows, length)} or, "
                f"for each row, {(rows, 1)}"
            )
