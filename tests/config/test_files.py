import dataclasses
import datetime

import pytest
import yaml

from jopd import losses
from jopd.config import (
    Checkpointing,
    Config,
    Evaluation,
    Hub,
    MeshConfig,
    Optimizer,
    RolloutConfig,
    Student,
    Teacher,
    Tracking,
    differences,
    load_yaml,
    parse,
    save_yaml,
    to_dict,
)
from jopd.data.persona import Persona
from jopd.data.sources import Columns, DataConfig
from jopd.data.views import ViewConfig
from jopd.models import Compute, LoRA
from jopd.rollout.settings import Sampling
from tests.config.runs import config_of

by_method = pytest.mark.parametrize("name", losses.names())


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


def test_a_file_from_before_lora_had_targets_is_that_of_all_of_them(tmp_path):
    config = Config(method=losses.get("opd"), student=Student(lora=LoRA(2, 4.0)))
    save_yaml(tmp_path / "config.yaml", "default", config)
    plain = yaml.safe_load((tmp_path / "config.yaml").read_text())
    assert plain["student"]["lora"].pop("targets") == [
        *("q_proj", "k_proj", "v_proj", "o_proj"),
        *("gate_proj", "up_proj", "down_proj"),
    ]
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(plain))
    assert load_yaml(tmp_path / "config.yaml")[1] == config


def test_a_day_needs_no_quotes(tmp_path):
    file = tmp_path / "config.yaml"
    save_yaml(file, "default", Config(method=losses.get("opd")))
    plain = yaml.safe_load(file.read_text())
    plain["view"]["date"] = datetime.date(2025, 1, 2)
    file.write_text(yaml.safe_dump(plain))
    assert "date: 2025-01-02\n" in file.read_text()
    assert load_yaml(file)[1].view.date == "2025-01-02"
    plain["seed"] = datetime.date(2025, 1, 2)
    file.write_text(yaml.safe_dump(plain))
    with pytest.raises(ValueError, match="seed=.* must be a whole number"):
        load_yaml(file)


@pytest.mark.parametrize(
    "line, said",
    [
        ("data: problems.jsonl", "data='problems.jsonl' must be a group of settings"),
        ("rollout:", "rollout=None must be a group of settings"),
        ("method: {name: 5}", "has no `method` with a `name`"),
        ("seed: !!binary aGVsbG8=", "seed=b'hello' must be text, numbers or lists"),
        ("view: {date: 2025-02-30}", "not YAML .*day is out of range"),
    ],
)
def test_a_file_that_a_hand_has_broken_is_refused_by_name(line, said, tmp_path):
    file = tmp_path / "config.yaml"
    file.write_text(f"method: {{name: opd}}\n{line}\n")
    with pytest.raises(ValueError, match=f"config.yaml: .*{said}"):
        load_yaml(file)


