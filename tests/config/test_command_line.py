import dataclasses
import re
import subprocess
import sys

import pytest

from jopd import config as configs
from jopd import losses
from jopd.__main__ import COMMANDS
from jopd.config import (
    load_yaml,
    parse,
    preset,
    preset_names,
    save_yaml,
)

by_method = pytest.mark.parametrize("name", losses.names())


@pytest.fixture
def wide(monkeypatch):
    """A screen on which no message is broken."""
    monkeypatch.setenv("COLUMNS", "1000")


# Presets.


@pytest.mark.parametrize("name", preset_names())
def test_every_preset_is_a_run_and_survives_its_file(name, tmp_path):
    config = preset(name)
    save_yaml(tmp_path / "config.yaml", name, config)
    assert load_yaml(tmp_path / "config.yaml") == (name, config)
    assert [path.name for path in tmp_path.iterdir()] == ["config.yaml"]


def test_a_preset_may_be_a_python_file(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(
        "import dataclasses\nfrom jopd.config import preset\n\ndef config():\n    return "
        "dataclasses.replace(preset('default'), steps=3)\n"
    )
    assert parse([str(file), "--seed", "4"]) == (
        "mine",
        dataclasses.replace(preset("default"), steps=3, seed=4),
    )


@pytest.mark.parametrize("text", ["x = 1\n", "def config():\n    return 3\n"])
def test_a_preset_file_without_a_config_is_refused(tmp_path, text):
    (tmp_path / "mine.py").write_text(text)
    with pytest.raises(
        ValueError,
        match=r"mine\.py: the file needs a function `config\(\)` that returns a "
        r"jopd\.config\.Config",
    ):
        preset(str(tmp_path / "mine.py"))


@pytest.mark.parametrize("name", ["defualt", "nowhere/mine.py"])
def test_an_unknown_preset_names_the_known_ones(name):
    with pytest.raises(
        ValueError, match=f"preset {name!r} is not known.*default.*or a path to a Python file"
    ):
        preset(name)
    if name == "defualt":
        with pytest.raises(ValueError, match="did you mean 'default'"):
            preset(name)


# The command line.


def test_no_arguments_are_the_default_preset():
    assert parse([]) == ("default", preset("default"))


@by_method
def test_a_method_is_chosen_by_name_and_set_by_its_own_fields(name, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    assert parse(["--method", name])[1].method == losses.get(name)
    with pytest.raises(SystemExit) as stop:
        parse([f"--method={name}", "--help"])
    shown = set(re.findall(r"--method\.(?!no-)([a-z0-9-]+)", capsys.readouterr().out))
    assert stop.value.code == 0
    assert shown == {
        field.name.replace("_", "-") for field in dataclasses.fields(losses.METHODS[name])
    }


def test_settings_of_the_method_and_of_the_run_are_parsed():
    name, config = parse(
        [
            "--method",
            "opsd",
            "--method.divergence",
            "jensen_shannon",
            "--method.beta",
            "0.3",
            "--method.entry-clamp",
            "None",
        ]
        + [
            "--method.teacher-update",
            "ema",
            "--teacher.model",
            "self",
            "--student.lora.rank",
            "4",
            "--student.lora.targets",
            "v_proj",
            "q_proj",
            "--rollout.sampling.top-p",
            "0.9",
        ]
        + [
            "--data.held-out",
            "7",
            "--mesh.fsdp",
            "2",
            "--view.thinking",
            "True",
            "--output",
            "runs/x",
        ]
    )
    assert name == "default"
    assert config.method == losses.get(
        "opsd", divergence="jensen_shannon", beta=0.3, entry_clamp=None, teacher_update="ema"
    )
    assert (config.student.lora.rank, config.rollout.sampling.top_p, config.data.held_out) == (
        4,
        0.9,
        7,
    )
    assert config.student.lora.targets == ("q_proj", "v_proj")
    assert (config.mesh.fsdp, config.view.thinking, config.output) == (2, True, "runs/x")
    assert parse(["--method", "opd", "--steps", "3"])[1] == dataclasses.replace(
        preset("default"), steps=3
    )


def test_a_presets_setting_that_the_method_cannot_have_may_be_changed_beside_it(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(
        "import dataclasses\nfrom jopd.config import RolloutConfig, preset\n\n"
        "def config():\n    return dataclasses.replace(preset('default'), "
        "rollout=RolloutConfig(samples=4))\n"
    )
    _, config = parse([str(file), "--method", "sft", "--rollout.samples", "1"])
    assert (config.method.name, config.rollout.samples) == ("sft", 1)


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["defualt"], "preset 'defualt' is not known (did you mean 'default'?)"),
        (["--method", "odp"], "unknown method 'odp': did you mean 'opd'?"),
        (["--method"], "--method needs a value"),
        (["--config", "nowhere.yaml"], "--config nowhere.yaml: no such file"),
        (["default", "--config", "x.yaml"], "leave out the preset 'default'"),
        (["--chunk", "16"], "say --chunk-tokens 512, on several divide by data"),
        (["--resume"], "the same command goes on by itself from the last checkpoint"),
        (["--resume_from_checkpoint=True"], "leave this out"),
    ],
)
def test_what_is_unknown_is_one_line_and_names_the_nearest(arguments, message, capsys):
    with pytest.raises(SystemExit) as stop:
        configs.or_exit(parse, arguments)
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert message in error and error.startswith("error: ") and error.count("\n") == 1


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["--rollout.max-new-token", "3"], ["--rollout.max-new-token", "--rollout.max-new-tokens"]),
        (["--method.divergance", "forward_kl"], ["--method.divergance", "--method.divergence"]),
        (["--method", "sft", "--method.beta", "1"], ["--method.beta"]),  # another method's
        (["--optimizer.schedule", "cosin"], ["--optimizer.schedule", "cosine"]),
        (["--steps", "ten"], ["--steps", "ten"]),
        (["--steps", "0"], ["steps=0 must be at least 1"]),
        (["--optimizer.clip-norm", "-1"], ["optimizer.clip_norm=-1.0 must be 0 (off) or more"]),
        (["--method.beta", "0.5"], ["beta=0.5", "jensen_shannon", "leave it out"]),
        (["--data.source", "jsnol:x"], ["source='jsnol:x' is not known", "did you mean 'jsonl'"]),
        (
            [
                "--method",
                "opsd",
                "--method.teacher-update",
                "ema",
                "--teacher.model",
                "jopd:baby-teacher",
            ],
            ["teacher.model=jopd:baby-teacher", "--teacher.model self"],
        ),
    ],
)
def test_a_wrong_flag_or_value_is_named_with_the_cure(arguments, words, capsys, wide):
    with pytest.raises(SystemExit) as stop:
        configs.or_exit(parse, arguments)
    assert stop.value.code == 2
    shown = " ".join(re.sub(r"[│╭╮╰╯─]", " ", capsys.readouterr().err).split())
    assert all(word in shown for word in words), shown


