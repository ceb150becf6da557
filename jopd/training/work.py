"""What a step's tokens ask of the models: the floating-point operations that no implementation can
do without, which model FLOPs utilisation (2204.02311, appendix B) is counted in.

Rows count as long as they are, without padding, and nothing counts twice that rematerialisation
computes again. Left out, as they are small: optimiser, losses, adapters, a method's own modules,
the attention of near-future windows; completions that a mixed or teacher-guided batch draws and
drops; and what a guide adds to the prompt that a completion is written after. 2204.02311 counts
more: masked attention, the other half of the square, and the head at the prompt, where nobody
needs it.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jopd.losses.method import INITIAL, Method
from jopd.models import Architecture
from jopd.models.operations import attention, head, layers
from jopd.training.batch import Context


class Read(NamedTuple):
    """The lengths of a batch's rows in one view, summed over the completions, float32 scalars.

    Attributes:
      prompt, prompt_squared: of the contexts, those of a prompt's samples each.
      whole, whole_squared: of context and completion together.
    """

    prompt: Float[Array, ""]
    prompt_squared: Float[Array, ""]
    whole: Float[Array, ""]
    whole_squared: Float[Array, ""]


class Work(NamedTuple):
    """What a step has processed.

    Attributes:
      views: by reader's view, "student" among them.
      completion: tokens of the completions.
      streams: tokens of the further sequences that are learnt from.
    """

    views: dict[str, Read]
    completion: Float[Array, ""]
    streams: Float[Array, ""]


@jax.jit
def work_of(
    contexts: dict[str, Context],
    mask: Bool[Array, "b t"],
    streams: Sequence[Bool[Array, "r k"]],
) -> Work:
    """Sums over all devices' rows.

    Args:
      contexts: one row for each prompt or for each completion.
      mask, streams: the tokens of the completions and of further sequences.
    """
    completion = mask.sum(axis=1, dtype=jnp.float32)

    def read(context: Context) -> Read:
        prompt = context.valid.sum(axis=1, dtype=jnp.float32)
        prompt = jnp.repeat(prompt, len(mask) // len(prompt))
        whole = prompt + completion
        return Read(prompt.sum(), (prompt**2).sum(), whole.sum(), (whole**2).sum())

    return Work(
        {view: read(context) for view, context in contexts.items()},
        completion.sum(),
        sum((it.sum(dtype=jnp.float32) for it in streams), jnp.zeros((), jnp.float32)),
    )


class Operations(NamedTuple):
    """Counts a run's operations.

    Attributes:
      teacher: the student's without a teacher.
      samples: completions that share a prompt's prefill.
      adapters: whether only LoRA's are trained, so that no matrix needs a gradient of its own.
    """

    method: Method
    student: Architecture
    teacher: Architecture
    samples: int
    adapters: bool

    def of(self, work: Work, metrics: Mapping[str, Any]) -> dict[str, float]:
        """Of a step by phase, on all devices together.

        Args:
          work: on the host.
          metrics: of the step; the tokens of near-future windows are among them.
        """
        method, student, own = self.method, self.student, work.views["student"]
        readers = {view: student if view == INITIAL else self.teacher for view in method.views}
        logits = lambda a: 2.0 * head(a) * float(work.completion)
        of_views = sum(logits(reader) for reader in readers.values())
        # The products with weights, and those of attention, which have no weight to differentiate.
        products = reading_products(student, own) + logits(student)
        attended = attention(student, float(own.whole_squared))
        backward = 1 if self.adapters else 2
        by_phase = {
            "rollout": (method.on_policy_share - method.teacher_share) * self.writing(student, work)
            + method.teacher_share * self.writing(self.teacher, work),
            "score": method.scorings
            * sum(reading(reader, work.views[view]) for view, reader in readers.items()),
            "update": method.updates * ((1 + backward) * products + 3 * attended + of_views)
            + method.updates * (1 + backward) * of_tokens(student, float(work.streams)),
        }
        if method.scoring() is not None:
            by_phase["score"] += method.scorings * (products + attended + of_views)
        if method.near_future is not None:
            by_phase["windows"] = (
                reading(student, own)
                + reading(self.teacher, work.views[method.views[0]])
                + of_tokens(student, float(metrics["student_window_tokens"]))
                + of_tokens(self.teacher, float(metrics["teacher_window_tokens"]))
            )
            if method.near_future.space == "hidden_states":
                # The teacher reads the student's windows too; its own it has read in writing them.
                read = float(metrics["student_window_tokens"])
                by_phase["windows"] += 2.0 * layers(self.teacher) * read
        return by_phase

    def writing(self, a: Architecture, work: Work) -> float:
        """A prefill for each prompt, and every token of the completions."""
        own = work.views["student"]
        prefill = 2.0 * layers(a) * float(own.prompt) + attention(a, float(own.prompt_squared))
        completions = attention(a, float(own.whole_squared) - float(own.prompt_squared))
        return prefill / self.samples + of_tokens(a, float(work.completion)) + completions


def reading_products(a: Architecture, read: Read) -> float:
    return 2.0 * layers(a) * float(read.whole)


def reading(a: Architecture, read: Read) -> float:
    """A forward pass over contexts and completions, without the head."""
    return reading_products(a, read) + attention(a, float(read.whole_squared))


def of_tokens(a: Architecture, count: float) -> float:
    """A forward pass over so many tokens with their logits, without attention."""
    return 2.0 * (layers(a) + head(a)) * count
