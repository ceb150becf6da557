"""A model's answers to prompts, from its settings to what is printed."""

import functools
from collections.abc import Sequence

import jax
import numpy as np

from jopd import models
from jopd.config import MeshConfig, RolloutConfig, Student
from jopd.data import sources
from jopd.data.batching import left_pad
from jopd.data.example import Example, Message
from jopd.data.texts import texts
from jopd.data.views import ViewConfig, render
from jopd.models.load import Loaded, load
from jopd.rollout.sampler import sample
from jopd.rollout.settings import Decoding
from jopd.training import console
from jopd.training import mesh as meshes


def run(
    student: Student,
    prompts: Sequence[str],
    rollout: RolloutConfig,
    view: ViewConfig,
    mesh: MeshConfig,
    seed: int,
) -> list[list[str]]:
    """Prints and returns the answers, `rollout.samples` of them a prompt; without a prompt, to
    three held-out problems of the built-in task.

    Raises:
      ValueError: a prompt and its answer may be longer than what the model reads.
    """
    devices = meshes.make_mesh(mesh)
    model = load(student.model, compute=student.compute, mesh=devices)
    examples = [
        Example(f"prompt {i}", (Message(role="user", content=text),))
        for i, text in enumerate(prompts, 1)
    ]
    examples = examples or list(sources.load(sources.DataConfig(held_out=3), "held_out"))
    ids = [render(example, "student", model.tokenizer, view) for example in examples]
    width, room = max(map(len, ids)), model.architecture.max_positions
    if width + rollout.max_new_tokens > room:
        raise ValueError(
            f"max_new_tokens={rollout.max_new_tokens} after a prompt of {width} tokens is more "
            f"than the {room} positions of {student.model}: lower it"
        )
    written = written_after(ids, model, rollout, devices, seed)
    answers = [
        written[i * rollout.samples : (i + 1) * rollout.samples] for i in range(len(examples))
    ]
    for example, mine in zip(examples, answers, strict=True):
        console.say(f"\n> {example.messages[-1]['content']}")
        for text in mine:
            console.say(text)
    return answers


def written_after(
    ids: list[list[int]],
    model: Loaded,
    rollout: RolloutConfig,
    devices: jax.sharding.Mesh,
    seed: int,
) -> list[str]:
    """What the model writes after each prompt, the samples of one beside each other."""
    # Rows that only fill the mesh up repeat the first prompt and are not shown.
    ids = ids + ids[:1] * (-len(ids) % meshes.batch_ways(devices))
    context = meshes.place_batch(devices, left_pad(ids, max(map(len, ids)), model.pad_id))
    rows = meshes.place_batch(devices, np.arange(len(ids) * rollout.samples, dtype=np.int32))
    draw = functools.partial(
        sample,
        decoding=Decoding(
            rollout.max_new_tokens,
            model.stop_tokens,
            model.pad_id,
            model.architecture.vocabulary_size,
            rollout.sampling,
        ),
        samples=rollout.samples,
    )
    write = jax.jit(lambda params, *arrays: draw(models.merge(model.graph, params), *arrays))
    with jax.set_mesh(devices), console.waiting("generating (compiles first)"):
        answer = jax.device_get(
            write(model.params, context["tokens"], context["valid"], rows, jax.random.key(seed))
        )
    return texts(model.tokenizer, answer.tokens, answer.mask)