WITHOUT_TORCH = """
import importlib.util
find = importlib.util.find_spec
importlib.util.find_spec = lambda name, *rest: None if name == "torch" else find(name, *rest)
import jopd, transformers
print(transformers.is_torch_available())
"""


def test_where_there_is_no_torch_nothing_is_said_of_it():
    command = [sys.executable, "-c", WITHOUT_TORCH]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.stdout == "False\n" and not done.stderr


@pytest.mark.parametrize(
    "command, asked",
    [
        *((command, "--help") for command in COMMANDS),
        ("train", "--steps -1"),
        ("train", "--stps 3"),
        ("train", "tiny"),
        ("evaluate", "--model x --batch 0"),
        ("evaluate", "--model x --mesh.data 0"),
        ("evaluate", "--model x --seed -1"),
        ("evaluate", "--model x --save /"),
        ("generate", "--model x --samples 0"),
        ("generate", "--modle x"),
        ("check", "identity --method opdd"),
        ("check", "everything"),
        ("plan", "--stps 3"),
        ("plan", "--topology v5e"),
        ("plan", "--topology v5e:2x4 --slices 0"),
        ("methods", "opd"),
    ],
)
def test_help_and_a_refused_setting_wait_for_no_import_of_what_only_the_work_needs(command, asked):
    program = (
        f"import sys; from jopd.{command} import main\n"
        f"try: main({asked.split()})\n"
        "except SystemExit as stop: print(stop.code or 0, *sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    code, *loaded = done.stdout.splitlines()[-1].split()
    assert code == ("0" if asked == "--help" else "2") and "jopd.losses" in loaded
    heavy = {"flax", "matplotlib", "optax", "orbax", "tensorflow_datasets", "transformers", "torch"}
    assert not heavy.intersection(loaded)


def test_a_reader_that_has_had_enough_ends_it_quietly():
    command = f"{sys.executable} -m jopd.train --help | head -1"
    done = subprocess.run(command, shell=True, capture_output=True, text=True)
    assert done.stdout.startswith("usage: python -m jopd.train") and not done.stderr


@pytest.mark.parametrize(
    "asked, message",
    [
        (["opsd"], "it is a method, --method opsd"),
        (["--methd", "opd"], "--methd is no setting (did you mean '--method'?)"),
        (["--student.modle", "a"], "did you mean '--student.model'?"),
        (["--student_model", "a"], "did you mean '--student.model'?"),
        (["--method.scale", "0.8"], "but of --method ar_opd, g_opd"),
        (["--steps", "3", "extra"], "extra is no setting"),
    ],
)
def test_what_is_not_known_is_answered_with_what_is_near(asked, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        parse(asked)


def test_what_is_changed_first_has_short_names():
    of = lambda *arguments: parse(list(arguments))[1]
    found = of("--student", "a", "--teacher=b", "--data", "builtin", "--lr", "1e-4")
    wanted = of("--student.model", "a", "--teacher.model", "b", "--optimizer.learning-rate", "1e-4")
    assert found == wanted and found.optimizer.learning_rate == 1e-4


def test_help_begins_with_what_is_changed_first(capsys):
    with pytest.raises(SystemExit):
        parse(["--method", "opsd", "--lr", "0.5", "--help"])
    first, _, rest = capsys.readouterr().out.partition("All settings")
    assert re.search(r"--lr X +learning rate +0\.001", first)
    assert re.search(r"--method NAME .* opsd", first) and "--method.entry-clamp" in rest
    assert first.count("python -m jopd.train") >= 3
