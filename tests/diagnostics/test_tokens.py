import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jopd.diagnostics.tokens import Comparison, Diagnostics
from jopd.losses.chunked import Scored, chunked_terms
from jopd.losses.stages import vocabulary_stage
from tests.reference import diagnostics as reference

SETTINGS = {"stop_tokens": (2, 5), "k": 3, "support_threshold": 0.02, "reachable": 0.1}
STAGE = Diagnostics("teacher", **SETTINGS)


def terms_of(stage, student, teacher, tokens, view="teacher"):
    logits = (jnp.asarray(x, jnp.float32) for x in (student, teacher))
    return jax.jit(lambda s, t, y: stage.token_terms(s, {view: t}, y, {}))(
        *logits, jnp.asarray(tokens, jnp.int32)
    )


def test_every_term_worked_by_hand():
    # pi = (.5, .3, .1, .1) and q = (.1, .2, .3, .4); the two best are {0, 1} of pi and {3, 2} of q:
    # nothing in common.
    pi, q = np.array([0.5, 0.3, 0.1, 0.1]), np.array([0.1, 0.2, 0.3, 0.4])
    stage = Diagnostics("teacher", stop_tokens=(3,), k=2, support_threshold=0.2, reachable=0.05)
    found = terms_of(stage, np.log(pi) + 1, np.log(q) - 2, 0)
    expected = {
        "top_k_overlap": 0.0,
        "overlap_mass": 0.0,
        "non_overlap_mass": 0.7,
        "teacher_mass_on_student_top_k": 0.3,
        "student_mass_on_teacher_top_k": 0.2,
        "out_of_support_mass": 0.7,
        "reachable_teacher_mass": 0.7,
        "sampled_outside_share": 1.0,
        "stop_gap": 0.3,
        "top1_agreement": 0.0,
        "log_ratio": np.log(0.1 / 0.5),
    }
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-5, atol=1e-6, err_msg=name)
    # k = 3 brings token 1 to the teacher's, and token 2, which ties with 3 in the student, to the
    # student's: {1, 2} in both.
    found = terms_of(Diagnostics("teacher", stop_tokens=(3,), k=3), np.log(pi), np.log(q), 1)
    for name, value in {
        "top_k_overlap": 2 / 3,
        "overlap_mass": 0.5,
        "non_overlap_mass": 0.4,
    }.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-5, err_msg=name)
    assert found["sampled_outside_share"] == 0


@pytest.mark.parametrize("k", [3, 200])
def test_every_term_is_the_references(k):
    generator = np.random.default_rng(k)
    student = generator.normal(size=(3, 4, 48)).astype(np.float32) * 2
    teacher = student + generator.normal(size=student.shape).astype(np.float32)
    # Ties at every place of the order, the best included.
    student[1], teacher[1] = np.round(student[1]), np.round(teacher[1])
    tokens = generator.integers(48, size=(3, 4))
    stage = Diagnostics("other", **SETTINGS | {"k": k})
    found = terms_of(stage, student, teacher, tokens, view="other")
    for place in np.ndindex(3, 4):
        expected = reference.token_terms(
            student[place], teacher[place], tokens[place], **SETTINGS | {"k": k}
        )
        assert set(found) == set(expected)
        for name, value in expected.items():
            if name == "top1_agreement" and place[0] == 1:
                continue  # among equals, any of the best counts
            np.testing.assert_allclose(
                found[name][place], value, rtol=2e-5, atol=1e-6, err_msg=name
            )


def test_the_comparison_is_part_of_it():
    generator = np.random.default_rng(0)
    student, teacher = generator.normal(size=(2, 5, 16))
    whole = terms_of(STAGE, student, teacher, np.arange(5))
    part = terms_of(Comparison("teacher"), student, teacher, np.arange(5))
    assert set(part) == {
        "kl",
        "forward_kl",
        "student_entropy",
        "teacher_entropy",
        "top1_agreement",
        "log_ratio",
    }
    for name, values in part.items():
        np.testing.assert_allclose(values, whole[name], rtol=1e-6, atol=1e-7)


def test_one_and_the_same_distribution():
    logits = np.random.default_rng(0).normal(size=(6, 16))
    found = terms_of(STAGE, logits, logits, np.arange(6))
    for name in ("kl", "forward_kl", "entropy_gap", "log_ratio", "stop_gap", "non_overlap_mass"):
        np.testing.assert_allclose(found[name], 0, atol=1e-6, err_msg=name)
    np.testing.assert_array_equal(found["top_k_overlap"], 1)
    np.testing.assert_allclose(
        found["overlap_mass"], found["student_mass_on_teacher_top_k"], rtol=1e-6
    )


def test_entries_of_weight_zero_and_bfloat16_do_no_harm():
    student, teacher = np.random.default_rng(0).normal(size=(2, 4, 12))
    expected = terms_of(STAGE, student, teacher, np.arange(4))
    excluded = np.full((4, 3), -np.inf)
    found = terms_of(
        STAGE, np.hstack([student, excluded]), np.hstack([teacher, excluded]), np.arange(4)
    )
    for name, values in expected.items():
        np.testing.assert_allclose(found[name], values, rtol=1e-5, atol=1e-6, err_msg=name)
    half = jax.jit(lambda s, t, y: STAGE.token_terms(s, {"teacher": t}, y, {}))(
        jnp.asarray(student, jnp.bfloat16), jnp.asarray(teacher, jnp.bfloat16), jnp.arange(4)
    )
    assert all(values.dtype == jnp.float32 for values in half.values())


def test_it_runs_in_chunks_without_gradient_and_outside_the_mask_finite():
    generator = np.random.default_rng(0)
    draw = lambda *shape: jnp.asarray(generator.normal(size=shape), jnp.float32)
    student, teacher = (
        Scored(draw(2, 5, 4), draw(4, 32)),
        Scored(draw(2, 5, 6).at[0, 3:].set(jnp.nan), draw(6, 32)),
    )
    mask = jnp.asarray([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]], bool)
    tokens = jnp.asarray(generator.integers(32, size=(2, 5)), jnp.int32)

    def total(hidden):
        chunked = chunked_terms(
            STAGE,
            Scored(hidden, student.head),
            {"teacher": teacher},
            tokens,
            mask,
            {},
            chunk=2,
            vocabulary=30,
        )
        return sum(values.sum() for values in chunked.values()), chunked

    (_, chunked), gradient = jax.jit(jax.value_and_grad(total, has_aux=True))(student.hidden)
    np.testing.assert_array_equal(gradient, 0)
    logits = {"teacher": (teacher.hidden @ teacher.head)[..., :30]}
    whole = jax.jit(lambda s: vocabulary_stage(STAGE, s, logits, tokens, mask, {}))(
        (student.hidden @ student.head)[..., :30]
    )
    for name, values in whole.items():
        assert np.isfinite(chunked[name]).all(), name
        np.testing.assert_allclose(chunked[name], values, rtol=2e-5, atol=1e-6, err_msg=name)


@pytest.mark.parametrize("bad", [{"k": 0}, {"support_threshold": 0.0}, {"reachable": 1.0}])
def test_bad_settings_are_refused(bad):
    with pytest.raises(ValueError, match=next(iter(bad))):
        Diagnostics("teacher", stop_tokens=(), **bad)
