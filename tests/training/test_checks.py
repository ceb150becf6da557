import numpy as np
import pytest

from jopd.training.checks import (
    check_evaluation,
    check_step,
    what_is_saved,
    why_nothing_was_learnt,
)
from jopd.training.home import Disk


@pytest.mark.parametrize(
    "metrics, message",
    [
        (
            {"loss": np.nan},
            r"step 7: loss nan, gradient norm 1\.0; not finite in no single row \(the gradient\)",
        ),
        (
            {"gradient_norm": np.inf},
            r"step 7: loss 1\.0, gradient norm inf; not finite in no single row",
        ),
        (
            {"finite_rows": np.arange(30) >= 12},
            r"not finite in rows \[0, 1, 2, 3, 4, 5, 6, 7, 8, 9\] and more",
        ),
        ({"tokens": 0}, "step 7: no token of the batch is inside the mask"),
    ],
)
def test_what_stops_a_run(metrics, message):
    good = {"loss": 1.0, "gradient_norm": 1.0, "finite_rows": np.ones(30, bool), "tokens": 9}
    arrays = lambda values: {name: np.asarray(value) for name, value in values.items()}
    check_step(7, arrays(good))
    with pytest.raises(FloatingPointError, match=message) as error:
        check_step(7, arrays(good | metrics))
    assert "\n" not in str(error.value)


def test_what_is_saved_is_a_whole_checkpoint(tmp_path):
    assert what_is_saved(Disk(tmp_path)) == "Nothing was saved yet"
    (tmp_path / "checkpoints" / "6.orbax-checkpoint-tmp").mkdir(parents=True)
    assert what_is_saved(Disk(tmp_path)) == "Nothing was saved yet"
    (tmp_path / "checkpoints" / "6").mkdir()
    assert what_is_saved(Disk(tmp_path)) == (
        f"What was saved before is in {tmp_path / 'checkpoints'}"
    )


def test_an_evaluation_without_numbers_stops_a_run():
    kl = lambda value: {"value": value, "low": None, "high": None, "count": 3}
    check_evaluation(4, {"step": 4, "kl": kl(0.5), "ordinary": {"kl": kl(0.1)}})
    with pytest.raises(
        FloatingPointError, match="step 4: the evaluation's ordinary/kl is not a number"
    ):
        check_evaluation(4, {"step": 4, "kl": kl(0.5), "ordinary": {"kl": kl(float("nan"))}})


def test_a_gradient_of_zero_is_explained():
    gradient = lambda value: {"gradient_norm": np.asarray(value)}
    assert why_nothing_was_learnt(gradient(0.5)) is None
    assert "agree on every token" in why_nothing_was_learnt(gradient(0.0))
    assert "kept is 0" in why_nothing_was_learnt(gradient(0.0) | {"kept": np.asarray(0.0)})
