"""What every method shares: its description, the two pure stages that a loss is made of, and their plain-array entry.

    vocabulary stage   logits [*n, V] of student and teacher views  ->  per-token terms [*n]   alone sees the vocabulary
    time stage         per-token terms [B, T]                       ->  sums and counts

A method writes `token_terms` and `reduce`; whoever runs it calls `vocabulary_stage` and `time_stage`, which hold what
no method should have to remember: the teacher's logits carry no gradient, and what stands outside the mask, NaN
included, does not exist.
"""

import abc
import difflib
from collections.abc import Iterable, Mapping
from typing import ClassVar, Literal, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Shaped

from jopd.losses.vocabulary import accumulator

Logits = Float[Array, "*n V"]
Views = Mapping[str, Logits]
Tokens = Int[Array, "*n"]
Mask = Bool[Array, "B T"]
Inputs = Mapping[str, Shaped[Array, "..."]]
Terms = dict[str, Float[Array, "..."]]


class Total(NamedTuple):
    """A sum and the count that divides it, kept apart until every micro-batch and device has added its own."""

    sum: Float[Array, ""]
    count: Float[Array, ""]

    def mean(self) -> Float[Array, ""]:
        return self.sum / jnp.maximum(self.count, 1)


class LossTerm(NamedTuple):
    """One summand of a loss, coefficient * sum / count."""

    coefficient: float
    sum: Float[Array, ""]
    count: Float[Array, ""]


Sums = tuple[dict[str, LossTerm], dict[str, Total]]


class Variables(NamedTuple):
    """A method in the six words of the survey (arXiv:2606.22793)."""

    state: str
    support: str
    credit: str
    routing: str
    gates: str
    regularisation: str


@runtime_checkable
class Stage(Protocol):
    """A vocabulary stage: every method has one, and whoever only measures may bring their own."""

    def token_terms(self, student_logits: Logits, teacher_logits: Views, tokens: Tokens, extras: Inputs) -> Terms:
        """Per-token terms, [*n] or [*n, k] each, of logits on any leading axes."""
        ...


class Method(abc.ABC):
    """A way to turn a teacher's judgement into a loss: a frozen dataclass of settings with two pure functions.

    Attributes:
      name: what the command line and the registry call it.
      source: the paper or report, and the grade of what is implemented (P read there, S secondary readings, R
        reconstruction).
      views: the teacher contexts whose logits the vocabulary stage reads.
      extras: per-token arrays [B, T, ...] that the vocabulary stage reads besides logits and tokens.
      on_policy_share: the share of completions that the student writes; the others are references.
      updates: optimiser steps on one batch of completions.
      teacher_update: "frozen" keeps the teacher as it was loaded, "ema" lets it follow the student, "live" is the
        student itself.
    """

    name: ClassVar[str]
    source: ClassVar[str]
    views: tuple[str, ...] = ("teacher",)
    extras: tuple[str, ...] = ()
    on_policy_share: float = 1.0
    updates: int = 1
    teacher_update: Literal["frozen", "ema", "live"] = "frozen"

    @property
    def completions(self) -> Literal["student", "reference", "mixed"]:
        """Who writes the completions."""
        return "student" if self.on_policy_share == 1 else "mixed" if self.on_policy_share > 0 else "reference"

    @property
    def inputs(self) -> tuple[str, ...]:
        """Arrays [B, T] (or [B, 1]) that the time stage reads besides the terms."""
        return ()

    @abc.abstractmethod
    def token_terms(self, student_logits: Logits, teacher_logits: Views, tokens: Tokens, extras: Inputs) -> Terms:
        """Vocabulary stage, differentiable in the student's logits: per-token terms, [*n] or [*n, k] each."""

    @abc.abstractmethod
    def reduce(self, terms: Terms, mask: Mask, inputs: Inputs) -> Sums:
        """Time stage: the loss's summands and the metrics. Counts depend on mask and inputs alone, never on terms."""

    @abc.abstractmethod
    def variables(self) -> Variables:
        """Itself, in the survey's six variables, as its settings have it."""


def silence(values: Shaped[Array, "..."], mask: Bool[Array, "..."]) -> Shaped[Array, "..."]:
    """Zeros where the mask, on the leading axes, is off; for what enters a stage, as 0 * NaN in a gradient is NaN."""
    mask = jnp.expand_dims(mask, tuple(range(mask.ndim, values.ndim)))
    return jnp.where(mask, values, jnp.zeros((), values.dtype))


def masked_total(values: Shaped[Array, "B T"], mask: Mask) -> Total:
    """Sum of the values (numbers, or true and false) where the mask is on, and how many those are."""
    dtype = accumulator(values.dtype)
    # where, not times: 0 * inf is NaN.
    return Total(jnp.where(mask, values.astype(dtype), 0).sum(), mask.sum(dtype=dtype))


def masked_totals(terms: Terms, mask: Mask) -> dict[str, Total]:
    """`masked_total` of every [B, T] term."""
    return {name: masked_total(values, mask) for name, values in terms.items()}


