"""`python -m jopd.train [PRESET] [--method NAME] [--SETTING VALUE ...]`: one run of distillation,
resumed where it stopped.

Without arguments: the preset `default`, a small student on the built-in task, in minutes on a CPU.
`--help` lists a preset's settings, `--method NAME --help` those of another method. On several hosts
the same command is started on each of them; see `jopd.training.processes`.
"""

import sys
import warnings

from jopd import config
from jopd.compilation import keep_compiled
from jopd.training import console, failures, processes


def main(arguments: list[str] | None = None) -> None:
    with processes.together(sys.argv[1:] if arguments is None else arguments) as arguments:
        run(arguments)


def run(arguments: list[str]) -> None:
    # One line each, without the place in the code that says them.
    warnings.showwarning = lambda message, category, *_: console.say(
        f"{category.__name__}: {message}"
    )
    failures.say_it_once()
    keep_compiled()
    name, settings = config.or_exit(config.parse, arguments)
    config.or_exit(processes.agree, "settings", {"preset": name, **config.to_dict(settings)})
    # Seconds of imports, which nobody should wait for who asks for help or has mistyped a setting.
    from jopd.training import job

    job.run(name, settings)


if __name__ == "__main__":
    main()
