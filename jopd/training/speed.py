"""How fast a step was, and what it took of the machine."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax

from jopd.training import accelerators
from jopd.training.setup import Run
from jopd.training.work import Operations, Work


class Meter:
    """Reads a run's instruments, once a step."""

    def __init__(self, run: Run):
        student = run.student.architecture
        teacher = student if run.teacher is None else run.teacher.architecture
        config = run.config
        self._operations = Operations(
            run.program.method,
            student,
            teacher,
            samples=config.rollout.samples,
            adapters=config.student.lora.rank > 0,
        )

    def read(
        self, metrics: Mapping[str, Any], seconds: Mapping[str, float], work: Work
    ) -> dict[str, float]:
        """Of a step, on all devices and in all of its seconds:

            tokens_per_second          of the completions
            model_flops_per_second     see `jopd.training.work`
            model_flops_utilisation    the same as a share of the devices' published peak in
                                       bfloat16, whatever the run computes in; absent where none is
                                       known (`jopd.training.accelerators`)

        and `memory`'s.
        """
        elapsed = sum(seconds.values())
        flops = sum(self._operations.of(work, metrics).values()) / elapsed
        speed = {
            "tokens_per_second": float(metrics["tokens"]) / elapsed,
            "model_flops_per_second": flops,
        }
        if (known := accelerators.here()) is not None:
            speed["model_flops_utilisation"] = flops / jax.device_count() / known.chip.flops
        return speed | memory()


def memory() -> dict[str, int]:
    """In bytes `memory_bytes`, in use now, and `peak_memory_bytes`, the most since the process
    began.

    Of this process's device that has most in use and of the one that had; where devices don't count
    (a CPU) of the process itself, and where the system doesn't say, as but Linux does, nothing.
    """
    of_devices = [it for device in jax.local_devices() if (it := device.memory_stats())]
    if of_devices:
        names = {"memory_bytes": "bytes_in_use", "peak_memory_bytes": "peak_bytes_in_use"}
        return {name: max(it[key] for it in of_devices) for name, key in names.items()}
    status = Path("/proc/self/status")
    if not status.exists():
        return {}
    # Lines such as "VmHWM:     1708 kB", by which KiB are meant.
    lines = dict(line.split(":", 1) for line in status.read_text().splitlines() if ":" in line)
    names = {"memory_bytes": "VmRSS", "peak_memory_bytes": "VmHWM"}
    return {name: 1024 * int(lines[key].split()[0]) for name, key in names.items()}


def peak() -> str:
    """What utilisation is a share of, in words."""
    if (known := accelerators.here()) is not None:
        return known.peak
    return f"of {jax.devices()[0].device_kind} none is known, so no utilisation is given"
