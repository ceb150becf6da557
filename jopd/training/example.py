"""One example on the console before training begins: what each reader reads, and the completion
that the loss sees.
"""

import numpy as np

from jopd.data.example import Example
from jopd.data.views import render
from jopd.training.console import show_example
from jopd.training.setup import Run
from jopd.training.summary import Answers


def views_of(run: Run, example: Example) -> dict[str, list[int]]:
    """Every reader's context of one example, unpadded."""
    return {
        view: render(example, view, run.student.tokenizer, run.config.view)
        for view in ("student", *run.program.views)
    }


def show(run: Run, answers: Answers) -> None:
    """The first held-out problem with the student's answer; for a method that trains on references
    alone the first training example with its reference.
    """
    example, tokens, mask = answers.examples[0], answers.tokens[0], answers.mask[0]
    values, title = answers.terms.get("kl"), "The student writes"
    if run.program.method.completions == "reference":
        example, tokens = run.train.examples[0], run.train.reference(0)
        mask, values = np.ones(len(tokens), bool), None
        title = "The reference, which is learnt from"
    written = int(np.sum(mask))
    show_example(
        views_of(run, example),
        tokens[:written],
        mask[:written],
        run.student.tokenizer,
        values=None if values is None else values[0][:written],
        title=title,
    )
