"""Few lengths for many rollouts: the trainer compiles once for each shape, so a batch is cut back
to one of a dozen widths.
"""

from jopd.rollout.sampler import Rollout


def bucket(length: int, limit: int) -> int:
    """The smallest of 32, 48, 64, 96, 128, 192, ... and `limit` that holds `length` tokens.

    Above 32, at most a third of it is padding.

    Raises:
      ValueError: `length` is above `limit`.
    """
    if length > limit:
        raise ValueError(f"length={length} is above limit={limit}: raise the limit or cut the rows")
    width = 32
    while width < length:
        width = width * 3 // 2 if width & (width - 1) == 0 else width * 4 // 3
    return min(width, limit)


def trim(rollout: Rollout, length: int) -> Rollout:
    """The first `length` columns; whoever calls knows that the others are padding."""
    cut = lambda x: x[:, :length]
    return Rollout(cut(rollout.tokens), cut(rollout.mask), cut(rollout.logp), rollout.stopped)
