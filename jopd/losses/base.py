"""What every method shares: its description, the two pure stages that a loss is made of, and their
plain-array entry.

    vocabulary stage   logits [*n, V] of student and teacher views  ->  per-token terms [*n]   alone sees the vocabulary
    time stage         per-token terms [B, T]                       ->  sums and counts

A method writes `token_terms` and `reduce`; whoever runs it calls `vocabulary_stage` and
`time_stage`, which hold what
no method should have to remember: the teacher's logits carry no gradient, and what stands outside
the mask, NaN included, does not exist.

The time stage may also ask for `inputs`, arrays [B, T] or [B, 1] that others provide under these
names:

    behaviour_logp    log-probability of each token when it was sampled
    truncated         1 where the length limit ended the row, 0 where a stop token did
    reward            what the task's verifier says of the row's answer, in [0, 1]
    group_advantage   that reward, less the mean over the prompt's samples, divided by their spread
    step              optimiser steps done before this batch's first
    weight            a factor on each token's loss, by whoever wants to stress or to silence tokens; absent, it is 1

What needs the whole batch, or decides what is counted, and depends on logits comes from a scoring
pass without gradient: a method's `scoring` is its vocabulary stage and `prepare` makes inputs of
its terms.
"""

import abc
import difflib
import math
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar, Literal, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray, Shaped

from jopd.losses.vocabulary import accumulator

Logits = Float[Array, "*n V"]
Views = Mapping[str, Logits]
Tokens = Int[Array, "*n"]
Mask = Bool[Array, "B T"]
Inputs = Mapping[str, Shaped[Array, "..."]]
Terms = dict[str, Float[Array, "..."]]
# Per-token values, and where they count.
Profiles = dict[str, tuple[Shaped[Array, "B T"], Mask]]


class Total(NamedTuple):
    """A sum and the count that divides it, kept apart until every micro-batch and device has added
    its own.
    """

    sum: Float[Array, ""]
    count: Float[Array, ""]

    def mean(self) -> Float[Array, "*shape"]:
        return share(self.sum, self.count)


def share(
    sum: Float[Array | np.ndarray, "*shape"], count: Float[Array | np.ndarray, "*shape"]
) -> Float[Array, "*shape"]:
    """sum / count, and 0 where nothing was counted; a count of weights may be less than 1."""
    return jnp.asarray(sum) / jnp.where(count > 0, count, 1)


class LossTerm(NamedTuple):
    """One summand of a loss, coefficient * sum / count."""

    coefficient: float
    sum: Float[Array, ""]
    count: Float[Array, ""]


Sums = tuple[dict[str, LossTerm], dict[str, Total]]


class Places(NamedTuple):
    """Where windows begin: at the token of that index, after all before it. The last column is the
    probe.
    """

    positions: Int[Array, "B W"]
    valid: Bool[Array, "B W"]


class Window(NamedTuple):
    """What one model wrote at the places, row by row.

    Attributes:
      tokens, mask: [B * W, K]; the mask is off behind a stop token.
      embeddings: [B * W, K, d], the student's of the tokens, whoever wrote them.
    """

    tokens: Int[Array, "R K"]
    mask: Bool[Array, "R K"]
    embeddings: Float[Array, "R K d"]


class Compared(NamedTuple):
    """What the windows are good for.

    Attributes:
      tokens, mask: [B * M, K], the stream of trajectories: row b's are b * M to b * M + M - 1, and
        they go on from the first M places, the probe's left out.
      extras: the stream's.
      inputs: more inputs of the method's own time stage; a `weight` multiplies one that is there
        already.
      state: the method's next.
      metrics: of the batch.
      points: [B, W] each, of every place: `transport` (D_OT), `divergence` (D) and `compared`
        (whether the two count).
    """

    tokens: Int[Array, "R K"]
    mask: Bool[Array, "R K"]
    extras: dict[str, Array]
    inputs: dict[str, Float[Array, "B T"]]
    state: dict[str, Array]
    metrics: dict[str, Total]
    points: dict[str, Shaped[Array, "B W"]]


class Variables(NamedTuple):
    """A method in the six words of the survey (arXiv:2606.22793)."""

    state: str
    support: str
    credit: str
    routing: str
    gates: str
    regularisation: str


# The view of the student as it was at the start of the run; every other view is the teacher's.
INITIAL = "initial"

INPUTS = ("behaviour_logp", "truncated", "reward", "group_advantage", "step")


@runtime_checkable
class Stage(Protocol):
    """A vocabulary stage: every method has one, and whoever only measures may bring their own."""

    def token_terms(
        self, student_logits: Logits, teacher_logits: Views, tokens: Tokens, extras: Inputs
    ) -> Terms:
        """Per-token terms, [*n] or [*n, k] each, of logits on any leading axes."""
        ...


