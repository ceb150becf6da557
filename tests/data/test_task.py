"""The built-in task, re-read from its text alone."""

import collections
import dataclasses
import itertools
import re

import numpy as np
import pytest

from jopd.data import task, tokenizer
from jopd.data.task import (
    NEUTRAL_STYLE,
    STUDENT_STYLE,
    TEACHER_STYLE,
    Style,
    TallySettings,
    TallyTask,
)
from tests.data.tally_reader import SAYS, apply, check_solution, read_problem, sentences

PINNED_PROMPT = (
    "Omar starts with 6 eggs. 1: he finds 5 more. 2: he loses 7 eggs. 3: he sells half of the "
    "eggs. 4: a friend brings 5 eggs. what is the number of eggs in the end?"
)
PINNED_SOLUTION = (
    "step 1: 6 plus 5 is 11. step 2: 11 minus 7 is 4. for step 3, halve 4, which leaves 2. in step "
    "4 the 2 eggs grow by 5, so there are 7 now.\nanswer: 7"
)

FIRST_WORDS = {"plain": "step", "order": "for", "story": "in", "long": "now"}


@pytest.mark.parametrize("split", ["train", "held_out"])
def test_every_solution_is_right(split):
    wide = TallySettings(max_steps=12, largest=300, largest_operand=60)
    for settings in (TallySettings(), wide):
        for example in TallyTask(settings).examples(split, 500):
            answer = check_solution(
                example.messages[0]["content"], example.solution, settings.largest
            )
            assert example.answer == answer and example.answer_check == "number"


def test_an_example_is_a_function_of_seed_split_and_index():
    first, again = TallyTask(TallySettings(seed=3)), TallyTask(TallySettings(seed=3))
    backwards = [again.example(i, "train") for i in reversed(range(50))]
    assert [first.example(i, "train") for i in range(50)] == backwards[::-1]
    prompts = {
        TallyTask(TallySettings(seed=s)).example(0, split).messages[0]["content"]
        for s in range(9)
        for split in ("train", "held_out")
    }
    assert len(prompts) == 18
    assert len({e.id for split in ("train", "held_out") for e in first.examples(split, 50)}) == 100


def test_these_problems_are_what_trained_models_and_results_refer_to():
    example = TallyTask().example(0, "held_out")
    assert example.messages[0]["content"] == PINNED_PROMPT
    assert example.solution == PINNED_SOLUTION


def test_examples_is_a_sequence():
    examples = TallyTask().examples("train", 5)
    assert (
        len(examples) == 5
        and list(examples)[4] == examples[-1] == examples[4]
        and examples[1:3] == [examples[1], examples[2]]
    )
    with pytest.raises(IndexError):
        examples[5]


def test_splits_partition_a_world_small_enough_to_list():
    settings = dict(min_steps=1, max_steps=2, largest=6, largest_operand=3, held_out_share=0.3)

    def moves(count):
        for operand in range(1, 4):
            yield from (
                m
                for m in (("add", operand), ("subtract", operand))
                if 0 <= apply(m[0], count, operand) <= 6
            )
        if count > 0:
            yield from [("double", 2)] * (count <= 3) + [("halve", 2)] * (count % 2 == 0)

    world = {(start, (move,)) for start in range(2, 7) for move in moves(start)}
    world |= {
        (start, (move, following))
        for start, (move,) in world
        for following in moves(apply(move[0], start, move[1]))
    }

    drawn = {}
    for split in ("train", "held_out"):
        tasks = [TallyTask(TallySettings(seed=seed, **settings)) for seed in range(3)]
        drawn[split] = {
            read_problem(t.example(i, split).messages[0]["content"])
            for t in tasks
            for i in range(1500)
        }
    assert not drawn["train"] & drawn["held_out"]
    assert drawn["train"] | drawn["held_out"] == world
    assert 0.2 < len(drawn["held_out"]) / len(world) < 0.4


