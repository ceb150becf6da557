"""Kill -9 at any moment, then the same command: the files of a run that was never stopped."""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from jopd import train
from jopd.training.logs import EVALUATIONS, METRICS, SAMPLES
from tests.training.tiny import arguments

ROOT = Path(train.__file__).parents[1]

# The command itself; the process kills itself, as nobody outside could at so exact a moment, once the checkpoint is on the disk.
KILLED = """
import os, signal, sys, time
from pathlib import Path
from jopd import train
from jopd.training.logs import RunLog

step_to_die, checkpoint = int(sys.argv[1]), Path(sys.argv[2])
write = RunLog.training

def training(self, step, metrics, seconds):
    write(self, step, metrics, seconds)
    if step == step_to_die:
        while not checkpoint.is_dir():
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGKILL)

RunLog.training = training
train.main(sys.argv[3:])
"""


@pytest.fixture(scope="module")
def python(tmp_path_factory):
    """Runs Python in a process of its own, on one CPU device; programs compiled by one process serve the next."""
    cache = {"JAX_COMPILATION_CACHE_DIR": str(tmp_path_factory.mktemp("cache")), "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    environment = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    environment |= cache | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}

    def run(*command: str) -> subprocess.CompletedProcess:
        return subprocess.run([sys.executable, *command], env=environment, capture_output=True, text=True)

    return run


def records(folder: Path) -> dict[str, str]:
    """The three files, without how long anything took."""
    text = {name: (folder / name).read_text() for name in (METRICS, EVALUATIONS, SAMPLES)}
    return text | {METRICS: re.sub(r', "seconds": \{[^}]*\}', "", text[METRICS])}


def test_a_killed_run_goes_on_bit_for_bit(python, tiny, tmp_path, capsys):
    def command(folder: str) -> list[str]:
        # A teacher that is an average of the student, samples that share a prompt, micro-batches: as much state as there is.
        return [
            *("--method", "opsd", "--method.teacher-update", "ema"),
            *arguments(tiny["student"], "self", tmp_path / folder, steps=7, checkpoint__every=3, prompts=4, rollout__samples=2, micro_batches=2),
        ]

    whole = python("-m", "jopd.train", *command("whole"))
    assert whole.returncode == 0, whole.stderr
    killed = python("-c", KILLED, "5", str(tmp_path / "killed" / "checkpoints" / "3"), *command("killed"))
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    wanted = records(tmp_path / "whole")
    before = records(tmp_path / "killed")
    assert before[METRICS].count("\n") == 5 and before[EVALUATIONS].count("\n") == 3  # beyond the checkpoint at step 3
    assert not (tmp_path / "killed" / "report.json").exists()

    resumed = python("-m", "jopd.train", *command("killed"))
    assert resumed.returncode == 0, resumed.stderr
    assert "resuming after step 3 of 7" in resumed.stdout
    assert records(tmp_path / "killed") == wanted
    assert wanted[METRICS].count("\n") == 7 and wanted[EVALUATIONS].count("\n") == 5  # steps 0, 2, 4, 6, 7

    # Once more: the run is finished, its table is printed and nothing is touched.
    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "killed").rglob("*")}
    train.main(command("killed"))
    printed = capsys.readouterr().out
    assert "is finished" in printed and "accuracy" in printed
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "killed").rglob("*")} == times
