"""The built-in reasoning task, "tally": a person has some things, numbered events change the count,
how many are left?

    Mia has 14 marbles. 1: she finds 6 more. 2: half of them get lost. how many marbles are left?

    step 1: 14 plus 6 is 20. for step 2, halve 20, which leaves 10.
    answer: 10

The worked solution says each step in one of four wordings, from 9 tokens to 19, and a `Style` is
how often each is
used: teacher and student can agree on the arithmetic and differ in the surface form. The text is
written the way the package's tokenizer decodes it (lower case but for names, no space before
punctuation), so decoding what was encoded gives it back exactly.

Everything is a function of (seed, split, index): no state, no files. The split of a problem is
decided by a hash of its mathematics (first count, operations, operands), never of its wording or of
the seed, so no held-out problem can be met in training, under any seed.
"""

import dataclasses
import hashlib
from collections.abc import Sequence
from typing import Literal, TypeVar, get_args, overload

import numpy as np

from jopd.data.example import Example, Message

Split = Literal["train", "held_out"]
Operation = Literal["add", "subtract", "double", "halve"]
_T = TypeVar("_T")

# How a worked solution is shown to a reader who may see it: as a system turn, or after the user's
# words. The views of `jopd.data.views` say it in the same words, since a baby model only
# understands what it was trained on.
CONTEXT_TEMPLATE = "worked solution: {context}"

ANSWER_LINE = "answer: {answer}"

NAMES = {
    "she": ("Mia", "Ana", "Zoe", "Eva", "Nora", "Lucy", "Lena", "Priya"),
    "he": ("Tom", "Ben", "Leo", "Sam", "Omar", "Hugo", "Ravi", "Kenji"),
}
THINGS = (
    "marbles",
    "apples",
    "books",
    "coins",
    "cards",
    "shells",
    "stamps",
    "pencils",
    "buttons",
    "stones",
    "eggs",
    "tickets",
)
OPENINGS = (
    "{name} has {count} {things}.",
    "{name} starts with {count} {things}.",
    "at first {name} owns {count} {things}.",
    "there are {count} {things} in the bag of {name}.",
)
EVENTS: dict[Operation, tuple[str, ...]] = {
    "add": (
        "{they} finds {by} more.",
        "{they} buys {by} {things}.",
        "{they} is given {by} more.",
        "a friend brings {by} {things}.",
    ),
    "subtract": (
        "{they} gives away {by}.",
        "{they} loses {by} {things}.",
        "{they} sells {by} of them.",
        "a friend takes {by} {things}.",
    ),
    "double": (
        "{they} doubles them.",
        "{they} gets as many again.",
        "the number of {things} doubles.",
    ),
    "halve": (
        "{they} gives away half of them.",
        "half of them get lost.",
        "{they} sells half of the {things}.",
    ),
}
QUESTIONS = (
    "how many {things} does {name} have?",
    "how many {things} are left?",
    "how many {things} does {name} have now?",
    "what is the number of {things} in the end?",
)

# One row a wording, shortest first; each opens with a word of its own, so the first token of a step
# says which it is.
STEP_WORDINGS: dict[str, dict[Operation, str]] = {
    "plain": {
        "add": "step {i}: {before} plus {by} is {after}.",
        "subtract": "step {i}: {before} minus {by} is {after}.",
        "double": "step {i}: {before} times 2 is {after}.",
        "halve": "step {i}: half of {before} is {after}.",
    },
    "order": {
        "add": "for step {i}, add {by} to {before}, which makes {after}.",
        "subtract": "for step {i}, take {by} from {before}, which leaves {after}.",
        "double": "for step {i}, double {before}, which makes {after}.",
        "halve": "for step {i}, halve {before}, which leaves {after}.",
    },
    "story": {
        "add": "in step {i} the {before} {things} grow by {by}, so there are {after} now.",
        "subtract": "in step {i} the {before} {things} shrink by {by}, so there are {after} now.",
        "double": "in step {i} the {before} {things} become twice as many, so "
        "there are {after} now.",
        "halve": "in step {i} the {before} {things} become half as many, so there are {after} now.",
    },
    "long": {
        "add": "now look at step {i}: the count was {before}, and after adding {by} it is {after}.",
        "subtract": "now look at step {i}: the count was {before}, and after "
        "taking away {by} it is {after}.",
        "double": "now look at step {i}: the count was {before}, and after "
        "doubling that it is {after}.",
        "halve": "now look at step {i}: the count was {before}, and after "
        "halving that it is {after}.",
    },
}


