"""The trackers with stand-ins for their packages, and wandb itself where it is installed."""

import dataclasses
import importlib.machinery
import json
import subprocess
import sys
from types import ModuleType

import pytest

from jopd import train
from jopd.config import Tracking, parse
from jopd.training import optimizer
from jopd.training.home import Disk
from jopd.training.logs import RunLog, read
from jopd.training.trackers import KNOWN_AS, check_installed, started
from tests.training.problem import lenient
from tests.training.tiny import arguments

SECONDS, SPEED = {"rollout": 1.5, "update": 0.5}, {"tokens_per_second": 400.0}


class StandIn(ModuleType):
    """What both packages have; `said` is what they were told, in order."""

    def __init__(self, name):
        super().__init__(name)
        self.__spec__ = importlib.machinery.ModuleSpec(name, None, origin=__file__)
        self.said, self.logged_in, self.broken = [], False, False
        self.Settings = dict
        self.Table = lambda columns, data: (columns, data)

    def login(self, *, prompt, verify):
        assert not prompt and not verify
        return self.logged_in

    def init(self, **settings):
        if self.broken:
            raise ConnectionError("no network\nhere")
        self.said.append(("init", settings))
        return self

    def define_metric(self, name, step_metric=None):
        self.said.append(("define", name, step_metric))

    def log(self, values, step=None):
        if self.broken:
            raise ConnectionError("no network\nhere")
        self.said.append(("log", values, step))

    def finish(self, exit_code=None):
        self.said.append(("finish", exit_code))

    def began(self) -> list[dict]:
        return [settings for what, *(settings, *_) in self.said if what == "init"]

    def logged(self) -> list[tuple]:
        return [
            (values, step) for what, *(values, *rest) in self.said if what == "log" for step in rest
        ]


@pytest.fixture
def wandb(monkeypatch):
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.setitem(sys.modules, "wandb", stand_in := StandIn("wandb"))
    return stand_in


@pytest.fixture
def trackio(monkeypatch):
    monkeypatch.setitem(sys.modules, "trackio", stand_in := StandIn("trackio"))
    return stand_in


def log_of(folder, *to, restored_step=0, **settings) -> RunLog:
    config = dataclasses.replace(parse([])[1], tracking=Tracking(to, **settings))
    return RunLog(
        folder,
        restored_step=restored_step,
        start=lambda: started(config, Disk(folder), restored_step),
    )


def write(log: RunLog) -> None:
    log.training(3, {"loss": 0.25, "kl": float("nan"), "tokens": 12}, SECONDS, SPEED)
    answer = {"value": 0.5, "low": 0.1, "high": 0.9, "count": 4}
    seen = {"prompt": "2 + 2?", "completion": "4", "right": True, "tokens": {"text": ["4"]}}
    log.evaluation(4, {"accuracy": answer}, [{"prompt": "3 + 3?", "completion": "7"}, seen])


# By hand: names with their group before them, what is no number left out, what only pages read too.
STEP = {
    "train/loss": 0.25,
    "train/tokens": 12,
    "seconds/rollout": 1.5,
    "seconds/update": 0.5,
    "speed/tokens_per_second": 400.0,
}
TABLE = (
    ["prompt", "completion", "right"],
    [["3 + 3?", "7", None], ["2 + 2?", "4", True]],
)


def test_wandb_hears_every_number_under_a_step_of_our_own(wandb, tmp_path):
    with log_of(tmp_path / "run", "wandb", project="mine") as log:
        write(log)
    (settings,) = wandb.began()
    assert settings["project"] == "mine" and settings["name"] == "run"
    assert settings["config"]["method"]["name"] == "opd" and settings["mode"] == "offline"
    assert wandb.said[1:3] == [("define", "step", None), ("define", "*", "step")]
    assert wandb.logged() == [
        ({**STEP, "step": 3}, None),
        ({"samples": TABLE, "step": 4}, None),
        ({"evaluation/accuracy": 0.5, "step": 4}, None),
    ]
    assert wandb.said[-1] == ("finish", 0)
    assert not list((tmp_path / "run").glob("events*"))  # TensorBoard was not asked for


