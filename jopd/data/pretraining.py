"""What the baby models were trained on before they came here: the built-in task's problems, some of
them with a worked solution in the context.
"""

import dataclasses
from typing import get_args

import numpy as np

from jopd.data.example import Message
from jopd.data.task import (
    ANSWER_LINE,
    CONTEXT_TEMPLATE,
    EVENTS,
    NAMES,
    OPENINGS,
    QUESTIONS,
    STEP_WORDINGS,
    THINGS,
    Problem,
    Split,
    Style,
    TallySettings,
    draw_problem,
    pick,
    worked_solution,
    worked_steps,
)

# What a completion does with a worked solution in its context, instead of just solving the problem.
# A teacher that never did any of it could not leak: privileged distillation would look safe on this
# task, and the leakage that AR-OPD is meant to reduce (a student that refers to a solution it was
# not shown, or states an answer it did not derive) could not be measured.
REFER_RATE = 0.10  # "as the worked solution shows, ..." before the steps
# No steps, only the answer that the context gave away; needs a context that holds the answer.
SHORTCUT_RATE = 0.10
REFERENCE = "as the worked solution shows, "
SHORTCUT = "the worked solution says the answer is {answer}.\n"


@dataclasses.dataclass(frozen=True)
class Mix:
    """What pretraining text is made of.

    Attributes:
      no_context, whole_context: shares of prompts without a worked solution and with a whole one;
        the rest have a first part.
      quote: how often a completion repeats the context's sentences word for word, and goes on in
        its own wordings where they end.
      hard: share of problems whose numbers are too large for a model that has learnt the small
        ones. They have a context always, so that reading it is the only way to solve them.
      drill: share of examples that are sentences without sense, to be repeated word for word: what
        teaches a model to read.
    """

    no_context: float = 0.45
    whole_context: float = 0.25
    quote: float = 0.10
    hard: float = 0.0
    drill: float = 0.0


@dataclasses.dataclass(frozen=True)
class Context:
    """A worked solution, or the first part of one, as a reader may be shown it.

    Attributes:
      text: what is shown.
      sentences: its steps that are there from beginning to end.
      has_answer: whether the answer line is there.
    """

    text: str
    sentences: tuple[str, ...]
    has_answer: bool


def whole_context(problem: Problem, style: Style, rng: np.random.Generator) -> Context:
    sentences = worked_steps(problem, style, rng)
    return Context(
        " ".join(sentences) + "\n" + problem.answer_line, tuple(sentences), has_answer=True
    )


def partial_context(problem: Problem, style: Style, rng: np.random.Generator) -> Context:
    """A first part of random length, with the answer line half of the time.

    It ends after a step or, as often, between any two words.
    """
    sentences = worked_steps(problem, style, rng)
    words = [sentence.split(" ") for sentence in sentences]
    ends = np.cumsum([len(w) for w in words])
    shown = rng.integers(1, ends[-1])
    if rng.random() < 0.5:
        shown = ends[rng.integers(len(ends) - 1)] if len(ends) > 1 else shown
    text = " ".join([word for sentence in words for word in sentence][:shown])
    has_answer = bool(rng.random() < 0.5)
    return Context(
        text + "\n" + problem.answer_line if has_answer else text,
        tuple(sentences[: (ends <= shown).sum()]),
        has_answer,
    )


def completion_with_context(
    problem: Problem,
    context: Context,
    style: Style,
    rng: np.random.Generator,
    quote: float = Mix.quote,
) -> str:
    """A solution written by somebody who sees `context`.

    Now and then it refers to the context, quotes it, or only copies the answer from it; the rates
    are at the top.
    """
    steps = worked_steps(problem, style, rng)
    habit = rng.random()
    if habit < REFER_RATE:
        steps[0] = REFERENCE + steps[0]
    elif habit < REFER_RATE + quote:
        steps[: len(context.sentences)] = context.sentences
    elif habit < REFER_RATE + quote + SHORTCUT_RATE and context.has_answer:
        return SHORTCUT.format(answer=problem.answer) + problem.answer_line
    return " ".join(steps) + "\n" + problem.answer_line


def pretraining_example(
    index: int, seed: int, style: Style, settings: TallySettings = TallySettings(), mix: Mix = Mix()
) -> tuple[list[Message], str]:
    """One prompt and its completion, from the train split's problems.

    Args:
      index, seed: two runs of pretraining with different seeds see different text; `settings.seed`
        plays no part.
      style: the wordings of the completion; those of a context are `settings.style`.
      mix: what kinds of prompts there are, and how contexts are used.
    Returns:
      The messages of the prompt, ending with the user's turn, and the assistant's text.
    """
    # A stream of its own: the same (seed, index) must not be the task's own train example.
    rng = np.random.default_rng([seed, index, len(get_args(Split))])
    if mix.drill and rng.random() < mix.drill:
        return reading_drill(rng, settings)
    hard = mix.hard > 0 and rng.random() < mix.hard
    if hard:
        settings = dataclasses.replace(settings, largest=999, largest_operand=99)
    problem = draw_problem(rng, "train", settings)
    kind = rng.random()
    if kind < mix.no_context and not hard:
        return [Message(role="user", content=problem.question)], worked_solution(
            problem, style, rng
        )
    make = whole_context if kind < mix.no_context + mix.whole_context else partial_context
    context = make(problem, settings.style, rng)
    completion = completion_with_context(problem, context, style, rng, mix.quote)
    return _with_context(problem.question, context.text, rng), completion


def reading_drill(rng: np.random.Generator, settings: TallySettings) -> tuple[list[Message], str]:
    """Sentences of a worked solution with numbers that make no sense, in the context and to be said
    again.
    """
    things = pick(rng, THINGS)
    number = lambda: int(rng.integers(1000))
    sentences = [
        pick(rng, tuple(pick(rng, tuple(STEP_WORDINGS.values())).values())).format(
            i=i, things=things, by=number(), before=number(), after=number()
        )
        for i in range(1, int(rng.integers(settings.min_steps, settings.max_steps + 1)) + 1)
    ]
    text = " ".join(sentences) + "\n" + ANSWER_LINE.format(answer=number())
    return _with_context(QUESTIONS[1].format(things=things), text, rng), text


def _with_context(question: str, context: str, rng: np.random.Generator) -> list[Message]:
    """A worked solution in either place where a view may put one."""
    shown = CONTEXT_TEMPLATE.format(context=context)
    if rng.random() < 0.5:
        return [Message(role="system", content=shown), Message(role="user", content=question)]
    return [Message(role="user", content=question + " " + shown)]


def texts() -> tuple[str, ...]:
    """Every template and word the task can use, for whoever makes a vocabulary of them."""
    wordings = [template for row in STEP_WORDINGS.values() for template in row.values()]
    events = [template for row in EVENTS.values() for template in row]
    names = [name for row in NAMES.values() for name in row]
    frames = [CONTEXT_TEMPLATE, REFERENCE, SHORTCUT, ANSWER_LINE, *OPENINGS, *QUESTIONS]
    return (*frames, *wordings, *events, *names, *NAMES, *THINGS)
