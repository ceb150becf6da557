"""Makes the student of the AR-OPD study: a model that reckons carelessly unless it reads, and that
says when it has read.

    python experiments/ar_opd_student.py

It is the baby teacher, trained on for STEPS steps on text with two habits. In a step of a solution
that nobody showed it, it slips in one
case of five: the result is off by one or two, and it goes on from there. In a step that it was
shown, it never slips, and in one case of ten it says so ("as the worked solution shows, "). Shown
the first half of a solution, it is careful in that half alone.

So the full view knows better than the partial one and leaks more, by construction, and both in the
same steps: what the study asks is which method passes the one on without the other.
"""

import itertools
from collections.abc import Iterator
from pathlib import Path

import baby_models
import numpy as np

from jopd.data import pretraining, task
from jopd.data.example import Message
from jopd.models.load import load, save

HERE = Path("runs/ar_opd/student")
STEPS, LEARNING_RATE = 800, 2e-3
NO_CONTEXT, WHOLE = 0.5, 0.25  # shares of the prompts; the others have a first part
SLIP, REFER = 0.2, 0.1  # of the steps that were not shown, and of those that were
SETTINGS = task.TallySettings(min_steps=2, max_steps=8)


def solution(problem: task.Problem, shown: int, rng: np.random.Generator) -> str:
    """A solution whose first `shown` steps are right, each of which may refer to the context; the
    others may be wrong.
    """
    sentences, count = [], problem.start
    for i, step in enumerate(problem.steps, 1):
        before, by = count, step.by
        count = {
            "add": before + by,
            "subtract": max(0, before - by),
            "double": 2 * before,
            "halve": before // 2,
        }[step.operation]
        if i > shown and rng.random() < SLIP:
            count = abs(count + int(rng.choice([-2, -1, 1, 2])))
        wording = task.STEP_WORDINGS[task.TEACHER_STYLE.draw(rng)][step.operation]
        sentence = wording.format(i=i, things=problem.things, by=by, before=before, after=count)
        sentences.append(task.REFERENCE * (i <= shown and rng.random() < REFER) + sentence)
    return " ".join(sentences) + "\n" + task.ANSWER_LINE.format(answer=count)


def example(index: int) -> tuple[list[Message], str]:
    rng = np.random.default_rng([2, index])
    problem, kind = task.draw_problem(rng, "train", SETTINGS), rng.random()
    question = Message(role="user", content=problem.question)
    if kind < NO_CONTEXT:
        return [question], solution(problem, 0, rng)
    make = pretraining.whole_context if kind < NO_CONTEXT + WHOLE else pretraining.partial_context
    context = make(problem, task.NEUTRAL_STYLE, rng)
    shown = Message(role="system", content=task.CONTEXT_TEMPLATE.format(context=context.text))
    return [shown, question], solution(problem, len(context.sentences), rng)


def examples() -> Iterator[tuple[list[Message], str]]:
    return map(example, itertools.count())


def main() -> None:
    if HERE.is_dir():
        return
    made = load("jopd:baby-teacher")
    stream = baby_models.batches(examples(), made.tokenizer)
    params = baby_models.pretrain(made.graph, made.params, stream, STEPS, LEARNING_RATE)
    save(HERE, made.graph, params, made.architecture, made.tokenizer, stop_tokens=made.stop_tokens)


if __name__ == "__main__":
    main()
