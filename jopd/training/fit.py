"""Whether a run's data fits its method, and its batches the mesh."""

from collections.abc import Sequence

from jax.sharding import Mesh

from jopd.config import Config
from jopd.data.example import Example
from jopd.losses.method import JUDGED
from jopd.models import Architecture
from jopd.training import mesh as meshes


def check_divides(config: Config, mesh: Mesh) -> None:
    """Every part of a batch must fill the devices: rows, not prompts, are what is split."""
    ways = meshes.batch_ways(mesh)
    if config.rows % ways:
        raise ValueError(
            f"prompts={config.prompts} × rollout.samples={config.rollout.samples} make "
            f"{config.rows} rows a batch, not a multiple of the {ways} ways that the mesh splits "
            "it (data × fsdp): change one of them, or the mesh"
        )
    if (config.rows // config.micro_batches) % ways:
        raise ValueError(
            f"micro_batches={config.micro_batches} leaves {config.rows // config.micro_batches} "
            f"rows a part, not a multiple of the {ways} ways that the mesh splits a batch (data × "
            "fsdp): lower it"
        )


def split_remarks(role: str, architecture: Architecture, mesh: Mesh) -> list[str]:
    """What the tensor axis does not divide, and so every device of it holds whole."""
    ways = mesh.shape["tensor"]
    sizes = {
        "key and value heads, hence their cache": architecture.kv_heads,
        "entries of the vocabulary": architecture.vocabulary_size,
        "entries of the MLP": architecture.mlp_width,
    }
    return [
        f"mesh.tensor={ways} does not divide the {size:,} {what} of the {role}: each of the {ways} "
        f"devices holds all of them; a divisor of {size:,} would split them"
        for what, size in sizes.items()
        if size % ways
    ]


def evaluation_batch(problems: int, micro_batches: int, mesh: Mesh) -> int:
    """How many problems are answered at once: what is asked for, rounded up to fill the devices in
    every part that it is scored in.
    """
    multiple = meshes.batch_ways(mesh) * micro_batches
    return -(-problems // multiple) * multiple


def check_answers(config: Config, examples: Sequence[Example]) -> None:
    """A method that is rewarded by a verifier needs something to verify."""
    asked = {*JUDGED} & {*config.objective.inputs}
    if asked and all(example.answer is None for example in examples):
        raise ValueError(
            f"method {config.method.name} is rewarded by a verifier, but no example of "
            f"data.source={config.data.source} has an answer: add answers, or choose a method or "
            "setting without a verifier"
        )
