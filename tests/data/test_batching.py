import collections
import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jopd.data.batching import Batches, left_pad, right_pad
from jopd.data.example import Example, Message
from jopd.data.task import TallyTask
from jopd.data.tokenizer import build
from jopd.data.views import ViewConfig, render, render_reference

TOKENIZER = build()
EXAMPLES = TallyTask().examples("train", 10)
PAD = TOKENIZER.pad_token_id
SEQUENCES = st.lists(st.lists(st.integers(0, 99), max_size=9), min_size=1, max_size=5)


def batches(examples=EXAMPLES, views=("privileged",), **settings):
    defaults = {"prompts_per_step": 4, "max_prompt_tokens": 400, "pad_id": PAD, "seed": 0}
    return Batches(examples, TOKENIZER, views, **(defaults | settings))


def counted(words):
    return Example(
        str(words), (Message(role="user", content="go " * words),), solution="go " * words
    )


@given(SEQUENCES, st.integers(9, 12), st.integers(-1, 99))
def test_padding_keeps_every_token_in_its_place(sequences, width, pad_id):
    left, right = left_pad(sequences, width, pad_id), right_pad(sequences, width, pad_id)
    for i, ids in enumerate(sequences):
        padding = [pad_id] * (width - len(ids))
        assert left["tokens"][i].tolist() == padding + ids
        assert right["tokens"][i].tolist() == ids + padding
        assert left["valid"][i].tolist() == [False] * len(padding) + [True] * len(ids)
        assert right["mask"][i].tolist() == left["valid"][i].tolist()[::-1]
    assert left["tokens"].dtype == right["tokens"].dtype == np.int32


@given(SEQUENCES, SEQUENCES)
def test_completions_begin_in_one_column_whatever_the_contexts(contexts, completions):
    n = min(len(contexts), len(completions))
    context, completion = left_pad(contexts[:n], 9, -1), right_pad(completions[:n], 9, -1)
    tokens = np.concatenate([context["tokens"], completion["tokens"]], axis=1)
    valid = np.concatenate([context["valid"], completion["mask"]], axis=1)
    for i in range(n):
        assert tokens[i][valid[i]].tolist() == contexts[i] + completions[i]
        assert tokens[i, 9 : 9 + len(completions[i])].tolist() == completions[i]


def test_padding_never_cuts():
    with pytest.raises(
        ValueError, match="width=2 is too small for a sequence of 3 tokens: widen it"
    ):
        left_pad([[1, 2, 3]], 2, 0)


def test_a_batch_holds_the_renderings_of_its_examples():
    made = batches(references=True, max_completion_tokens=200)
    batch = made[7]
    assert batch["rows"].tolist() == [28, 29, 30, 31]
    assert batch["rows"].dtype == np.int32
    assert list(batch["contexts"]) == ["student", "privileged"]
    for i, example in enumerate(made.examples_at(7)):
        for view, context in batch["contexts"].items():
            assert context["tokens"][i][context["valid"][i]].tolist() == render(
                example, view, TOKENIZER, ViewConfig()
            )
            assert context["valid"][i, -1]
        reference = batch["reference"]
        assert reference["tokens"][i][reference["mask"][i]].tolist() == render_reference(
            example, TOKENIZER
        )
    assert batch["reference"]["tokens"].shape == (4, 200)


def test_widths_are_the_longest_rounded_up_and_the_same_at_every_step():
    made = batches([counted(words) for words in (1, 5, 30)], views=("teacher",))
    assert made.widths == {"student": 48, "teacher": 48}  # 30 words and three marks
    assert {made[step]["contexts"]["teacher"]["tokens"].shape for step in range(5)} == {(4, 48)}
    assert batches([counted(13)], views=()).widths == {"student": 16}
    assert batches([counted(14)], views=()).widths == {"student": 32}