class Loss(abc.ABC):
    """The two pure functions of one stream of sequences, and what they read.

    Attributes:
      views: the teacher contexts whose logits the vocabulary stage reads. "initial" is the student
        as it was at the start of the run, in the student's own context; every other view is the
        teacher's.
      extras: per-token arrays [B, T, ...] that the vocabulary stage reads besides logits and
        tokens.
      inputs: arrays [B, T] or [B, 1], of those named in INPUTS, that the time stage reads besides
        the terms.
      module_inputs: those that `apply_modules` makes, and that plain arrays stand in for in
        `evaluate`.
      ordered: whether a token's place counts, so that masks must be on from column 0 up to a row's
        last token.
      why_not_zero: why loss or gradient are not 0 where student and teacher say the same in every
        view; empty where they are.
    """

    name: ClassVar[str]
    views: tuple[str, ...] = ()
    extras: tuple[str, ...] = ()
    inputs: tuple[str, ...] = ()
    module_inputs: tuple[str, ...] = ()
    ordered: bool = False
    why_not_zero: str = ""

    @property
    def vanishes_at_teacher(self) -> bool:
        return not self.why_not_zero

    @abc.abstractmethod
    def token_terms(
        self, student_logits: Logits, teacher_logits: Views, tokens: Tokens, extras: Inputs
    ) -> Terms:
        """Vocabulary stage, differentiable in the student's logits: per-token terms, [*n] or [*n,
        k] each.
        """

    @abc.abstractmethod
    def reduce(self, terms: Terms, mask: Mask, inputs: Inputs) -> Sums:
        """Time stage: the loss's summands and the metrics. Counts depend on mask and inputs alone,
        never on terms.
        """

    def profiled(self, terms: Terms, mask: Mask, inputs: Inputs) -> Profiles:
        """What is worth a profile along the completion besides what every method has: values, and
        where they count.
        """
        del terms, mask, inputs
        return {}

    def scoring(self) -> Stage | None:
        """The vocabulary stage of a pass without gradient over the whole batch, where `prepare`
        needs one.
        """
        return None

    def prepare(self, terms: Terms, mask: Mask, inputs: Inputs) -> dict[str, Array]:
        """More inputs [B, T] or [B, 1] for the time stage, of the scoring pass's terms."""
        del terms, mask, inputs
        return {}


class Method(Loss):
    """A way to turn a teacher's judgement into a loss: a frozen dataclass of settings with two pure
    functions.

    Attributes:
      name: what the command line and the registry call it.
      source: the paper or report, and the grade of what is implemented (P read there, S secondary
        readings, R reconstruction).
      route: how the teacher's judgement becomes a gradient.
      aggregation: what the per-token loss is divided by.
      identity_settings: those under which the identity check sees every token, where the usual ones
        let none through.
      shown: inputs of `prepare`, [B, T], that are worth a picture.
      run_defaults: settings of a run that the method's paper has otherwise than the usual one, as
        ("group.name", value); they hold where the method is chosen by its name alone.
      on_policy_share: the share of completions that the student writes; the others are references.
      updates: optimiser steps on one batch of completions.
      teacher_update: "frozen" keeps the teacher as it was loaded, "ema" lets it follow the student,
        "live" is the student itself.
      guided_share: the share of the student's completions that are sampled with the privileged
        context in the prompt. They are scored without it, like the others.
      guided_writer: who samples those, the student as it is now or the teacher.
      modules_learning_rate: of the parameters that `init_modules` makes.
      windows: places in a completion, besides one probe, from which student and teacher write on; 0
        for most methods.
      window_tokens: how much they write there.
    """

    source: ClassVar[str]
    route: ClassVar[str] = "direct: a divergence, differentiated"
    run_defaults: ClassVar[tuple[tuple[str, Any], ...]] = ()
    identity_settings: ClassVar[tuple[tuple[str, Any], ...]] = ()
    shown: tuple[str, ...] = ()
    views: tuple[str, ...] = ("teacher",)
    on_policy_share: float = 1.0
    updates: int = 1
    teacher_update: Literal["frozen", "ema", "live"] = "frozen"
    guided_share: float = 0.0
    guided_writer: Literal["student", "teacher"] = "student"
    modules_learning_rate: float = 1e-3
    windows: int = 0
    window_tokens: int = 0

    @property
    def aggregation(self) -> Literal["token mean", "row sum"]:
        return "token mean"

    @property
    def completions(self) -> Literal["student", "reference", "mixed"]:
        """Who writes the completions."""
        return (
            "student"
            if self.on_policy_share == 1
            else "mixed"
            if self.on_policy_share > 0
            else "reference"
        )

    def init_modules(self, width: int, key: PRNGKeyArray) -> dict[str, Array]:
        """Parameters, float32, of small modules that the method owns and trains on the student's
        final hidden states.
        """
        del width, key
        return {}

    def apply_modules(
        self, modules: Mapping[str, Array], hidden: Float[Array, "B S d"], mask: Mask
    ) -> dict[str, Float[Array, "B _"]]:
        """More inputs for the time stage, of the modules' parameters and the hidden states.

        `hidden` has T + 1 columns, S = T + 1: column t predicts token t, the last one stands after
        token T. It carries the student's gradient: detach it unless that is meant.
        """
        del modules, hidden, mask
        return {}

    def init_state(self) -> dict[str, Array]:
        """What the method remembers from step to step; part of the checkpoint."""
        return {}

    def choose_windows(self, inputs: Inputs, mask: Mask, noise: Float[Array, "B T"]) -> Places:
        """Where both models write on, of what `prepare` made and uniform random numbers; for
        methods with windows.
        """
        raise NotImplementedError(f"{self.name} has no windows")

    def compare_windows(
        self,
        places: Places,
        student: Window,
        teacher: Window,
        inputs: Inputs,
        mask: Mask,
        state: Mapping[str, Array],
    ) -> Compared:
        """What the windows are good for: the stream "windows", more inputs, and what to remember."""
        raise NotImplementedError(f"{self.name} has no windows")

    @property
    def streams(self) -> Mapping[str, Loss]:
        """The loss on further sequences that grow out of the completions, under their name; its
        summands are added to its own.
        """
        return {}

    @abc.abstractmethod
    def variables(self) -> Variables:
        """Itself, in the survey's six variables, as its settings have it."""


