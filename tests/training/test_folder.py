import dataclasses
import re
from pathlib import Path

import pytest

from jopd.config import load_yaml, parse, save_yaml
from jopd.training import folder
from jopd.training.home import Disk
from tests.training.tiny import arguments


def test_a_folder_that_cannot_be_made_is_refused(tiny, tmp_path, refused):
    (tmp_path / "file").touch()
    error = refused(arguments(tiny["student"], tiny["teacher"], tmp_path / "file" / "run"))
    assert (
        f"output={tmp_path / 'file' / 'run'} can't be used" in error
        and "another folder with --output" in error
    )


def test_a_path_in_which_checkpoints_are_not_found_again_is_refused(tiny, tmp_path, refused):
    error = refused(arguments(tiny["student"], tiny["teacher"], tmp_path / "a[b]c" / "run"))
    assert "has [ ] in it" in error and "choose another --output" in error
    assert not (tmp_path / "a[b]c" / "run" / "checkpoints").exists()


def test_settings_of_a_run_that_cannot_be_read_are_refused(tiny, tmp_path, refused):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").write_text("steps: [")
    error = refused(arguments(tiny["student"], tiny["teacher"], tmp_path / "run"))
    assert (
        f"output={tmp_path / 'run'} holds a run whose settings cannot be read" in error
        and "--output" in error
    )


def test_a_folder_that_holds_something_else_is_refused(tiny, tmp_path, refused):
    command = arguments(tiny["student"], tiny["teacher"], tmp_path / "run")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / ".config.yaml.partial").write_text("a kill left this")
    assert folder.home_of(*parse(command)).folder == tmp_path / "run"
    (tmp_path / "run" / "thesis.txt").touch()
    error = refused(command)
    assert (
        f"output={tmp_path / 'run'} holds files that are not of a run: choose another folder with "
        "--output" in error
    )
    assert f"output={tmp_path / 'run' / 'thesis.txt'} is a file" in refused(
        [*command, "--output", str(tmp_path / "run" / "thesis.txt")]
    )
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == [
        ".config.yaml.partial",
        "thesis.txt",
    ]


def started(path, command, step=None) -> Path:
    """The folder of a run that has saved a step, or nothing yet."""
    name, config = parse(command)
    path.mkdir()
    save_yaml(path / "config.yaml", name, config)
    if step is not None:
        (path / "checkpoints" / str(step)).mkdir(parents=True)
    return path


def test_a_folder_of_another_run_is_refused_naming_what_differs(tiny, tmp_path, refused):
    command = arguments(tiny["student"], tiny["teacher"], tmp_path / "run")
    run = started(tmp_path / "run", command, step=2)
    assert folder.home_of(*parse(command)).folder == run
    error = refused(
        [*command, "--method.divergence", "forward_kl", "--rollout.sampling.top-k", "5"]
    )
    assert (
        "(method.divergence: reverse_kl -> forward_kl; rollout.sampling.top_k: 0 -> 5)" in error
        and f"--output {tmp_path / 'run'}-2" in error
    )


@pytest.mark.parametrize(
    "flags",
    [
        ("--micro-batches", "2"),
        ("--chunk-tokens", "0"),
        ("--mesh.data", "1", "--mesh.fsdp", "-1"),
        ("--checkpoint.keep", "5", "--checkpoint.every", "1"),
        ("--evaluation.every", "0", "--evaluation.batch", "3", "--evaluation.samples-shown", "0"),
        ("--watch", "0"),
        ("--student.compute.remat", "none", "--teacher.compute.remat", "dots"),
        ("--steps", "9"),
    ],
    ids=lambda flags: flags[0],
)
def test_what_changes_no_number_may_differ_and_a_run_may_become_longer(tiny, tmp_path, flags):
    command = arguments(tiny["student"], tiny["teacher"], tmp_path / "run")
    run = started(tmp_path / "run", command, step=2)
    assert folder.home_of(*parse([*command, *flags])).folder == run


def test_a_run_does_not_become_shorter(tiny, tmp_path, refused):
    command = arguments(tiny["student"], tiny["teacher"], tmp_path / "run")
    started(tmp_path / "run", command, step=2)
    error = refused([*command, "--steps", "4"])
    assert "holds a run of 6 steps, and steps=4 asks for fewer" in error


