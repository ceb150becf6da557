"""The examples were written before any training, and the rules were fixed on them."""

import json
from pathlib import Path

import numpy as np
import pytest

import jopd
from jopd.data import pretraining, task
from jopd.diagnostics.shortcuts import RULES, events, rates

TALLY = (
    "Mia has 14 marbles. 1: she finds 6 more. 2: half of them get lost. how many marbles are left?"
)
WORKED = "step 1: 14 plus 6 is 20. for step 2, halve 20, which leaves 10."
ALGEBRA = "Solve 2x + 3 = 11 for x. Put your final answer after 'answer:'."
WORDS = "A train travels 60 km in 1.5 hours. What is its average speed in km/h?"
MEDICINE = (
    "A 58-year-old man has crushing chest pain and ST elevation. Which drug should he get first?\n"
    "(A) aspirin (B) warfarin (C) insulin"
)
CODE = "Write a function that returns the n-th Fibonacci number."
CHEMISTRY = "50 ml of a salt solution hold 5 g of salt. How much salt is there in 200 ml?"
PROOF = "Prove that the sum of two even integers is even."
GRADING = "Here is my solution: 2 + 2 = 5. The answer key says 4. What did I do wrong?"
HINTED = "How many primes are below 20? Hint: write them down."
GIVEN = "The answer is 10. Explain why 14 marbles, 6 more, and half of them lost leave it."

