"""Last phase: the loss moves the student.

Micro-batches are scanned; each back-propagates its sums divided by the whole batch's counts, so
their number changes memory and not the result.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float

from jopd import models
from jopd.diagnostics.profiles import of_a_batch, quarters, update_size
from jopd.diagnostics.tokens import Diagnostics
from jopd.losses.method import Loss
from jopd.losses.stages import profiled_tokens, time_stage, whole_batch_counts
from jopd.losses.types import Inputs, Profiles, Terms, Total, share
from jopd.losses.vocabulary import log_prob_of, log_softmax
from jopd.training.batch import Batch, batch_rows, in_width, parts, stream_of, whole
from jopd.training.program import Program
from jopd.training.score import completion_hidden, terms, with_branches
from jopd.training.state import Fixed, Params, TrainState, union


class Outcome(NamedTuple):
    """What a forward pass leaves behind besides its loss.

    Attributes:
      shares: the loss's summands, each coefficient * sum / count.
      totals: the metrics.
      finite: per row, whether all its terms are finite numbers.
      diagnostics: per-token terms that only diagnostics read, empty where nobody watches.
      profiles: of the method.
    """

    shares: dict[str, Float[Array, "*parts"]]
    totals: dict[str, Total]
    finite: Bool[Array, "*parts b"]
    diagnostics: Terms
    profiles: Profiles


def update(
    program: Program, state: TrainState, fixed: Fixed, batch: Batch, *, watch: bool = False
) -> tuple[TrainState, dict[str, Any]]:
    """One optimiser step on a scored batch.

    Returns:
      The next state, and the metrics: scalars; `finite_rows` `[B]`, false where a row's terms are
      not finite numbers; and with `watch` the `diagnostics`, a dictionary of scalars and profiles,
      and `rescored` `[B, T]`, what the trainer makes of each token at the sampling temperature.
    """
    batch = batch_rows(batch)
    gradient, outcome = differentiate(program, state, fixed, batch, watch)
    metrics = measured(gradient, outcome)
    if watch and program.diagnostics is not None:
        diagnostics, profiles = whole((outcome.diagnostics, outcome.profiles))
        metrics["rescored"] = diagnostics.pop("rescored")
        edges = quarters(program.decoding.max_new_tokens)
        metrics["diagnostics"] = of_a_batch(diagnostics, batch.tokens, batch.mask, edges, profiles)
    return moved(program, state, gradient), metrics


def differentiate(
    program: Program, state: TrainState, fixed: Fixed, batch: Batch, watch: bool
) -> tuple[dict[str, Params], Outcome]:
    """The gradient of the whole batch's loss, and each micro-batch's outcome, stacked."""
    streams = {
        name: Stream(
            method,
            counts=counts(program, method, stream_of(batch, name), state),
            heads=program.heads(state, fixed, method.views),
            diagnostics=program.diagnostics if watch and not name else None,
        )
        for name, method in {"": program.method, **program.method.streams}.items()
    }

    def loss(trained: dict[str, Params], part: Batch) -> tuple[Float[Array, ""], Outcome]:
        student = models.merge(program.student, union(fixed.base, trained["student"]))
        hidden = hidden_by_stream(student, part)
        outcomes = {
            name: forward(
                program,
                stream,
                student,
                {} if name else trained["modules"],
                stream_of(part, name),
                hidden[name],
            )
            for name, stream in streams.items()
        }
        outcome = merged(outcomes)
        return jnp.stack([*outcome.shares.values()]).sum(), outcome

    def of_part(part: Batch):
        (_, outcome), gradient = jax.value_and_grad(loss, has_aux=True)(trained, part)
        of_tokens = (outcome.diagnostics, outcome.profiles)
        return of_tokens, (outcome._replace(diagnostics={}, profiles={}), gradient)

    def accumulate(gradient, part: Batch):
        (diagnostics, profiles), (outcome, gradient_of_part) = in_width(of_part, part, count=count)
        outcome = outcome._replace(diagnostics=diagnostics, profiles=profiles)
        return jax.tree.map(jnp.add, gradient, gradient_of_part), outcome

    trained, count = {"student": state.params, "modules": state.modules}, program.micro_batches
    zero = jax.tree.map(jnp.zeros_like, trained)
    return jax.lax.scan(accumulate, zero, parts(batch, count, len(batch.tokens)))


@dataclasses.dataclass(frozen=True)
class Stream:
    """A loss, and what of the whole batch it needs for a part of it.

    Attributes:
      counts: what divides each of its summands.
      heads: the output head of each view's reader.
      diagnostics: measured of the same logits, if somebody watches.
    """

    loss: Loss
    counts: Mapping[str, Float[Array, ""]]
    heads: dict[str, Float[Array, "_ _"]]
    diagnostics: Diagnostics | None


def forward(
    program: Program,
    stream: Stream,
    student: models.Transformer,
    modules: Params,
    part: Batch,
    hidden: Float[Array, "b s d"],
) -> Outcome:
    """Both stages of one stream's loss on a micro-batch."""
    loss, watched = stream.loss, stream.diagnostics
    temperature = program.decoding.sampling.temperature or 1.0
    stage = loss if watched is None else Watched(loss, watched, temperature)
    # Measuring holds several times as many logits: in smaller chunks a watched step needs no more
    # memory than others.
    chunks = 1 if watched is None else 8
    of_both = terms(program, student, hidden[:, :-1], stream.heads, part, stage, chunks=chunks)
    own_terms, diagnostics = apart(of_both)
    inputs = part.inputs
    if modules:
        inputs = inputs | program.method.apply_modules(modules, hidden, part.mask)
    profiles: Profiles = {}
    if diagnostics:
        diagnostics, profiles = observe(loss, own_terms, diagnostics, part, inputs)
    summands, totals = time_stage(loss, own_terms, part.mask, inputs)
    shares = {
        name: term.coefficient * share(term.sum, stream.counts[name])
        for name, term in summands.items()
    }
    return Outcome(shares, totals, finite_rows(own_terms, part.mask), diagnostics, profiles)


