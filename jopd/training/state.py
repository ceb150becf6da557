"""What a run carries from step to step, and what never changes."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, UInt32

Params = dict[str, Any]

LORA = ("lora_a", "lora_b")

# Streams of random numbers, folded into the run's key.
TRAINING, EVALUATION, MIXING, GUIDING, WINDOWS, MODULES = range(6)


class TrainState(NamedTuple):
    """Everything a checkpoint holds.

    Attributes:
      params: the trained parameters, float32: all of the student's, or its adapters.
      modules: those of the method's own small modules, float32; empty for most.
      optimizer: optax's state, of {"student": params, "modules": modules}.
      ema_teacher: a running average of `params`, float32; empty unless the teacher follows the
        student that way.
      method: what the method remembers from step to step; empty for most.
      step: optimiser steps done. The data position is `step // updates`: a batch is a function of
        it and the seed.
      key: data of the random key that rollouts are drawn from.
    """

    params: Params
    modules: Params
    optimizer: Any
    ema_teacher: Params
    method: Params
    step: Int[Array, ""]
    key: UInt32[Array, "2"]


class Fixed(NamedTuple):
    """What is read and never written: not donated, not checkpointed, checked on resume by
    fingerprint.

    Attributes:
      base: the parameters that adapters are added to; empty when the whole student is trained.
      teacher: a frozen teacher's parameters; empty when the teacher is made of the student's.
      initial: the student's at the start of the run, for the view "initial"; empty where nobody
        reads it, or `base` is it.
    """

    base: Params
    teacher: Params
    initial: Params


def separate(params: Params, trained: tuple[str, ...]) -> tuple[Params, Params]:
    """Splits a nested dict into the leaves named in `trained` and the others."""
    chosen, rest = {}, {}
    for name, value in params.items():
        if isinstance(value, dict):
            inner, outer = separate(value, trained)
            chosen |= {name: inner} if inner else {}
            rest |= {name: outer} if outer else {}
        else:
            (chosen if name in trained else rest)[name] = value
    return chosen, rest


def union(a: Params, b: Params) -> Params:
    """The nested dict with the leaves of both."""
    both = a.keys() & b.keys()
    return {**a, **b, **{name: union(a[name], b[name]) for name in both}}


def real_copy(params: Params) -> Params:
    """Buffers of its own: the EMA teacher starts equal to the student, but the student's buffers
    are donated.
    """
    return jax.tree.map(jnp.copy, params)
