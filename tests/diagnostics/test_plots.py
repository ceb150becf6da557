import numpy as np
import pytest

from jopd.diagnostics import plots
from tests.diagnostics.records import EVALUATIONS, TRAINING, share


@pytest.fixture
def path(tmp_path):
    return tmp_path / "plots" / "picture.png"


def is_png(path) -> bool:
    return path.read_bytes().startswith(b"\x89PNG") and path.stat().st_size > 10_000


def test_the_learning_curve_shows_training_held_out_and_teacher(path):
    left, right = plots.learning_curve(TRAINING, EVALUATIONS, path).axes
    batch, mean, held_out = left.lines
    np.testing.assert_allclose(batch.get_ydata(), [line["kl"] for line in TRAINING])
    assert mean.get_xdata()[-1] == 40
    np.testing.assert_allclose(held_out.get_xydata(), [[0, 0.4], [20, 0.2], [40, 0.1]])
    student, teacher = right.lines
    np.testing.assert_allclose(student.get_xydata(), [[0, 0.4], [20, 0.6], [40, 0.75]])
    np.testing.assert_allclose(teacher.get_ydata(), 0.98)
    bars = right.collections[0].get_segments()
    low_high = [[line["accuracy"]["low"], line["accuracy"]["high"]] for line in EVALUATIONS]
    np.testing.assert_allclose([bar[:, 1] for bar in bars], low_high)
    assert [text.get_text() for text in right.get_legend().texts] == ["student: 40 % → 75 %", "teacher: 98 %"]
    assert "nats" in left.get_ylabel() and right.get_ylabel() == "share of 200 problems, 95 % interval"
    assert is_png(path)


def test_a_run_without_a_teacher_shows_its_loss_and_every_share(path):
    training = [{"step": line["step"], "loss": line["loss"]} for line in TRAINING]
    groups = [
        {"step": step, "identity": {"name_rate": share(step)}, "other": {"name_rate": share(1)}} for step in (0, 40)
    ]
    left, right = plots.learning_curve(training, groups, path).axes
    assert left.get_ylabel() == "loss" and left.get_ylim()[0] < -0.1  # losses may be negative
    assert len(right.lines) == 2 and right.get_title(loc="left") == "Held-out name rate"


def test_a_side_without_data_is_left_out(path):
    assert len(plots.learning_curve(TRAINING, [], path).axes) == 1
    assert len(plots.learning_curve([], EVALUATIONS[:1], path).axes) == 1
    assert is_png(path)


def test_kl_by_position_before_between_and_after(path):
    assert plots.kl_by_position([{"step": 0, "accuracy": share(1)}], path) is None and not path.exists()
    (axes,) = plots.kl_by_position([*EVALUATIONS, {"step": 50, "accuracy": share(1)}], path).axes
    before, _, after = axes.lines
    np.testing.assert_allclose(before.get_xdata(), [100 / 6, 50, 500 / 6])
    np.testing.assert_allclose(before.get_ydata(), [0.2, np.nan, 0.8])
    np.testing.assert_allclose(after.get_ydata(), [0.05, np.nan, 0.2])
    assert [text.get_text() for text in axes.get_legend().texts] == ["before", "in between", "after 40 steps"]
    assert is_png(path)
