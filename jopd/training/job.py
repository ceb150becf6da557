"""A run in its folder, from its settings to its end, and how each kind of end is said."""

from jopd import config, plugins
from jopd.training import console, failures, finish, hub, loop, processes, setup
from jopd.training.checkpoint import DamagedCheckpoints
from jopd.training.checks import what_is_saved
from jopd.training.folder import home_of
from jopd.training.home import Disk, Taken
from jopd.training.logs import BadRecord
from jopd.training.room import check_room


def run(name: str, settings: config.Config) -> None:
    """Runs it, or shows what it came to where it has ended before.

    Raises:
      SystemExit: every error that a user can do something about, in words.
    """
    home = config.or_exit(home_of, name, settings)
    try:
        run_at(home, name, settings)
    finally:
        home.leave()


def run_at(home: Disk, name: str, settings: config.Config) -> None:
    if processes.decided(finish.finished, home, settings.steps):
        if processes.first():
            config.or_exit(finish.show_result, home)
            config.or_exit(hub.check_login, settings.hub)
        processes.decided(hub.push, home, settings.hub)
        return
    console.say(f"jopd: preparing {name} with method {settings.method.name} ...")
    try:
        config.or_exit(home.claim)
        ready = config.or_exit(setup.prepare, name, settings, home)
        if processes.first():
            config.or_exit(check_room, home, ready.state, settings.checkpoint.keep)
        loop.train(ready)
        # Of several processes all stay until what the first does last is done.
        processes.decided(hub.push, home, settings.hub)
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
