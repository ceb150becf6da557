"""`python -m jopd.generate --model MODEL --prompt "..."`: what a model answers, with the trainer's
own sampler.
"""

import dataclasses
import functools
import sys

import jax
import numpy as np
import tyro

from jopd import config as configs
from jopd import models
from jopd.compilation import keep_compiled
from jopd.config import MeshConfig
from jopd.data import sources
from jopd.data.batching import left_pad
from jopd.data.example import Example, Message
from jopd.data.texts import texts
from jopd.data.views import ViewConfig, render
from jopd.models import Compute
from jopd.models.load import load
from jopd.rollout.sampler import sample
from jopd.rollout.settings import Decoding, Sampling
from jopd.training import console, failures, mesh


@dataclasses.dataclass(frozen=True)
class Generate:
    """What to ask whom.

    Attributes:
      model: a Hugging Face folder or hub name, a PEFT adapter likewise, a GGUF file, `jopd:NAME`
        or `smollm2`.
      prompt: one or more user messages, each answered on its own. Without any: three held-out
        problems of the built-in task.
      samples: answers to each.
      view: `--view.system-prompt` and the thinking switch.
    """

    model: str
    prompt: tuple[str, ...] = ()
    samples: int = 1
    max_new_tokens: int = 256
    sampling: Sampling = Sampling()
    view: ViewConfig = ViewConfig()
    compute: Compute = Compute()
    mesh: MeshConfig = MeshConfig()
    seed: int = 0


def main(arguments: list[str] | None = None) -> None:
    rest = sys.argv[1:] if arguments is None else arguments
    settings = tyro.cli(Generate, args=rest, prog="python -m jopd.generate", description=__doc__)
    keep_compiled()
    with failures.explaining(memory=failures.SAMPLING):
        configs.or_exit(run, settings)


def run(settings: Generate) -> list[list[str]]:
    """Prints and returns the answers, `settings.samples` of them a prompt."""
    devices = mesh.make_mesh(settings.mesh)
    model = load(settings.model, compute=settings.compute, mesh=devices)
    examples = [
        Example(f"prompt {i}", (Message(role="user", content=text),))
        for i, text in enumerate(settings.prompt, 1)
    ]
    examples = examples or list(sources.load(sources.DataConfig(held_out=3), "held_out"))
    ids = [render(example, "student", model.tokenizer, settings.view) for example in examples]
    # Rows that only fill the mesh up repeat the first prompt and are not shown.
    ids += ids[:1] * (-len(ids) % mesh.batch_ways(devices))
    width = max(map(len, ids))
    if width + settings.max_new_tokens > model.architecture.max_positions:
        raise ValueError(
            f"max_new_tokens={settings.max_new_tokens} after a prompt of {width} tokens is more "
            f"than the {model.architecture.max_positions} positions of {settings.model}: lower it"
        )
    context = mesh.place_batch(devices, left_pad(ids, width, model.pad_id))
    rows = mesh.place_batch(devices, np.arange(len(ids) * settings.samples, dtype=np.int32))
    draw = functools.partial(
        sample,
        decoding=Decoding(
            settings.max_new_tokens,
            model.stop_tokens,
            model.pad_id,
            model.architecture.vocabulary_size,
            settings.sampling,
        ),
        samples=settings.samples,
    )
    with jax.set_mesh(devices), console.waiting("generating (compiles first)"):
        write = jax.jit(lambda params, *arrays: draw(models.merge(model.graph, params), *arrays))
        rollout = jax.device_get(
            write(
                model.params,
                context["tokens"],
                context["valid"],
                rows,
                jax.random.key(settings.seed),
            )
        )
    written = texts(model.tokenizer, rollout.tokens, rollout.mask)
    answers = [
        written[i * settings.samples : (i + 1) * settings.samples] for i in range(len(examples))
    ]
    for example, mine in zip(examples, answers, strict=True):
        console.say(f"\n> {example.messages[-1]['content']}")
        for text in mine:
            console.say(text)
    return answers


if __name__ == "__main__":
    main()
