"""Where the probability goes that a suppressed token gives up, with counterfactual routing and
without, on the baby models' own rollouts.

    python experiments/routing.py

On BATCHES batches the untrained student writes and the teacher grades. For every token with a
negative advantage, one small step against the policy gradient moves the logits by |A| (pi - e_y)
without routing and by |A| (rho - e_y) with all of it routed. The probabilities then move by pi (dz
- sum pi dz), to first order. What is counted is what the other tokens gain of that: how much of it
goes to tokens that the teacher likes better than the student does, to the teacher's best token, and
to tokens that the teacher likes less.

No training, no noise but the rollouts': the intervals are over batches. It prints the table of
experiments/routing.md.
"""

import dataclasses
import statistics

import jax
import jax.numpy as jnp
from scipy.stats import t
from study_tables import markdown

from jopd.config import parse
from jopd.losses.cr_opd import routing_distribution
from jopd.losses.types import Inputs, Logits, Terms, Tokens, Views
from jopd.losses.vocabulary import log_prob_of, log_softmax
from jopd.training import setup
from jopd.training.worker import Worker

BATCHES = 12
PLACES = ("wanted", "best", "unwanted")


@dataclasses.dataclass(frozen=True)
class Flows:
    """A vocabulary stage: by way and place, what the place gains of a suppressed token's step; 0
    where A is not negative.
    """

    def token_terms(
        self, student_logits: Logits, teacher_logits: Views, tokens: Tokens, extras: Inputs
    ) -> Terms:
        student, teacher = log_softmax(student_logits), log_softmax(teacher_logits["teacher"])
        pi, q = jnp.exp(student), jnp.exp(teacher)
        advantage = log_prob_of(teacher, tokens) - log_prob_of(student, tokens)
        force = jnp.maximum(-advantage, 0)
        sampled = jax.nn.one_hot(tokens, pi.shape[-1], dtype=pi.dtype)
        rho, nonempty = routing_distribution(student, teacher, tokens)
        places = {"wanted": q > pi, "best": q == q.max(axis=-1, keepdims=True), "unwanted": q <= pi}
        terms = {
            "suppressed": (advantage < 0).astype(pi.dtype),
            "empty": ((advantage < 0) & ~nonempty).astype(pi.dtype),
        }
        for way, aim in (("plain", pi), ("routed", jnp.where(nonempty[..., None], rho, pi))):
            push = aim - sampled
            gain = pi * (push - jnp.sum(pi * push, axis=-1, keepdims=True))
            gain = jnp.where(sampled > 0, 0, jnp.maximum(gain, 0)) * force[..., None]
            terms |= {
                f"{way}/{place}": jnp.sum(jnp.where(there, gain, 0), axis=-1)
                for place, there in places.items()
            }
        return terms


def main() -> None:
    run = setup.prepare(
        "routing", parse(["default", "--watch", "0", "--output", "runs/routing"])[1]
    )
    worker, sums = Worker(run), []
    with jax.set_mesh(run.mesh):
        for step in range(1, BATCHES + 1):
            batch = worker.write(step, run.state).batch
            terms = worker.jitted.measure(
                run.state, run.fixed, worker.grade(run.state, batch), Flows()
            )
            sums.append(
                {
                    name: float(jnp.where(batch.mask, values, 0).sum())
                    for name, values in terms.items()
                }
                | {"tokens": int(batch.mask.sum())}
            )

    def share(part: str, *of: str) -> str:
        each = [100 * one[part] / sum(one[name] for name in of) for one in sums]
        return (
            f"{statistics.fmean(each):.1f} ± "
            f"{t.ppf(0.975, len(each) - 1) * statistics.stdev(each) / len(each) ** 0.5:.1f}"
        )

    head = [
        "of what the others gain, to (%)",
        "tokens the teacher wants more of",
        "its best token",
        "tokens it wants less of",
    ]
    rows = [
        [way, *(share(f"{way}/{place}", f"{way}/wanted", f"{way}/unwanted") for place in PLACES)]
        for way in ("plain", "routed")
    ]
    print(markdown([head, *rows]))
    print(
        f"\nsuppressed: {share('suppressed', 'tokens')} % of the tokens; without a candidate: "
        f"{share('empty', 'suppressed')} % of those"
    )


if __name__ == "__main__":
    main()
