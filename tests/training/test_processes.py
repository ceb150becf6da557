"""Several processes are one run: the same numbers, one end, whatever happens to one of them."""

import json
import pickle
import random
import signal
import time

import chex
import numpy as np
import pytest

from jopd.models.load import load
from jopd.training import processes
from jopd.training.folder import has_result
from jopd.training.home import Disk
from jopd.training.logs import EVALUATIONS, METRICS
from tests.training.gradients import outcome
from tests.training.several import Processes
from tests.training.tiny import arguments

NAMES = ("opd", "rlsd", "ar_opd", "topd")


@pytest.fixture(scope="module")
def together(tmp_path_factory):
    """The outcomes of the methods on two processes of four devices."""
    folder = tmp_path_factory.mktemp("together")
    command = ["-m", "tests.training.gradients", str(folder), *NAMES]
    statuses, said = Processes([command, command], folder, devices=4).wait()
    assert statuses == [0, 0], said
    return {name: pickle.loads((folder / f"{name}.pickle").read_bytes()) for name in NAMES}


@pytest.mark.slow
@pytest.mark.usefixtures("quick_compilation")
@pytest.mark.parametrize("shape", [(2, 2, 2), (1, 1, 1)], ids=["1x8", "1x1"])
@pytest.mark.parametrize("name", NAMES)
def test_two_processes_have_the_loss_and_gradient_of_one(name, shape, together):
    found, wanted = together[name], outcome(name, shape)
    np.testing.assert_array_equal(found["windows"], wanted["windows"])
    for part in ("loss", "params", "inputs"):
        chex.assert_trees_all_close(found[part], wanted[part], rtol=1e-5, atol=1e-5)


def test_rows_are_computed_once_and_all_have_all_of_them(monkeypatch):
    """Three processes, one after another; each gathers what the three have computed."""
    shares = []
    for process in range(3):
        monkeypatch.setattr(processes, "count", lambda: 3)
        monkeypatch.setattr(processes, "index", lambda process=process: process)
        monkeypatch.setattr(
            processes, "process_allgather", lambda mine: shares.append(mine) or np.stack([mine] * 3)
        )
        processes.pooled(7, lambda rows: np.array([[row, row**2] for row in rows]))
    monkeypatch.setattr(processes, "process_allgather", lambda mine: np.stack(shares))
    pooled = processes.pooled(7, lambda rows: np.array([[row, row**2] for row in rows]))
    assert pooled.tolist() == [[row, row**2] for row in range(7)]


def test_an_orderly_end_is_told_to_nobody_and_an_error_is(monkeypatch):
    told = []

    class Store:
        def key_value_set(self, key, value):
            told.append((key, json.loads(value)))

    monkeypatch.setattr(processes, "count", lambda: 2)
    monkeypatch.setattr(processes, "_client", Store)
    for error in (processes.Orderly("stopped"), processes.Agreed("stopped")):
        with pytest.raises(type(error)), processes.telling():
            raise error
    assert told == []
    with pytest.raises(ValueError), processes.telling():
        raise ValueError("no")
    assert told == [(processes.FAILED, [0, "ValueError: no"])]


@pytest.mark.parametrize(
    "flags, said",
    [
        (["--distributed.process", "1"], "distributed.process without --distributed.coordinator"),
        (
            "--distributed.coordinator a:1 --distributed.processes 2 --distributed.process 2",
            "distributed.process=2 of distributed.processes=2: the processes have the numbers 0",
        ),
        (
            "--distributed.coordinator a --distributed.processes 2 --distributed.process 1",
            "distributed.coordinator=a must be HOST:PORT",
        ),
    ],
)
def test_flags_that_are_not_whole_are_refused(flags, said, refused):
    error = refused(flags.split() if isinstance(flags, str) else flags)
    assert said in error.replace("--distributed.processes, ", "")


@pytest.mark.parametrize(
    "variables, several",
    [
        ({}, False),
        # A script of sbatch, then what srun starts.
        ({"SLURM_NTASKS": "4"}, False),
        ({"SLURM_NTASKS": "4", "SLURM_STEP_NUM_TASKS": "4"}, True),
        ({"SLURM_NTASKS": "1", "SLURM_STEP_NUM_TASKS": "1"}, False),
        ({"OMPI_MCA_orte_hnp_uri": "1.0;tcp://10.0.0.1:1", "OMPI_COMM_WORLD_SIZE": "2"}, True),
    ],
)
def test_one_process_starts_nothing_and_several_are_found(variables, several, monkeypatch):
    if "SLURM_NTASKS" in variables:
        step = ("SLURM_JOB_ID", "SLURM_STEP_NODELIST", "SLURM_PROCID", "SLURM_LOCALID")
        variables = dict.fromkeys(step, "0") | variables
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert processes._place([]) == (processes.Place() if several else None)


@pytest.fixture
def command(tiny):
    """Of a run in a folder."""
    return lambda folder, **changes: [
        *("-m", "jopd.train"),
        *arguments(tiny["student"], tiny["teacher"], folder, **changes),
    ]


def test_what_one_process_alone_sees_ends_all_within_a_minute(command, tmp_path):
    """Its data, here: before the first array is shared."""
    homes = [tmp_path / "0", tmp_path / "1"]
    rows = "".join(f'{{"prompt": "{i} + 1", "answer": "{i + 1}"}}\n' for i in range(20))
    lines = (rows, "{not json\n")
    for home, line in zip(homes, lines, strict=True):
        home.mkdir()
        (home / "train.jsonl").write_text(line)
    run = command(tmp_path / "run", data__source="jsonl:~/train.jsonl")
    both = Processes([run, run], tmp_path / "two", devices=1, homes=homes)
    both.running[1].wait(120)
    begin = time.monotonic()
    statuses, said = both.wait(90)
    assert 0 not in statuses and time.monotonic() - begin < 60
    assert "process 1: error: " in said[0] and "process 1: error: " not in said[1], said
    assert all("train.jsonl:1: not JSON" in text for text in said), said
    assert not has_result(Disk(tmp_path / "run"))


