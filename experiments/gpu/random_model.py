"""A model of a published shape with random weights, as a Hugging Face folder: for speed, which does
not depend on them. Its tokenizer is the built-in one.

    python experiments/gpu/random_model.py Qwen/Qwen3-0.6B FOLDER
"""

import sys

import jax
import numpy as np

from jopd import models
from jopd.data import tokenizer
from jopd.models.load import save
from jopd.planning.shapes import KNOWN


def main(name: str, folder: str) -> None:
    graph, shapes = models.abstract(KNOWN[name])
    # The same noise again and again: drawing billions of numbers takes longer than measuring.
    noise = 0.02 * np.random.default_rng(0).standard_normal(2**22, np.float32)
    params = jax.tree.map(lambda x: np.resize(noise, x.shape), shapes)
    save(folder, graph, params, KNOWN[name], tokenizer.load(), "bfloat16")


if __name__ == "__main__":
    main(*sys.argv[1:])
