"""A world small enough to write down: every row that a tabular policy can write, its probability,
and exact gradients.

There are three tokens; END ends a row, and so does the horizon. A state is the tokens written so
far, so a policy is a table of logits [states, 3]. Objectives are sums over all rows or states,
differentiated by a complex step; expected policy gradients come from backward induction over
states. NumPy in float64, and nothing of the package but the entry that `gradient` feeds.
"""

import functools
import itertools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jopd.losses import evaluate

TOKENS = 3
END = 2


class World(NamedTuple):
    """Every row of up to `horizon` tokens.

    Attributes:
      prefixes: the states: tokens written so far, END not among them; the last ones have the length
        of the horizon.
      inner: how many of the states have a next token.
      tokens, mask, states: [R, horizon]; the state that each token was drawn in.
      truncated: [R], whether the horizon ended the row.
      last_states: [R], the state after the row's last token, of truncated rows.
    """

    prefixes: list[tuple[int, ...]]
    inner: int
    tokens: np.ndarray
    mask: np.ndarray
    states: np.ndarray
    truncated: np.ndarray
    last_states: np.ndarray


def world(horizon: int = 3) -> World:
    going = [token for token in range(TOKENS) if token != END]
    prefixes = [
        prefix
        for length in range(horizon + 1)
        for prefix in itertools.product(going, repeat=length)
    ]
    inner = sum(len(prefix) < horizon for prefix in prefixes)
    rows = [(*prefix, END) for prefix in prefixes[:inner]] + prefixes[inner:]
    tokens = np.zeros((len(rows), horizon), int)
    mask = np.zeros((len(rows), horizon), bool)
    states = np.zeros((len(rows), horizon), int)
    for i, row in enumerate(rows):
        tokens[i, : len(row)], mask[i, : len(row)] = row, True
        states[i, : len(row)] = [prefixes.index(row[:t]) for t in range(len(row))]
    truncated = np.array([row[-1] != END for row in rows])
    last_states = np.array([prefixes.index(row) if row[-1] != END else 0 for row in rows])
    return World(prefixes, inner, tokens, mask, states, truncated, last_states)


def log_softmax(table: np.ndarray) -> np.ndarray:
    """Without the usual shift, so that it is analytic and complex steps go through; for small
    logits.
    """
    return table - np.log(np.exp(table).sum(axis=-1, keepdims=True))


def log_probabilities(world: World, table: np.ndarray) -> np.ndarray:
    """Of each row, [R]."""
    chosen = log_softmax(table)[world.states, world.tokens]
    return np.where(world.mask, chosen, 0).sum(axis=1)


def reach(world: World, table: np.ndarray) -> np.ndarray:
    """[states], how probably a row comes through each state that has a next token."""
    probability = np.exp(log_probabilities(world, table))
    through = np.zeros(world.inner)
    np.add.at(
        through,
        world.states[world.mask],
        np.broadcast_to(probability[:, None], world.mask.shape)[world.mask],
    )
    return through


def expected_length(world: World, table: np.ndarray) -> float:
    return float(reach(world, table).sum())


def complex_step(objective: Callable[[np.ndarray], complex], table: np.ndarray) -> np.ndarray:
    """The gradient of an analytic function, to rounding."""
    gradient, step = np.zeros(table.shape), 1e-30
    for index in np.ndindex(table.shape):
        moved = table.astype(complex)
        moved[index] += 1j * step
        gradient[index] = objective(moved).imag / step
    return gradient


# Objectives and their gradients on the student's table.


def sequence_kl_gradient(world: World, student: np.ndarray, teacher: np.ndarray) -> np.ndarray:
    """Of KL(P || Q) = sum over rows of P log(P / Q)."""

    def objective(table):
        log_p = log_probabilities(world, table)
        return (np.exp(log_p) * (log_p - log_probabilities(world, teacher))).sum()

    return complex_step(objective, student)


def fixed_state_gradient(world: World, student: np.ndarray, teacher: np.ndarray) -> np.ndarray:
    """Of sum over states of d(s) KL(pi || q), with the reach d held at the student's."""
    d = reach(world, student)

    def objective(table):
        logp = log_softmax(table)
        return (d[:, None] * np.exp(logp) * (logp - log_softmax(teacher))).sum()

    return complex_step(objective, student)


