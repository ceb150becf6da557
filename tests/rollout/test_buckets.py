import numpy as np
import pytest

from jopd.rollout.buckets import bucket, trim
from jopd.rollout.sampler import Rollout


def test_the_widths():
    assert sorted({bucket(n, 300) for n in range(301)}) == [32, 48, 64, 96, 128, 192, 256, 300]
    assert all(n <= bucket(n, 300) <= max(32, 1.5 * n) for n in range(1, 301))
    assert bucket(3, 8) == 8  # the limit itself, however small
    with pytest.raises(ValueError, match="limit=300"):
        bucket(301, 300)


def test_trim_cuts_the_columns():
    rollout = Rollout(
        np.arange(12).reshape(2, 6), np.ones((2, 6), bool), np.zeros((2, 6)), np.zeros(2, int)
    )
    cut = trim(rollout, 4)
    np.testing.assert_array_equal(cut.tokens, rollout.tokens[:, :4])
    assert cut.mask.shape == cut.logp.shape == (2, 4)
    assert cut.stopped is rollout.stopped
