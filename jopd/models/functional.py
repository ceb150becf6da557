"""Models as functions of their parameters: the static half and the arrays, apart and together."""

from flax import nnx

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
