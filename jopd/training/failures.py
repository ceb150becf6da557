"""What libraries say when a machine is out of memory or room, a bucket is away, or another process
of the run, in one line with the way out.
"""

import contextlib
import errno
import logging
import re
import sys
from collections.abc import Iterator

MEMORY, DISK = "memory", "disk"


@contextlib.contextmanager
def explaining(*, memory: str) -> Iterator[None]:
    """Ends the program in one line where the machine is out of memory or room."""
    try:
        yield
    except Exception as error:
        if (why := explained(error, memory=memory)) is None:
            raise
        raise SystemExit(f"error: {why}") from None


def say_it_once() -> None:
    """Keeps the libraries below from printing what they raise as well: Orbax logs every error of
    its threads, gcsfs every request that failed, and tensorstore, whose writes end after the loop
    that waited for them, prints that.
    """
    for name in ("absl", "gcsfs"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    usual = sys.unraisablehook

    def hook(unraisable):
        if str(unraisable.exc_value) != "Event loop is closed":
            usual(unraisable)

    sys.unraisablehook = hook


def is_out_of_room(error: BaseException) -> str | None:
    """`MEMORY` or `DISK` if that is what ran out, of an error or of what it came of."""
    full = errno.ENOSPC, errno.EDQUOT
    for one in _and_causes(error):
        if isinstance(one, OSError) and one.errno in full:
            return DISK
        if re.search(r"No space left|ENOSPC|[Qq]uota exceeded", str(one)):
            return DISK
        if isinstance(one, MemoryError) or re.search(
            r"RESOURCE_EXHAUSTED|[Oo]ut of memory", str(one)
        ):
            return MEMORY
    return None


def _and_causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def is_unreachable(error: BaseException) -> bool:
    """Whether a bucket, or the right to it, was away for the moment."""
    away = r"UNAVAILABLE|DEADLINE_EXCEEDED|UNAUTHENTICATED|PERMISSION_DENIED"
    return any(
        type(one).__module__.split(".")[0] in ("gcsfs", "aiohttp", "google")
        or re.search(away, str(one))
        for one in _and_causes(error)
    )


def of_lost_process(error: BaseException) -> str | None:
    """What JAX or Orbax says when another process of the run has gone while this one waits."""
    gone = r"(?:UNAVAILABLE|DEADLINE_EXCEEDED|ABORTED|CANCELLED).*(?:barrier|heartbeat|coordinat)"
    found = (re.search(f"{gone}.*", str(one), re.IGNORECASE) for one in _and_causes(error))
    return next((match[0] for match in found if match), None)


TRAINING = (
    "raise --micro-batches, lower --chunk-tokens (0 is the most memory), set "
    "--student.compute.remat layer, spread the model with --mesh.fsdp, or lower --prompts or "
    "--rollout.max-new-tokens"
)
SAMPLING = "spread the model with --mesh.fsdp, or lower the rows at once or --max-new-tokens"


def explained(error: BaseException, *, memory: str = TRAINING) -> str | None:
    """One line of what ran out, how much of it was asked for and what to do; None for other errors.

    Args:
      error: any that a step, a checkpoint or a log has raised.
      memory: what helps where that ran out.
    """
    what = is_out_of_room(error)
    if what == DISK:
        return (
            "the disk is full: free some room, keep fewer checkpoints (--checkpoint.keep), or "
            "choose an --output on another disk"
        )
    if what == MEMORY:
        asked = re.search(r"allocat\w+ (\d+) bytes", str(error))
        size = f" allocating {int(asked[1]) / 1e9:,.1f} GB" if asked else ""
        return f"out of memory{size}: {memory}"
    if said := of_lost_process(error):
        return f"another process of this run no longer answers ({said[:200]})"
    if is_unreachable(error):
        said = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        return f"the bucket can't be reached ({said})"
    return None
