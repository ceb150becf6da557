"""The model cards of a trained student and its adapters: where they come from, how, and what the
evaluations show.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from jopd import __version__
from jopd.diagnostics.findings import comparison

_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")
# Of a student that was trained as adapters.
_MERGED = (
    "Trained as LoRA adapters, which are merged here; `adapter/` of the same run has them alone."
)
_ARXIV = re.compile(r"arXiv:(\d{4}\.\d{4,5})")


def model_card(
    config: Mapping[str, Any], *, source: str, evaluations: Sequence[Mapping[str, Any]]
) -> str:
    """A README.md as the Hugging Face hub reads it.

    Args:
      config: the run's settings, as config.yaml has them.
      source: of the method, with its grade.
      evaluations: the run's, in their order.
    """
    student, teacher = config["student"]["model"], config["teacher"]["model"]
    papers = re.sub(r" \([^)]*\)", "", source)  # without the grades, which mean nothing there
    papers = _ARXIV.sub(r"[arXiv:\1](https://arxiv.org/abs/\1)", papers)
    rows = [("", "before", "after", "teacher", "problems")]
    rows += [tuple(map(_cell, row)) for row in comparison(evaluations)]
    table = [f"| {' | '.join(row)} |" for row in rows]
    parts = [
        _head(config, student, library="transformers"),
        "# A student of on-policy distillation",
        f"{_code(student)}, trained by jopd {__version__} with the method "
        f"{_code(config['method']['name'])} ({papers}). Teacher: {_code(teacher)}. Data: "
        f"{_code(config['data']['source'])}. Its licence is that of the model it comes from.",
        *([_MERGED] if config["student"]["lora"]["rank"] else []),
        "## Held-out problems, before and after",
        "\n".join([table[0], "|---" * len(rows[0]) + "|", *table[1:]]),
        "(Brackets: 95 % intervals over problems, each number by itself; one run.)",
        "## Settings",
        # But for the place on the disk that the run was written to.
        _fenced(
            yaml.safe_dump(
                {name: value for name, value in config.items() if name != "output"},
                sort_keys=False,
                allow_unicode=True,
            )
        ),
    ]
    return "\n\n".join(parts) + "\n"


def adapter_card(config: Mapping[str, Any], adapter: Mapping[str, Any]) -> str:
    """A README.md of a run's adapters, as the Hugging Face hub reads it.

    Args:
      config: as of `model_card`.
      adapter: their adapter_config.json.
    """
    base, alpha = adapter["base_model_name_or_path"], adapter["lora_alpha"]
    name = base if _on_hub(base) else "BASE"
    parts = [
        _head(config, base, library="peft"),
        "# LoRA adapters of on-policy distillation",
        f"For {_code(base)}, trained by jopd {__version__} with the method "
        f"{_code(config['method']['name'])}; rank {adapter['r']}, alpha {alpha:g}. Their licence "
        "is that of the model they are for. `student/` of the same run is that model with these "
        "adapters merged; its card has the settings and the evaluations.",
        "```python\n"
        "from peft import PeftModel\n"
        "from transformers import AutoModelForCausalLM\n\n"
        f'base = AutoModelForCausalLM.from_pretrained("{name}")\n'
        'model = PeftModel.from_pretrained(base, "adapter")\n```',
    ]
    return "\n\n".join(parts) + "\n"


def _head(config: Mapping[str, Any], base: str, *, library: str) -> str:
    """What the hub reads of a card."""
    facts = {
        "library_name": library,
        "pipeline_tag": "text-generation",
        "tags": ["jopd", "on-policy-distillation", config["method"]["name"]],
    }
    facts |= {"base_model": base} if _on_hub(base) else {}
    return f"---\n{yaml.safe_dump(facts, sort_keys=False, allow_unicode=True)}---"


def _on_hub(model: str) -> bool:
    """Whether that is a name for everybody: a path of somebody's disk is not."""
    return _HUB_NAME.fullmatch(model) is not None and not Path(model).exists()


def _cell(text: str) -> str:
    return text.replace("|", r"\|").replace("<", "&lt;")


def _code(text: str) -> str:
    """As a code span, whatever stands in it."""
    longest = max(map(len, re.findall("`+", text)), default=0)
    ticks, room = "`" * (longest + 1), " " if "`" in text else ""
    return f"{ticks}{room}{' '.join(text.split())}{room}{ticks}"


def _fenced(text: str) -> str:
    fence = "`" * max(3, 1 + max(map(len, re.findall("`+", text)), default=0))
    return f"{fence}yaml\n{text}{fence}"