def same(a, b):
    return all(
        np.array_equal(a["contexts"][view]["tokens"], b["contexts"][view]["tokens"])
        for view in a["contexts"]
    )


def test_a_batch_depends_on_seed_and_step_alone():
    forward, backward = batches(), batches()
    there = [forward[step] for step in range(6)]
    back = [backward[step] for step in reversed(range(6))][::-1]
    assert all(same(a, b) for a, b in zip(there, back, strict=True))
    assert not all(same(a, batches(seed=1)[step]) for step, a in enumerate(there))
    assert len(set(np.concatenate([batch["rows"] for batch in there]).tolist())) == 24


def test_every_example_comes_once_a_pass_in_another_order():
    made = batches(prompts_per_step=5)
    passes = [
        [e.id for step in (2 * i, 2 * i + 1) for e in made.examples_at(step)] for i in range(3)
    ]
    assert all(sorted(ids) == sorted(e.id for e in EXAMPLES) for ids in passes)
    assert len({tuple(ids) for ids in passes}) == 3
    seen = collections.Counter(e.id for step in range(25) for e in made.examples_at(10**6 + step))
    assert max(seen.values()) - min(seen.values()) <= 1


def test_without_a_seed_the_examples_come_in_order_and_the_last_batch_is_filled_up():
    made = batches(seed=None)
    assert len(made) == 3
    assert [e.id for step in range(3) for e in made.examples_at(step)] == [e.id for e in EXAMPLES]
    assert [len(made.examples_at(step)) for step in range(3)] == [4, 4, 2]
    last, first = made[2]["contexts"]["student"]["tokens"], made[0]["contexts"]["student"]["tokens"]
    assert last.shape == first.shape
    assert np.array_equal(last[2:], first[:2])
    with pytest.raises(IndexError, match="step 3 is outside the 3 batches"):
        made[3]


def test_what_is_too_long_is_dropped_and_counted():
    examples = [counted(words) for words in (2, 50, 3, 60, 20)]
    made = batches(
        examples,
        views=("teacher",),
        max_prompt_tokens=40,
        references=True,
        max_completion_tokens=10,
    )
    assert [e.id for e in made.examples] == ["2", "3"]
    assert made.dropped == {"student prompt": 2, "reference": 1}
    assert made.report == (
        "2 of 5 examples fit; 2 dropped: student prompt longer than max_prompt_tokens=40 (up to 63)"
        "; 1 dropped: reference longer than max_completion_tokens=10 (up to 21)"
    )
    assert batches().report == "10 of 10 examples fit"
    privileged = batches(examples, views=("privileged",), max_prompt_tokens=40)
    assert privileged.dropped == {"student prompt": 2, "privileged prompt": 1}


def test_nothing_left_is_refused():
    with pytest.raises(
        ValueError,
        match=r"^0 of 10 examples fit; 10 dropped: student prompt .*max_prompt_tokens=5 .*: raise "
        r"the limit",
    ):
        batches(max_prompt_tokens=5)
    with pytest.raises(ValueError, match="examples is empty"):
        batches([])
    with pytest.raises(ValueError, match="prompts_per_step=0 must be at least 1"):
        batches(prompts_per_step=0)
    with pytest.raises(ValueError, match="view='teachr' is not known"):
        batches(views=("teachr",))


def test_a_fingerprint_is_of_what_examples_say_and_readers_see_in_their_order():
    assert batches().fingerprint == batches(list(EXAMPLES)).fingerprint
    changed = dataclasses.replace(EXAMPLES[2], answer="another")
    others = [
        batches(EXAMPLES[:2]),
        batches(EXAMPLES[::-1]),
        batches([*EXAMPLES[:2], changed, *EXAMPLES[3:]]),
        batches(views=("student",)),
        batches(references=True, max_completion_tokens=64),
        batches(config=ViewConfig(system_prompt="Be brief.")),
    ]
    assert len({each.fingerprint for each in [batches(), *others]}) == 7
