import numpy as np
import pytest
from matplotlib.colors import to_rgba

from jopd.diagnostics import plots
from jopd.diagnostics.profiles import share_by_length
from jopd.diagnostics.style import COLORS, Shown, drawn
from tests.diagnostics.records import EVALUATIONS, TRAINING, is_png, share

SHOWN = Shown("default-opd-seed0", batches=drawn(0.7), answers=drawn(0.0), k=16)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "plots" / "picture.png"


def test_the_learning_curve_shows_training_held_out_and_teacher(path):
    left, right = plots.learning_curve(TRAINING, EVALUATIONS, path).axes
    batch, mean, held_out = left.lines
    np.testing.assert_allclose(batch.get_ydata(), [line["kl"] for line in TRAINING])
    assert mean.get_xdata()[-1] == 40
    np.testing.assert_allclose(held_out.get_xydata(), [[0, 0.4], [20, 0.2], [40, 0.1]])
    student, teacher = right.lines
    np.testing.assert_allclose(student.get_xydata(), [[0, 0.4], [20, 0.6], [40, 0.75]])
    np.testing.assert_allclose(teacher.get_ydata(), 0.98)
    (span,) = right.patches
    known = EVALUATIONS[0]["teacher"]["accuracy"]
    low, high = span.get_y(), span.get_y() + span.get_height()
    assert [low, high] == pytest.approx([known["low"], known["high"]])
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
    assert shown() == ["accuracy: 40 % → 75 %", "teacher, accuracy: 98 %", "shortcuts: 0 % → 0 %"]


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
    assert heights == [1 / 2, 2 / 3, 1, 1]
    bars = [segment[:, 1].tolist() for bar in axes.collections for segment in bar.get_segments()]
    assert bars[0] == [runs["OPD"][0]["low"], runs["OPD"][0]["high"]] and len(bars) == 4
    assert [text.get_text() for text in axes.texts] == ["2", "3", "2", "3"]
    # Nobody wrote 64 tokens or more.
    assert [text.get_text() for text in axes.get_xticklabels()] == ["0–31", "32–63"]
    assert [text.get_text() for text in figure.legends[0].texts] == ["OPD", "AR-OPD"]
    assert is_png(path)


def test_accuracy_by_length_refuses_other_edges_and_draws_nothing_of_nothing(path):
    a, b = (share_by_length([True], [3], edges) for edges in ((4, 8), (4, 9)))
    with pytest.raises(ValueError, match="different buckets"):
        plots.accuracy_by_length({"a": a, "b": b}, path)
    assert plots.accuracy_by_length({"a": share_by_length([], [], (4,))}, path) is None
    assert plots.accuracy_by_length({}, path) is None and not path.exists()


def test_a_bucket_that_one_run_alone_fills_keeps_its_place(path):
    lengths, edges = [10, 40, 70], (32, 64)
    runs = {
        "before": share_by_length([True, True], [10, 70], edges),
        "after 40 steps": share_by_length([True, True, True], lengths, edges),
    }
    (axes,) = plots.accuracy_by_length(runs, path).axes
    assert [text.get_text() for text in axes.get_xticklabels()] == ["0–31", "32–63", "64 or more"]
    bars = [bar for bar in axes.patches if bar.get_height()]
    assert [round(bar.get_center()[0], 1) for bar in bars] == [-0.2, 1.8, 0.2, 1.2, 2.2]


def line_colors(axes) -> dict[str, str]:
    return {line.get_label().split(":")[0]: line.get_color() for line in axes.lines}


def test_a_colour_means_one_thing_in_every_picture(path):
    assert len(set(COLORS.values())) == len(COLORS)
    left, right = plots.learning_curve(TRAINING, EVALUATIONS, path).axes
    assert line_colors(right) == {"student": COLORS["student"], "teacher": COLORS["teacher"]}
    *batch, held_out = line_colors(left).values()
    assert set(batch) == {COLORS["aside"]} and held_out == COLORS["student"]
    (axes,) = plots.kl_by_position(EVALUATIONS, path).axes
    assert line_colors(axes) == {
        "before": COLORS["before"],
        "in between": COLORS["aside"],
        "after 40 steps": COLORS["student"],
    }
    runs = {when: share_by_length([True], [3], (4,)) for when in ("before", "after 40 steps")}
    (axes,) = plots.accuracy_by_length(runs, path).axes
    bars = [bar.get_facecolor() for bar in axes.patches if bar.get_height()]
    assert bars == [to_rgba(COLORS["before"]), to_rgba(COLORS["student"])]


def test_a_picture_says_its_run_and_how_completions_are_drawn(path):
    left, right = (figure := plots.learning_curve(TRAINING, EVALUATIONS, path, SHOWN)).axes
    assert figure.get_suptitle() == "default-opd-seed0"
    assert [text.get_text() for text in left.get_legend().texts] == [
        "training batch (sampled at temperature 0.7)",
        "its running mean",
        "held-out problems, 95 % interval (greedy)",
    ]
    assert right.get_title(loc="left") == "Held-out accuracy (greedy)"
    of_answers = "default-opd-seed0 · held-out problems (greedy)"
    assert plots.kl_by_position(EVALUATIONS, path, SHOWN).get_suptitle() == of_answers
    runs = {"before": share_by_length([True], [3], (4,))}
    assert plots.accuracy_by_length(runs, path, SHOWN).get_suptitle() == of_answers
    lines = [{"step": 0, "top_k_overlap_by_position": [0.5]}]
    figure = plots.overlap_by_position(lines, path, SHOWN)
    assert figure.get_suptitle() == of_answers
    (axes,) = figure.axes
    assert axes.get_ylabel() == "top-16 overlap"
    assert axes.get_title(loc="left") == "How much of their top-16 they share"


def test_a_long_name_is_broken_within_the_picture(path):
    name = "default-opd-seed0-" + ",".join(f"setting_{i}={i}" for i in range(5))
    figure = plots.kl_by_position(EVALUATIONS, path, SHOWN._replace(run=name))
    assert figure.get_suptitle().count("\n") == 1
    figure.draw_without_rendering()
    (words,) = figure.texts
    assert words.get_window_extent().x1 < figure.bbox.x1


def test_a_profile_of_empty_bins_is_not_drawn(path):
    empty = {"step": 0, "kl_by_position": [None, None]}
    assert plots.kl_by_position([empty], path) is None
    (axes,) = plots.kl_by_position([empty, {"step": 40, "kl_by_position": [0.1, None]}], path).axes
    (line,) = axes.lines
    assert line.get_label() == "after 40 steps" and line.get_color() == COLORS["student"]