def test_trackio_hears_every_number(trackio, tmp_path):
    with log_of(tmp_path / "run", "trackio", name="mine") as log:
        write(log)
    (settings,) = trackio.began()
    assert settings["project"] == "jopd" and settings["name"] == "mine"
    assert trackio.logged() == [
        (STEP, 3),
        ({"samples": TABLE}, 4),
        ({"evaluation/accuracy": 0.5}, 4),
    ]
    assert trackio.said[-1] == ("finish", None)


@pytest.mark.parametrize(
    "variable, logged_in, mode", [("", False, "offline"), ("online", False, None), ("", True, None)]
)
def test_nothing_leaves_the_machine_unless_somebody_has_said_so(
    variable, logged_in, mode, wandb, tmp_path, monkeypatch
):
    monkeypatch.setenv("WANDB_MODE", variable)
    wandb.logged_in = logged_in
    log_of(tmp_path, "wandb").close()
    assert wandb.began()[0]["mode"] == mode


def test_a_run_that_goes_on_is_the_same_run_to_its_trackers(wandb, trackio, tmp_path):
    folder = tmp_path / "run"
    with log_of(folder, "wandb", "trackio") as log:
        write(log)
    with log_of(folder, "wandb", "trackio", restored_step=2, name="renamed") as log:
        write(log)
    first, second = wandb.began()
    assert first["id"] == second["id"] and first["resume"] == second["resume"] == "allow"
    assert second["name"] == "renamed"
    first, second = trackio.began()  # where the name is all it knows a run by
    assert (first["name"], first["resume"]) == ("run", "never")
    assert (second["name"], second["resume"]) == ("run", "allow")
    assert wandb.logged()[:3] == wandb.logged()[3:]  # steps that are made again are sent again

    log_of(tmp_path / "other", "wandb").close()
    assert wandb.began()[2]["id"] != wandb.began()[0]["id"]
    Disk(folder).clear()
    assert not (folder / KNOWN_AS).exists()


def test_a_run_that_ends_with_an_error_has_failed(wandb, tmp_path):
    with pytest.raises(FloatingPointError), log_of(tmp_path, "wandb"):
        raise FloatingPointError
    assert wandb.said[-1] == ("finish", 1)


def test_a_tracker_that_fails_is_said_once_and_hears_what_comes_later(wandb, tmp_path, capsys):
    with log_of(tmp_path, "wandb") as log:
        wandb.broken = True
        for step in (1, 2):
            log.training(step, {"loss": 0.5}, SECONDS, SPEED)
        wandb.broken = False
        log.training(3, {"loss": 0.25}, SECONDS, SPEED)
    assert [values["step"] for values, _ in wandb.logged()] == [3]
    assert [line["step"] for line in read(tmp_path).training] == [1, 2, 3]
    assert capsys.readouterr().out == (
        "warning: wandb misses numbers of this run (no network); the run "
        "goes on, and its own files have them all\n"
    )


def test_a_tracker_that_does_not_start_is_done_without(trackio, tmp_path, capsys):
    trackio.broken = True
    with log_of(tmp_path, "tensorboard", "trackio") as log:
        write(log)
    assert capsys.readouterr().out.count("warning: trackio misses numbers") == 1
    assert list(tmp_path.glob("events*")) and len(read(tmp_path).training) == 1


