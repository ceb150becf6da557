import dataclasses
import re

import pytest
import yaml

from jopd import config as configs
from jopd import losses
from jopd.config import (
    Checkpointing,
    Config,
    Evaluation,
    MeshConfig,
    Optimizer,
    RolloutConfig,
    Student,
    Teacher,
    differences,
    load_yaml,
    parse,
    preset,
    preset_names,
    save_yaml,
    to_dict,
)
from jopd.data.persona import Persona
from jopd.data.sources import Columns, DataConfig
from jopd.data.views import ViewConfig
from jopd.models import Compute, LoRA
from jopd.rollout.sampler import Sampling

by_method = pytest.mark.parametrize("name", losses.names())


@pytest.fixture
def wide(monkeypatch):
    """A screen on which no message is broken."""
    monkeypatch.setenv("COLUMNS", "1000")


def config_of(method: losses.Method, **settings) -> Config:
    """A run of the method, from another model's teacher unless the method makes its own."""
    teacher = Teacher(model="self") if method.teacher_update != "frozen" else Teacher()
    rollout = RolloutConfig(samples=4 if "group_advantage" in method.inputs else 1)
    return Config(method=method, **{"teacher": teacher, "rollout": rollout, **settings})


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
        "import dataclasses\nfrom jopd.config import preset\n\ndef config():\n    return dataclasses.replace(preset('default'), steps=3)\n"
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
        match=r"mine\.py: the file needs a function `config\(\)` that returns a jopd\.config\.Config",
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
    assert (config.mesh.fsdp, config.view.thinking, config.output) == (2, True, "runs/x")
    assert parse(["--method", "opd", "--steps", "3"])[1] == dataclasses.replace(
        preset("default"), steps=3
    )


def test_a_presets_setting_that_the_method_cannot_have_may_be_changed_beside_it(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(
        "import dataclasses\nfrom jopd.config import RolloutConfig, preset\n\n"
        "def config():\n    return dataclasses.replace(preset('default'), rollout=RolloutConfig(samples=4))\n"
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


# Values that contradict each other or cannot be.


@pytest.mark.parametrize(
    "cls, settings, message",
    [
        (Teacher, {"ema_rate": 0.0}, r"teacher\.ema_rate=0\.0 must lie in \(0, 1\]"),
        (RolloutConfig, {"samples": 0}, r"rollout\.samples=0 must be at least 1"),
        (
            RolloutConfig,
            {"max_prompt_tokens": 0},
            r"rollout\.max_prompt_tokens=0 must be at least 1",
        ),
        (RolloutConfig, {"max_new_tokens": 0}, r"rollout\.max_new_tokens=0 must be at least 1"),
        (
            Sampling,
            {"temperature": -1.0},
            r"temperature=-1\.0 must be a finite number of 0 \(greedy\) or more",
        ),
        (Optimizer, {"learning_rate": 0.0}, r"optimizer\.learning_rate=0\.0 must be above 0"),
        (
            Optimizer,
            {"learning_rate": float("nan")},
            r"optimizer\.learning_rate=nan must be above 0",
        ),
        (Optimizer, {"epsilon": 0.0}, r"optimizer\.epsilon=0\.0 must be above 0"),
        (Optimizer, {"warmup": 1.0}, r"optimizer\.warmup=1\.0 is a share of the run"),
        (Optimizer, {"b2": 1.0}, r"optimizer\.b2=1\.0 must lie in \[0, 1\)"),
        (Optimizer, {"clip_norm": -1.0}, r"optimizer\.clip_norm=-1\.0 must be 0 \(off\) or more"),
        (
            Optimizer,
            {"weight_decay": -0.1},
            r"optimizer\.weight_decay=-0\.1 must be 0 \(off\) or more",
        ),
        (Evaluation, {"every": -1}, r"evaluation\.every=-1 must be at least 0"),
        (Evaluation, {"batch": 0}, r"evaluation\.batch=0 must be at least 1"),
        (Evaluation, {"samples_shown": -1}, r"evaluation\.samples_shown=-1 must be at least 0"),
        (Checkpointing, {"every": 0}, r"checkpoint\.every=0 must be at least 1"),
        (Checkpointing, {"keep": 0}, r"checkpoint\.keep=0 must be at least 1"),
        (
            MeshConfig,
            {"data": -1, "fsdp": -1},
            "data=-1, fsdp=-1, tensor=1: each is 1 or more, at most one is -1",
        ),
        (MeshConfig, {"tensor": 0}, "tensor=0: each is 1 or more"),
    ],
)
def test_values_out_of_range_are_refused(cls, settings, message):
    with pytest.raises(ValueError, match=message) as error:
        cls(**settings)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "method, settings, message",
    [
        ("opd", {"prompts": 0}, "prompts=0 must be at least 1"),
        ("opd", {"chunk": -1}, "chunk=-1 must be at least 0"),
        ("opd", {"seed": -1}, "seed=-1 must be at least 0"),
        (
            "opd",
            {"prompts": 6, "micro_batches": 4},
            "micro_batches=4 must divide the 6 rows of a batch",
        ),
        (
            "opd",
            {"teacher": Teacher(model="none")},
            "teacher.model=none, but method opd needs a teacher",
        ),
        (
            "sft",
            {"teacher": Teacher(model="none", dtype="bfloat16")},
            "teacher.model=none, but other settings of a teacher are given",
        ),
        (
            "sft",
            {"rollout": RolloutConfig(sampling=Sampling(top_k=5))},
            "rollout.sampling=.*top_k=5.* has no effect on method sft",
        ),
        (
            "sft",
            {"rollout": RolloutConfig(samples=2)},
            "rollout.samples=2: method sft has one reference a prompt: set it to 1",
        ),
        (
            "opd",
            {"teacher": Teacher(ema_rate=0.5)},
            "teacher.ema_rate=0.5 has no effect with method.teacher_update=frozen",
        ),
        (
            "opd",
            {"student": Student(lora=LoRA(alpha=8.0))},
            r"student\.lora\.alpha=8\.0 has no effect without adapters",
        ),
        (
            "opsd",
            {
                "teacher": Teacher(model="self", dtype="bfloat16"),
                "student": Student(lora=LoRA(rank=2)),
            },
            "teacher.dtype=bfloat16: this teacher reads the student's own float32 parameters",
        ),
    ],
)
def test_settings_that_contradict_each_other_are_refused(method, settings, message):
    with pytest.raises(ValueError, match=message) as error:
        Config(method=losses.get(method), **settings)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "method",
    [
        losses.get("opd_pg"),
        losses.get("opd", divergence="k2"),
        losses.get("rlsd"),
    ],
)
def test_what_learns_from_samples_needs_sampling(method):
    greedy = RolloutConfig(sampling=Sampling(temperature=0.0), samples=2)
    with pytest.raises(
        ValueError,
        match=rf"temperature=0 always writes the likeliest token, but method {method.name}",
    ):
        Config(method=method, rollout=greedy)
    Config(method=losses.get("opd"), rollout=greedy)


