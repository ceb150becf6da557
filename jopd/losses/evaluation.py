"""A method on plain arrays: the entry for notebooks and tests."""

from collections.abc import Mapping

import jax
from jaxtyping import Array, Float, Int, Shaped

from jopd.losses.checks import check_contiguous, check_known
from jopd.losses.method import Loss
from jopd.losses.stages import batch_loss, time_stage, vocabulary_stage


# Sizes are anonymous in this signature so that the messages below, and not a type checker's, name
# what does not fit.
def evaluate(
    method: Loss,
    student_logits: Float[Array, "_ _ _"],
    teacher_logits: Mapping[str, Float[Array, "_ _ _"]],
    tokens: Int[Array, "_ _"],
    mask: Shaped[Array, "_ _"],
    **inputs: Shaped[Array, "..."],
) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
    """Loss and metrics of a whole batch of plain arrays, both stages at once: the entry for
    notebooks and tests.

    Args:
      method: as `jopd.losses.get` gives it.
      student_logits: [B, T, V]; column t is the distribution that token t was drawn from.
      teacher_logits: {view: [B, T, V]}, exactly the method's views; no gradient flows into them.
      tokens: [B, T] int, the completions.
      mask: [B, T] bool or 0/1, on where a token was written.
      **inputs: the method's `inputs`, `module_inputs` and `extras`, by name, and for any method
        `weight` [B, T].

    Returns:
      The loss, a scalar differentiable in `student_logits`, and the metrics' means.

    Raises:
      ValueError: a view or input is missing or unknown, or a shape does not fit, saying which; a
        mask with a hole where the method needs the tokens' order.
    """
    _check_names(method, "teacher view", teacher_logits, method.views)
    needed = method.inputs + method.module_inputs + method.extras
    _check_names(method, "input", [name for name in inputs if name != "weight"], needed)
    shapes = {"tokens": tokens.shape, "mask": mask.shape}
    shapes |= {name: values.shape[:2] for name, values in inputs.items() if name in method.extras}
    for name, shape in shapes.items():
        if shape != student_logits.shape[:2]:
            raise ValueError(
                f"{name} has shape {shape}, but student_logits {student_logits.shape}: both start with the same [B, T]"
            )
    for view, logits in teacher_logits.items():
        if logits.shape != student_logits.shape:
            raise ValueError(
                f"the teacher view {view!r} has logits {logits.shape}, but the student {student_logits.shape}: "
                "align both at the completion's first token and cut padded vocabulary rows off"
            )
    extras = {name: inputs[name] for name in method.extras}
    mask = mask.astype(bool)
    if method.ordered:
        check_contiguous(mask)
    given = {name: values for name, values in inputs.items() if name not in extras}
    for name, values in given.items():
        if values.shape[:2] not in (shape := tokens.shape, (shape[0], 1)):
            raise ValueError(
                f"the input {name} has shape {values.shape}: give it {shape} or, for each row, {(shape[0], 1)}"
            )
    if (scoring := method.scoring()) is not None:
        detached = jax.lax.stop_gradient(student_logits)
        scored = vocabulary_stage(scoring, detached, teacher_logits, tokens, mask, extras)
        given |= method.prepare(scored, mask, given)
    terms = vocabulary_stage(method, student_logits, teacher_logits, tokens, mask, extras)
    loss_terms, metrics = time_stage(method, terms, mask, given)
    return batch_loss(loss_terms), {name: total.mean() for name, total in metrics.items()}


def _check_names(method, what, given, needed):
    check_known(f"{what} of {method.name}", given, needed)
    missing = [name for name in needed if name not in given]
    if missing:
        raise ValueError(
            f"{method.name} needs the {what}s {', '.join(needed)}; missing: {', '.join(missing)}"
        )