DISK_FULL_ON_ONE = """
import errno, sys
from orbax.checkpoint._src.checkpointers import async_checkpointer
from jopd import train

def full(*_, **__):
    raise OSError(errno.ENOSPC, "No space left on device")

if sys.argv[-1] == "1":
    async_checkpointer._background_wait_for_commit_futures = full
train.main(sys.argv[1:])
"""


@pytest.mark.slow
def test_a_checkpoint_that_one_process_cannot_write_ends_all(command, tmp_path):
    """Of what it is writing in the background, while the others wait for it."""
    run = ["-c", DISK_FULL_ON_ONE, *command(tmp_path / "run", **CHANGES)[2:]]
    both = Processes([run, run], tmp_path / "two", devices=1)
    while "step  1/30" not in both.outputs[0].read_text():
        assert both.running[0].poll() is None, both.outputs[0].read_text()
        time.sleep(0.2)
    begin = time.monotonic()
    statuses, said = both.wait(90)
    assert 0 not in statuses and time.monotonic() - begin < 60
    assert all("the disk is full" in text for text in said), said


CHANGES = {"evaluation__every": 0, "checkpoint__every": 1, "steps": 30}


def test_a_signal_to_one_stops_all(command, tmp_path):
    folder = tmp_path / "run"
    both = Processes([command(folder, **CHANGES)] * 2, tmp_path / "two", devices=2)
    wait_for(folder / "checkpoints" / "2", both)
    both.running[1].send_signal(signal.SIGTERM)
    statuses, said = both.wait()
    assert statuses == [1, 1] and "which is saved" in said[0] and "Traceback" not in said[1], said
    assert "process 0: " not in said[1] and "process 1: " not in said[0]  # nothing has failed
    steps = [line["step"] for line in read(folder / METRICS)]
    assert steps == [*range(1, steps[-1] + 1)] and 2 <= steps[-1] < 30
    assert (folder / "checkpoints" / str(steps[-1])).is_dir()


@pytest.mark.slow
def test_adapters_that_lie_on_several_processes_are_written_whole(command, tmp_path):
    run = command(tmp_path / "run", steps=2, evaluation__every=0, student__lora__rank=2)
    run += ["--mesh.tensor", "2", "--mesh.fsdp", "2"]
    statuses, said = Processes([run] * 2, tmp_path / "two", devices=2).wait()
    assert statuses == [0, 0], said
    student, adapter = (load(tmp_path / "run" / name).params for name in ("student", "adapter"))
    chex.assert_trees_all_close(adapter, student, atol=1e-6)


# One whose teacher is a state that moves, and one that draws more than the rollout does.
@pytest.mark.slow
@pytest.mark.parametrize("method", ["ar_opd", "topd"])
def test_the_mesh_may_change_between_starts(method, command, tmp_path):
    """Three steps on two processes of four devices, three on one of eight, three on two again: the
    numbers of one device.
    """
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    changes = {"evaluation__every": 0, "checkpoint__every": 1, "method": method}
    if method == "ar_opd":
        changes["teacher__model"] = "self"
    for steps, count in ((3, 2), (6, 1), (9, 2)):
        run = command(parts, **changes, steps=steps, optimizer__schedule="constant")
        name = f"on-{count}"
        statuses, said = Processes([run] * count, tmp_path / name, devices=8 // count).wait(400)
        assert statuses == [0] * count, said
    run = command(whole, **changes, steps=9, optimizer__schedule="constant")
    statuses, said = Processes([run], tmp_path / "alone", devices=1).wait(400)
    assert statuses == [0], said
    found, wanted = read(parts / METRICS), read(whole / METRICS)
    assert [line["step"] for line in found] == [*range(1, 10)]
    for line, other in zip(found[:5], wanted[:5], strict=True):
        assert line.pop("alerts", None) == other.pop("alerts", None)  # in words
        chex.assert_trees_all_close(line, other, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_killed_at_any_moment_it_goes_on_bit_for_bit(command, tmp_path):
    """One or both processes, again and again, until the run is done."""
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    statuses, said = Processes([command(whole, **CHANGES)] * 2, tmp_path / "two", devices=4).wait()
    assert statuses == [0, 0], said
    chance = random.Random(0)
    for attempt in range(7):
        both = Processes([command(parts, **CHANGES)] * 2, tmp_path / "two", devices=4)
        if attempt < 6:
            # From before they meet until after the last step.
            time.sleep(chance.uniform(4, 18))
            for process in ((0,), (1,), (0, 1))[attempt % 3]:
                both.running[process].kill()
            if "2 processes" not in both.outputs[0].read_text():
                both.running[1].kill()  # they have not met: it would wait for five minutes
        statuses, said = both.wait()
    assert statuses == [0, 0], said
    assert read(parts / METRICS) == read(whole / METRICS)
    assert read(parts / EVALUATIONS) == read(whole / EVALUATIONS)
    weights = [(folder / "student" / "model.safetensors").read_bytes() for folder in (parts, whole)]
    assert weights[0] == weights[1]


def wait_for(path, run: Processes, seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not path.exists():
        assert time.monotonic() < deadline and all(it.poll() is None for it in run.running), [
            output.read_text() for output in run.outputs
        ]
        time.sleep(0.1)


def read(path) -> list[dict]:
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    for line in lines:
        for clock in ("seconds", "speed"):
            line.pop(clock, None)
    return lines
