"""`python -m jopd.generate --model MODEL --prompt "..."`: what a model answers, with the trainer's
own sampler.
"""

import dataclasses
import sys

import tyro

from jopd import config as configs
from jopd.compilation import keep_compiled
from jopd.config import MeshConfig, RolloutConfig, Student
from jopd.config.checks import unread_of_view
from jopd.config.groups import at_least
from jopd.data.views import ViewConfig
from jopd.models import Compute
from jopd.rollout.settings import Sampling
from jopd.training import failures


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

    def __post_init__(self):
        for name in ("samples", "max_new_tokens"):
            at_least(1, name, getattr(self, name))
        for name, _ in unread_of_view(self.view, ()):
            raise ValueError(
                f"view.{name}={getattr(self.view, name)} has no effect here, where no prompt has "
                "a context: leave it unset"
            )


def main(arguments: list[str] | None = None) -> None:
    rest = sys.argv[1:] if arguments is None else arguments
    settings = tyro.cli(Generate, args=rest, prog="python -m jopd.generate", description=__doc__)
    keep_compiled()
    with failures.explaining(memory=failures.SAMPLING):
        configs.or_exit(run, settings)


def run(settings: Generate) -> list[list[str]]:
    """Prints and returns the answers, `settings.samples` of them a prompt."""
    # Seconds of imports, which nobody should wait for who asks for help or has mistyped a setting.
    from jopd.training import generate_job

    return generate_job.run(
        Student(settings.model, settings.compute),
        settings.prompt,
        RolloutConfig(settings.sampling, settings.samples, max_new_tokens=settings.max_new_tokens),
        settings.view,
        settings.mesh,
        settings.seed,
    )


if __name__ == "__main__":
    main()
