"""Ctrl-C and SIGTERM, which is how a machine says that it will be taken away: the step in hand is
finished and saved.
"""

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator

SIGNALS = (signal.SIGINT, signal.SIGTERM)


@contextlib.contextmanager
def deferred() -> Iterator[Callable[[], bool]]:
    """Holds the signals back; what it yields tells whether one has come. A second one acts as ever.

    Only the main thread hears signals; in any other this does nothing.
    """
    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    heard = []

    def hear(number, frame):
        heard.append(number)
        restore()
        # Not print, which may be what was interrupted.
        os.write(
            2, b"\nstopping: this step is finished and saved first (once more to stop at once)\n"
        )

    def restore():
        for number, handler in before.items():
            # None: not one of Python's, and it is not to be had back.
            signal.signal(number, signal.SIG_DFL if handler is None else handler)

    before = {number: signal.signal(number, hear) for number in SIGNALS}
    try:
        yield lambda: bool(heard)
    finally:
        restore()
