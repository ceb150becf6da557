import itertools

import jax.numpy as jnp
import pytest

from jopd.training import laps
from jopd.training.laps import Laps

ARRAYS = jnp.zeros(())


@pytest.fixture
def clocks(monkeypatch):
    """Sets what the clocks say each time when they are looked at."""

    def set_to(*, host, ready, compiled=()) -> None:
        monkeypatch.setattr(laps, "_one_at_a_time", lambda: False)
        monkeypatch.setattr(laps.time, "perf_counter", iter(host).__next__)
        ready = iter(ready)
        monkeypatch.setattr(laps, "_ready_at", lambda arrays: next(ready))
        compiling = itertools.chain(compiled, itertools.repeat(0.0))
        monkeypatch.setattr(laps, "compiled_for", compiling.__next__)

    return set_to


def steps(*phases) -> Laps:
    of_step = Laps()
    for phase, arrays in phases:
        of_step.end(phase, arrays)
    return of_step


def test_what_is_given_in_time_does_not_wait(clocks):
    """Asked at 10; each phase is given while the one before goes on."""
    clocks(host=[10, 10, 10.5, 11], ready=[13, 14, 16])
    found = steps(("rollout", ARRAYS), ("score", ARRAYS), ("update", ARRAYS)).seconds()
    assert found == {"rollout": 3, "score": 1, "update": 2, "waiting": 0, "compiling": 0}


def test_what_the_host_gives_late_is_waited_for(clocks):
    clocks(host=[10, 10.5, 14], ready=[13, 16])
    found = steps(("rollout", ARRAYS), ("update", ARRAYS)).seconds()
    assert found == {"rollout": 2.5, "update": 2, "waiting": 1.5, "compiling": 0}


def test_compiling_is_told_apart_unless_the_devices_were_at_work_meanwhile(clocks):
    """Four seconds of compiling before the rollout, three before the update, of which the rollout
    hides two.
    """
    clocks(host=[10, 15, 20], ready=[19, 22], compiled=[1, 5, 8])
    found = steps(("rollout", ARRAYS), ("update", ARRAYS)).seconds()
    assert found == {"rollout": 4, "update": 2, "waiting": 1, "compiling": 5}


def test_what_the_host_does_alone_has_its_own_name(clocks):
    clocks(host=[10, 10, 10, 15.5], ready=[12, 13, 15, 17])
    found = steps(
        ("rollout", ARRAYS), ("score", ARRAYS), ("rewards", ()), ("update", ARRAYS)
    ).seconds()
    assert found["rewards"] == 2 and found["waiting"] == 0.5 and found["update"] == 1.5


def test_a_step_begins_when_the_one_before_has_ended(clocks):
    """Asked for at 11, before the devices were free at 13."""
    clocks(host=[10, 10, 11, 11.5], ready=[13, 15])
    first = steps(("update", ARRAYS))
    second = Laps(first)
    second.end("update", ARRAYS)
    assert second.seconds() == {"update": 2, "waiting": 0, "compiling": 0}