def test_a_world_without_held_out_problems_is_refused():
    settings = TallySettings(
        min_steps=1, max_steps=1, largest=4, largest_operand=1, held_out_share=1e-6
    )
    with pytest.raises(ValueError, match="held_out_share=1e-06"):
        TallyTask(settings).example(0, "held_out")


def test_difficulty_sets_the_length():
    encode = tokenizer.load().encode

    def lengths(steps, style):
        examples = TallyTask(TallySettings(min_steps=steps, max_steps=steps, style=style)).examples(
            "train", 40
        )
        return [len(encode(e.solution)) + 1 for e in examples]

    for style in (TEACHER_STYLE, NEUTRAL_STYLE, STUDENT_STYLE):
        assert max(lengths(2, style)) < 64
    assert min(lengths(40, NEUTRAL_STYLE)) > 512 and min(lengths(40, STUDENT_STYLE)) > 512
    counts = collections.Counter(len(TallyTask().problem(i, "train").steps) for i in range(700))
    assert set(counts) == set(range(2, 6)) and min(counts.values()) > 60


def test_every_number_of_the_range_is_met():
    before = collections.Counter(
        step.before for i in range(1500) for step in TallyTask().problem(i, "train").steps
    )
    assert set(before) == set(range(100))
    assert max(before.values()) < 5 * min(before.values())


def test_every_wording_occurs():
    prompts, steps = collections.Counter(), set()
    for example in TallyTask().examples("train", 1500):
        prompt = example.messages[0]["content"]
        _, events = read_problem(prompt)
        for (operation, _), said in zip(events, sentences(example.solution), strict=False):
            steps.add((operation, said.split()[0]))
        prompts.update(
            re.sub(r"\d+:?|\b[A-Z]\w+|\b(?:she|he)\b|" + "|".join(task.THINGS), "_", s).strip()
            for s in sentences(prompt)
        )
    assert steps == set(itertools.product(SAYS, FIRST_WORDS.values()))
    assert len(prompts) == len(task.OPENINGS) + sum(map(len, task.EVENTS.values())) + len(
        task.QUESTIONS
    )
    text = " ".join(e.messages[0]["content"] for e in TallyTask().examples("train", 300))
    assert all(word in text for word in (*task.THINGS, *task.NAMES["she"], *task.NAMES["he"]))


@pytest.mark.parametrize(
    "style", [TEACHER_STYLE, STUDENT_STYLE, Style(plain=0.2, order=0.4, story=0.3, long=0.1)]
)
def test_wordings_come_at_the_rates_of_the_style(style):
    examples = TallyTask(TallySettings(style=style)).examples("train", 600)
    counts = collections.Counter(
        s.split()[0] for e in examples for s in sentences(e.solution.split("\n")[0])
    )
    observed = np.array([counts[word] for word in FIRST_WORDS.values()])
    expected = np.array(dataclasses.astuple(style)) * observed.sum()
    assert (
        (observed - expected) ** 2 / expected
    ).sum() < 21.1  # chi-square, 3 degrees of freedom, p = 1e-4


@pytest.mark.parametrize(
    "settings, named",
    [
        (dict(min_steps=5, max_steps=4), "min_steps=5"),
        (dict(max_steps=100), "max_steps=100"),
        (dict(largest=1000), "largest=1000"),
        (dict(largest_operand=0), "largest_operand=0"),
        (dict(held_out_share=0.0), "held_out_share=0.0"),
        (dict(seed=-1), "seed=-1"),
    ],
)
def test_bad_settings_are_refused(settings, named):
    with pytest.raises(ValueError, match=re.escape(named)):
        TallySettings(**settings)


def test_bad_styles_and_sizes_are_refused():
    with pytest.raises(ValueError, match="add up to 1"):
        Style(0.5, 0.5, 0.5, 0.5)
    with pytest.raises(ValueError, match="size=0"):
        TallyTask().examples("train", 0)