@dataclasses.dataclass(frozen=True)
class Style:
    """How often each wording of a step is used; the four add up to 1."""

    plain: float
    order: float
    story: float
    long: float

    def __post_init__(self):
        weights = dataclasses.astuple(self)
        if min(weights) < 0 or abs(sum(weights) - 1) > 1e-6:
            raise ValueError(
                f"style {weights} must be four probabilities that add up to 1: scale them to it"
            )

    def draw(self, rng: np.random.Generator) -> str:
        """The name of a wording."""
        return str(rng.choice(list(STEP_WORDINGS), p=dataclasses.astuple(self)))


TEACHER_STYLE = Style(plain=0.7, order=0.1, story=0.1, long=0.1)
STUDENT_STYLE = Style(plain=0.3, order=0.2, story=0.2, long=0.3)
NEUTRAL_STYLE = Style(plain=0.25, order=0.25, story=0.25, long=0.25)


@dataclasses.dataclass(frozen=True)
class TallySettings:
    """What the problems look like.

    Attributes:
      seed: another seed, other problems; train and held-out stay disjoint across seeds.
      min_steps, max_steps: the number of events of a problem is drawn evenly from this range. It
        sets difficulty and
        length: a solution takes about 14 tokens a step, so 2 steps stay under 64 tokens and 40 pass
          512.
      largest: counts stay in 0..largest; at most 999, the largest number that is one token.
      largest_operand: what is added or taken away is 1..largest_operand.
      held_out_share: the share of all possible problems that only the held-out split may use.
      style: the wordings of `Example.solution`.
    """

    seed: int = 0
    min_steps: int = 2
    max_steps: int = 5
    largest: int = 99
    largest_operand: int = 9
    held_out_share: float = 0.1
    style: Style = NEUTRAL_STYLE

    def __post_init__(self):
        if self.seed < 0:
            raise ValueError(f"seed={self.seed} must be at least 0")
        if not 1 <= self.min_steps <= self.max_steps:
            raise ValueError(
                f"min_steps={self.min_steps} and max_steps={self.max_steps} must satisfy 1 <= "
                "min_steps <= max_steps"
            )
        if self.max_steps > 99:
            raise ValueError(
                f"max_steps={self.max_steps} must be at most 99; 40 already gives completions of "
                "over 512 tokens"
            )
        if not 4 <= self.largest <= 999:
            raise ValueError(
                f"largest={self.largest} must lie in 4..999: the tokenizer has one token for each "
                "of those numbers"
            )
        if not 1 <= self.largest_operand <= self.largest:
            raise ValueError(
                f"largest_operand={self.largest_operand} must lie in 1..largest={self.largest}"
            )
        if not 0 < self.held_out_share < 1:
            raise ValueError(
                f"held_out_share={self.held_out_share} must lie in (0, 1), or one of the splits "
                "has no problems"
            )


@dataclasses.dataclass(frozen=True)
class Step:
    """One event: `before` becomes `after`. The operand `by` is 2 for double and halve."""

    operation: Operation
    by: int
    before: int
    after: int


@dataclasses.dataclass(frozen=True)
class Problem:
    """The mathematics (`start`, `steps`) and the words it is dressed in."""

    start: int
    steps: tuple[Step, ...]
    things: str
    question: str

    @property
    def answer(self) -> str:
        return str(self.steps[-1].after)

    @property
    def answer_line(self) -> str:
        return ANSWER_LINE.format(answer=self.answer)


class TallyTask:
    """The task as a function from (index, split) to an example."""

    def __init__(self, settings: TallySettings = TallySettings()):
        self.settings = settings

    def problem(self, index: int, split: Split) -> Problem:
        return draw_problem(self._rng(index, split), split, self.settings)

    def example(self, index: int, split: Split) -> Example:
        rng = self._rng(index, split)
        problem = draw_problem(rng, split, self.settings)
        return Example(
            id=f"tally-{self.settings.seed}-{split}-{index}",
            messages=(Message(role="user", content=problem.question),),
            solution=worked_solution(problem, self.settings.style, rng),
            answer=problem.answer,
            answer_check="number",
        )

    def examples(self, split: Split, size: int) -> "TallyExamples":
        """The first `size` examples of a split, made when they are asked for."""
        return TallyExamples(self, split, size)

    def _rng(self, index: int, split: Split) -> np.random.Generator:
        return np.random.default_rng([self.settings.seed, index, _stream(split)])


