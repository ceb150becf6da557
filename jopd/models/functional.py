"""Models as functions of their parameters: the static half and the arrays, apart and together."""

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from jopd.models.settings import Architecture, Compute, LoRA
from jopd.models.transformer import Transformer


def split(model: Transformer) -> tuple[nnx.GraphDef, dict]:
    """A static, hashable description of the model, and its parameters as a nested dict."""
    graph, state = nnx.split(model)
    return graph, nnx.to_pure_dict(state)


def merge(graph: nnx.GraphDef, params: dict) -> Transformer:
    """The inverse of `split`, to be called inside the jitted function that uses the model."""
    return nnx.merge(graph, params)


def abstract(
    architecture: Architecture, compute: Compute = Compute(), lora: LoRA = LoRA()
) -> tuple[nnx.GraphDef, dict]:
    """`split` of a model whose parameters are shapes only: nothing is allocated."""
    return split(
        nnx.eval_shape(lambda: Transformer(architecture, compute, lora=lora, rngs=nnx.Rngs(0)))
    )


def score(
    model: Transformer,
    tokens: Int[Array, "b p"],
    valid: Bool[Array, "b p"],
    completion: Int[Array, "b t"],
    written: Bool[Array, "b t"],
) -> Float[Array, "b t v"]:
    """The float32 logits that the model has for each token of a completion, having read the prompt
    and what comes before it.

    Args:
      tokens, valid: left-padded prompts, as `jopd.sample` takes them.
      completion, written: right-padded, as `jopd.sample` gives them: tokens and mask.
    """
    whole = jnp.concatenate([tokens, completion], axis=1)
    hidden = model.hidden(whole, jnp.concatenate([valid, written], axis=1))
    return model.logits(hidden[:, tokens.shape[1] - 1 : -1])
