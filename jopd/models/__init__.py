"""Decoder-only language models: the definition, and the files that they come from and go to."""

from flax import nnx

from jopd.models.transformer import Architecture, Branches, Compute, LoRA, RopeScaling, Transformer


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


__all__ = [
    "Architecture",
    "Branches",
    "Compute",
    "LoRA",
    "RopeScaling",
    "Transformer",
    "abstract",
    "merge",
    "split",
]