def test_one_that_is_not_installed_is_refused_with_its_command(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    check_installed(Tracking())
    check_installed(Tracking(()))
    with pytest.raises(ValueError, match="tracking.to=wandb needs .*: pip install wandb$"):
        check_installed(Tracking(("tensorboard", "wandb")))


def test_the_folder_that_wandb_writes_to_is_not_taken_for_wandb(tmp_path):
    (tmp_path / "wandb").mkdir()
    program = (
        "import importlib.util, sys; from jopd.config import Tracking\n"
        "from jopd.training.trackers import check_installed\n"
        "sys.path = [''] + [path for path in sys.path if 'site-packages' not in path]\n"
        "assert importlib.util.find_spec('wandb') is not None\n"
        "try: check_installed(Tracking(('wandb',)))\n"
        "except ValueError as error: print(error)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True
    )
    assert "needs the package wandb: pip install wandb" in done.stdout, done.stderr


def test_a_run_tells_its_trackers_all_that_metrics_jsonl_has(
    wandb, tiny, tmp_path, monkeypatch, quick_compilation
):
    make = optimizer.make
    monkeypatch.setattr(optimizer, "make", lambda *settings: lenient(make(*settings)))
    command = [
        *arguments(tiny["student"], tiny["teacher"], tmp_path / "run", steps=4, watch=0),
        *("--optimizer.schedule", "linear", "--optimizer.warmup", "0", "--lr", "0.015625"),
    ]
    train.main([*command, "--tracking.to", "wandb"])
    told = [values for values, _ in wandb.logged() if "train/loss" in values]
    # A line from 1/64 to 0 in four steps.
    rates = [4 / 256, 3 / 256, 2 / 256, 1 / 256]
    assert [values["train/learning_rate"] for values in told] == rates
    lines = read(tmp_path / "run").training
    assert [line["learning_rate"] for line in lines] == rates
    names = {f"train/{name}" for name in lines[0] if name not in ("step", "seconds", "speed")}
    names |= {f"{group}/{name}" for group in ("seconds", "speed") for name in lines[0][group]}
    assert {"speed/tokens_per_second", "speed/memory_bytes"} <= names
    assert set(told[0]) == names | {"step"}
    evaluated = [values["step"] for values, _ in wandb.logged() if "evaluation/kl" in values]
    assert evaluated == [0, 2, 4] and wandb.said[-1] == ("finish", 0)
    # Told to others it is the same run.
    train.main([*command, "--steps", "5", "--tracking.to"])
    assert len(read(tmp_path / "run").training) == 5
    assert len(wandb.began()) == 1


def test_of_several_updates_a_step_the_last_ones_rate_is_told(
    tiny, tmp_path, monkeypatch, quick_compilation
):
    make = optimizer.make
    monkeypatch.setattr(optimizer, "make", lambda *settings: lenient(make(*settings)))
    command = [
        *arguments(tiny["student"], tiny["teacher"], tmp_path / "run", steps=2, watch=0),
        *("--optimizer.schedule", "linear", "--optimizer.warmup", "0", "--lr", "0.015625"),
        *("--method", "opd_pg", "--method.updates", "2", "--method.ratio-clip", "0.2"),
    ]
    train.main(command)
    lines = read(tmp_path / "run").training
    assert [line["learning_rate"] for line in lines] == [3 / 256, 1 / 256]


OFFLINE = """
import dataclasses, pathlib, sys
from jopd.config import Tracking, parse
from jopd.training.home import Disk
from jopd.training.trackers import started
config = dataclasses.replace(parse([])[1], tracking=Tracking(("wandb",)))
for restored in (0, 2):
    (tracker,) = started(config, Disk(pathlib.Path("run")), restored)
    for step in range(restored + 1, 5):
        tracker.scalars(step, {"train/loss": 1 / step})
    tracker.samples(4, [{"prompt": "2 + 2?", "completion": "4", "right": None}])
    tracker.close(failed=False)
"""


def test_wandb_itself_writes_to_files_where_nobody_is_logged_in(tmp_path):
    pytest.importorskip("wandb")
    (tmp_path / "run").mkdir()
    environment = {"HOME": str(tmp_path), "PYTHONPATH": ":".join(sys.path), "PATH": ""}
    done = subprocess.run(
        [sys.executable, "-c", OFFLINE],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "warning" not in done.stdout
    (run_id,) = json.loads((tmp_path / "run" / KNOWN_AS).read_text()).values()
    folders = [path.name for path in (tmp_path / "wandb").glob("offline-run-*")]
    assert folders and all(name.endswith(run_id) for name in folders)
    assert "train/loss" in done.stderr  # its summary
