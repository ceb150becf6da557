"""Makes the two baby models that ship with the package, from nothing, on a CPU.

    python experiments/baby_models.py teacher
    python experiments/baby_models.py student

Both are pretrained on the built-in task's own text: problems with a worked solution as the answer,
part of them with the solution, or its first half, standing in the context, so that a model that is
shown a solution can use it. They differ in size, in how long they
train, and in the wordings they prefer: the teacher is to be strong and the student to have
something left to learn. The student reckons
badly and is taught to read instead: that is what makes its own judgement with a solution in view
worth learning from.

A run that was stopped goes on after its last finished cycle.
"""

import argparse
import dataclasses
import itertools
import time
from collections.abc import Iterator
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from transformers import AutoTokenizer

from jopd import models
from jopd.data import task
from jopd.data.example import Message
from jopd.data.pretraining import Mix, pretraining_example
from jopd.models.load import save

ASSETS = Path(task.__file__).parent.parent / "assets"
LENGTHS = (64, 128, 256, 384, 512, 1024)  # the shapes compiled; longer text is left out
TOKENS = 4096  # a batch, padding included

Text = tuple[list[Message], str]  # a prompt and what the assistant says


@dataclasses.dataclass(frozen=True)
class Cycle:
    """A warm-up and a cosine on text of one style."""

    steps: int
    learning_rate: float
    style: task.Style
    largest_operand: int = 9
    mix: Mix = Mix()


@dataclasses.dataclass(frozen=True)
class Recipe:
    width: int
    layers: int
    mlp_width: int
    seed: int
    cycles: tuple[Cycle, ...]


RECIPES = {
    "teacher": Recipe(
        width=128,
        layers=4,
        mlp_width=384,
        seed=0,
        cycles=(
            Cycle(2000, 3e-3, task.TEACHER_STYLE, largest_operand=20),
            Cycle(2000, 2e-3, task.TEACHER_STYLE),
        ),
    ),
    # First almost one wording, then its own mix: it has heard them all, and reckons well in none.
    # Then it learns to read.
    "student": Recipe(
        width=96,
        layers=3,
        mlp_width=256,
        seed=1,
        cycles=(
            Cycle(2000, 3e-3, task.Style(0.1, 0.1, 0.1, 0.7)),
            Cycle(700, 1.5e-3, task.STUDENT_STYLE),
            Cycle(1000, 2e-3, task.STUDENT_STYLE),
            Cycle(
                1000,
                3e-3,
                task.STUDENT_STYLE,
                mix=Mix(no_context=0.4, whole_context=0.4, quote=0.7, hard=0.3, drill=0.7),
            ),
            Cycle(
                1250,
                3e-3,
                task.STUDENT_STYLE,
                mix=Mix(no_context=0.4, whole_context=0.4, quote=0.7, hard=0.4, drill=0.5),
            ),
            Cycle(
                1500,
                2e-3,
                task.STUDENT_STYLE,
                mix=Mix(no_context=0.35, whole_context=0.4, quote=0.8, hard=0.45, drill=0.3),
            ),
        ),
    ),
}


def examples(recipe: Recipe, number: int) -> Iterator[Text]:
    """The text of one cycle, endless."""
    cycle = recipe.cycles[number]
    rng = np.random.default_rng(recipe.seed + 1000 * number)
    for index in itertools.count(10**7 * number):
        # Mostly short problems, a few long ones: the same facts, at a fraction of the cost.
        most = int(rng.choice([6, 12, 36], p=[0.6, 0.3, 0.1]))
        settings = task.TallySettings(
            min_steps=1, max_steps=most, largest_operand=cycle.largest_operand
        )
        yield pretraining_example(index, recipe.seed, cycle.style, settings, cycle.mix)


