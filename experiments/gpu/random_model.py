"""A model of a published shape with random weights, as a Hugging Face folder: for speed, which does
not depend on them. Its tokenizer is the built-in one.

    python experiments/gpu/random_model.py Qwen/Qwen3-0.6B FOLDER
"""

import sys

import jax

from jopd import models
from jopd.data import tokenizer
from jopd.models.load import save
from jopd.planning.shapes import KNOWN


def main(name: str, folder: str) -> None:
    graph, shapes = models.abstract(KNOWN[name])
    leaves, tree = jax.tree.flatten(shapes)
    keys = jax.random.split(jax.random.key(0), len(leaves))
    drawn = [0.02 * jax.random.normal(key, x.shape) for key, x in zip(keys, leaves, strict=True)]
    params = jax.tree.unflatten(tree, drawn)
    save(folder, graph, params, KNOWN[name], tokenizer.load(), "bfloat16")


if __name__ == "__main__":
    main(*sys.argv[1:])