def test_a_run_that_has_saved_nothing_is_cleared_away(tiny, tmp_path):
    command = arguments(tiny["student"], tiny["teacher"], tmp_path / "run")
    run = started(tmp_path / "run", command)
    (run / "evaluations.jsonl").write_text("of other settings")
    (run / "events.out.tfevents.1").touch()
    (run / "plots").mkdir()
    (run / "notes.txt").touch()
    folder.settle(Disk(run), *parse(command), updates=1)
    assert (run / "evaluations.jsonl").exists()  # of the same settings: it may go on
    name, config = parse([*command, "--optimizer.learning-rate", "0.5"])
    assert folder.home_of(name, config).folder == run
    folder.settle(Disk(run), name, config, updates=1)
    assert sorted(path.name for path in run.iterdir()) == ["config.yaml", "notes.txt"]
    assert load_yaml(run / "config.yaml") == (name, config)


def test_a_longer_run_says_how_the_learning_rate_jumps_and_keeps_it_on_file(tiny, tmp_path, capsys):
    flags = ("--optimizer.schedule", "linear", "--optimizer.warmup", "0")
    command = [*arguments(tiny["student"], tiny["teacher"], tmp_path / "run"), *flags]
    run = started(tmp_path / "run", [*command, "--optimizer.learning-rate", "0.5"], step=6)
    name, config = parse([*command, "--optimizer.learning-rate", "0.5", "--steps", "12"])
    for _ in range(2):  # a kill right after the first start
        folder.settle(Disk(run), name, config, updates=1)
    # Half of the longer way down, where the shorter one had arrived.
    said = capsys.readouterr().out
    assert "12 steps instead of 6" in said and "0.25 instead of 0" in said
    assert folder.lengthened(run) == [{"at": 6, "from": 6, "to": 12, "learning_rate": [0.0, 0.25]}]


@pytest.mark.parametrize(
    ("flags", "name"),
    [
        ((), "default-opd-seed0"),
        (("--seed", "3", "--steps", "9", "--chunk-tokens", "4"), "default-opd-seed3"),
        (("--method", "opsd"), "default-opsd-seed0"),
        (("--method.top-k", "16"), "default-opd-seed0-top_k=16"),
        (
            ("--method.divergence", "forward_kl", "--method.top-k", "16"),
            "default-opd-seed0-divergence=forward_kl,top_k=16",
        ),
    ],
)
def test_default_folders_tell_settings_apart(flags, name):
    assert folder.home_of(*parse([*flags])).folder == Path("runs") / name


def test_long_settings_and_unknown_presets_are_told_apart_by_a_digest(tmp_path):
    of = lambda *flags: folder.home_of(*parse([*flags])).folder.name
    one, other = of("--student.model", "/some/where"), of("--student.model", "/else/where")
    assert one != other and one == of("--student.model", "/some/where")
    assert re.fullmatch(r"default-opd-seed0-[0-9a-f]{6}", one)
    _, config = parse([])
    # A preset that no other test of this process has read from a file.
    unknown = folder.default_folder("unheard-of", config).removeprefix("runs/")
    assert re.fullmatch(r"unheard-of-opd-seed0-[0-9a-f]{6}", unknown)
    (tmp_path / "study.py").write_text(
        "from jopd.config import preset\nconfig = lambda: preset('default')\n"
    )
    assert of(str(tmp_path / "study.py")) == "study-opd-seed0"


def test_a_folder_may_begin_with_a_tilde(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert folder.home_of(*parse(["--output", "~/run"])).folder == tmp_path / "run"


def test_the_output_of_a_run_is_not_one_of_its_settings(tiny, tmp_path, monkeypatch):
    """A folder that was moved, or is written differently, is still the run's."""
    monkeypatch.chdir(tmp_path)
    name, config = parse(arguments(tiny["student"], tiny["teacher"], "run"))
    started(tmp_path / "run", arguments(tiny["student"], tiny["teacher"], "run"), step=2)
    (tmp_path / "run").rename(tmp_path / "moved")
    moved = dataclasses.replace(config, output="./moved")
    assert folder.home_of(name, moved).folder == Path("moved")
