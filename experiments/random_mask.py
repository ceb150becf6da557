"""EDGE-OPD with a mask that knows nothing: of every completion it keeps as many tokens as have
positive evidence, drawn at random. A control for what is claimed of the evidence's choice: of the
tokens, and so of their sign too, as those without positive evidence have no positive advantage at
the start.

    python -m jopd.train smollm2-persona --method experiments/random_mask.py:RandomMask
"""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array

from jopd.losses import base
from jopd.losses.edge_opd import EvidenceGuidedOPD


@dataclasses.dataclass(frozen=True)
class RandomMask(EvidenceGuidedOPD):
    """Guided as EDGE-OPD is, with its own random choice of as many tokens a completion."""

    name = "random_mask"
    source = "a control of EDGE-OPD, arXiv:2605.23493 (R)"

    @property
    def inputs(self) -> tuple[str, ...]:
        return (*super().inputs, "step")

    def prepare(self, terms: base.Terms, mask: base.Mask, inputs: base.Inputs) -> dict[str, Array]:
        found = super().prepare(terms, mask, inputs)
        key = jax.random.fold_in(jax.random.key(0), inputs["step"][0, 0].astype(jnp.int32))
        # Lengths differ from seed to seed, and so do the draws.
        lengths = mask.sum(axis=1, dtype=jnp.int32)
        key = jax.random.fold_in(key, jnp.sum(lengths * jnp.arange(1, len(lengths) + 1) ** 2))
        drawn = jnp.where(mask.astype(bool), jax.random.uniform(key, mask.shape), jnp.inf)
        rank = jnp.argsort(jnp.argsort(drawn, axis=1), axis=1)
        many = jnp.sum(mask.astype(bool) & (found["kept"] > 0), axis=1, keepdims=True)
        return found | {"kept": (rank < many).astype(found["kept"].dtype)}
