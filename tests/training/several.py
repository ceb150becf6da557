"""One run on several processes of this machine, each with some CPU devices."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).parents[2]


class Processes:
    """Started together.

    Args:
      commands: what Python is to run, of each process; the flags about the others are added.
      folder: for what is printed and compiled.
      devices: of each.
      homes: of each, where not all have the same.
    """

    def __init__(
        self,
        commands: Sequence[Sequence[str]],
        folder: Path,
        *,
        devices: int,
        homes: Sequence[Path] = (),
    ):
        with socket.socket() as free:
            free.bind(("localhost", 0))
            coordinator = f"localhost:{free.getsockname()[1]}"
        environment = os.environ | {
            "JAX_PLATFORMS": "cpu",
            "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
            "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
            "JAX_COMPILATION_CACHE_DIR": str(folder / "cache"),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            "PYTHONPATH": str(ROOT),
            "PYTHONUNBUFFERED": "1",
        }
        folder.mkdir(exist_ok=True)
        self.outputs, self.running = [], []
        for process, command in enumerate(commands):
            of_others = {
                "coordinator": coordinator,
                "processes": str(len(commands)),
                "process": str(process),
            }
            flags = [part for it in of_others.items() for part in (f"--distributed.{it[0]}", it[1])]
            self.outputs.append(folder / f"output-{process}.txt")
            with self.outputs[-1].open("w") as output:
                self.running.append(
                    subprocess.Popen(
                        [sys.executable, *command, *(flags if len(commands) > 1 else [])],
                        env=environment | ({"HOME": str(homes[process])} if homes else {}),
                        stdout=output,
                        stderr=subprocess.STDOUT,
                    )
                )

    def wait(self, seconds: float = 240) -> tuple[list[int], list[str]]:
        """Their exit statuses, and what each printed, once all have ended."""
        deadline = time.monotonic() + seconds
        try:
            statuses = [it.wait(deadline - time.monotonic()) for it in self.running]
        finally:
            for process in self.running:
                process.kill()
        return statuses, [output.read_text() for output in self.outputs]
