"""Two prompts of 3 and 5 tokens, two completions each, of 2, 4, 1 and 3 tokens."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jopd import losses
from jopd.models import Architecture
from jopd.training.batch import Batch, Context, with_context_rows
from jopd.training.work import Operations, Work, work_of

STUDENT = Architecture(
    vocabulary_size=10, width=4, layers=2, heads=2, kv_heads=1, head_dim=3, mlp_width=5
)
TEACHER = dataclasses.replace(STUDENT, layers=1)
# A layer: queries and output 4 × 6 each, key and value 4 × 3 each, MLP 3 × 4 × 5.
LAYER, HEAD = 24 + 24 + 12 + 12 + 60, 40
# Context and completion: 5, 7, 6, 8 tokens; attention takes 2 × heads × dimensions, 12, a layer.
WHOLE, SQUARES = 26, 25 + 49 + 36 + 64
READ = 2 * 2 * LAYER * WHOLE
LOGITS = 2 * HEAD * 10
TEACHER_READ = 2 * LAYER * WHOLE + 12 * SQUARES
# Each prompt once, 8 tokens; then 10 tokens, each after all before it.
WRITTEN = 2 * 2 * LAYER * (8 + 10) + 2 * 12 * (9 + 25 + SQUARES - 2 * (9 + 25)) + LOGITS
ATTENDED = 2 * 12 * SQUARES


def batch() -> Batch:
    valid = jnp.arange(6)[None] >= jnp.array([[3], [1]])
    context = Context(jnp.zeros(valid.shape, jnp.int32), valid)
    mask = jnp.arange(4)[None] < jnp.array([[2], [4], [1], [3]])
    return Batch({"student": context, "teacher": context}, jnp.zeros(mask.shape, jnp.int32), mask)


def work(streams=()) -> Work:
    done = work_of(batch().contexts, batch().mask, list(streams))
    return jax.device_get(done)


def by_phase(name: str, *, adapters=False, streams=(), metrics=None, **settings) -> dict:
    method = losses.get(name, **settings)
    counted = Operations(method, STUDENT, TEACHER, samples=2, adapters=adapters)
    return counted.of(work(streams), metrics or {})


def test_lengths_are_those_of_the_rows():
    read = work().views["student"]
    assert read == (16, 68, WHOLE, SQUARES) and work().completion == 10
    whole = with_context_rows(batch())
    again = work_of(whole.contexts, whole.mask, [])
    assert jax.tree.map(np.asarray, again.views["student"]) == read


def test_a_step_by_hand():
    assert by_phase("opd") == {
        "rollout": WRITTEN,
        "score": TEACHER_READ,
        "update": 3 * (READ + LOGITS + ATTENDED) + LOGITS,
    }


def test_frozen_matrices_need_no_gradient_of_their_own():
    update = 2 * (READ + LOGITS) + 3 * ATTENDED + LOGITS
    assert by_phase("opd", adapters=True)["update"] == update


def test_without_a_teacher_nobody_writes_or_grades():
    update = 3 * (READ + LOGITS + ATTENDED)
    assert by_phase("sft") == {"rollout": 0, "score": 0, "update": update}


def test_half_of_a_mixed_batch_is_written():
    assert by_phase("opd", on_policy_share=0.5)["rollout"] == WRITTEN / 2


def test_windows_are_read_once_and_written_and_learnt_from():
    plain = by_phase("topd", metrics={"student_window_tokens": 0, "teacher_window_tokens": 0})
    assert plain["score"] == TEACHER_READ + READ + LOGITS + ATTENDED + LOGITS
    assert plain["windows"] == READ + ATTENDED + TEACHER_READ
    tokens = {"student_window_tokens": 6, "teacher_window_tokens": 5}
    learnt = jnp.array([[True, True, False], [True, True, True]])
    found = by_phase("topd", metrics=tokens, streams=[learnt])
    of_student, of_teacher = 2 * (2 * LAYER + HEAD), 2 * (LAYER + HEAD)
    assert found["windows"] - plain["windows"] == 6 * of_student + 5 * of_teacher
    assert found["update"] - plain["update"] == 3 * 5 * of_student


def test_windows_compared_by_hidden_states_are_read_by_the_teacher_as_well():
    tokens = {"student_window_tokens": 6, "teacher_window_tokens": 5}
    found, plain = (
        by_phase("topd", metrics=tokens, space=space)["windows"]
        for space in ("hidden_states", "embeddings")
    )
    assert found - plain == 6 * 2 * LAYER


@pytest.mark.parametrize("name", losses.names())
def test_every_method_is_counted(name):
    method = losses.get(name)
    views = dict.fromkeys(("student", *method.views), batch().contexts["student"])
    done = jax.device_get(work_of(views, batch().mask, []))
    tokens = {"student_window_tokens": 0, "teacher_window_tokens": 0}
    counted = Operations(method, STUDENT, TEACHER, samples=2, adapters=False).of(done, tokens)
    assert all(flops >= 0 for flops in counted.values()) and counted["update"] > 0
