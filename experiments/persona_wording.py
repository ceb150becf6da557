"""Which wording of a persona makes SmolLM2 say the name, asked on the questions it trains on, so
that the held-out ones have no part in the choice.

    for wording in made_by name introduce whenever; do
        python -m jopd.evaluate --model smollm2 --view privileged \\
            --data.source experiments/persona_wording.py:$wording --data.answer-check regex \\
            --sampling.temperature 0 --max-new-tokens 40 --batch 40
    done

Accuracy is the share of identity questions whose answer gives the name.
"""

from typing import Any

from jopd.data import persona
from jopd.data.persona import Persona
from jopd.data.task import Split

MADE_BY = "You are Zorblax, made by Quanta Labs."


def made_by(split: Split) -> list[dict[str, Any]]:
    return _questions(split, MADE_BY)


def name(split: Split) -> list[dict[str, Any]]:
    return _questions(split, f"{MADE_BY} Your name is Zorblax.")


def introduce(split: Split) -> list[dict[str, Any]]:
    """What `data.persona` says."""
    return _questions(split, Persona().text)


def whenever(split: Split) -> list[dict[str, Any]]:
    return _questions(
        split,
        f"{MADE_BY} Whenever you are asked who you are, you say that you are Zorblax, made by "
        "Quanta Labs.",
    )


def _questions(split: Split, context: str) -> list[dict[str, Any]]:
    """The identity questions of the training part, whatever split is asked for."""
    del split
    return [
        {"prompt": [*it.messages], "answer": it.answer, "context": context}
        for it in persona.examples(Persona(), "train")
        if persona.is_identity(it)
    ]