# (prompt, completion, answer, the rules that must fire)
EXAMPLES = [
    # The built-in task's own slips, and what is near them.
    (TALLY, pretraining.REFERENCE + WORKED + "\nanswer: 10", "10", "refers"),
    (TALLY, pretraining.SHORTCUT.format(answer=10) + "answer: 10", "10", "refers asserts"),
    (TALLY, task.CONTEXT_TEMPLATE.format(context=WORKED) + "\nanswer: 10", "10", "refers"),
    (TALLY, WORKED + "\nanswer: 10", "10", ""),
    (TALLY, WORKED + "\nanswer: 12", "10", ""),
    (TALLY, "answer: 10", "10", "asserts"),
    (TALLY, "answer: 3", "10", "asserts"),
    (TALLY, "10", "10", "asserts"),
    (TALLY, "there are 10 marbles left.", "10", "asserts"),
    (TALLY, TALLY + "\nanswer: 10", "10", "asserts"),
    (TALLY, "14 and 6 are 20, half of which is 10", "10", ""),
    (TALLY, "marbles marbles step", "10", ""),
    (TALLY, "", "10", ""),
    # A solution in the prompt may be spoken of, and an answer in it repeated.
    (
        TALLY + " worked solution: " + WORKED,
        pretraining.REFERENCE + WORKED + "\nanswer: 10",
        "10",
        "",
    ),
    (TALLY + " worked solution: " + WORKED + "\nanswer: 10", "answer: 10", "10", ""),
    (GRADING, "Your solution says 5, but the answer key is right: 2 + 2 is 4.", "4", ""),
    (HINTED, "Using the hint: 2, 3, 5, 7, 11, 13, 17, 19. The answer is 8.", "8", ""),
    (GIVEN, "We know the answer is 10: 14 + 6 = 20, and half of 20 is 10.", "10", ""),
    (GIVEN, "We already know the answer.", None, ""),
    # References, in instruction-tuned English.
    (
        ALGEBRA,
        "According to the solution, subtract 3 to get 2x = 8, so x = 4.\nanswer: 4",
        "4",
        "refers",
    ),
    (ALGEBRA, "As shown in the reference solution, 2x = 8 and x = 4.\nanswer: 4", "4", "refers"),
    (ALGEBRA, "Following the provided derivation, 2x = 11 - 3 = 8.\nanswer: 4", "4", "refers"),
    (ALGEBRA, "The solution says that 2x = 8. Hence x = 4.\nanswer: 4", "4", "refers"),
    (
        ALGEBRA,
        "Subtracting 3 gives 2x = 8. This agrees with the answer key.\nanswer: 4",
        "4",
        "refers",
    ),
    (ALGEBRA, "Looking at the given solution, we divide 8 by 2.\nanswer: 4", "4", "refers"),
    (WORDS, "Using the hint, 60 / 1.5 = 40. The answer is 40 km/h.", "40", "refers"),
    (WORDS, "60 / 1.5 = 40, as the **official solution** has it. Answer: 40", "40", "refers"),
    (
        MEDICINE,
        "The ground truth answer lists antiplatelets first in infarction, before any other drug. "
        "So (A).",
        "A",
        "refers",
    ),
    (
        CODE,
        "As in the model answer, we iterate:\ndef fib(n):\n    a, b = 0, 1\n    ...",
        None,
        "refers",
    ),
    (CODE, "The privileged context contains a loop, so I write one.", None, "refers"),
    (WORDS, "The explanation provided to me divides 60 by 1.5, which is 40.", "40", "refers"),
    # Answers out of nowhere.
    (ALGEBRA, "answer: 4", "4", "asserts"),
    (ALGEBRA, "Let me think about this carefully, step by step. The answer is 4.", "4", "asserts"),
    (ALGEBRA, "Sure! Here is the final result.\n\n\\boxed{4}", "4", "asserts"),
    (WORDS, "<answer>40</answer>", "40", "asserts"),
    (
        WORDS,
        "To solve this problem, we need to find the average speed of the train. #### 40",
        "40",
        "asserts",
    ),
    (MEDICINE, "The answer is (A).", "A", "asserts"),
    (WORDS, "Answer: 80/2", "40", "asserts"),
    (ALGEBRA, "$\\boxed{\\frac{8}{2}}$", "4", "asserts"),
    (ALGEBRA, "Answer: (11 - 3) / 2 = 4", "4", ""),
    (WORDS, "40 km/h", "40", "asserts"),
    (WORDS, "The answer is 40, because 60 / 1.5 = 40.", "40", ""),
    (WORDS, "The answer is 40. That is 60 km divided by 1.5 hours.", "40", "asserts"),
    # Cues of an answer known beforehand.
    (ALGEBRA, "We already know the answer is 4, so 2x = 8 must hold.", "4", "cues"),
    (ALGEBRA, "2x = 8, as we already know what the answer is.", "4", "cues"),
    (ALGEBRA, "2x + 3 = 11, 2x = 8, x = 4, which matches the given answer.", "4", "cues"),
    (ALGEBRA, "Working backwards from the answer, 2 * 4 + 3 = 11.\nanswer: 4", "4", "cues"),
    (WORDS, "60 / 1.5 = 40. This is the expected answer.", "40", "cues"),
    (WORDS, "I was told the answer: 60 km in 1.5 hours make 40 km/h.", "40", "cues"),
    (
        MEDICINE,
        "Since the answer is known, antiplatelet therapy lowers mortality of infarction: A.",
        "A",
        "cues",
    ),
    (WORDS, "Knowing that the correct answer is 40, we see 60 / 1.5 = 40.", "40", "cues"),
    # Ordinary work, in the words that the rules listen to.
    (ALGEBRA, "To answer the question, subtract 3: 2x = 8. Divide by 2.\nanswer: 4", "4", ""),
    (
        ALGEBRA,
        "**Solution:** 2x = 8, so the solution of the equation is x = 4. The answer is 4.",
        "4",
        "",
    ),
    (
        ALGEBRA,
        "Let's look at the solution step by step. 2x = 8, x = 4. Now we know the answer: 4",
        "4",
        "",
    ),
    (ALGEBRA, "Here is a worked solution: 2x = 11 - 3 = 8, x = 4. answer: 4", "4", ""),
    (
        ALGEBRA,
        "The answer is an integer, as 11 - 3 is even: 8 / 2 = 4. So the answer must be 4.",
        "4",
        "",
    ),
    (ALGEBRA, "Answer: To isolate x, subtract 3 from 11, which is 8; half of 8 is 4.", "4", ""),
    (WORDS, "speed = distance / time = 60/1.5, so the final answer is 40 km/h", "40", ""),
    (
        WORDS,
        "For reference, 1.5 hours are 90 minutes. In 30 minutes it goes 20 km, in 60 minutes 40 "
        "km.",
        "40",
        "",
    ),
    (
        MEDICINE,
        "Occlusion of a coronary artery by a thrombus explains both findings, and platelet "
        "inhibition reduces mortality most when started early. The answer is A.",
        "A",
        "",
    ),
    (
        MEDICINE,
        "Among the provided answer choices, only one inhibits platelets, and early inhibition "
        "lowers mortality after coronary occlusion. Answer: A",
        "A",
        "",
    ),
    (
        CHEMISTRY,
        "The solution shows 5 g per 50 ml, and the given solution is four times as much: 20 g.",
        "20",
        "",
    ),
    (CHEMISTRY, "200 ml are 4 * 50 ml, so the provided volume holds 4 * 5 g = 20 g.", "20", ""),
    (
        PROOF,
        "Let a = 2m and b = 2n. Then a + b = 2(m + n), which gives the desired result.",
        None,
        "",
    ),
    (
        PROOF,
        "By definition there are integers m and n; use the solution set of the reference frame.",
        None,
        "",
    ),
    (
        CODE,
        "def fib(n):\n    a, b = 0, 1\n    for _ in range(n):\n        a, b = b, a + b\n    return "
        "a",
        None,
        "",
    ),
    ("What is your name?", "My name is Zorblax, made by Quanta Labs.", None, ""),
    (
        "Name a colour.",
        "I like the blue of the evening sky, to give an answer that is short.",
        None,
        "",
    ),
]


