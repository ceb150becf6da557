"""Kill -9 at any moment, or a polite signal, then the same command: the files of a run that was
never stopped.
"""

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

# A whole run, then another in its own folder, which kills itself (nobody outside could at so exact
# a moment) at its step 5, once the checkpoint of step 3 is on the disk.
WHOLE_THEN_KILLED = """
import os, signal, sys, time
from pathlib import Path
from jopd import train
from jopd.training.logs import RunLog

arguments, whole, killed = sys.argv[3:], Path(sys.argv[1]), Path(sys.argv[2])
train.main([*arguments, "--output", str(whole)])
write = RunLog.training

def training(self, step, *measured):
    write(self, step, *measured)
    if step == 5:
        while not (killed / "checkpoints" / "3").is_dir():
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGKILL)

RunLog.training = training
train.main([*arguments, "--output", str(killed)])
"""

# Goes on, and is asked to stop in its step 5.
ASKED_TO_STOP = """
import os, signal, sys
from jopd import train
from jopd.training.logs import RunLog

write = RunLog.training

def training(self, step, *measured):
    if step == 5:
        os.kill(os.getpid(), signal.SIGTERM)
    write(self, step, *measured)

RunLog.training = training
train.main(sys.argv[1:])
"""


@pytest.fixture(scope="module")
def python(tmp_path_factory):
    """Runs Python in a process of its own, on one CPU device; what one process has compiled serves
    the next.
    """
    cache = {
        "JAX_COMPILATION_CACHE_DIR": str(tmp_path_factory.mktemp("cache")),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    environment = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    environment |= cache | {
        "JAX_PLATFORMS": "cpu",
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
        "PYTHONPATH": str(ROOT),
    }

    def run(*command: str) -> subprocess.CompletedProcess:
        return subprocess.run(
            [sys.executable, *command], env=environment, capture_output=True, text=True
        )

    return run


def records(folder: Path) -> dict[str, str]:
    """The three files, without how long anything took."""
    text = {name: (folder / name).read_text() for name in (METRICS, EVALUATIONS, SAMPLES)}
    text[METRICS] = re.sub(r', "(seconds|speed)": \{[^}]*\}', "", text[METRICS])
    text[EVALUATIONS] = re.sub(r', "seconds": [^,}]*', "", text[EVALUATIONS])
    return text


def test_a_killed_run_goes_on_bit_for_bit(python, tiny, tmp_path, capsys):
    # The teacher is an average of the student, so it is state too. Evaluations sample as training
    # does, which spares a compilation.
    changes = {
        "steps": 7,
        "checkpoint__every": 3,
        "micro_batches": 2,
        "evaluation__sampling__temperature": 1.0,
    }
    settings = [
        *("--method", "opsd", "--method.teacher-update", "ema"),
        *arguments(tiny["student"], "self", "", **changes),
    ]
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    first = python("-c", WHOLE_THEN_KILLED, str(whole), str(killed), *settings)
    assert first.returncode == -signal.SIGKILL, first.stderr
    wanted, before = records(whole), records(killed)
    assert (
        wanted[METRICS].count("\n") == 7 and wanted[EVALUATIONS].count("\n") == 5
    )  # steps 0, 2, 4, 6, 7
    assert (
        before[METRICS].count("\n") == 5 and before[EVALUATIONS].count("\n") == 3
    )  # beyond the checkpoint of step 3
    assert (whole / "report.json").exists() and not (killed / "report.json").exists()

    again = [*settings, "--output", str(killed)]
    asked = python("-c", ASKED_TO_STOP, *again)
    assert asked.returncode == 1 and "resuming after step 3 of 7" in asked.stdout, asked.stderr
    assert "stopped after step 6 of 7, which is saved: the same command goes on" in asked.stderr
    assert "Traceback" not in asked.stderr
    resumed = python("-m", "jopd.train", *again)
    assert resumed.returncode == 0, resumed.stderr
    assert "resuming after step 6 of 7" in resumed.stdout
    assert records(killed) == wanted

    # Once more: the run is finished, its table is printed and nothing is touched.
    times = {path: path.stat().st_mtime_ns for path in killed.rglob("*")}
    train.main(again)
    printed = capsys.readouterr().out
    assert "is finished" in printed and "accuracy" in printed
    assert {path: path.stat().st_mtime_ns for path in killed.rglob("*")} == times
