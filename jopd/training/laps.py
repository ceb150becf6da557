"""How long the phases of a step take, without the host's waiting for them."""

import time
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple

import jax

from jopd.compilation import compiled_for


class Lap(NamedTuple):
    """A phase, or a part of one.

    Attributes:
      given: when the devices had it before them.
      compiled: the seconds that the process had compiled by then.
      ready: when its arrays were there.
    """

    phase: str
    given: float
    compiled: float
    ready: Future[float]


class Laps:
    """How long each phase of a step took: from when the one before was done, or the step was asked
    for, until its arrays were there. Nobody waits for that but a thread.

    Of that, the devices waited until the host had given them the phase: "waiting", or "compiling"
    where it compiled. What lies between two steps, evaluations and the start of a save, is in none
    of them, and what a phase leaves idle inside cannot be told from outside.

    Args:
      before: of the step before, which may still be going on.
    """

    _waiting = ThreadPoolExecutor(1)

    def __init__(self, before: "Laps | None" = None):
        self._asked, self._compiled = time.perf_counter(), compiled_for()
        self._laps: list[Lap] = []
        self._before = before._laps[-1].ready if before and before._laps else None

    def end(self, phase: str, arrays) -> None:
        """The devices have been given a phase; without arrays, one of the host's is over."""
        given = time.perf_counter() if jax.tree.leaves(arrays) else 0.0
        if _one_at_a_time():
            jax.block_until_ready(arrays)
        ready = self._waiting.submit(_ready_at, arrays)
        self._laps.append(Lap(phase, given, compiled_for(), ready))

    def seconds(self) -> dict[str, float]:
        """Of each phase, then "waiting" and "compiling"; their sum is the time that the step
        took.
        """
        clock = max(self._asked, self._before.result() if self._before else 0.0)
        seconds, compiled = dict.fromkeys((lap.phase for lap in self._laps), 0.0), self._compiled
        waiting = compiling = 0.0
        for lap in self._laps:
            now = lap.ready.result()
            idle = max(min(lap.given, now) - clock, 0.0)
            compiling_here = min(idle, lap.compiled - compiled)
            seconds[lap.phase] += now - clock - idle
            waiting, compiling = waiting + idle - compiling_here, compiling + compiling_here
            clock, compiled = now, lap.compiled
        return seconds | {"waiting": waiting, "compiling": compiling}


def _one_at_a_time() -> bool:
    """CPU devices share their cores: nothing overlaps, and what waits for all of them starves."""
    return jax.default_backend() == "cpu"


def _ready_at(arrays) -> float:
    jax.block_until_ready(arrays)
    return time.perf_counter()
