"""What a method's time stage reads of a step's completions besides the models' terms."""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jopd.data import answers
from jopd.data.texts import texts
from jopd.losses.credit import group_advantage
from jopd.rollout.sampler import Rollout
from jopd.training import mesh, processes
from jopd.training.setup import Run


def of(run: Run, name: str, step: int, rollout: Rollout) -> Float[Array, "b _"]:
    """One of `jopd.losses.INPUTS` for a step's completions, split as they are."""
    if name == "behaviour_logp":
        return rollout.logp
    if name == "truncated":
        return (rollout.stopped == 0).astype(jnp.float32)[:, None]
    if name == "step":
        done = (step - 1) * run.program.method.updates
        return mesh.place_batch(run.mesh, np.full((len(rollout.tokens), 1), done, np.float32))
    reward = rewards(run, step, rollout)
    if name == "reward":
        return mesh.place_batch(run.mesh, reward[:, None])
    advantage = group_advantage(jnp.asarray(reward), run.config.rollout.samples)
    return mesh.place_batch(run.mesh, np.asarray(advantage))


def rewards(run: Run, step: int, rollout: Rollout) -> np.ndarray:
    """What the task's verifier says of each completion, `[B]`; 0 where an example has no answer.

    The rollout is on the host. Each row is scored once, by one process, as a time-out may come on
    one host and not on another.
    """
    samples = run.config.rollout.samples
    examples = [it for it in run.train.examples_at(step - 1) for _ in range(samples)]
    tokens, mask = np.asarray(rollout.tokens), np.asarray(rollout.mask)

    def score(rows: range) -> np.ndarray:
        text = texts(run.student.tokenizer, tokens[rows], mask[rows])
        answerable = [n for n, i in enumerate(rows) if examples[i].answer is not None]
        reward = np.zeros(len(rows), np.float32)
        reward[answerable] = answers.scores(
            [examples[rows[n]] for n in answerable], [text[n] for n in answerable]
        )
        return reward

    return processes.pooled(len(examples), score)
