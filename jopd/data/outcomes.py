"""What is counted of a model's answers: shares of yes and no, by the source that the problems came
from.
"""

from collections.abc import Sequence

from jopd.data import answers, persona
from jopd.data.example import Example
from jopd.data.sources import DataConfig


def outcomes(
    config: DataConfig, examples: Sequence[Example], completions: Sequence[str]
) -> dict[str, list[bool]]:
    """By name, one value for each answer that the name applies to; a name that applies to none is
    left out.

    `accuracy` is the share of right answers among problems that have one. The source `persona`
    counts instead, on identity questions, `name_rate` (gives the persona's name as its own) and
    `other_name_rate` (claims another identity), and on ordinary questions `intrusion_rate` (gives
    the persona's name all the same).
    """
    if config.kind != "persona":
        known = [
            (example, text)
            for example, text in zip(examples, completions, strict=True)
            if example.answer is not None
        ]
        return (
            {"accuracy": [score == 1 for score in answers.scores(*zip(*known, strict=True))]}
            if known
            else {}
        )
    who, identity, ordinary = config.persona, [], []
    for example, text in zip(examples, completions, strict=True):
        (identity if persona.is_identity(example) else ordinary).append(text)
    counted = {
        "name_rate": [who.says_name(text) for text in identity],
        "other_name_rate": [who.claims_other(text) for text in identity],
        "intrusion_rate": [who.name.lower() in text.lower() for text in ordinary],
    }
    return {name: values for name, values in counted.items() if values}


def groups(config: DataConfig, examples: Sequence[Example]) -> dict[str, list[bool]]:
    """Kinds of problems that are to be measured apart, by name which examples they are; empty where
    all are of one kind.
    """
    if config.kind == "persona":
        identity = [persona.is_identity(example) for example in examples]
        return {"identity": identity, "ordinary": [not yes for yes in identity]}
    kinds = dict.fromkeys(example.group for example in examples if example.group is not None)
    return {kind: [example.group == kind for example in examples] for kind in kinds}
