import types

import jax
import pytest

from jopd.config import parse
from jopd.training import accelerators, announcement, setup, speed
from jopd.training.accelerators import published
from tests.training.test_work import work
from tests.training.tiny import arguments

SECONDS = {"rollout": 1.0, "update": 0.5, "waiting": 0.5}


@pytest.fixture(scope="module")
def run(tiny, tmp_path_factory):
    output = tmp_path_factory.mktemp("speed") / "run"
    return setup.prepare(*parse(arguments(tiny["student"], tiny["teacher"], output)))


def read(run) -> dict[str, float]:
    return speed.Meter(run).read({"tokens": 10}, SECONDS, work())


def test_on_a_cpu_there_is_no_utilisation(run):
    found = read(run)
    names = {"tokens_per_second", "model_flops_per_second", "memory_bytes", "peak_memory_bytes"}
    assert {*found} == names
    assert found["tokens_per_second"] == 5 and found["model_flops_per_second"] > 0
    # Of a process with JAX in it, in bytes.
    assert 2**26 < found["memory_bytes"] <= found["peak_memory_bytes"] < 2**40
    assert announcement.describe(run)["peak"].startswith("of cpu none is known")


def test_on_a_known_device_it_is_the_share_of_all_their_peaks(run, monkeypatch):
    monkeypatch.setattr(accelerators, "here", lambda: published("NVIDIA A100-SXM4-40GB"))
    found = read(run)
    share = found["model_flops_per_second"] / (jax.device_count() * 312e12)
    assert found["model_flops_utilisation"] == pytest.approx(share)
    said = "312 TFLOP/s a device (A100, bfloat16, published)"
    assert announcement.describe(run)["peak"] == said


def test_memory_is_that_of_the_fullest_device(monkeypatch):
    held = [
        {"bytes_in_use": 5, "peak_bytes_in_use": 9},
        {"bytes_in_use": 6, "peak_bytes_in_use": 7},
    ]
    devices = [types.SimpleNamespace(memory_stats=lambda it=it: it) for it in held]
    monkeypatch.setattr(jax, "local_devices", lambda: devices)
    assert speed.memory() == {"memory_bytes": 6, "peak_memory_bytes": 9}
