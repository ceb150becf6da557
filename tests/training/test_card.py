import yaml

from jopd.config import parse, to_dict
from jopd.training.card import adapter_card, model_card

EVALUATIONS = [
    {
        "step": step,
        "accuracy": {"value": value, "low": value - 0.1, "high": value + 0.1, "count": 9},
    }
    for step, value in ((0, 0.5), (3, 0.75))
]


def card(**settings) -> tuple[dict, str]:
    """Its facts and its text."""
    flags = [part for name, value in settings.items() for part in (f"--{name}", value)]
    text = model_card(
        to_dict(parse(flags)[1]), source="AR-OPD, arXiv:2606.10385 (P)", evaluations=EVALUATIONS
    )
    _, facts, rest = text.split("---\n", 2)
    return yaml.safe_load(facts), rest


def test_it_says_where_a_student_comes_from_and_what_it_can():
    facts, text = card(student="Qwen/Qwen3-0.6B", teacher="Qwen/Qwen3-8B", output="/home/me/run")
    assert "/home/me" not in text
    assert facts["base_model"] == "Qwen/Qwen3-0.6B"
    assert {"jopd", "on-policy-distillation", "opd"} == set(facts["tags"])
    assert "Teacher: `Qwen/Qwen3-8B`" in text
    assert "[arXiv:2606.10385](https://arxiv.org/abs/2606.10385)" in text
    (row,) = [line for line in text.splitlines() if line.startswith("| accuracy")]
    assert "50.0" in row and "75.0" in row


def test_a_path_is_no_base_model(tmp_path, monkeypatch):
    (tmp_path / "models" / "mine").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert "base_model" not in card(student="models/mine")[0]
    assert "base_model" not in card(student="/home/me/models/mine")[0]
    assert "base_model" not in card(student="jopd:baby-student")[0]


def test_the_adapters_have_a_card_of_their_own():
    adapter = {"r": 4, "lora_alpha": 6.5, "base_model_name_or_path": "Qwen/Qwen3-0.6B"}
    plain = to_dict(parse(["--student", "some/adapter", "--student.lora.rank", "4"])[1])
    _, facts, text = adapter_card(plain, adapter).split("---\n", 2)
    facts = yaml.safe_load(facts)
    assert (facts["library_name"], facts["base_model"]) == ("peft", "Qwen/Qwen3-0.6B")
    assert "rank 4, alpha 6.5" in text
    assert 'from_pretrained("Qwen/Qwen3-0.6B")' in text
    local = adapter_card(plain, adapter | {"base_model_name_or_path": "/home/me/model"})
    assert "base_model:" not in local and 'from_pretrained("BASE")' in local
    assert "`adapter/`" in card(**{"student.lora.rank": "4"})[1]
    assert "`adapter/`" not in card()[1]


def test_no_name_breaks_out_of_its_place():
    facts, text = card(student="a`b\n---\nlicense: mit\n```\n<b>", teacher="x")
    assert "license" not in facts
    first = text.split("## Held-out")[0]
    assert "``" in first and "\nlicense" not in first
    settings = text.split("## Settings\n\n")[1]
    fence = settings.split("yaml\n")[0]
    assert len(fence) > 3 and settings.rstrip().endswith(fence)
    assert yaml.safe_load(settings.strip().removeprefix(fence + "yaml").removesuffix(fence))
