"""What a method makes of each token of some answers, and which tokens its readers expected there:
to be looked at (`python -m jopd.show`), not learnt from.

It is asked of the method itself: its vocabulary stage, what it prepares, what it has for profiles,
and what its time stage makes of the token.
"""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jopd.diagnostics.profiles import time_slopes
from jopd.diagnostics.tokens import Likeliest
from jopd.losses.method import JUDGED, Loss
from jopd.losses.stages import profiled_tokens
from jopd.losses.types import Inputs, Mask, Terms
from jopd.training.batch import Batch, batch_rows
from jopd.training.program import Program
from jopd.training.score import completion_hidden, in_parts, terms
from jopd.training.state import Fixed, TrainState

# Before the names of what the readers expected; no term of a method has one.
EXPECTED = "likeliest/"


@dataclasses.dataclass(frozen=True)
class Looked:
    """A loss's vocabulary stage, and of the very same logits the likeliest tokens."""

    loss: Loss
    likeliest: Likeliest

    def token_terms(self, student_logits, teacher_logits, tokens, extras) -> Terms:
        views = {view: teacher_logits[view] for view in self.loss.views}
        of_loss = self.loss.token_terms(student_logits, views, tokens, extras)
        expected = self.likeliest.token_terms(student_logits, teacher_logits, tokens, {})
        return of_loss | {f"{EXPECTED}{name}": values for name, values in expected.items()}


def seen(
    program: Program, state: TrainState, fixed: Fixed, batch: Batch
) -> dict[str, Float[Array, "b t ..."]]:
    """Of each token of a prepared batch, by name: what `method_values` knows, `[B, T]`, and under
    names that begin with EXPECTED what `Likeliest` found, `[B, T, k]`.
    """
    method, student = program.method, program.student_model(state, fixed)
    heads = program.heads(state, fixed, batch.hidden)
    stage = Looked(method, Likeliest())

    def micro(part: Batch) -> Terms:
        hidden = completion_hidden(student, part.contexts["student"], part.tokens, part.mask)
        # As for a watched step: such a stage holds several times as many logits.
        found = terms(program, student, hidden[:, :-1], heads, part, stage, chunks=8)
        own = {name: x for name, x in found.items() if not name.startswith(EXPECTED)}
        inputs = part.inputs
        if state.modules:
            inputs = inputs | method.apply_modules(state.modules, hidden, part.mask)
        expected = {name: x for name, x in found.items() if name.startswith(EXPECTED)}
        return method_values(method, own, part.mask, inputs) | expected

    return in_parts(program, micro, batch_rows(batch))


def method_values(
    method: Loss, own: Terms, mask: Mask, inputs: Inputs
) -> dict[str, Float[Array, "B T"]]:
    """A method's terms, inputs and profiles that tell tokens apart, as numbers, NaN where they
    don't count; and what comes of them:

      push: of a policy gradient, `-d loss / d log pi(y)` before the loss is divided by its count:
        by it the token is made likelier where it is positive. What else a loss differentiates, such
        as a divergence beside it, is not in it.
      loss: of a differentiated divergence, the token's summand, alike, without further streams.

    Neither is there where the loss compares the samples of a prompt, as these answers have none
    beside them.
    """
    own, inputs = jax.lax.stop_gradient((own, inputs))
    of_tokens = lambda arrays: {
        name: (values, mask) for name, values in arrays.items() if values.shape == mask.shape
    }
    values = of_tokens(own) | of_tokens(inputs)
    if not set(JUDGED) & set(method.inputs):
        slopes = time_slopes(method, own, mask, inputs)
        if "student_logp" in slopes:
            values["push"] = -slopes["student_logp"], mask
        else:
            values["loss"] = (
                sum(slopes[name] * own[name] for name in slopes if own[name].shape == mask.shape),
                mask,
            )
        values |= profiled_tokens(method, own, mask, inputs)
    return {
        name: jnp.where(where, jnp.asarray(x, jnp.float32), jnp.nan)
        for name, (x, where) in values.items()
    }