def batches(texts: Iterator[Text], tokenizer) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """`(tokens [B, S], weights [B, S])`, rows of similar length together, weight 1 on what the
    assistant says.
    """
    pool: dict[int, list] = {length: [] for length in LENGTHS}
    while True:
        while not any(len(rows) * length >= TOKENS for length, rows in pool.items()):
            messages, completion = next(texts)
            prompt = tokenizer.apply_chat_template(
                messages, add_generation_prompt=True, return_dict=False
            )
            answer = [
                *tokenizer(completion, add_special_tokens=False)["input_ids"],
                tokenizer.eos_token_id,
            ]
            fits = [length for length in LENGTHS if length >= len(prompt) + len(answer)]
            if fits:
                pool[fits[0]].append((prompt, answer))
        length = next(n for n, rows in pool.items() if len(rows) * n >= TOKENS)
        rows, pool[length] = pool[length], []
        tokens = np.full((len(rows), length), tokenizer.pad_token_id, np.int32)
        weights = np.zeros((len(rows), length), np.float32)
        for row, (prompt, answer) in enumerate(rows):
            tokens[row, : len(prompt) + len(answer)] = prompt + answer
            weights[row, len(prompt) : len(prompt) + len(answer)] = 1
        yield tokens, weights


def pretrain(
    graph, params, stream: Iterator[tuple[np.ndarray, np.ndarray]], steps: int, learning_rate: float
):
    """The parameters after a warm-up and a cosine on the stream's text."""
    schedule = optax.warmup_cosine_decay_schedule(
        0.0, learning_rate, 100, steps, learning_rate / 50
    )
    optimiser = optax.chain(
        optax.clip_by_global_norm(1.0), optax.adamw(schedule, b2=0.98, weight_decay=0.01)
    )

    @jax.jit
    def step(params, moments, tokens, weights):
        def loss(params):
            model = models.merge(graph, params)
            hidden = model.hidden(tokens[:, :-1], jnp.ones(tokens[:, :-1].shape, bool))
            nll = optax.softmax_cross_entropy_with_integer_labels(
                model.logits(hidden), tokens[:, 1:]
            )
            return jnp.sum(nll * weights[:, 1:]) / jnp.sum(weights)

        value, gradient = jax.value_and_grad(loss)(params)
        updates, moments = optimiser.update(gradient, moments, params)
        return optax.apply_updates(params, updates), moments, value

    moments, start = optimiser.init(params), time.time()
    for i in range(steps):
        params, moments, value = step(params, moments, *next(stream))
        if i % 50 == 0:
            print(f"step {i:5d}  loss {value:.4f}  {time.time() - start:6.0f} s", flush=True)
    return params


def main(name: str):
    recipe = RECIPES[name]
    tokenizer = AutoTokenizer.from_pretrained(ASSETS / "tokenizer")
    architecture = models.Architecture(
        vocabulary_size=len(tokenizer),
        width=recipe.width,
        layers=recipe.layers,
        heads=recipe.width // 32,
        kv_heads=recipe.width // 32,
        head_dim=32,
        mlp_width=recipe.mlp_width,
        qk_norm=True,
    )
    graph, params = models.split(models.Transformer(architecture, rngs=nnx.Rngs(recipe.seed)))
    print(f"{name}: {sum(leaf.size for leaf in jax.tree.leaves(params)):,} parameters", flush=True)
    finished = Path(f"runs/baby-{name}")
    finished.mkdir(parents=True, exist_ok=True)
    for number, cycle in enumerate(recipe.cycles):
        if (after := finished / f"cycle{number}.npz").is_file():
            kept = np.load(after)
            params = jax.tree.unflatten(
                jax.tree.structure(params), [jnp.asarray(kept[key]) for key in kept.files]
            )
            continue
        print(f"cycle {number}", flush=True)
        stream = batches(examples(recipe, number), tokenizer)
        params = pretrain(graph, params, stream, cycle.steps, cycle.learning_rate)
        np.savez(after, *jax.tree.leaves(params))
    save(ASSETS / f"baby-{name}", graph, params, architecture, tokenizer, "bfloat16")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("name", choices=RECIPES)
    main(parser.parse_args().name)
