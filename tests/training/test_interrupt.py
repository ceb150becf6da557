import os
import signal
import threading

import pytest

from jopd.training.interrupt import SIGNALS, deferred


@pytest.mark.parametrize("number", SIGNALS)
def test_the_first_signal_is_heard_and_the_second_acts(number, capfd):
    def act(*_):
        raise InterruptedError

    before = signal.signal(number, act)
    try:
        with deferred() as stopping:
            assert not stopping()
            os.kill(os.getpid(), number)
            assert stopping() and "once more to stop at once" in capfd.readouterr().err
            with pytest.raises(InterruptedError):
                os.kill(os.getpid(), number)
        assert signal.getsignal(number) is act
    finally:
        signal.signal(number, before)


def test_other_threads_leave_signals_alone():
    before, found = [signal.getsignal(number) for number in SIGNALS], []

    def run():
        with deferred() as stopping:
            found.append((stopping(), [signal.getsignal(number) for number in SIGNALS]))

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert found == [(False, before)]
