"""`python -m jopd.train [PRESET] [--method NAME] [--SETTING VALUE ...]`: one run of distillation,
resumed where it stopped.

Without arguments: the preset `default`, a small student on the built-in task, in minutes on a CPU.
`--help` lists a preset's settings, `--method NAME --help` those of another method.
"""

import sys
import warnings

from jopd import config, plugins
from jopd.training import console, failures, finish, loop, setup
from jopd.training import folder as folders
from jopd.training.checkpoint import DamagedCheckpoints
from jopd.training.checks import what_is_saved
from jopd.training.logs import BadRecord


def main(arguments: list[str] | None = None) -> None:
    arguments = sys.argv[1:] if arguments is None else arguments
    # One line each, without the place in the code that says them.
    warnings.showwarning = lambda message, category, *_: console.say(
        f"{category.__name__}: {message}"
    )
    failures.say_it_once()
    name, settings = config.or_exit(config.parse, arguments)
    folder = config.or_exit(folders.output_folder, name, settings)
    if finish.finished(folder, settings.steps):
        config.or_exit(finish.show_result, folder)
        return
    console.say(f"jopd: preparing {name} with method {settings.method.name} ...")
    lock = config.or_exit(folders.claim, folder)
    try:
        loop.train(config.or_exit(setup.prepare, name, settings))
    except loop.Stopped as stopped:
        raise SystemExit(str(stopped)) from None
    except KeyboardInterrupt:
        raise SystemExit(
            f"stopped. {what_is_saved(folder)}; the same command goes on from there"
        ) from None
    except (FloatingPointError, BadRecord, DamagedCheckpoints, plugins.Failed) as error:
        raise SystemExit(f"error: {error}") from None
    except Exception as error:
        if (why := failures.explained(error)) is None and not isinstance(error, OSError):
            raise
        raise SystemExit(
            f"error: {why or error}. {what_is_saved(folder)}; the same command goes on from there"
        ) from None
    finally:
        folders.leave(folder, lock)


if __name__ == "__main__":
    main()
