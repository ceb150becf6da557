"""`python -m jopd.train [PRESET] [--method NAME] [--SETTING VALUE ...]`: one run of distillation,
resumed where it stopped.

Without arguments: the preset `default`, a small student on the built-in task, in minutes on a CPU.
`--help` lists a preset's settings, `--method NAME --help` those of another method. On several hosts
the same command is started on each of them; see `jopd.training.processes`.
"""

import sys
import warnings

from jopd import config, plugins
from jopd.compilation import keep_compiled
from jopd.training import console, failures, finish, loop, processes, setup
from jopd.training.checkpoint import DamagedCheckpoints
from jopd.training.checks import what_is_saved
from jopd.training.folder import home_of
from jopd.training.home import Disk, Taken
from jopd.training.logs import BadRecord


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
    home = config.or_exit(home_of, name, settings)
    try:
        run_at(home, name, settings)
    finally:
        home.leave()


def run_at(home: Disk, name: str, settings: config.Config) -> None:
    if processes.decided(finish.finished, home, settings.steps):
        if processes.first():
            config.or_exit(finish.show_result, home)
        return
    console.say(f"jopd: preparing {name} with method {settings.method.name} ...")
    try:
        config.or_exit(home.claim)
        loop.train(config.or_exit(setup.prepare, name, settings, home))
    except loop.Stopped as stopped:
        raise processes.Agreed(str(stopped)) from None
    except KeyboardInterrupt:
        raise SystemExit(
            f"stopped. {what_is_saved(home)}; the same command goes on from there"
        ) from None
    except FloatingPointError as error:
        raise SystemExit(f"error: {error}. {what_is_saved(home)}") from None
    except (BadRecord, DamagedCheckpoints, plugins.Failed, Taken) as error:
        raise SystemExit(f"error: {error}") from None
    except Exception as error:
        if (why := failures.explained(error)) is None and not isinstance(error, OSError):
            raise
        raise SystemExit(
            f"error: {why or error}. {what_is_saved(home)}; the same command goes on from there"
        ) from None


if __name__ == "__main__":
    main()
