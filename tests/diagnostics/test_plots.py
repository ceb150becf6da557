import numpy as np
import pytest

from jopd.diagnostics import plots
from jopd.diagnostics.profiles import share_by_length
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
    assert [text.get_text() for text in right.get_legend().texts] == [
        "student: 40 % → 75 %",
        "teacher: 98 %",
    ]
    assert (
        "nats" in left.get_ylabel() and right.get_ylabel() == "share of 200 problems, 95 % interval"
    )
    assert is_png(path)


def test_a_run_without_a_teacher_shows_its_loss_and_every_share(path):
    training = [{"step": line["step"], "loss": line["loss"]} for line in TRAINING]
    groups = [
        {"step": step, "identity": {"name_rate": share(step)}, "other": {"name_rate": share(1)}}
        for step in (0, 40)
    ]
    left, right = plots.learning_curve(training, groups, path).axes
    assert left.get_ylabel() == "loss" and left.get_ylim()[0] < -0.1  # losses may be negative
    assert len(right.lines) == 2 and right.get_title(loc="left") == "Held-out name rate"


def test_what_never_happens_is_left_out_and_so_is_what_explains(path):
    evaluations = [
        line | {"shortcut_rate": share(0), "shortcuts": {"shortcut_cues_rate": share(0)}}
        for line in EVALUATIONS
    ]
    shown = lambda: [
        line.get_label() for line in plots.learning_curve(TRAINING, evaluations, path).axes[1].lines
    ]
    assert shown() == ["student: 40 % → 75 %", "teacher: 98 %"]
    evaluations[1] |= {"shortcut_rate": share(30), "shortcuts": {"shortcut_cues_rate": share(30)}}
    assert shown() == ["accuracy: 40 % → 75 %", "teacher: 98 %", "shortcuts: 0 % → 0 %"]


def test_a_side_without_data_is_left_out(path):
    assert len(plots.learning_curve(TRAINING, [], path).axes) == 1
    assert len(plots.learning_curve([], EVALUATIONS[:1], path).axes) == 1
    assert is_png(path)


def test_kl_by_position_before_between_and_after(path):
    assert (
        plots.kl_by_position([{"step": 0, "accuracy": share(1)}], path) is None
        and not path.exists()
    )
    (axes,) = plots.kl_by_position([*EVALUATIONS, {"step": 50, "accuracy": share(1)}], path).axes
    before, _, after = axes.lines
    np.testing.assert_allclose(before.get_xdata(), [100 / 6, 50, 500 / 6])
    np.testing.assert_allclose(before.get_ydata(), [0.2, np.nan, 0.8])
    np.testing.assert_allclose(after.get_ydata(), [0.05, np.nan, 0.2])
    assert [text.get_text() for text in axes.get_legend().texts] == [
        "before",
        "in between",
        "after 40 steps",
    ]
    assert is_png(path)


def test_overlap_by_position_is_a_share(path):
    assert plots.overlap_by_position(EVALUATIONS, path) is None and not path.exists()
    lines = [
        {"step": step, "top_k_overlap_by_position": [step / 100, None, 1.0]} for step in (0, 50)
    ]
    (axes,) = plots.overlap_by_position(lines, path).axes
    before, after = axes.lines
    np.testing.assert_allclose(before.get_ydata(), [0, np.nan, 1])
    np.testing.assert_allclose(after.get_ydata(), [0.5, np.nan, 1])
    assert axes.get_ylim() == (0, 1.02)
    assert is_png(path)


def test_accuracy_by_length_of_several_runs(path):
    lengths, edges = [10, 20, 40, 50, 60], (32, 64)
    runs = {
        "OPD": share_by_length([True, False, True, True, False], lengths, edges),
        "AR-OPD": share_by_length([True, True, True, True, True], lengths, edges),
    }
    figure = plots.accuracy_by_length(runs, path)
    (axes,) = figure.axes
    heights = [bar.get_height() for bar in axes.patches if bar.get_height()]
    assert heights == [1 / 2, 2 / 3, 1, 1]  # nobody wrote 64 tokens or more
    bars = [segment[:, 1].tolist() for bar in axes.collections for segment in bar.get_segments()]
    assert bars[0] == [runs["OPD"][0]["low"], runs["OPD"][0]["high"]] and len(bars) == 4
    assert [text.get_text() for text in axes.texts] == ["2", "3", "2", "3"]
    assert [text.get_text() for text in axes.get_xticklabels()] == ["0–31", "32–63", "64 or more"]
    assert [text.get_text() for text in figure.legends[0].texts] == ["OPD", "AR-OPD"]
    assert is_png(path)


def test_accuracy_by_length_refuses_other_edges_and_draws_nothing_of_nothing(path):
    a, b = (share_by_length([True], [3], edges) for edges in ((4, 8), (4, 9)))
    with pytest.raises(ValueError, match="different buckets"):
        plots.accuracy_by_length({"a": a, "b": b}, path)
    assert plots.accuracy_by_length({"a": share_by_length([], [], (4,))}, path) is None
    assert plots.accuracy_by_length({}, path) is None and not path.exists()


def test_the_evidence_histogram_counts_every_token_on_its_side(path):
    evidence = np.concatenate([np.linspace(-2, 2, 1001), [1e9, -np.inf]])
    # Whatever the rule: here what lies between, as for near_zero, of which 501 values are at most 1
    # in size.
    near = np.abs(evidence) <= 1
    (axes,) = plots.evidence_histogram(evidence, near, path).axes
    silenced, kept = axes.containers
    assert (
        sum(bar.get_height() for bar in kept) == 501
        and sum(bar.get_height() for bar in silenced) == 1003 - 501
    )
    assert all(abs(bar.get_x()) < 1.1 for bar in kept if bar.get_height())
    assert [text.get_text() for text in axes.get_legend().texts] == ["silenced: 50 %", "kept: 50 %"]
    assert is_png(path)


def test_transport_against_loss_marks_what_is_really_divergent(path):
    losses, costs = np.array([0.0, 0.1, 1.0, 3.0]), np.array([0.1, 0.2, 0.6, 0.3])
    (axes,) = plots.transport_against_loss(losses, costs, path, threshold=0.5).axes
    divergent, same = axes.collections
    np.testing.assert_allclose(divergent.get_offsets(), [[1.0, 0.6]])
    np.testing.assert_allclose(same.get_offsets(), [[1e-4, 0.1], [0.1, 0.2], [3.0, 0.3]])
    texts = [text.get_text() for text in axes.get_legend().texts]
    assert texts == ["really divergent: 25 %", "same future: 75 %", "threshold: 0.50"]
    assert is_png(path)
    (axes,) = plots.transport_against_loss(losses, costs, path).axes
    assert [text.get_text() for text in axes.get_legend().texts] == ["4 windows"]
