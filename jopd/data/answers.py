"""Whether a completion has the right answer: for evaluation, and as a reward.

| check | the completion is right when |
|---|---|
| `exact` | its final answer equals the answer, but for case, runs of white space and the signs . *
` ' " around it | | `number` | its last number equals the answer's last number, as fractions: 0.5,
1/2 and .50 are equal, 1,234 is 1234, 50 % is 50 | | `regex` | `re.search` finds the answer, a
pattern, anywhere in it; flags go inside the pattern, `(?i)` | | `math` | math-verify finds an
expression in it that is equivalent to the answer, a LaTeX or plain expression | | `gym` |
reasoning-gym's own scorer gives its final answer full marks |

The *final answer* is what stands in the last `<answer>...</answer>`; without one, what follows the
last "answer:" or "answer is" on that line or, where nothing does, on the next; without either, the
last line. A gym scorer may want several lines: it gets all that follows, or everything.
"""

import atexit
import dataclasses
import functools
import importlib.util
import multiprocessing
import os
import re
from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import Any, Literal

from jopd.data.example import Example

CHECKS = ("exact", "number", "regex", "math", "gym")
AnswerCheck = Literal["auto", "exact", "number", "regex", "math"]

# Seconds for one completion. math-verify's own alarms (3 s) come first, unless a single C call
# outlasts them.
MATH_TIMEOUT = 10.0
_MATH_START = 120.0  # seconds until the first worker answers


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
    """Whether the completion's answer is right. Raises ValueError for an example without an answer."""
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
                f"example {example.id} has no answer to check: give it one, or evaluate without accuracy"
            )
        if kind == "math":
            math[i] = (answer, completion)
        elif kind == "gym":
            values[i] = _gym(example, completion)
        elif kind in _TEXT_CHECKS:
            values[i] = float(_TEXT_CHECKS[kind](answer, completion))
        else:
            raise ValueError(
                f"example {example.id}: answer_check={kind!r} is not known: use one of {', '.join(CHECKS)}"
            )
    for i, right in zip(math, _math(list(math.values())), strict=True):
        values[i] = float(right)
    return values


def resolve(kind: AnswerCheck, answer: str) -> str:
    """The check that "auto" stands for: `number` for a lone number, `math` for what looks like
    LaTeX or a power, else `exact`.
    """
    if kind != "auto":
        return kind
    if _NUMBER.fullmatch(answer.strip(" $%")):
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
                f"answer={answer!r} is no regular expression ({error}): mend it, or use answer_check exact"
            ) from None
    if kind == "math":
        require("math_verify", "math-verify", f"answer={answer!r} with answer_check=math")


def require(module: str, package: str, setting: str) -> None:
    """Raises ValueError, with the command that mends it, where an optional package is missing."""
    if importlib.util.find_spec(module) is None:
        raise ValueError(f"{setting} needs the package {package}: pip install {package}")


# Final answers.

_TAG = re.compile(r"<answer>(.*?)</answer>", re.DOTALL | re.IGNORECASE)
_MARK = re.compile(r"\banswer\b\**(?:\s+is\b)?\s*:|\banswer\s+is\b", re.IGNORECASE)


def final_answer(completion: str, lines: Literal["one", "all"] = "one") -> str:
    """The part of a completion that is compared (module docstring)."""
    if tagged := _TAG.findall(completion):
        return tagged[-1].strip()
    marks = list(_MARK.finditer(completion))
    text = completion[marks[-1].end() if marks else 0 :].strip().lstrip("* ")
    if lines == "all" or not text:
        return text
    return text.splitlines()[0 if marks else -1].strip()


def _normalise(text: str) -> str:
    return " ".join(text.split()).casefold().strip(" .*`'\"")


def _exact(answer: str, completion: str) -> bool:
    want = _normalise(answer)
    return bool(want) and want == _normalise(final_answer(completion))


# Numbers.

# A sign counts only where no number or word ends before it: the 3 of "5-3" is positive.
_NUMBER = re.compile(
    r"(?<![\w.])(?:[-−]\$?(?=[\d.]))?(?:(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?|\.\d+)(?:[eE][-+]?\d{1,2}(?!\d))?(?:/\d+)?"
)


def last_number_text(text: str) -> str | None:
    """The last number of a text, as it is written there."""
    found = _NUMBER.findall(text)
    return found[-1] if found else None


def last_number(text: str) -> Fraction | None:
    """The last number of a text, exactly; None where there is none, or where it has no value (1/0)."""
    found = last_number_text(text)
    if found is None:
        return None
    numerator, _, denominator = (
        found.replace("−", "-").replace(",", "").replace("$", "").partition("/")
    )
    try:
        return Fraction(numerator) / Fraction(denominator or 1)
    except (ValueError, ZeroDivisionError):  # ValueError: thousands of digits
        return None


def _number(answer: str, completion: str) -> bool:
    want = last_number(answer)
    return want is not None and want == last_number(completion)


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
            f"example {example.id}: answer_check='gym' is for problems of the source gym:NAME; use exact, number, regex or math"
        )
    scorer = _gym_scorer(example.generator)
    try:
        return scorer(final_answer(completion, lines="all"), example.entry)
    except (
        Exception
    ):  # some scorers raise on text that they can't read: that text is no right answer
        return 0.0


# Mathematics. math-verify stops itself with SIGALRM, which only a main thread may use and which
# long C calls ignore: it runs in processes of its own, started afresh (JAX's threads do not survive
# a fork), that can be killed.


def _math(pairs: list[tuple[str, str]]) -> list[bool]:
    """Whether each (answer, completion) agrees; what takes over `MATH_TIMEOUT` does not."""
    results: list[bool] = []
    while len(results) < len(pairs):
        pool = _math_pool()
        # In order of submission, so whoever is waited for has been started.
        for pending in [pool.apply_async(_math_equal, pair) for pair in pairs[len(results) :]]:
            try:
                results.append(pending.get(MATH_TIMEOUT))
            except multiprocessing.TimeoutError:
                results.append(False)
                pool.terminate()
                _math_pool.cache_clear()
                break
    return results


@functools.cache
def _math_pool():
    require("math_verify", "math-verify", "answer_check=math")
    pool = multiprocessing.get_context("spawn").Pool(
        min(4, os.cpu_count() or 1), initializer=_math_equal, initargs=("1", "1")
    )
    atexit.register(pool.terminate)
    try:
        pool.apply_async(_math_equal, ("1", "1")).get(_MATH_START)
    except multiprocessing.TimeoutError:
        pool.terminate()
        raise RuntimeError(
            "math-verify's processes do not start: put the code of your script under `if __name__ == '__main__':`"
        ) from None
    return pool


def _math_equal(answer: str, completion: str) -> bool:
    """Runs in a pool process."""
    from math_verify import parse, verify

    # Without dollars math-verify would read the answer as prose and take a number out of it.
    gold = parse(answer if "$" in answer else f"${answer}$", parsing_timeout=3)
    return bool(verify(gold, parse(completion, parsing_timeout=3), timeout_seconds=3))
