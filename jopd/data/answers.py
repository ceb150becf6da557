"""Whether a completion has the right answer, for evaluation and as a reward. It is right when

    exact  its final answer equals the answer, but for case, runs of white space and the signs
              . * ` ' " ( ) [ ] around it
    number  the last number of its final answer, or without one its own last, equals the answer's
              last number, as fractions: 0.5, 1/2 and \\frac{1}{2} are equal, 1,234 is 1234 and
              50 % is 50
    regex  `re.search` finds the answer, a pattern, anywhere in it; flags go inside the pattern,
              `(?i)`
    math   math-verify finds an expression in it that is equivalent to the answer, a LaTeX or
              plain expression
    gym    reasoning-gym's own scorer gives its final answer full marks
    FILE:NAME a function of yours, `NAME(completion, answer)`, gives it 1; between 0 and 1 it is a
              reward

The *final answer* is what stands in the last `<answer>...</answer>`; without one, the last that is
stated otherwise: in `\\boxed{...}`, after "####", or after "answer:" or "answer is", on that line
or, where nothing does, on the next. Without any of them it is the last line. A gym scorer may want
several lines: it gets all that follows, or everything.
"""

import dataclasses
import functools
import importlib.util
import re
from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import Any, Literal

from jopd import plugins
from jopd.data import math_answers
from jopd.data.example import Example

OF_FILES = ("exact", "number", "regex", "math")
CHECKS = (*OF_FILES, "gym")


@dataclasses.dataclass(frozen=True)
class GymExample(Example):
    """A problem of reasoning-gym, with what its scorer needs.

    Attributes:
      generator: the name of the generator.
      entry: the problem as it was generated.
    """

    generator: str = ""
    entry: Mapping = dataclasses.field(default_factory=dict, compare=False, repr=False)


def check(example: Example, completion: str) -> bool:
    """Whether the completion's answer is right; ValueError for an example without an answer."""
    return score(example, completion) == 1.0


def score(example: Example, completion: str) -> float:
    """1 for a right answer, else 0; a gym scorer may say something between. Raises ValueError for
    an example without an answer.
    """
    return scores([example], [completion])[0]


def scores(examples: Sequence[Example], completions: Sequence[str]) -> list[float]:
    """`score` of each pair; the math checks run in parallel."""
    values = [0.0] * len(examples)
    math: dict[int, tuple[str, str]] = {}
    for i, (example, completion) in enumerate(zip(examples, completions, strict=True)):
        answer, kind = example.answer, example.answer_check
        if answer is None:
            raise ValueError(
                f"example {example.id} has no answer to check: give it one, or evaluate without "
                "accuracy"
            )
        if kind == "math":
            math[i] = (answer, completion)
        elif kind == "gym":
            values[i] = _gym(example, completion)
        elif kind in _TEXT_CHECKS:
            values[i] = float(_TEXT_CHECKS[kind](answer, completion))
        elif plugins.is_named(kind):
            values[i] = _own(example, completion)
        else:
            raise ValueError(
                f"example {example.id}: answer_check={kind!r} is not known: use one of "
                f"{', '.join(CHECKS)}"
            )
    for i, right in zip(math, math_answers.all_equal(list(math.values())), strict=True):
        values[i] = float(right)
    return values


def _own(example: Example, completion: str) -> float:
    """What a user's function makes of a completion."""
    name = example.answer_check
    try:
        value = plugins.load(name)(completion, example.answer)
    except Exception as error:
        raise plugins.Failed(
            f"answer_check={name} failed on example {example.id}: {type(error).__name__}: {error}"
        ) from error
    if not isinstance(value, int | float) or not 0 <= value <= 1:
        raise plugins.Failed(
            f"answer_check={name} gave {value!r:.60} for example {example.id}: give a number from "
            "0 (wrong) to 1 (right)"
        )
    return float(value)


def resolve(kind: str, answer: str) -> str:
    """The check that "auto" stands for: `number` for a lone number, `math` for what looks like
    LaTeX or a power, else `exact`.
    """
    if kind != "auto":
        return kind
    if _NUMBER.fullmatch(answer.strip().strip(" $%")):
        return "number"
    return "math" if re.search(r"[\\^$]", answer) else "exact"


def validate(kind: str, answer: str) -> None:
    """Raises ValueError where `answer` can't be checked in this way by anybody."""
    if kind == "number" and last_number(answer) is None:
        raise ValueError(
            f"answer={answer!r} holds no number: use answer_check exact, regex or math"
        )
    if kind == "regex":
        try:
            re.compile(answer)
        except re.error as error:
            raise ValueError(
                f"answer={answer!r} is no regular expression ({error}): mend it, or use "
                "answer_check exact"
            ) from None
    if kind == "math":
        require("math_verify", "math-verify", f"answer={answer!r} with answer_check=math")
    if plugins.is_named(kind) and not callable(plugins.load(kind)):
        raise ValueError(f"answer_check={kind} is no function: name one of (completion, answer)")


def require(module: str, package: str, setting: str, installed_by: str | None = None) -> None:
    """Raises ValueError, with the command that mends it, where an optional package is missing."""
    found = importlib.util.find_spec(module)
    # A folder of that name, such as the one that wandb writes to, passes for a package without one.
    if found is None or found.origin is None:
        raise ValueError(
            f"{setting} needs the package {package}: pip install {installed_by or package}"
        )


