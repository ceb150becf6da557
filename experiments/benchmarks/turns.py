"""Processes that get ready side by side and measure one after another, each alone on the device:
those that are started with the same file in the environment variable `TURNS`. Without it there are
no others.
"""

import contextlib
import fcntl
import os

_FILE = os.environ.get("TURNS")
_LOCK = None if _FILE is None else os.open(_FILE, os.O_CREAT | os.O_RDWR)
if _LOCK is not None:
    # Shared by all that compile and load.
    fcntl.flock(_LOCK, fcntl.LOCK_SH)


@contextlib.contextmanager
def alone():
    """While none of the others compiles, loads or measures."""
    if _LOCK is None:
        yield
        return
    fcntl.flock(_LOCK, fcntl.LOCK_EX)
    try:
        yield
    finally:
        fcntl.flock(_LOCK, fcntl.LOCK_SH)
