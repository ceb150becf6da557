"""What is shown of each token, against the formulas on each row run alone (`problem`)."""

import json

import jax
import numpy as np
import pytest

from jopd import losses
from jopd.train import main
from jopd.training import optimizer
from jopd.training.seen import EXPECTED
from tests.training.problem import (
    FORMULAS,
    Problem,
    expected_logits,
    host_batch,
    lenient,
    problem,
)
from tests.training.tiny import arguments

MASK = host_batch(losses.get("opd")).mask


def seen(it: Problem) -> dict[str, np.ndarray]:
    batch = it.scored()._replace(streams={})
    with jax.set_mesh(it.mesh):
        return jax.device_get(it.jitted.seen(it.state, it.fixed, batch))


def logp_of(role: str, view: str) -> np.ndarray:
    return np.asarray(jax.nn.log_softmax(expected_logits(role, view), axis=-1))


def chosen(logp: np.ndarray) -> np.ndarray:
    tokens = host_batch(losses.get("opd")).tokens
    return np.take_along_axis(logp, tokens[..., None], axis=-1)[..., 0]


def test_the_loss_of_a_token_is_what_it_adds_to_the_sum():
    student, teacher = logp_of("student", "student"), logp_of("teacher", "teacher")
    found = seen(problem(losses.get("opd")))
    expected = np.asarray(FORMULAS["opd"](student, {"teacher": teacher}, None))
    np.testing.assert_allclose(found["loss"][MASK], expected[MASK], rtol=1e-4, atol=1e-6)
    assert np.isnan(found["loss"][~MASK]).all()
    assert "push" not in found


def test_the_push_of_a_policy_gradient_is_its_advantage():
    found = seen(problem(losses.get("opd_pg")))
    expected = chosen(logp_of("teacher", "teacher")) - chosen(logp_of("student", "student"))
    np.testing.assert_allclose(found["push"][MASK], expected[MASK], rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(found["suppressed"][MASK], expected[MASK] < 0)


def test_a_gate_that_is_shut_pushes_nothing():
    found = seen(problem(losses.get("edge_opd")))
    shut = MASK & (found["kept"] == 0)
    assert shut.any() and (MASK & ~shut).any()
    np.testing.assert_array_equal(found["push"][shut], 0)
    assert (found["push"][MASK & ~shut] != 0).all()
    expected = chosen(logp_of("teacher", "privileged")) - chosen(logp_of("teacher", "plain"))
    np.testing.assert_allclose(found["evidence"][MASK], expected[MASK], rtol=1e-3, atol=1e-4)


def test_tokens_that_a_method_skips_have_no_loss():
    found = seen(problem(losses.get("ar_opd", teacher_update="frozen", skip_tokens=3)))
    assert (found["loss"][:, :3][MASK[:, :3]] == 0).all()
    assert (found["loss"][:, 3:][MASK[:, 3:]] > 0).all()
    assert (found["residual_size"][MASK] > 0).all()


def test_what_each_reader_expected_are_the_largest_of_its_logits():
    found = seen(problem(losses.get("opd"), chunk=2, micro_batches=2))
    for reader, role in (("student", "student"), ("teacher", "teacher")):
        logp = logp_of(role, reader)
        order = np.argsort(-logp, axis=-1, kind="stable")[..., :5]
        ids = found[f"{EXPECTED}{reader}_ids"]
        np.testing.assert_array_equal(ids[MASK], order[MASK])
        probabilities = np.take_along_axis(np.exp(logp), order, axis=-1)
        np.testing.assert_allclose(
            found[f"{EXPECTED}{reader}_probabilities"][MASK], probabilities[MASK], rtol=1e-4
        )


@pytest.mark.parametrize("name", losses.names())
def test_every_method_can_be_looked_at(name):
    """A number for every token, or none where the method says that the token doesn't count."""
    found = seen(problem(losses.get(name)))
    own = {key: values for key, values in found.items() if not key.startswith(EXPECTED)}
    assert all(np.isnan(values[~MASK]).all() for values in own.values())
    assert not any(np.isinf(values).any() for values in own.values())
    judged = {"reward", "group_advantage"} & set(losses.get(name).inputs)
    told = own.keys() & {"push", "loss"}
    assert len(told) == (0 if judged else 1)
    assert all(np.isfinite(own[key][MASK]).all() for key in told)


@pytest.mark.parametrize("method", [pytest.param("topd", marks=pytest.mark.slow), "g_opd", "sft"])
def test_a_run_writes_down_what_it_saw(method, tiny, tmp_path, monkeypatch, quick_compilation):
    """Windows, a view that evaluations don't measure, and a method without a view."""
    flags = {
        "topd": ["--method.windows", "1", "--method.window-tokens", "2"],
        "g_opd": ["--method.scale", "0.5"],
        "sft": ["--rollout.max-new-tokens", "96"],
    }[method]
    make = optimizer.make
    monkeypatch.setattr(optimizer, "make", lambda *settings: lenient(make(*settings)))
    teacher = "none" if method == "sft" else tiny["teacher"]
    command = arguments(tiny["student"], teacher, tmp_path / "run", steps=1, evaluation__every=0)
    main([*command, "--method", method, *flags])
    lines = [json.loads(line) for line in (tmp_path / "run" / "samples.jsonl").open()]
    assert [line["step"] for line in lines] == [0, 0, 1, 1]
    for line in lines:
        tokens = line["tokens"]
        values = [*tokens["measures"].values(), *tokens["method"].values()]
        values += tokens["likeliest"].values()
        assert {len(it) for it in values} == {len(tokens["text"])}
        readers = {"topd": {"teacher"}, "g_opd": {"teacher", "initial"}, "sft": set()}[method]
        assert tokens["likeliest"].keys() == {"student"} | readers
    if method == "topd":
        costs = [x for line in lines for x in line["tokens"]["method"]["transport"]]
        assert None in costs
        assert any(x is not None and x >= 0 for x in costs)
