"""A world of one step and six tokens, in which the student would never say what its privileged self
mostly says.

Completions are one token; the last of the six is the persona's name, e^-20 likely without the
context and .70 with it.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from jopd import losses

NAME = 5
PLAIN = np.log([0.40, 0.25, 0.15, 0.12, 0.08, np.exp(-20)])
PRIVILEGED = np.log([0.06, 0.06, 0.06, 0.06, 0.06, 0.70])
ROWS, STEPS, RATE = 64, 300, 0.3

# (logits of the student [ROWS, 1, 6], of the views, tokens [ROWS, 1], mask) -> loss.
Loss = Callable[[jax.Array, dict[str, jax.Array], jax.Array, jax.Array], jax.Array]


def loss_of(method: losses.Method, **inputs: jax.Array) -> Loss:
    return lambda z, views, tokens, mask: losses.evaluate(
        method, z, {view: views[view] for view in method.views}, tokens, mask, **inputs
    )[0]


@functools.partial(jax.jit, static_argnums=(0, 1))
def learn(loss: Loss, guided_share: float) -> jax.Array:
    """The student's six probabilities after some hundred steps of plain gradient descent on sampled
    tokens.

    Guided completions come from the privileged distribution: the student's own with the context in
    its prompt, which this training leaves as it is.
    """
    spread = lambda row: jnp.broadcast_to(jnp.asarray(row, jnp.float32), (ROWS, 1, 6))
    views = {"privileged": spread(PRIVILEGED), "plain": spread(PLAIN)}

    def step(z, key):
        choice, token = jax.random.split(key)
        guided = jax.random.uniform(choice, (ROWS, 1)) < guided_share
        writer = jnp.where(guided[..., None], views["privileged"], spread(z))
        tokens = jax.random.categorical(token, writer)
        gradient = jax.grad(lambda z: loss(spread(z), views, tokens, jnp.ones((ROWS, 1), bool)))(z)
        return z - RATE * gradient, None

    z, _ = jax.lax.scan(
        step, jnp.asarray(PLAIN, jnp.float32), jax.random.split(jax.random.key(0), STEPS)
    )
    return jax.nn.softmax(z)
