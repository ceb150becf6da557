"""Some of the student's answers at an evaluation, as lines of `samples.jsonl`: what was written and
whether it was right, and of every token what the readers and the method made of it.

    {"id": ..., "prompt": ..., "completion": ..., "answer": ..., "right": true,
     "tokens": {"text": ["step", " 1", ...],
                "measures": {"kl": [0.1, ...], ...},        of the comparison with the teacher
                "method": {"divergence": [0.1, ...], ...},  the method's own, see `training.seen`
                "length": 57,                               in all; TOKENS are looked at
                "likeliest": {"student": [[["step", 0.9, true], ...], ...], ...}}}

`likeliest` has a text, its probability, and whether it is the token that was written.
"""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from jopd.data.texts import Decoder, pieces_of, text_after
from jopd.training.seen import EXPECTED
from jopd.training.summary import CORE, Answers

# So many answers of an evaluation are looked at, and of each so many tokens: some 100 kB an answer.
LOOKED_AT, TOKENS = 16, 256

Tokens = dict[str, Any]


def samples(
    answers: Answers,
    count: int,
    record: Mapping[str, Any] | None = None,
    tokenizer: Decoder | None = None,
) -> list[dict[str, Any]]:
    """The first few answers.

    Args:
      record: of these answers (`jopd.training.summary`), which says whether each was right.
      tokenizer: of the tokens; without it they are left out.
    """
    right = iter((record or {}).get("by_problem", {}).get("accuracy", ()))
    lines = []
    for row, example in enumerate(answers.examples[:count]):
        line = {
            "id": example.id,
            "prompt": example.messages[-1]["content"],
            "completion": answers.text[row],
            "answer": example.answer,
        }
        if example.answer is not None and (outcome := next(right, None)) is not None:
            line["right"] = bool(outcome)
        if tokenizer is not None and row < LOOKED_AT:
            line["tokens"] = tokens_of(answers, row, tokenizer)
        lines.append(line)
    return lines


def tokens_of(answers: Answers, row: int, tokenizer: Decoder) -> Tokens:
    """Every token of an answer, up to TOKENS of them: its text, and what it was measured to be."""
    written = answers.mask[row].nonzero()[0][:TOKENS]
    ids = answers.tokens[row, written].tolist()
    measured = {
        name: values
        for name, values in answers.terms.items()
        if name in CORE or name.startswith(("kl_", "forward_kl"))
    }
    found = {name: values[row, written] for name, values in answers.seen.items()}
    own = {
        name: rounded(values)
        for name, values in found.items()
        # Of one name they are the same number, but where the method has a temperature of its own.
        if not name.startswith(EXPECTED) and name not in measured
    }
    return {
        "text": pieces_of(tokenizer, ids),
        "length": int(answers.mask[row].sum()),
        "measures": {name: rounded(values[row, written]) for name, values in measured.items()},
        "method": own,
        "likeliest": likeliest(found, ids, tokenizer),
    }


def likeliest(
    found: Mapping[str, np.ndarray], ids: list[int], tokenizer: Decoder
) -> dict[str, list[list[tuple[str, float, bool]]]]:
    """By reader, for each token texts, their probabilities and which was written, the likeliest
    first.
    """
    ending = "_ids"
    readers = [
        name.removeprefix(EXPECTED).removesuffix(ending)
        for name in found
        if name.startswith(EXPECTED) and name.endswith(ending)
    ]
    previous = [None, *ids[:-1]]
    by_reader = {}
    for reader in readers:
        expected = found[f"{EXPECTED}{reader}{ending}"].tolist()
        shares = found[f"{EXPECTED}{reader}_probabilities"]
        by_reader[reader] = [
            [
                (text_after(tokenizer, before, id), share, id == ids[place])
                for id, share in zip(of_token, rounded(shares[place]), strict=True)
            ]
            for place, (before, of_token) in enumerate(zip(previous, expected, strict=True))
        ]
    return by_reader


def rounded(values: np.ndarray) -> list[float | None]:
    """To four digits, which is more than a screen shows; None for what is no number."""
    return [float(f"{x:.4g}") if math.isfinite(x) else None for x in values.tolist()]