def silence(values: Shaped[Array, "..."], mask: Bool[Array, "..."]) -> Shaped[Array, "..."]:
    """Zeros where the mask, on the leading axes, is off; for what enters a stage, as 0 * NaN in a
    gradient is NaN.
    """
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


def token_mean(values: Float[Array, "B T"], mask: Mask, inputs: Inputs) -> Total:
    """Sum and count of a per-token loss, both under the input `weight` if there is one: a
    (weighted) mean over tokens.
    """
    if "weight" not in inputs:
        return masked_total(values, mask)
    weight = jax.lax.stop_gradient(inputs["weight"]).astype(values.dtype)
    return Total(masked_total(values * weight, mask).sum, masked_total(weight, mask).sum)


def row_sum(values: Float[Array, "B T"], mask: Mask, inputs: Inputs) -> Total:
    """Sum of a per-token loss, under the input `weight` if there is one, and the number of rows
    with a token.

    The aggregation that keeps returns unbiased for a sequence's loss when lengths vary.
    """
    return Total(
        token_mean(values, mask, inputs).sum,
        jnp.any(mask, axis=1).sum(dtype=accumulator(values.dtype)),
    )


def batch_loss(
    terms: Mapping[str, LossTerm], counts: Mapping[str, Float[Array, ""]] | None = None
) -> Float[Array, ""]:
    """Sum of coefficient * sum / count, with a whole batch's `counts` where `terms` are those of a
    micro-batch.
    """
    counts = counts or {name: term.count for name, term in terms.items()}
    shares = [term.coefficient * share(term.sum, counts[name]) for name, term in terms.items()]
    return jnp.stack(shares).sum()


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

    [B, 1] inputs stay as they are: they belong to rows.
    """
    return method.reduce(*_inside(terms, mask, inputs))


def profiled_tokens(
    method: Loss, terms: Terms, mask: Shaped[Array, "B T"], inputs: Inputs
) -> Profiles:
    """What the method has for profiles, of the terms and inputs that its time stage would see."""
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


def whole_batch_counts(
    method: Loss, mask: Shaped[Array, "B T"], inputs: Inputs, extras: Inputs | None = None
) -> dict[str, Float[Array, ""]]:
    """What divides each summand of the loss, from a whole batch's mask and inputs, before there are
    any logits.
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


def check_known(what: str, given: Iterable[str], known: Iterable[str]) -> None:
    """Raises ValueError at the first name in `given` that is not `known`, with the nearest one that
    is.
    """
    known = tuple(known)
    for name in given:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {near[0]!r}? " if near else ""
            raise ValueError(f"unknown {what} {name!r}: {hint}known: {', '.join(known) or 'none'}")


def check_contiguous(mask: Shaped[Array, "B T"]) -> None:
    """Raises ValueError at a mask that is off before a token that is on, unless it is traced and
    cannot be looked at.
    """
    if isinstance(mask, Tracer):
        return
    on = np.asarray(mask).astype(bool)
    holes = np.flatnonzero((on[:, 1:] & ~on[:, :-1]).any(axis=1))
    if holes.size:
        raise ValueError(
            f"the mask of row {holes[0]} is off before a token that is on, but here the order of tokens counts: start "
            "completions at column 0, and silence single tokens with the input `weight`"
        )


def check_temperature(temperature: float) -> None:
    """Raises ValueError unless logits can be divided by it."""
    if not 0 < temperature < math.inf:
        raise ValueError(
            f"temperature={temperature} must be positive and finite: it divides the logits; 1 leaves them as they are"
        )


def _check_names(method, what, given, needed):
    check_known(f"{what} of {method.name}", given, needed)
    missing = [name for name in needed if name not in given]
    if missing:
        raise ValueError(
            f"{method.name} needs the {what}s {', '.join(needed)}; missing: {', '.join(missing)}"
        )
