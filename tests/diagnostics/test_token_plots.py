import numpy as np
import pytest
from matplotlib.colors import to_rgba

from jopd.diagnostics import token_plots
from jopd.diagnostics.style import COLORS, Shown, drawn
from tests.diagnostics.records import is_png

SHOWN = Shown("edge-seed0", batches=drawn(1.0), answers=drawn(0.0))


@pytest.fixture
def path(tmp_path):
    return tmp_path / "plots" / "picture.png"


def test_the_evidence_histogram_counts_every_token_on_its_side(path):
    evidence = np.concatenate([np.linspace(-2, 2, 1001), [1e9, -np.inf]])
    # Whatever the rule: here what lies between, as for near_zero, of which 501 values are at most 1
    # in size.
    near = np.abs(evidence) <= 1
    figure = token_plots.evidence_histogram(evidence, near, path, SHOWN)
    (axes,) = figure.axes
    silenced, kept = axes.containers
    assert (
        sum(bar.get_height() for bar in kept) == 501
        and sum(bar.get_height() for bar in silenced) == 1003 - 501
    )
    assert all(abs(bar.get_x()) < 1.1 for bar in kept if bar.get_height())
    assert kept[0].get_facecolor()[:3] == to_rgba(COLORS["student"])[:3]
    assert [text.get_text() for text in axes.get_legend().texts] == ["silenced: 50 %", "kept: 50 %"]
    of_batch = "edge-seed0 · one training batch (sampled at temperature 1)"
    assert figure.get_suptitle() == of_batch
    assert is_png(path)


def test_transport_against_loss_marks_what_is_really_divergent(path):
    losses, costs = np.array([0.0, 0.1, 1.0, 3.0]), np.array([0.1, 0.2, 0.6, 0.3])
    figure = token_plots.transport_against_loss(losses, costs, path, SHOWN, threshold=0.5)
    divergent, same = figure.axes[0].collections
    np.testing.assert_allclose(divergent.get_offsets(), [[1.0, 0.6]])
    np.testing.assert_allclose(same.get_offsets(), [[1e-4, 0.1], [0.1, 0.2], [3.0, 0.3]])
    texts = [text.get_text() for text in figure.legends[0].texts]
    assert texts == ["really divergent: 25 %", "same future: 75 %", "threshold: 0.50"]
    assert "one training batch (sampled at temperature 1)" in figure.get_suptitle()
    assert is_png(path)
    figure = token_plots.transport_against_loss(losses, costs, path)
    assert [text.get_text() for text in figure.legends[0].texts] == ["4 windows"]
    assert figure.get_suptitle() == "one training batch"
