"""A model on held-out problems, from its settings to its table."""

import dataclasses
import json
import warnings
from collections.abc import Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import optax

from jopd.config import Config, load_yaml
from jopd.data import sources
from jopd.data.example import Example
from jopd.diagnostics import measures
from jopd.diagnostics.findings import comparison
from jopd.training import console, evaluation, mesh, setup, summary
from jopd.training.fit import evaluation_batch
from jopd.training.samples import samples
from jopd.training.state import Fixed, TrainState
from jopd.training.step import jitted


def run(config: Config, reads: str, save: Path | None) -> dict:
    """Prints the table and returns the evaluation record.

    Args:
      config: whose student is measured, and whose teacher is what it is compared with.
      reads: the view under which both read the problems.
      save: a file for every answer and the record.
    """
    model = config.student.model
    answers = answers_of(config, reads)
    record = summary.summarise(config.data, answers)
    # What a run measures against its teacher is measured against the reference here.
    rows = [
        row._replace(measure=row.measure.replace("teacher", "reference"))
        for row in comparison([record])
    ]
    under = "" if reads == "plain" else f", view {reads}"
    console.results_table(rows, title=f"{model}, held-out problems{under}")
    if save is not None:
        lines = [{"record": record}, *samples(answers, len(answers.text), record)]
        text = "".join(
            json.dumps(measures.plain(line), ensure_ascii=False) + "\n" for line in lines
        )
        save.expanduser().write_text(text, encoding="utf-8")
    return record


def warn_of_trained_on(config: Config, examples: Sequence[Example]) -> None:
    """Says how many of the problems the model has trained on, where it lies in its run's folder: a
    part that is cut from a source is another one for another seed or number.
    """
    folder = Path(config.student.model).expanduser()
    if not folder.is_dir():
        return
    try:
        data = load_yaml(folder.parent / "config.yaml")[1].data
        if data.source != config.data.source or data == config.data:
            return
        trained_on = {json.dumps(example.messages) for example in sources.load(data, "train")}
    except ValueError:  # no run's folder, or one of which no more is known
        return
    if seen := sum(json.dumps(example.messages) in trained_on for example in examples):
        changes = ", ".join(
            f"data.{field.name}={old!r}"
            for field in dataclasses.fields(data)
            if (old := getattr(data, field.name)) != getattr(config.data, field.name)
        )
        warnings.warn(
            f"{config.student.model} was trained on {seen} of these {len(examples)} problems: its "
            f"run had {changes}",
            stacklevel=2,
        )


def answers_of(config: Config, reads: str) -> summary.Answers:
    """What the student answers to the held-out problems, under a view."""
    examples = sources.load(config.data, "held_out")
    warn_of_trained_on(config, examples)
    devices = mesh.make_mesh(config.mesh)
    readers = setup.open_models(config)._replace(views=(reads,))
    at_once = evaluation_batch(config.evaluation.batch, config.micro_batches, devices)
    problems = setup.make_batches(config, readers, examples, at_once, devices)
    console.say(f"{config.student.model} on {config.data.source}: {problems.report}")
    student, teacher = setup.read_models(config, readers, devices)
    if teacher is None:
        readers = readers._replace(views=())
    program = setup.make_program(config, readers, teacher and teacher.graph, optax.identity())
    key = jax.random.key(config.seed)
    evaluator = evaluation.Evaluator(
        program,
        jitted(program),
        devices,
        problems,
        student.tokenizer,
        dataclasses.replace(program.decoding, sampling=config.evaluation.sampling),
        key,
        reads,
    )
    state = TrainState(
        student.params, {}, (), {}, {}, jnp.zeros((), jnp.int32), jax.random.key_data(key)
    )
    fixed = Fixed({}, teacher.params if teacher else {}, {})
    with (
        jax.set_mesh(devices),
        console.waiting(f"answering {len(problems.examples)} problems (compiles first)"),
    ):
        return evaluator.student(state, fixed)
