"""`python -m jopd.export RUN --output FOLDER [--step best|latest|N]`: a checkpoint's student as a
Hugging Face folder, with its model card, and on demand on the hub.

A run that has ended has its last student in RUN/student already; the best one by its evaluations,
or that of another checkpoint which was kept, is written by this command.
"""

import dataclasses
import sys
from pathlib import Path

import tyro

from jopd import config as configs
from jopd.compilation import keep_compiled
from jopd.config import Hub
from jopd.training import failures


@dataclasses.dataclass(frozen=True)
class Export:
    """Which student goes where.

    Attributes:
      run: the folder of a run that nobody is at, or gs://BUCKET/RUN.
      output: a folder for the student; its adapters, if it has any, go to FOLDER-adapter.
      step: of a checkpoint that was kept; or best, by the run's evaluations, or latest.
      hub: `--hub.push-to ORG/NAME` uploads it too.
      trust_code: runs a user's own code that the run's settings name.
    """

    run: tyro.conf.Positional[str]
    output: Path
    step: str = "best"
    hub: Hub = Hub()
    trust_code: bool = False

    def __post_init__(self):
        if self.step not in ("best", "latest") and not self.step.isdecimal():
            raise ValueError(f"step={self.step} must be best, latest or a number of steps")


def main(arguments: list[str] | None = None) -> None:
    rest = sys.argv[1:] if arguments is None else arguments
    parse = lambda: tyro.cli(Export, args=rest, prog="python -m jopd.export", description=__doc__)
    settings = configs.or_exit(parse)
    keep_compiled()
    with failures.explaining(memory=failures.TRAINING):
        configs.or_exit(run, settings)


def run(settings: Export) -> None:
    """Writes the student.

    Raises:
      ValueError: no run is there, or a checkpoint of that step, or it can't be written.
    """
    # Seconds of imports, which nobody should wait for who asks for help or has mistyped a setting.
    from jopd.training import export_job

    export_job.run(
        settings.run,
        settings.step,
        settings.output.expanduser(),
        settings.hub,
        trust_code=settings.trust_code,
    )


if __name__ == "__main__":
    main()