class TallyExamples(Sequence[Example]):
    """A split of the task; nothing is stored."""

    def __init__(self, task: TallyTask, split: Split, size: int):
        if size < 1:
            raise ValueError(f"size={size} of the split {split!r} must be at least 1")
        _stream(split)
        self.task, self.size = task, size
        self.split: Split = split

    def __len__(self) -> int:
        return self.size

    @overload
    def __getitem__(self, index: int) -> Example: ...
    @overload
    def __getitem__(self, index: slice) -> list[Example]: ...

    def __getitem__(self, index: int | slice) -> Example | list[Example]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(self.size))]
        if not -self.size <= index < self.size:
            raise IndexError(f"index {index} is outside the {self.size} examples of {self.split!r}")
        return self.task.example(int(index) % self.size, self.split)


def _stream(split: Split) -> int:
    if split not in get_args(Split):
        raise ValueError(f"split={split!r} is not known: use one of {', '.join(get_args(Split))}")
    return get_args(Split).index(split)


# The problem.


def split_of(start: int, steps: Sequence[Step], held_out_share: float) -> Split:
    """The split that a problem belongs to, by a hash of its mathematics alone."""
    content = " ".join([str(start), *(f"{step.operation}{step.by}" for step in steps)])
    share = int.from_bytes(hashlib.blake2b(content.encode(), digest_size=8).digest()) / 2**64
    return "held_out" if share < held_out_share else "train"


def draw_problem(rng: np.random.Generator, split: Split, settings: TallySettings) -> Problem:
    """A problem of that split: draws mathematics until one belongs to it, then the words."""
    for _ in range(2000):
        start, steps = _draw_steps(rng, settings)
        if split_of(start, steps, settings.held_out_share) == split:
            return _tell(start, steps, rng)
    raise ValueError(
        f"held_out_share={settings.held_out_share} leaves too few problems to the split {split!r}: "
        "move it towards 0.5"
    )


def _draw_steps(rng: np.random.Generator, settings: TallySettings) -> tuple[int, tuple[Step, ...]]:
    start = count = int(rng.integers(2, settings.largest + 1))
    steps = []
    for _ in range(rng.integers(settings.min_steps, settings.max_steps + 1)):
        # Doubling and halving are rarer: they have few facts to learn, and halving often would
        # crowd all counts near 0.
        weights: dict[Operation, int] = {
            "add": 4 * (count < settings.largest),
            "subtract": 4 * (count > 0),
            "double": 0 < 2 * count <= settings.largest,
            "halve": count > 0 and count % 2 == 0,
        }
        possible: list[Operation] = [
            operation for operation, weight in weights.items() for _ in range(weight)
        ]
        operation = pick(rng, possible)
        room = {"add": settings.largest - count, "subtract": count}.get(operation, 0)
        by = int(rng.integers(1, min(room, settings.largest_operand) + 1)) if room else 2
        after = {
            "add": count + by,
            "subtract": count - by,
            "double": 2 * count,
            "halve": count // 2,
        }[operation]
        steps.append(Step(operation, by, count, after))
        count = after
    return start, tuple(steps)


def pick(rng: np.random.Generator, options: Sequence[_T]) -> _T:
    return options[int(rng.integers(len(options)))]


def _tell(start: int, steps: tuple[Step, ...], rng: np.random.Generator) -> Problem:
    they = pick(rng, tuple(NAMES))
    words = {"they": they, "name": pick(rng, NAMES[they]), "things": pick(rng, THINGS)}
    sentences = [pick(rng, OPENINGS).format(count=start, **words)]
    for i, step in enumerate(steps, 1):
        # "buys 1 coins" is no English; "is given 1 more" is.
        events = [
            event for event in EVENTS[step.operation] if step.by > 1 or "{by} {things}" not in event
        ]
        sentences.append(f"{i}: " + pick(rng, events).format(by=step.by, **words))
    sentences.append(pick(rng, QUESTIONS).format(**words))
    return Problem(start, steps, words["things"], " ".join(sentences))


# The worked solution.


def worked_steps(problem: Problem, style: Style, rng: np.random.Generator) -> list[str]:
    """One sentence a step, without the answer line."""
    return [
        STEP_WORDINGS[style.draw(rng)][step.operation].format(
            i=i, things=problem.things, **dataclasses.asdict(step)
        )
        for i, step in enumerate(problem.steps, 1)
    ]


def worked_solution(problem: Problem, style: Style, rng: np.random.Generator) -> str:
    """The steps on one line, then the answer line."""
    return " ".join(worked_steps(problem, style, rng)) + "\n" + problem.answer_line
