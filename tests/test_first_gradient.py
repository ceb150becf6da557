"""How much of a gradient is signal: by numbers that are known, and a method of which it is."""

import numpy as np
import pytest

from jopd.config import parse
from tests.scripts import EXPERIMENTS, neighbour

FIRST = neighbour("first_gradient")


def made(signal, noise, batches, seed=0):
    """Gradients of a known mean, and independent noise of a known size."""
    generator = np.random.default_rng(seed)
    size = len(signal)
    return (signal + noise / size**0.5 * generator.normal(size=(batches, size))).astype(np.float32)


def test_signal_and_noise_by_hand():
    # Two batches: g1 . g2 = 4; the mean square is (5 + 5) / 2, so the noise is 1.
    own = np.array([[1.0, 2.0], [2.0, 1.0]], np.float32)
    pairs = FIRST.products(own, own)
    assert FIRST.between(pairs) == pytest.approx(4.0)
    assert FIRST.signal_to_noise(pairs) == pytest.approx(4.0 / (5.0 - 4.0))


def test_without_bias_by_the_noise():
    """As much noise as a hundred signals: a mean over many draws finds the ratio, and the cosine of
    two directions 60 degrees apart.
    """
    one, other = np.zeros(50), np.zeros(50)
    one[0], other[:2] = 1.0, (0.5, 3**0.5 / 2)
    draws = [(made(one, 10.0, 400, i), made(other, 10.0, 400, 1000 + i)) for i in range(40)]
    ratios = [FIRST.signal_to_noise(FIRST.products(a, a)) for a, _ in draws]
    assert np.mean(ratios) == pytest.approx(0.01, abs=4 * np.std(ratios) / 40**0.5)
    cross = np.mean([FIRST.between(FIRST.products(a, b)) for a, b in draws])
    assert cross == pytest.approx(0.5, abs=0.15)


def test_an_interval_holds_the_truth_about_as_often_as_it_says():
    signal = np.ones(30) / 30**0.5
    held = 0
    for i in range(200):
        own = made(signal, 2.0, 24, i)
        _, low, high = FIRST.jackknife(FIRST.signal_to_noise, FIRST.products(own, own))
        held += low <= 0.25 <= high
    assert held >= 0.88 * 200


def test_a_gradient_of_nothing_is_no_signal():
    nothing, some = np.zeros((4, 3), np.float32), made(np.ones(3), 0.1, 4)
    assert FIRST.measured(nothing, some) == {"signal_to_noise": 0.0}


def test_the_gradient_is_that_of_the_whole_batch(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    flags = ["--steps", "4", "--data.held-out", "8", "--student.model", "jopd:baby-student"]
    of = lambda *more: parse([str(EXPERIMENTS / "leaderboard.py"), *flags, *more])[1]
    whole, parts = (
        FIRST.gradients(of("--method", "sft", "--prompts", "16", *more), batches=2)
        for more in ((), ("--micro-batches", "2"))
    )
    assert whole.shape[0] == 2 and np.abs(whole).max() > 0
    np.testing.assert_allclose(whole, parts, atol=1e-5 * np.abs(whole).max())