def batch_loss(terms: Mapping[str, LossTerm], counts: Mapping[str, Float[Array, ""]] | None = None) -> Float[Array, ""]:
    """Sum of coefficient * sum / count, with a whole batch's `counts` where `terms` are those of a micro-batch."""
    counts = counts or {name: term.count for name, term in terms.items()}
    shares = [term.coefficient * term.sum / jnp.maximum(counts[name], 1) for name, term in terms.items()]
    return jnp.stack(shares).sum()


def vocabulary_stage(
    stage: Stage, student_logits: Logits, teacher_logits: Views, tokens: Tokens, mask: Bool[Array, "*n"], extras: Inputs
) -> Terms:
    """The stage's per-token terms; where the mask is off they are those of zeros and carry no gradient."""
    teachers = {view: silence(jax.lax.stop_gradient(logits), mask) for view, logits in teacher_logits.items()}
    extras = {name: silence(values, mask) for name, values in extras.items()}
    return stage.token_terms(silence(student_logits, mask), teachers, silence(tokens, mask), extras)


def time_stage(method: Method, terms: Terms, mask: Shaped[Array, "B T"], inputs: Inputs) -> Sums:
    """The method's sums and counts; terms and [B, T] inputs are zero outside the mask before the method sees them."""
    mask = mask.astype(bool)
    terms = {name: silence(values, mask) for name, values in terms.items()}
    inputs = {
        name: silence(values, mask) if values.shape[:2] == mask.shape else values for name, values in inputs.items()
    }
    return method.reduce(terms, mask, inputs)


def whole_batch_counts(
    method: Method, mask: Shaped[Array, "B T"], inputs: Inputs, extras: Inputs | None = None
) -> dict[str, Float[Array, ""]]:
    """What divides each summand of the loss, from a whole batch's mask and inputs, before there are any logits."""
    # Only shapes are asked for, so any vocabulary will do that is larger than every top-k.
    logits = jax.ShapeDtypeStruct((*mask.shape, 1 << 16), jnp.float32)
    tokens = jax.ShapeDtypeStruct(mask.shape, jnp.int32)
    terms = jax.eval_shape(
        method.token_terms, logits, {view: logits for view in method.views}, tokens, dict(extras or {})
    )
    loss_terms, _ = time_stage(method, {name: jnp.zeros(a.shape, a.dtype) for name, a in terms.items()}, mask, inputs)
    return {name: term.count for name, term in loss_terms.items()}


# Sizes are anonymous in this signature so that the messages below, and not a type checker's, name what does not fit.
def evaluate(
    method: Method,
    student_logits: Float[Array, "_ _ _"],
    teacher_logits: Mapping[str, Float[Array, "_ _ _"]],
    tokens: Int[Array, "_ _"],
    mask: Shaped[Array, "_ _"],
    **inputs: Shaped[Array, "..."],
) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
    """Loss and metrics of a whole batch of plain arrays, both stages at once: the entry for notebooks and tests.

    Args:
      method: as `jopd.losses.get` gives it.
      student_logits: [B, T, V]; column t is the distribution that token t was drawn from.
      teacher_logits: {view: [B, T, V]}, exactly the method's views; no gradient flows into them.
      tokens: [B, T] int, the completions.
      mask: [B, T] bool or 0/1, on where a token was written.
      **inputs: the method's `inputs` and `extras`, by name.

    Returns:
      The loss, a scalar differentiable in `student_logits`, and the metrics' means.

    Raises:
      ValueError: a view or input is missing or unknown, or a shape does not fit, saying which.
    """
    _check_names(method, "teacher view", teacher_logits, method.views)
    _check_names(method, "input", inputs, method.inputs + method.extras)
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
    terms = vocabulary_stage(method, student_logits, teacher_logits, tokens, mask.astype(bool), extras)
    loss_terms, metrics = time_stage(method, terms, mask, {name: inputs[name] for name in method.inputs})
    return batch_loss(loss_terms), {name: total.mean() for name, total in metrics.items()}


def check_known(what: str, given: Iterable[str], known: Iterable[str]) -> None:
    """Raises ValueError at the first name in `given` that is not `known`, with the nearest one that is."""
    known = tuple(known)
    for name in given:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {near[0]!r}? " if near else ""
            raise ValueError(f"unknown {what} {name!r}: {hint}known: {', '.join(known) or 'none'}")


def check_temperature(temperature: float) -> None:
    """Raises ValueError unless logits can be divided by it."""
    if not temperature > 0:
        raise ValueError(
            f"temperature={temperature} must be positive: it divides the logits; 1 leaves them as they are"
        )


def _check_names(method, what, given, needed):
    check_known(f"{what} of {method.name}", given, needed)
    missing = [name for name in needed if name not in given]
    if missing:
        raise ValueError(f"{method.name} needs the {what}s {', '.join(needed)}; missing: {', '.join(missing)}")