def merged(outcomes: Mapping[str, Outcome]) -> Outcome:
    """The completions' outcome with those of the streams that grew out of them."""
    whole_loss = outcomes[""]
    shares, totals, finite = dict(whole_loss.shares), dict(whole_loss.totals), whole_loss.finite
    for name, outcome in outcomes.items():
        if name:
            shares |= outcome.shares
            totals |= {f"{name}_{key}": total for key, total in outcome.totals.items()}
            finite &= outcome.finite.reshape(finite.shape[0], -1).all(axis=1)
    return whole_loss._replace(shares=shares, totals=totals, finite=finite)


def moved(program: Program, state: TrainState, gradient: dict[str, Params]) -> TrainState:
    """The state after the optimiser's step; the averaged teacher follows, if there is one."""
    trained = {"student": state.params, "modules": state.modules}
    changes, optimizer = program.optimizer.update(gradient, state.optimizer, trained)
    after: Any = optax.apply_updates(trained, changes)
    follow = lambda average, value: average + program.ema_rate * (value - average)
    ema = state.ema_teacher
    return state._replace(
        params=after["student"],
        modules=after["modules"],
        optimizer=optimizer,
        ema_teacher=jax.tree.map(follow, ema, after["student"]) if ema else ema,
        step=state.step + 1,
    )


def measured(gradient: dict[str, Params], outcome: Outcome) -> dict[str, Any]:
    """The step's metrics, of all micro-batches together."""
    shares = {name: value.sum() for name, value in outcome.shares.items()}
    metrics: dict[str, Any] = {
        name: Total(total.sum.sum(axis=0), total.count.sum(axis=0)).mean()
        for name, total in outcome.totals.items()
    }
    if len(shares) > 1:
        metrics |= {f"loss_{name}": value for name, value in shares.items()}
    metrics["loss"] = sum(shares.values())
    metrics["gradient_norm"] = optax.tree.norm(gradient["student"])
    if gradient["modules"]:
        metrics["modules_gradient_norm"] = optax.tree.norm(gradient["modules"])
    return metrics | {"finite_rows": whole(outcome.finite)}


