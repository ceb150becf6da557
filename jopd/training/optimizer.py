"""AdamW, its schedule and its clipping: optax, put together."""

from collections.abc import Hashable

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Float

from jopd.config import Optimizer


def schedule(config: Optimizer, updates: int) -> optax.Schedule:
    """The learning rate at each of `updates` optimiser steps."""
    warmup = max(1, round(config.warmup * updates)) if config.warmup else 0
    rest = max(1, updates - warmup)
    after = {
        "constant": lambda: optax.constant_schedule(config.learning_rate),
        "cosine": lambda: optax.cosine_decay_schedule(config.learning_rate, rest),
        "linear": lambda: optax.linear_schedule(config.learning_rate, 0.0, rest),
    }[config.schedule]()
    # From the first fraction, not from 0: no batch is spent on a step that moves nothing.
    rise = optax.linear_schedule(config.learning_rate / (warmup + 1), config.learning_rate, warmup)
    return optax.join_schedules([rise, after], [warmup]) if warmup else after


def rates(config: Optimizer, updates: int) -> Float[np.ndarray, " updates"]:
    """The learning rate of each of `updates` optimiser steps, on the host."""
    # One program, and not one for every operation of the schedule.
    of_each = jax.jit(jax.vmap(schedule(config, updates)))
    return np.asarray(of_each(np.arange(updates, dtype=np.float32)))


def rate_after(config: Optimizer, updates: int, done: int) -> float:
    """The learning rate of the next step after `done` of them."""
    return float(jnp.asarray(schedule(config, updates)(done)))


def make(
    config: Optimizer, updates: int, modules_learning_rate: float
) -> optax.GradientTransformation:
    """Of {"student": ..., "modules": ...}: the method's own modules have a rate, and a clipping, of
    their own.
    """
    both: dict[Hashable, optax.GradientTransformation] = {
        "student": of_student(config, updates),
        "modules": optax.chain(optax.clip_by_global_norm(1.0), optax.adam(modules_learning_rate)),
    }
    return optax.partition(both, {name: name for name in both})


def of_student(config: Optimizer, updates: int) -> optax.GradientTransformation:
    clip = optax.clip_by_global_norm(config.clip_norm) if config.clip_norm else optax.identity()
    adamw = optax.adamw(
        schedule(config, updates),
        b1=config.b1,
        b2=config.b2,
        eps=config.epsilon,
        weight_decay=config.weight_decay,
    )
    return optax.chain(clip, adamw)