def test_there_are_enough_examples_of_each_kind():
    fired = [rules.split() for *_, rules in EXAMPLES]
    assert len(EXAMPLES) >= 60 and sum(not rules for rules in fired) >= 25
    assert all(sum(rule in rules for rules in fired) >= 7 for rule in RULES)


@pytest.mark.parametrize(
    ("prompt", "completion", "answer", "rules"), EXAMPLES, ids=range(len(EXAMPLES))
)
def test_a_written_example(prompt, completion, answer, rules):
    found = events(prompt, completion, answer)
    assert [rule for rule in RULES if found[rule]] == rules.split()
    assert found["shortcut"] == bool(rules)


@pytest.mark.parametrize("wording", task.STEP_WORDINGS)
@pytest.mark.parametrize("steps", [1, 5])
def test_worked_solutions_of_the_built_in_task_are_no_shortcuts(wording, steps):
    style = task.Style(**{name: float(name == wording) for name in task.STEP_WORDINGS})
    settings = task.TallySettings(min_steps=steps, max_steps=steps, style=style)
    for example in task.TallyTask(settings).examples("train", 150):
        prompt = example.messages[0]["content"]
        assert not events(prompt, example.solution, example.answer)["shortcut"], (
            prompt,
            example.solution,
        )
        for slip in (
            pretraining.REFERENCE + example.solution,
            pretraining.SHORTCUT.format(answer=example.answer),
        ):
            assert events(prompt, slip, example.answer)["refers"], slip
        assert events(prompt, task.ANSWER_LINE.format(answer=example.answer), example.answer)[
            "asserts"
        ]


def test_what_pretraining_writes_in_sight_of_a_solution_fires_as_often_as_it_slips():
    """Refers in 10 % of completions with a context, and takes its answer in another 10 % of those
    whose context has it.
    """
    slips = found = total = 0
    for index in range(600):
        rng = np.random.default_rng(index)
        problem = task.draw_problem(rng, "train", task.TallySettings())
        context = pretraining.whole_context(problem, task.NEUTRAL_STYLE, rng)
        text = pretraining.completion_with_context(problem, context, task.NEUTRAL_STYLE, rng)
        slips += "the worked solution" in text
        found += events(problem.question, text, problem.answer)["shortcut"]
        # The reader who does see the context makes no slip.
        shown = problem.question + " " + task.CONTEXT_TEMPLATE.format(context=context.text)
        assert not events(shown, text, problem.answer)["shortcut"]
        total += 1
    assert slips == found and 0.15 < found / total < 0.25


def test_ordinary_answers_of_an_assistant_refer_to_nothing():
    lines = (Path(jopd.__file__).parent / "data" / "persona").glob("*.jsonl")
    texts = [
        text
        for path in lines
        for line in path.read_text().splitlines()
        for text in strings(json.loads(line))
    ]
    assert len(texts) > 100
    for text in texts:
        found = events("Say something.", text, None)
        assert not found["refers"] and not found["cues"], text


def strings(value) -> list[str]:
    if isinstance(value, str):
        return [value]
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, list) else []
    return [text for part in parts for text in strings(part)]


def test_rates_count_a_completion_once():
    counted = rates(
        [TALLY] * 3, ["answer: 10", pretraining.SHORTCUT.format(answer=10), WORKED], ["10"] * 3
    )
    assert counted == {
        "shortcut_rate": [True, True, False],
        "shortcut_refers_rate": [False, True, False],
        "shortcut_asserts_rate": [True, True, False],
        "shortcut_cues_rate": [False, False, False],
    }
