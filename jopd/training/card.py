"""The model card of a trained student: where it comes from, how, and what its evaluations show."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from jopd import __version__
from jopd.diagnostics.findings import comparison

_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")
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
    facts = {
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["jopd", "on-policy-distillation", config["method"]["name"]],
    }
    # A path of somebody's disk is nobody else's base model.
    if _HUB_NAME.fullmatch(student) and not Path(student).exists():
        facts |= {"base_model": student}
    papers = re.sub(r" \([^)]*\)", "", source)  # without the grades, which mean nothing there
    papers = _ARXIV.sub(r"[arXiv:\1](https://arxiv.org/abs/\1)", papers)
    rows = [("", "before", "after", "teacher", "problems")]
    rows += [tuple(map(_cell, row)) for row in comparison(evaluations)]
    table = [f"| {' | '.join(row)} |" for row in rows]
    parts = [
        f"---\n{yaml.safe_dump(facts, sort_keys=False, allow_unicode=True)}---",
        "# A student of on-policy distillation",
        f"{_code(student)}, trained by jopd {__version__} with the method "
        f"{_code(config['method']['name'])} ({papers}). Teacher: {_code(teacher)}. Data: "
        f"{_code(config['data']['source'])}. Its licence is that of the model it comes from.",
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
