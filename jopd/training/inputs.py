"""What a method's time stage reads of a step's completions besides the models' terms."""

import jax.numpy as jnp
import numpy as np
from jax.experimental.multihost_utils import process_allgather
from jaxtyping import Array, Float

from jopd.data import answers
from jopd.data.texts import texts
from jopd.losses.credit import group_advantage
from jopd.rollout.sampler import Rollout
from jopd.training import mesh
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
    """What the task's verifier says of each completion, `[B]`; 0 where an example has no answer."""
    samples = run.config.rollout.samples
    examples = [it for it in run.train.examples_at(step - 1) for _ in range(samples)]
    tokens, mask = process_allgather((rollout.tokens, rollout.mask), tiled=True)
    text = texts(run.student.tokenizer, tokens, mask)
    answerable = [i for i, example in enumerate(examples) if example.answer is not None]
    reward = np.zeros(len(examples), np.float32)
    reward[answerable] = answers.scores(
        [examples[i] for i in answerable], [text[i] for i in answerable]
    )
    return reward
