"""Processes that get ready side by side and measure one after another, each alone on the device:
those that are started with the same file in the environment variable `TURNS`. Without it there are
no others.
"""

import contextlib
import fcntl
import os

_FILE = os.environ.get("TURNS")
# Shared by all that compile and load.
_LOCK = open(_FILE, "w") if _FILE else None
if _LOCK:
    fcntl.flock(_LOCK, fcntl.LOCK_SH)


@contextlib.contextmanager
def alone():
    """While none of the others compiles, loads or measures."""
    if not _LOCK:
        yield
        return
    fcntl.flock(_LOCK, fcntl.LOCK_EX)
    try:
        yield
    finally:
        fcntl.flock(_LOCK, fcntl.LOCK_SH)
