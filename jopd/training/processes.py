"""Several processes as one run: `python -m jopd.train` started once on every host.

    TPU pods and slices, SLURM (srun), Open MPI   nothing to say: found out
    elsewhere                                     --distributed.coordinator HOST:PORT
                                                  --distributed.processes N --distributed.process I
                                                  or JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and
                                                  JAX_PROCESS_ID

All processes do the same, step by step; what only one can do (own the folder, write the logs) or
must decide (where to go on, whether to stop) the first one does, and the others hear of it here. An
error of one is told to all and ends all: none waits for a process that is gone.

Everything here is quick and without effect in a run of one process.
"""

import contextlib
import itertools
import json
import os
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
from jax._src import distributed
from jax._src.clusters.cloud_tpu_cluster import GceTpuCluster, GkeTpuCluster
from jax._src.clusters.ompi_cluster import OmpiCluster
from jax._src.clusters.slurm_cluster import SlurmCluster
from jax.experimental.multihost_utils import process_allgather

from jopd.config import differences, or_exit, take
from jopd.training.console import CONSOLE, say
from jopd.training.failures import explained

# Between an error's being told and the end of those that have not ended by themselves: what is
# being saved is finished.
GRACE_SECONDS = 20
# After so long without a sign of life from one process JAX ends the others, in a dump. A sign comes
# every half of it, so that one which has just failed and gone is missed after half of it at the
# earliest: by then the grace is over.
HEARTBEAT_SECONDS = 45
FAILED, GONE = "jopd/failed", "jopd/gone/"
_decisions = itertools.count()
_SAYING, _said = threading.Lock(), set[tuple[int, str]]()


class Place(NamedTuple):
    """Which process of how many this is, and where they meet; all None: JAX finds out."""

    coordinator: str | None = None
    processes: int | None = None
    process: int | None = None


class Orderly(Exception):
    """What all processes raise by themselves, in the same step: none has to tell another."""


class Agreed(SystemExit):
    """An end that all processes come to by themselves; the first one says why."""

    def __init__(self, message: str):
        super().__init__(message if first() else 1)


def first() -> bool:
    """Whether this is the process that writes, prints and decides."""
    return index() == 0


# Not `jax.process_index()` and `jax.process_count()`, which start the devices.
def index() -> int:
    return distributed.global_state.process_id


def count() -> int:
    return distributed.global_state.num_processes or 1


@contextlib.contextmanager
def together(arguments: list[str]) -> Iterator[list[str]]:
    """Joins the other processes of the run, if there are any, until they have all ended; yields the
    arguments without those that are about this.

    Ends the program where joining fails or an argument is wrong, and, on several processes, after
    any error inside, its own or another's.
    """
    rest = list(arguments)
    place = or_exit(_place, rest)
    if place is None:
        yield rest
        return
    _join(place)
    try:
        with telling():
            yield rest
    except Agreed:
        raise
    except BaseException as error:
        if not _is_end(error):
            raise
        _leave(error)


@contextlib.contextmanager
def telling() -> Iterator[None]:
    """Tells the other processes of an error as soon as it comes, before this one tidies up."""
    try:
        yield
    except (Orderly, Agreed):
        raise
    except BaseException as error:
        if count() > 1 and _is_end(error):
            with contextlib.suppress(Exception):  # another was first, or nobody is there any more
                # The first to fail is heard: the others' errors may be of its absence.
                _client().key_value_set(FAILED, json.dumps([index(), _words(error)]))
        raise


def decided(function: Callable[..., Any], *arguments: Any) -> Any:
    """What the first process makes of it, on all of them; JSON data. Every process calls this in
    the same order.
    """
    if count() == 1:
        return function(*arguments)
    key = f"jopd/decided/{next(_decisions)}"
    if first():
        value = function(*arguments)
        _client().key_value_set(key, json.dumps(value))
        return value
    # A week: if the first process ends instead, so does this one.
    return json.loads(_client().blocking_key_value_get(key, 7 * 24 * 3600 * 1000))


def agree(what: str, mine: Mapping[str, Any]) -> None:
    """Raises ValueError where something that all processes must have in common differs from the
    first one's.
    """
    if count() == 1:
        return
    plain: dict[str, Any] = json.loads(json.dumps(mine))
    if changed := differences(decided(lambda: plain), plain):
        raise ValueError(
            f"process {index()} has other {what} than process 0 "
            f"({'; '.join(changed)}): start all processes with the same command, code and files"
        )


def any_of(flag: bool) -> bool:
    """Whether it is so on any of the processes."""
    return flag if count() == 1 else bool(process_allgather(np.array(flag)).any())