# Policy gradients in expectation, by backward induction. `values` stands for V at every state, last
# ones included.


def true_values(
    world: World, student: np.ndarray, teacher: np.ndarray, discount: float
) -> np.ndarray:
    """[prefixes], what a state's coming rewards are worth; 0 at the horizon."""
    logp, logq = log_softmax(student), log_softmax(teacher)
    values = np.zeros(len(world.prefixes))
    for state in reversed(range(world.inner)):
        for token in range(TOKENS):
            later = (
                0.0
                if token == END
                else values[world.prefixes.index((*world.prefixes[state], token))]
            )
            values[state] += np.exp(logp[state, token]) * (
                logq[state, token] - logp[state, token] + discount * later
            )
    return values


def expected_advantages(
    world: World,
    student: np.ndarray,
    teacher: np.ndarray,
    values: np.ndarray,
    discount: float,
    gae_lambda: float,
) -> np.ndarray:
    """[states, 3], the mean over what follows of A_t, given the state and the token; discounted
    returns with V = 0, gae_lambda = 1.
    """
    logp, logq = log_softmax(student), log_softmax(teacher)
    advantages = np.zeros((world.inner, TOKENS))
    for state in reversed(range(world.inner)):
        for token in range(TOKENS):
            advantages[state, token] = logq[state, token] - logp[state, token] - values[state]
            if token != END:
                after = world.prefixes.index((*world.prefixes[state], token))
                advantages[state, token] += discount * values[after]
                if after < world.inner:
                    mean = (np.exp(logp[after]) * advantages[after]).sum()
                    advantages[state, token] += discount * gae_lambda * mean
    return advantages


def policy_gradient(world: World, student: np.ndarray, advantages: np.ndarray) -> np.ndarray:
    """Of the mean over rows of -sum_t A_t log pi(y_t), A_t held fixed: -d pi (A - E_pi A) at each
    state.
    """
    pi = np.exp(log_softmax(student))
    centred = advantages - (pi * advantages).sum(axis=1, keepdims=True)
    return -reach(world, student)[:, None] * pi * centred


def sampled_gradient(world: World, student: np.ndarray, advantages: np.ndarray) -> np.ndarray:
    """Of -sum over all rows and tokens of A_t log pi(y_t), rows unweighted and A_t [R, horizon]
    held fixed.
    """
    pi, gradient = np.exp(log_softmax(student)), np.zeros(student.shape)
    for row, t in zip(*np.nonzero(world.mask), strict=True):
        state, token = world.states[row, t], world.tokens[row, t]
        gradient[state] -= advantages[row, t] * (np.eye(TOKENS)[token] - pi[state])
    return gradient


# The code under test, on the same world.


@functools.cache
def _gradient(method):
    def loss(table, teacher, tokens, mask, states, inputs):
        return evaluate(
            method, table[states], {"teacher": teacher[states]}, tokens, mask, **inputs
        )[0]

    return jax.jit(jax.grad(loss))


def gradient(
    method, world: World, student: np.ndarray, teacher: np.ndarray, **inputs: np.ndarray
) -> np.ndarray:
    """Gradient on the student's table of a method's own loss on all rows at once."""
    with jax.enable_x64(True):
        arrays = (student, teacher, world.tokens, world.mask, world.states, inputs)
        return np.asarray(_gradient(method)(*jax.tree.map(jnp.asarray, arrays)))


def expected_gradient(
    method,
    world: World,
    student: np.ndarray,
    teacher: np.ndarray,
    *,
    per_row: float = 1.0,
    **inputs: np.ndarray,
) -> np.ndarray:
    """The same with each row weighted with its probability: the gradient that an endless batch
    would have.

    A row sum needs nothing else; a token mean divides by the mean length, which is to be given as
    `per_row`.
    """
    weight = len(world.tokens) * np.exp(log_probabilities(world, student))[:, None]
    weight = np.broadcast_to(weight, world.mask.shape)
    return per_row * gradient(method, world, student, teacher, weight=weight, **inputs)