def test_a_ratio_needs_the_samplers_temperature():
    rollout = RolloutConfig(sampling=Sampling(temperature=0.7))
    with pytest.raises(
        ValueError, match=r"rollout\.sampling\.temperature=0.7.*needs one temperature for both"
    ):
        Config(method=losses.get("opd_pg", updates=2), rollout=rollout)
    Config(
        method=losses.get("opd_pg"), rollout=rollout
    )  # without a ratio there is nothing to contradict
    Config(method=losses.get("opd_pg", updates=2, temperature=0.7), rollout=rollout)


@pytest.mark.parametrize("update", ["ema", "live"])
def test_a_teacher_that_follows_is_the_student_itself(update):
    method = losses.get("opsd", teacher_update=update)
    with pytest.raises(
        ValueError,
        match=f"method.teacher_update={update} .* teacher.model=jopd:baby-teacher: set --teacher.model self",
    ):
        Config(method=method)
    with pytest.raises(ValueError, match="teacher.dtype=bfloat16"):
        Config(method=method, teacher=Teacher(model="self", dtype="bfloat16"))
    assert Config(method=method, teacher=Teacher(model="self")).rows == 64


# config.yaml.


@by_method
def test_every_methods_file_gives_the_run_back(name, tmp_path):
    config = config_of(losses.get(name), prompts=8, seed=3)
    save_yaml(tmp_path / "config.yaml", "default", config)
    assert load_yaml(tmp_path / "config.yaml") == ("default", config)
    assert parse(["--config", str(tmp_path / "config.yaml")]) == ("default", config)
    assert parse([f"--config={tmp_path / 'config.yaml'}", "--seed", "5"]) == (
        "default",
        dataclasses.replace(config, seed=5),
    )


