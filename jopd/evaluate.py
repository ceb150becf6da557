"""`python -m jopd.evaluate --model MODEL [--reference MODEL] [--task SOURCE]`: a model on held-out
problems.

With a reference, also the KL from the model to it on the model's own answers, both reading the same
prompts: how far a student has moved from where it began, or how close it is to its teacher.
"""

import dataclasses
import sys
from pathlib import Path
from typing import Literal

import tyro

from jopd import config as configs
from jopd import losses
from jopd.compilation import keep_compiled
from jopd.config import Config, Evaluation, MeshConfig, RolloutConfig, Student, Teacher
from jopd.config.checks import unread_of_view
from jopd.config.groups import at_least
from jopd.data.sources import DataConfig
from jopd.data.views import PRIVILEGED, ViewConfig
from jopd.models import Compute
from jopd.rollout.settings import Sampling
from jopd.training import failures


@dataclasses.dataclass(frozen=True)
class Evaluate:
    """What to measure.

    Attributes:
      model: a Hugging Face folder or hub name, a PEFT adapter likewise, a GGUF file, `jopd:NAME`
        or `smollm2`.
      reference: another such model to compare with token by token.
      data: the problems; `--task X` is short for `--data.source X`.
      reads: what stands in the prompt besides the problem, as a teacher would see it: nothing, a
        part of the worked solution (partial) or all that is known (full, privileged);
        `--view X` is short for `--reads X`.
      sampling: how the answers are drawn.
      batch: problems answered at once.
      save: a file for every answer and the numbers, as JSON lines.
    """

    model: str
    reference: str | None = None
    data: DataConfig = DataConfig()
    reads: Literal["plain", "partial", "full", "privileged"] = "plain"
    view: ViewConfig = ViewConfig()
    sampling: Sampling = Sampling()
    compute: Compute = Compute()
    mesh: MeshConfig = MeshConfig()
    max_prompt_tokens: int = 512
    max_new_tokens: int = 256
    batch: int = 32
    seed: int = 0
    save: Path | None = None

    def __post_init__(self):
        for name in ("max_prompt_tokens", "max_new_tokens", "batch"):
            at_least(1, name, getattr(self, name))


def main(arguments: list[str] | None = None) -> None:
    rest = sys.argv[1:] if arguments is None else list(arguments)
    for short, flag in (("--task", "--data.source"), ("--view", "--reads")):
        if (value := configs.or_exit(configs.take, rest, short)) is not None:
            rest += [flag, value]
    settings = tyro.cli(Evaluate, args=rest, prog="python -m jopd.evaluate", description=__doc__)
    keep_compiled()
    with failures.explaining(memory=failures.SAMPLING):
        configs.or_exit(run, settings)


def run(settings: Evaluate) -> dict:
    """Prints the table and returns the evaluation record."""
    check_writable(settings.save)
    config = as_run(settings)
    # Seconds of imports, which nobody should wait for who asks for help or has mistyped a setting.
    from jopd.training import evaluate_job

    return evaluate_job.run(config, settings.reads, settings.save)


def as_run(settings: Evaluate) -> Config:
    """The run whose evaluation this is.

    Raises:
      ValueError: settings that contradict each other, or that this evaluation would never read.
    """
    for name, kind in unread_of_view(settings.view, [settings.reads]):
        views = "partial" if kind == "partial" else ", ".join(PRIVILEGED)
        raise ValueError(
            f"view.{name}={getattr(settings.view, name)} has no effect with "
            f"reads={settings.reads}: leave it unset, or read one of {views}"
        )
    run = Config(
        method=losses.get("sft"),  # reads no teacher view of its own: the plain one is measured
        student=Student(settings.model, settings.compute),
        teacher=Teacher(settings.reference, compute=settings.compute)
        if settings.reference
        else Teacher("none"),
        data=settings.data,
        rollout=RolloutConfig(
            max_prompt_tokens=settings.max_prompt_tokens, max_new_tokens=settings.max_new_tokens
        ),
        evaluation=Evaluation(sampling=settings.sampling, batch=settings.batch),
        mesh=settings.mesh,
        seed=settings.seed,
    )
    # Not in the run's own check, whose method reads no such view.
    object.__setattr__(run, "view", settings.view)
    return run


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
