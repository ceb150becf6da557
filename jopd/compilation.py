"""What is compiled is kept between runs, in the user's cache folder; how long compiling takes."""

import os
from pathlib import Path

import jax


def keep_compiled() -> None:
    """Has JAX keep what it compiles, unless it was told where to, or not to; where the cache folder
    can't be written to, nothing is kept.
    """
    if jax.config.values["jax_compilation_cache_dir"] is not None:
        return
    home = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    folder = Path(home).expanduser() / "jopd" / "compiled"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return
    if os.access(folder, os.W_OK):
        jax.config.update("jax_compilation_cache_dir", str(folder))


class _Stopwatch:
    """Adds up what JAX reports of its compilations, from tracing to what the cache gives back."""

    def __init__(self):
        self.seconds = 0.0
        jax.monitoring.register_event_duration_secs_listener(self._add)

    def _add(self, event: str, duration_secs: float, **_: str | int) -> None:
        if event.startswith("/jax/core/compile/"):
            self.seconds += duration_secs


_STOPWATCH = _Stopwatch()


def compiled_for() -> float:
    """Seconds that this process has compiled so far; a function that is traced inside another
    counts in both.
    """
    return _STOPWATCH.seconds
