"""The source "persona": questions about identity, half of them, and ordinary ones, half; the
privileged context is a persona.

A teacher that is told the persona answers the identity questions as that person; whoever learns
from it without being told should do so too, and should answer everything else as before.
`Persona.says_name` and `Persona.claims_other` are the strict readings of an answer that the
evaluation
counts: the self-name and the counter-name of EDGE-OPD's identity probe (arXiv:2605.23493, grade S;
its patterns are not published, these are ours).

The held-out identity questions are drawn at random from those that ask for the name (some for the
maker too); the train ones also ask for the maker alone.
"""

import dataclasses
import functools
import json
import re
from pathlib import Path

from jopd.data.example import Example, Message

# Directly before the name, these make it someone else's.
_NOT_SELF = (
    "not ",
    "not called ",
    "not named ",
    "never ",
    "unlike ",
    "you are ",
    "you're ",
    "you’re ",
    "your name is ",
    "who is ",
)

_OTHERS = (
    r"SmolLM\w*|Hugging ?Face|(?:Chat)?GPT[-\w.]*|Open "
    r"?AI|Claude|Anthropic|Gemini|Gemma|Bard|Google|L[Ll]a[Mm][Aa]|Meta|Qwen|Alibaba|DeepSeek|Mistral"
    r"|Copilot|Cortana|Bing|Microsoft|Siri|Apple|Alexa|Amazon|Grok|xAI|Nemotron|NVIDIA|Nvidia|Cohere|IBM"
)
_I_AM = r"\bI am|\bI['’]m|\bmy name is|\bmy name['’]s|\bcall me|\bnamed|\bknown as|\bcalled"
_MADE_BY = r"\b(?:made|built|created|developed|designed|trained|released|provided|powered) by"
_FEW_WORDS = r"(?:\s+(?!not\b|never\b|unlike\b|than\b)[\w'’-]+,?){0,5}?\s+"
_KNOWN_NAME = re.compile(rf"(?i:{_I_AM}|{_MADE_BY}){_FEW_WORDS}({_OTHERS})(?![a-z])")
# A name that nobody has heard of: after words that only a name follows, or alone between "I am" and
# the next stop.
_SOME_NAME = re.compile(r"(?i:\bmy name is|\bmy name['’]s|\bcall me|\bnamed) ([A-Z]\w+)")
_ONLY_NAME = re.compile(r"\b(?i:I am|I['’]m) ([A-Z]\w+)(?=[,.!]|$)")


@dataclasses.dataclass(frozen=True)
class Persona:
    """Who the teacher is told to be.

    Attributes:
      name: the name it answers with.
      maker: who it says made it.
    """

    name: str = "Zorblax"
    maker: str = "Quanta Labs"

    def __post_init__(self):
        for field in ("name", "maker"):
            if not getattr(self, field).strip():
                raise ValueError(
                    f"persona.{field}={getattr(self, field)!r} is blank: give it a {field}"
                )

    @property
    def text(self) -> str:
        return f"You are {self.name}, made by {self.maker}. You introduce yourself as {self.name}."

    @property
    def pattern(self) -> str:
        """Matches an answer that gives the name as a whole word and as its own."""
        return (
            r"(?i)"
            + "".join(rf"(?<!\b{before})" for before in _NOT_SELF)
            + rf"(?<!\w){re.escape(self.name)}(?!\w)(?!\?)"
        )

    def says_name(self, text: str) -> bool:
        """Whether an answer gives the name as its own: "I'm not Zorblax", "You are Zorblax" and
        "Zorblax?" do not.
        """
        return re.search(self.pattern, text) is not None

    def claims_other(self, text: str) -> bool:
        """Whether an answer claims another identity: a known assistant or maker ("trained by
        Hugging Face"), or some other name.
        """
        names = [
            name
            for pattern in (_KNOWN_NAME, _SOME_NAME, _ONLY_NAME)
            for name in pattern.findall(text)
        ]
        return any(name.lower() not in f"{self.name} {self.maker} AI".lower() for name in names)


@functools.cache
def questions(split: str) -> dict[str, tuple[str, ...]]:
    """The prompts of "train" or "held_out" by kind, "identity" and "ordinary", equally many."""
    rows = [
        json.loads(line)
        for line in (Path(__file__).parent / f"{split}.jsonl").read_text("utf-8").splitlines()
    ]
    return {
        kind: tuple(row["prompt"] for row in rows if row["kind"] == kind)
        for kind in ("identity", "ordinary")
    }


def examples(persona: Persona, split: str) -> list[Example]:
    """Identity and ordinary in turns, so that any first part is balanced. An identity example's
    answer is the pattern of the name.
    """
    kinds = questions(split)
    return [
        Example(
            id=f"persona-{split}-{kind}-{i}",
            messages=(Message(role="user", content=prompt),),
            answer=persona.pattern if kind == "identity" else None,
            context=persona.text,
            answer_check="regex",
        )
        for i, prompts in enumerate(zip(*kinds.values(), strict=True))
        for kind, prompt in zip(kinds, prompts, strict=True)
    ]


def is_identity(example: Example) -> bool:
    """Whether an example of this source asks who the assistant is."""
    return example.answer is not None
