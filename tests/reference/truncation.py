"""Top-k, top-p and min-p as they are usually written: in float64, on the sorted vocabulary, one row
at a time.
"""

import numpy as np


def kept(
    logp: np.ndarray, top_k: int = 0, top_p: float = 1.0, min_p: float = 0.0
) -> tuple[np.ndarray, float]:
    """Which of a row's tokens stay, ties at a threshold included; and how far top-p's sum stays
    from where rounding decides.
    """
    p = np.exp(logp.astype(np.float64))
    keep, margin = p > 0, np.inf
    if top_k:
        keep &= p >= np.sort(p)[::-1][min(top_k, len(p)) - 1]
    if top_p < 1:
        descending = np.sort(p[keep])[::-1]
        share = np.cumsum(descending) / descending.sum()
        margin = np.abs(share - top_p).min()
        keep &= p >= descending[np.argmax(share >= top_p)]
    if min_p > 0:
        keep &= p >= min_p * p.max()
        margin = min(margin, np.abs(p / p.max() - min_p).min())
    return keep, margin