# Final answers.

_TAG = re.compile(r"<answer>(.*?)</answer>", re.DOTALL | re.IGNORECASE)
_MARK = re.compile(r"\banswer\b\**(?:\s+is\b)?\s*:|\banswer\s+is\b|####", re.IGNORECASE)
_BOX = re.compile(r"\\boxed\s*\{")


def stated_answer(completion: str, lines: Literal["one", "all"] = "one") -> str | None:
    """The part of a completion that says that it is the answer (module docstring), if one does."""
    if tagged := _TAG.findall(completion):
        return unboxed(tagged[-1].strip())
    marks, boxes = list(_MARK.finditer(completion)), list(_BOX.finditer(completion))
    if boxes and (not marks or boxes[-1].start() > marks[-1].start()):
        return unboxed(completion[boxes[-1].start() :])
    if not marks:
        return None
    text = completion[marks[-1].end() :].strip().lstrip("* ")
    return text if lines == "all" or not text else text.splitlines()[0].strip()


def final_answer(completion: str, lines: Literal["one", "all"] = "one") -> str:
    """The part of a completion that is compared: the answer that it states, or its last line."""
    if (stated := stated_answer(completion, lines)) is not None:
        return stated
    text = completion.strip().lstrip("* ")
    return text if lines == "all" or not text else text.splitlines()[-1].strip()


def unboxed(text: str) -> str:
    """What stands in the first `\\boxed{...}` of a text, braces within it included; the text itself
    where there is none, or one that does not end.
    """
    if (box := _BOX.search(text)) is None:
        return text
    depth = 1
    for i in range(box.end(), len(text)):
        depth += {"{": 1, "}": -1}.get(text[i], 0)
        if depth == 0:
            return text[box.end() : i].strip()
    return text


def _normalise(text: str) -> str:
    return " ".join(text.split()).casefold().strip(" .*`'\"()[]")


def _exact(answer: str, completion: str) -> bool:
    want = _normalise(answer)
    return bool(want) and want == _normalise(final_answer(completion))


# Numbers.

# A sign counts only where no number or word ends before it: the 3 of "5-3" is positive. Scripts
# that set no spaces between words end none; and a power is no number of its own.
_NUMBER = re.compile(
    r"(?<![A-Za-z0-9_^])(?<!\d\.)(?<!\^\{)(?:[-−]\$?(?=[\d.]))?(?:(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?|(?<!\.)\.\d+)(?:[eE][-+]?\d{1,2}(?!\d))?(?:/\d+)?"
)


_FRACTION = re.compile(
    r"(?:(?<![\d.,])(\d{1,18})\s*)?"
    r"\\[dt]?frac\s*\{\s*(-?\d{1,18})\s*\}\s*\{\s*(\d{1,18})\s*\}"
)
_THIN = re.compile(r"(?<=\d)(?:\{,\}|\\[,!])(?=\d{3})")  # LaTeX between groups of digits


def _plain_fraction(found: re.Match[str]) -> str:
    """Of LaTeX's, a mixed number's too: 2\\frac{1}{2} is 5/2."""
    whole, numerator, denominator = found.groups()
    if whole is None or int(denominator) == 0 or int(numerator) < 0:
        follows_digit = found.string[: found.start()][-1:].isdigit()
        apart = " " if whole or follows_digit else ""
        return f"{whole or ''}{apart}{numerator}/{denominator}"
    return f"{int(whole) * int(denominator) + int(numerator)}/{denominator}"


def last_number_text(text: str) -> str | None:
    """The last number of a text, as it is written there; LaTeX's fractions and groups of digits
    plainly.
    """
    plain = _THIN.sub(",", _FRACTION.sub(_plain_fraction, text)).replace("\\$", "$")
    numbers = _NUMBER.findall(plain)
    return numbers[-1] if numbers else None


def last_number(text: str) -> Fraction | None:
    """The last number of a text, exactly; None where there is none, or one without value (1/0)."""
    written = last_number_text(text)
    if written is None:
        return None
    numerator, _, denominator = (
        written.replace("−", "-").replace(",", "").replace("$", "").partition("/")
    )
    try:
        return Fraction(numerator) / Fraction(denominator or 1)
    except (ValueError, ZeroDivisionError):  # ValueError: thousands of digits
        return None


def _number(answer: str, completion: str) -> bool:
    want, stated = last_number(answer), stated_answer(completion)
    got = None if stated is None else last_number(stated)
    return want is not None and want == (last_number(completion) if got is None else got)


def _regex(answer: str, completion: str) -> bool:
    return re.search(answer, completion) is not None


_TEXT_CHECKS = {"exact": _exact, "number": _number, "regex": _regex}


# reasoning-gym.


@functools.cache
def _gym_scorer(generator: str) -> Any:  # its own annotation is wrong: (answer, entry) -> float
    import reasoning_gym

    return reasoning_gym.get_score_answer_fn(generator)


def _gym(example: Example, completion: str) -> float:
    if not isinstance(example, GymExample):
        raise ValueError(
            f"example {example.id}: answer_check='gym' is for problems of the source gym:NAME; use "
            "exact, number, regex or math"
        )
    scorer = _gym_scorer(example.generator)
    try:
        return scorer(final_answer(completion, lines="all"), example.entry)
    except (
        Exception
    ):  # some scorers raise on text that they can't read: that text is no right answer
        return 0.0