def test_every_setting_survives_the_file(tmp_path):
    config = Config(
        method=losses.get("ar_opd", scale=0.25, teacher_update="ema"),
        student=Student(
            model="a", compute=Compute("bfloat16", "dot_product", "dots"), lora=LoRA(3, 6.0)
        ),
        teacher=Teacher(model="self", ema_rate=1e-05, compute=Compute("bfloat16")),
        data=DataConfig(
            source="tfds:x",
            seed=1,
            limit=5,
            held_out=6,
            columns=Columns("p", None, "s", "none"),
            data_dir="d",
            answer_check="math",
        ),
        view=ViewConfig("user", 0.25, True, "so: {context}\n", "Be brief.", False),
        stabilise=losses.Stabilisers((3, 4), 5.5, 3.0, 0.5, 0.125),
        rollout=RolloutConfig(Sampling(0.5, 7, 0.9, 0.01), 2, 33, 44),
        optimizer=Optimizer(3e-07, "linear", 0.125, 1e-10, 0.8, 0.95, 1e-12, 0.0),
        evaluation=Evaluation(0, Sampling(0.0), 5, 0),
        checkpoint=Checkpointing(7, 4),
        mesh=MeshConfig(2, -1, 2),
        steps=11,
        prompts=10,
        micro_batches=5,
        chunk=0,
        watch=3,
        seed=12,
        output="out put: 'é'",
    )
    defaults = to_dict(Config(method=losses.get("opd")))
    same = set(defaults) - {
        line.split(":")[0].split(".")[0] for line in differences(defaults, to_dict(config))
    }
    assert not same  # every group is set to something else
    save_yaml(tmp_path / "config.yaml", "mine", config)
    assert load_yaml(tmp_path / "config.yaml") == ("mine", config)
    persona = dataclasses.replace(
        config, data=DataConfig(source="persona", persona=Persona("Ada", "the Tests"))
    )
    save_yaml(tmp_path / "config.yaml", "mine", persona)
    assert load_yaml(tmp_path / "config.yaml") == ("mine", persona)


def test_another_method_may_be_asked_of_a_saved_run(tmp_path):
    save_yaml(
        tmp_path / "config.yaml",
        "default",
        Config(method=losses.get("opd", divergence="forward_kl")),
    )
    saved = ["--config", str(tmp_path / "config.yaml")]
    assert parse([*saved, "--method", "opd"])[1].method == losses.get(
        "opd", divergence="forward_kl"
    )
    assert parse([*saved, "--method", "sft"])[1].method == losses.get("sft")


@pytest.mark.parametrize(
    "change, message",
    [
        ({"stesp": 3}, r"stesp is no setting \(did you mean 'steps'\?\)"),
        ({"rollout": {"sample": 3}}, r"rollout\.sample is no setting \(did you mean 'samples'\?\)"),
        ({"rollout": {"sampling": {"topk": 3}}}, r"rollout\.sampling\.topk is no setting"),
        ({"method": {"name": "odp"}}, "unknown method 'odp': did you mean 'opd'"),
        (
            {"method": {"name": "opd", "bete": 1}},
            r"method\.bete is no setting \(did you mean 'beta'\?\)",
        ),
        (
            {"method": {"name": "opd", "top_k": "many"}},
            r"method\.top_k='many' must be a whole number or null",
        ),
        ({"method": "opd"}, "it has no `method` with a `name`"),
        ({"steps": "ten"}, "steps='ten' must be a whole number"),
        ({"steps": 1.5}, "steps=1.5 must be a whole number"),
        ({"steps": True}, "steps=True must be a whole number"),
        ({"steps": None}, "steps=None must be a whole number"),
        (
            {"optimizer": {"learning_rate": "1e-3"}},
            r"optimizer\.learning_rate='1e-3' must be a number \(YAML reads 1e-3 as text: write 1\.0e-3\)",
        ),
        (
            {"optimizer": {"schedule": "cosin"}},
            r"optimizer\.schedule='cosin' must be 'constant' or 'cosine' or 'linear'",
        ),
        ({"optimizer": 3}, "optimizer=3 must be a group of settings"),
        ({"output": 3}, "output=3 must be text"),
        ({"view": {"thinking": "no"}}, r"view\.thinking='no' must be true or false or null"),
        ({"prompts": 0}, "prompts=0 must be at least 1"),
    ],
)
def test_a_file_with_a_bad_setting_is_refused_by_name(change, message, tmp_path):
    file = tmp_path / "config.yaml"
    file.write_text(yaml.safe_dump({"method": {"name": "opd"}, **change}))
    with pytest.raises(ValueError, match=message) as error:
        load_yaml(file)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "text, message",
    [
        ("a: [1", "not YAML"),
        ("", "not a config.yaml of a run"),
        ("- 1\n", "not a config.yaml of a run"),
    ],
)
def test_a_file_that_is_no_config_is_refused(text, message, tmp_path):
    (tmp_path / "config.yaml").write_text(text)
    with pytest.raises(ValueError, match=rf"--config .*config\.yaml: {message}") as error:
        load_yaml(tmp_path / "config.yaml")
    assert "\n" not in str(error.value)


def test_differences_name_every_setting_old_and_new():
    a = to_dict(config_of(losses.get("opd"), steps=3))
    b = to_dict(
        config_of(
            losses.get("opd", divergence="forward_kl"),
            steps=4,
            rollout=RolloutConfig(Sampling(top_k=5)),
        )
    )
    assert differences(a, b) == [
        "method.divergence: reverse_kl -> forward_kl",
        "rollout.sampling.top_k: 0 -> 5",
        "steps: 3 -> 4",
    ]
    assert differences(a, a) == []