def pooled(rows: int, compute: Callable[[range], np.ndarray]) -> np.ndarray:
    """`[rows, ...]`: every process computes a share of the rows, and all have all of them.

    Args:
      compute: some of the indices 0 ... rows - 1 -> one row each; 32 bits an entry.
    """
    ways = count()
    mine = compute(range(index(), rows, ways))
    if ways == 1:
        return mine
    share = -(-rows // ways)
    mine = np.pad(mine, [(0, share - len(mine))] + [(0, 0)] * (mine.ndim - 1))
    # Row i is the one with the number i // ways of process i % ways.
    gathered = np.swapaxes(process_allgather(mine), 0, 1)
    return gathered.reshape(share * ways, *mine.shape[1:])[:rows]


def _place(arguments: list[str]) -> Place | None:
    """Takes the flags out of `arguments`; None for a run of one process.

    Raises:
      ValueError: flags or variables that are not whole.
    """
    if "--help" in arguments or "-h" in arguments:
        return None
    named = {}
    for name, variable in (
        ("coordinator", "JAX_COORDINATOR_ADDRESS"),
        ("processes", "JAX_NUM_PROCESSES"),
        ("process", "JAX_PROCESS_ID"),
    ):
        value = take(arguments, f"--distributed.{name}")
        named[name] = value if value is not None else os.environ.get(variable)
    given = {name: value for name, value in named.items() if value is not None}
    if not given:
        return Place() if _of_several() else None
    if missing := ", ".join(f"--distributed.{name}" for name in named.keys() - given.keys()):
        # JAX_COORDINATOR_ADDRESS alone, where the others are found out.
        if set(given) == {"coordinator"} and _of_several():
            return Place(given["coordinator"])
        raise ValueError(
            f"distributed.{', distributed.'.join(given)} without {missing}: give all three, "
            "--distributed.coordinator HOST:PORT --distributed.processes N --distributed.process I "
            "(0 ... N - 1, the first on HOST)"
        )
    if not all(given[name].isdecimal() for name in ("processes", "process")) or not (
        int(given["process"]) < int(given["processes"])
    ):
        raise ValueError(
            f"distributed.process={given['process']} of distributed.processes="
            f"{given['processes']}: the processes have the numbers 0 ... N - 1"
        )
    if not given["coordinator"].rpartition(":")[2].isdecimal() or ":" not in given["coordinator"]:
        raise ValueError(
            f"distributed.coordinator={given['coordinator']} must be HOST:PORT, the host of "
            "process 0 and a port that is free there"
        )
    return Place(given["coordinator"], int(given["processes"]), int(given["process"]))


def _of_several() -> bool:
    """Whether the machine says that this process is one of several, in a way that JAX knows."""
    # A script of sbatch itself has the numbers of the whole job, but runs once.
    if SlurmCluster.is_env_present():
        return int(os.environ.get("SLURM_STEP_NUM_TASKS", 1)) > 1
    for cluster in (OmpiCluster, GkeTpuCluster, GceTpuCluster):
        if cluster.is_env_present():
            return cluster.get_process_count() > 1
    return False


def _join(place: Place) -> None:
    # Its own handler of SIGTERM would take the place of ours.
    jax.config.update("jax_enable_preemption_service", False)
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    try:
        jax.distributed.initialize(
            *place,
            heartbeat_timeout_seconds=HEARTBEAT_SECONDS,
        )
    except (RuntimeError, ValueError) as error:
        where = f" at {place.coordinator}" if place.coordinator else ""
        raise SystemExit(
            f"error: the processes of this run did not meet{where}: {error}. Start all of them "
            "within five minutes, with the same coordinator, which every host must reach"
        ) from None
    CONSOLE.quiet = not first()
    threading.Thread(target=_watch, daemon=True).start()
    say(f"jopd: {count()} processes")


def _client() -> Any:
    """The store that all processes share."""
    return distributed.global_state.client


def _failure() -> tuple[int, str] | None:
    """The process whose error ends the run, and its message."""
    try:
        process, message = json.loads(_client().key_value_try_get(FAILED))
    except Exception:  # nothing has failed, or the store is gone, which JAX itself ends
        return None
    return process, message


def _watch() -> None:
    """Ends this process when another has failed, whatever it waits for."""
    while (failure := _failure()) is None:
        time.sleep(1)
    # At once: JAX itself may end this process first, and does not say why.
    _say_of_another(*failure)
    time.sleep(GRACE_SECONDS)
    _go(*failure, status=1)


def _is_end(error: BaseException) -> bool:
    return not isinstance(error, SystemExit) or error.code not in (0, None)


def _words(error: BaseException) -> str:
    if isinstance(error, SystemExit):
        said = getattr(error, "message", error.code)
        return said if isinstance(said, str) else "its settings were refused; it says why"
    if isinstance(error, KeyboardInterrupt):
        return "it was stopped"
    return explained(error) or f"{type(error).__name__}: {error}"


def _leave(error: BaseException) -> None:
    """Ends this process after an error, without JAX's wait for all to end well."""
    process, message = _failure() or (index(), _words(error))
    if process == index():
        message = ""
        if not isinstance(error, SystemExit):
            traceback.print_exception(error)
        elif isinstance(error.code, str):
            message = error.code
    _go(process, message, status=error.code if isinstance(error, SystemExit) else 1)


def _say_of_another(process: int, message: str) -> None:
    """Once, by whichever thread hears of it first."""
    with _SAYING:
        if process != index() and (process, message) not in _said:
            _said.add((process, message))
            print(f"process {process}: {message}", file=sys.stderr, flush=True)


def _go(process: int, message: str, *, status: Any) -> None:
    """The end; the first process, which keeps the store, goes last."""
    _say_of_another(process, message)
    if process == index() and message:
        print(message, file=sys.stderr)
    with contextlib.suppress(Exception):
        if first():
            begin = time.monotonic()
            others = count() - 1
            while (
                len(_client().key_value_dir_get(GONE)) < others
                and time.monotonic() - begin < GRACE_SECONDS + 10
            ):
                time.sleep(0.2)
        else:
            _client().key_value_set(f"{GONE}{index()}", "gone")
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status if isinstance(status, int) else 1)