def counts(
    program: Program, loss: Loss, batch: Batch, state: TrainState
) -> dict[str, Float[Array, ""]]:
    """What divides each summand of a loss, from the whole batch."""
    inputs = batch.inputs
    if loss.module_inputs:
        rows, length = batch.tokens.shape
        hidden = jax.ShapeDtypeStruct((rows, length + 1, program.width), jnp.float32)
        made = jax.eval_shape(program.method.apply_modules, state.modules, hidden, batch.mask)
        inputs = inputs | jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), made)
    return whole_batch_counts(loss, batch.mask, inputs, batch.extras)


# Before the names of the terms that only diagnostics read.
WATCHED = "diagnostics/"


@dataclasses.dataclass(frozen=True)
class Watched:
    """A loss's vocabulary stage and, of the very same logits, the diagnostics' and the sampled
    token's log-probability, at the sampling temperature.
    """

    loss: Loss
    diagnostics: Diagnostics
    temperature: float

    def token_terms(self, student_logits, teacher_logits, tokens, extras) -> Terms:
        of_loss = self.loss.token_terms(student_logits, teacher_logits, tokens, extras)
        watched = self.diagnostics.token_terms(student_logits, teacher_logits, tokens, {})
        logp = log_softmax(jax.lax.stop_gradient(student_logits), self.temperature)
        watched["rescored"] = log_prob_of(logp, tokens)
        return of_loss | {f"{WATCHED}{name}": values for name, values in watched.items()}


def apart(of_both: Terms) -> tuple[Terms, Terms]:
    """The loss's terms, and the diagnostics' under their plain names."""
    own_terms = {name: x for name, x in of_both.items() if not name.startswith(WATCHED)}
    diagnostics = {
        name.removeprefix(WATCHED): x for name, x in of_both.items() if name.startswith(WATCHED)
    }
    return own_terms, diagnostics


def observe(
    loss: Loss, own_terms: Terms, diagnostics: Terms, part: Batch, inputs: Inputs
) -> tuple[Terms, Profiles]:
    """The diagnostics with what they need of the loss, and the loss's profiles; no gradient."""
    own_terms, inputs = jax.lax.stop_gradient((own_terms, inputs))
    size = update_size(loss, own_terms, part.mask, inputs, diagnostics["log_ratio"])
    profiles = profiled_tokens(loss, own_terms, part.mask, inputs)
    return diagnostics | {"update_size": size}, profiles


def hidden_by_stream(model: models.Transformer, part: Batch) -> dict[str, Float[Array, "_ _ d"]]:
    """`completion_hidden` of the completions, under the empty name, and of the stream that grew out
    of them, if there is one.
    """
    context = part.contexts["student"]
    if not part.streams:
        return {"": completion_hidden(model, context, part.tokens, part.mask)}
    ((name, stream),) = part.streams.items()
    assert stream.starts is not None
    hidden, of_branches = with_branches(
        model, context, part.tokens, part.mask, stream.tokens, stream.mask, stream.starts
    )
    of_completion = hidden[:, context.tokens.shape[1] - 1 :]
    before = jnp.take_along_axis(of_completion, stream.starts[..., None], axis=1)
    before = before.reshape(len(stream.tokens), 1, -1)
    return {"": of_completion, name: jnp.concatenate([before, of_branches], axis=1)}


def finite_rows(of_tokens: Terms, mask: Bool[Array, "b t"]) -> Bool[Array, " b"]:
    """Per row, whether every term is a finite number at every token that counts."""

    def of(term):
        finite = jnp.isfinite(term).reshape(*mask.shape, -1).all(axis=-1)
        return jnp.all(finite | ~mask, axis=1)

    return jnp.stack([of(term) for term in of_tokens.values()]).all(axis=0)
