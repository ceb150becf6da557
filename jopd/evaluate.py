"""`python -m jopd.evaluate --model MODEL [--reference MODEL] [--task SOURCE]`: a model on held-out
problems.

With a reference, also the KL from the model to it on the model's own answers, both reading the same
prompts: how far a student has moved from where it began, or how close it is to its teacher.
"""

import dataclasses
import json
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import optax
import tyro

from jopd import config as configs
from jopd import losses
from jopd.compilation import keep_compiled
from jopd.config import Config, Evaluation, MeshConfig, RolloutConfig, Student, Teacher
from jopd.data import sources
from jopd.data.sources import DataConfig
from jopd.data.views import ViewConfig
from jopd.diagnostics import measures
from jopd.diagnostics.findings import comparison
from jopd.models import Compute
from jopd.rollout.settings import Sampling
from jopd.training import console, evaluation, failures, mesh, setup, summary
from jopd.training.fit import evaluation_batch
from jopd.training.state import Fixed, TrainState
from jopd.training.step import jitted


@dataclasses.dataclass(frozen=True)
class Evaluate:
    """What to measure.

    Attributes:
      model: a Hugging Face folder or hub name, a PEFT adapter likewise, a GGUF file, `jopd:NAME`
        or `smollm2`.
      reference: another such model to compare with token by token.
      data: the problems; `--task X` is short for `--data.source X`.
      sampling: how the answers are drawn.
      batch: problems answered at once.
      save: a file for every answer and the numbers, as JSON lines.
    """

    model: str
    reference: str | None = None
    data: DataConfig = DataConfig()
    view: ViewConfig = ViewConfig()
    sampling: Sampling = Sampling()
    compute: Compute = Compute()
    mesh: MeshConfig = MeshConfig()
    max_prompt_tokens: int = 512
    max_new_tokens: int = 256
    batch: int = 32
    seed: int = 0
    save: Path | None = None


def main(arguments: list[str] | None = None) -> None:
    rest = sys.argv[1:] if arguments is None else list(arguments)
    if (task := configs.or_exit(configs.take, rest, "--task")) is not None:
        rest += ["--data.source", task]
    settings = tyro.cli(Evaluate, args=rest, prog="python -m jopd.evaluate", description=__doc__)
    keep_compiled()
    with failures.explaining(memory=failures.SAMPLING):
        configs.or_exit(run, settings)


def run(settings: Evaluate) -> dict:
    """Prints the table and returns the evaluation record."""
    check_writable(settings.save)
    config = Config(
        method=losses.get("sft"),  # reads no teacher view of its own: the plain one is measured
        student=Student(settings.model, settings.compute),
        teacher=Teacher(settings.reference, compute=settings.compute)
        if settings.reference
        else Teacher("none"),
        data=settings.data,
        view=settings.view,
        rollout=RolloutConfig(
            max_prompt_tokens=settings.max_prompt_tokens, max_new_tokens=settings.max_new_tokens
        ),
        evaluation=Evaluation(sampling=settings.sampling, batch=settings.batch),
        mesh=settings.mesh,
        seed=settings.seed,
    )
    examples = sources.load(settings.data, "held_out")
    devices = mesh.make_mesh(config.mesh)
    readers = setup.open_models(config)
    at_once = evaluation_batch(settings.batch, config.micro_batches, devices)
    problems = setup.make_batches(config, readers, examples, at_once, devices)
    console.say(f"{settings.model} on {settings.data.source}: {problems.report}")
    student, teacher = setup.read_models(config, readers, devices)
    program = setup.make_program(config, readers, teacher and teacher.graph, optax.identity())
    key = jax.random.key(settings.seed)
    evaluator = evaluation.Evaluator(
        program,
        jitted(program),
        devices,
        problems,
        student.tokenizer,
        dataclasses.replace(program.decoding, sampling=settings.sampling),
        key,
    )
    state = TrainState(
        student.params, {}, (), {}, {}, jnp.zeros((), jnp.int32), jax.random.key_data(key)
    )
    fixed = Fixed({}, teacher.params if teacher else {}, {})
    with (
        jax.set_mesh(devices),
        console.waiting(f"answering {len(problems.examples)} problems (compiles first)"),
    ):
        answers = evaluator.student(state, fixed)
    record = summary.summarise(settings.data, answers)
    # What a run measures against its teacher is measured against the reference here.
    rows = [
        row._replace(measure=row.measure.replace("teacher", "reference"))
        for row in comparison([record])
    ]
    console.results_table(rows, title=f"{settings.model}, held-out problems")
    if settings.save is not None:
        lines = [{"record": record}, *summary.samples(answers, len(answers.text))]
        text = "".join(
            json.dumps(measures.plain(line), ensure_ascii=False) + "\n" for line in lines
        )
        settings.save.expanduser().write_text(text, encoding="utf-8")
    return record


def check_writable(save: Path | None) -> None:
    """Raises ValueError where the answers can't be written, before they are asked for."""
    if save is None:
        return
    path = save.expanduser()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.open("a", encoding="utf-8").close()
    except OSError as error:
        raise ValueError(f"save={save} can't be written ({error}): choose another file") from None


if __name__ == "__main__":
    main()