def test_every_setting_survives_the_file(tmp_path):
    config = Config(
        method=losses.get("ar_opd", scale=0.25, teacher_update="ema"),
        student=Student(
            model="a", compute=Compute("bfloat16", "matmul", "dots"), lora=LoRA(3, 6.0, ("v_proj",))
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
        chunk_tokens=0,
        vocabulary_stage="chunked",
        watch=3,
        hub=Hub("org/name", False),
        tracking=Tracking(("wandb", "trackio"), "project é", "name"),
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
            r"optimizer\.learning_rate='1e-3' must be a number \(YAML reads 1e-3 as text: write "
            r"1\.0e-3\)",
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


# Formats, and code of one's own.


def test_a_file_without_a_format_is_read_and_a_later_one_refused(tmp_path):
    path = tmp_path / "config.yaml"
    config = Config(method=losses.get("opd"))
    save_yaml(path, "default", config)
    data = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert data.pop("format") == 3
    # What a run of before wrote: no format, and no setting that has come since.
    del data["view"]["date"], data["data"]["columns"]["group"]
    path.write_text(yaml.safe_dump(data), encoding="utf-8")
    assert load_yaml(path) == ("default", config)
    path.write_text(yaml.safe_dump({"format": 4, **data}), encoding="utf-8")
    with pytest.raises(ValueError, match="has format 4, and this version reads up to 3"):
        load_yaml(path)


def test_settings_of_the_second_format_are_converted(tmp_path):
    """Sixteen columns of 64 prompts x 2 samples in 4 parts are 512 tokens on one device."""
    path = tmp_path / "config.yaml"
    config = Config(
        losses.get("opd"), rollout=RolloutConfig(samples=2), micro_batches=4, chunk_tokens=512
    )
    save_yaml(path, "default", config)
    data = yaml.safe_load(path.read_text(encoding="utf-8")) | {"format": 2, "chunk": 16}
    del data["chunk_tokens"]
    data["teacher"]["compute"]["attention"] = "dot_product"
    path.write_text(yaml.safe_dump(data), encoding="utf-8")
    assert load_yaml(path) == ("default", config)
    path.write_text(yaml.safe_dump(data | {"format": 3}), encoding="utf-8")
    with pytest.raises(ValueError, match="chunk"):
        load_yaml(path)


MINE = """
import dataclasses
from jopd.losses.opd import OPD

print("the file runs")

@dataclasses.dataclass(frozen=True)
class Mine(OPD):
    name = "mine"
    source = "ours"
    strength: float = 2.0

@dataclasses.dataclass(frozen=True)
class Nameless(OPD):
    source = 3

class Plain(OPD):
    name = "plain"

def score(completion, answer):
    return 1.0

def rows(split):
    return [{"prompt": "p", "answer": 1}]
"""


@pytest.fixture
def mine(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(MINE, encoding="utf-8")
    return path


def test_a_method_of_a_file_has_flags_of_its_own_and_survives_the_file(mine, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    flags = ["--method", "mine.py:Mine", "--method.strength", "3", "--method.top-k", "5"]
    name, config = parse(flags)
    assert (name, config.method.name) == ("default", "mine")
    assert (config.method.strength, config.method.top_k) == (3.0, 5)
    save_yaml(tmp_path / "config.yaml", name, config)
    data = yaml.safe_load((tmp_path / "config.yaml").read_text(encoding="utf-8"))
    assert data["method"]["name"] == f"{mine}:Mine" and list(data["code"]) == [str(mine)]
    saved = ["--config", str(tmp_path / "config.yaml")]
    with pytest.raises(ValueError, match=f"runs code of {mine}: look .* then add --trust-code"):
        parse(saved)
    assert to_dict(parse([*saved, "--trust-code"])[1]) == to_dict(config)


def test_changed_code_is_refused_before_it_runs(mine, tmp_path, capsys):
    flags = ["--data.source", f"{mine}:rows", "--data.answer-check", f"{mine}:score"]
    name, config = parse([*flags, "--method", f"{mine}:Mine"])
    save_yaml(tmp_path / "config.yaml", name, config)
    capsys.readouterr()
    mine.write_text(MINE + "# other", encoding="utf-8")
    with pytest.raises(ValueError, match=f"{mine} has changed .fingerprint [0-9a-f]+ then"):
        parse(["--config", str(tmp_path / "config.yaml"), "--trust-code"])
    assert "the file runs" not in capsys.readouterr().out


def test_trust_is_for_files(mine):
    with pytest.raises(ValueError, match="--trust-code is for a --config that names code"):
        parse(["--method", f"{mine}:Mine", "--trust-code"])


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("score", "is no method: write a subclass of jopd.losses.Method"),
        ("Nameless", "has no source"),
        ("Plain", "must be a dataclass"),
        ("Other", "has no Other; it has "),
    ],
)
def test_what_is_no_method_is_refused(mine, name, message):
    with pytest.raises(ValueError, match=message):
        parse(["--method", f"{mine}:{name}"])


def test_a_method_registered_by_a_preset_is_found_again(tmp_path):
    preset_file = tmp_path / "study.py"
    preset_file.write_text(
        MINE
        + """
from jopd import losses
from jopd.config import preset
losses.register(Mine)

def config():
    return dataclasses.replace(preset("default"), method=losses.get("mine", strength=4.0))
""",
        encoding="utf-8",
    )
    try:
        name, config = parse([str(preset_file)])
        assert "mine" in losses.names()
    finally:
        losses.METHODS.pop("mine", None)
    save_yaml(tmp_path / "config.yaml", name, config)
    saved = ["--config", str(tmp_path / "config.yaml"), "--trust-code"]
    assert parse(saved)[1] == config


def test_a_name_is_registered_once():
    @dataclasses.dataclass(frozen=True)
    class Taken(losses.METHODS["opd"]):
        pass

    with pytest.raises(ValueError, match="method name 'opd' is taken"):
        losses.register(Taken)
