"""Problems of reasoning-gym, in turns from the generators that are named."""

import random
from collections.abc import Sequence
from typing import Any

from jopd.data.answers import GymExample, require
from jopd.data.example import Message
from jopd.data.rows import WORKED, reasoning
from jopd.data.task import Split
from jopd.nearest import did_you_mean


def problems(names: Sequence[str], *, seed: int, split: Split, size: int) -> list[GymExample]:
    """`size` problems; their worked answers, where a generator has them, are the solutions.

    Of another seed or split they are others: a generator draws its i-th problem with the number
    that it is given plus i, so that neighbouring seeds would share all but a few.

    Raises:
      ValueError: reasoning-gym is not installed; a generator that does not exist, or that needs
        settings.
    """
    require("reasoning_gym", "reasoning-gym", f"gym:{','.join(names)}")
    from reasoning_gym import create_dataset
    from reasoning_gym.factory import DATASETS

    made, number = [], random.Random(f"{seed}/{split}").getrandbits(31)
    for name in names:
        if name not in DATASETS:
            raise ValueError(
                f"gym:{name} is no generator of reasoning-gym{did_you_mean(name, DATASETS)}: "
                "reasoning_gym.factory.DATASETS lists them"
            )
        try:
            made.append(create_dataset(name, seed=number, size=-(-size // len(names))))
        except (AssertionError, TypeError) as error:
            raise ValueError(
                f"gym:{name} can't be made without settings of its own ({error}): use another "
                "generator"
            ) from None
    places = [divmod(i, len(made)) for i in range(size)]
    return [problem(names[of], made[of][index], f"{seed}-{split}", index) for index, of in places]


def problem(name: str, entry: dict[str, Any], part: str, index: int) -> GymExample:
    # A few generators only know an answer when they see it.
    answer = entry["answer"]
    return GymExample(
        id=f"gym-{name}-{part}-{index}",
        messages=(Message(role="user", content=entry["question"]),),
        solution=worked_answer(entry),
        answer="(any that the scorer accepts)" if answer is None else str(answer),
        answer_check="gym",
        generator=name,
        entry=entry,
    )


def worked_answer(entry: dict[str, Any]) -> str | None:
    metadata = entry.get("metadata") or {}
    text = metadata.get("answer_cot") or entry.get("answer_cot")
    if text is None:
        return None
    worked = WORKED.fullmatch(text)
    return reasoning(worked["solution"] if worked else text)
