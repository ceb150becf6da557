"""How completions are written: plain values, which need no JAX."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Sampling:
    """How a token is drawn. On-policy methods want the plain defaults: what truncation cuts, the
    student no longer explores.

    Attributes:
      temperature: divides the logits; 0 takes the best token.
      top_k: keep the k best tokens; 0 keeps all.
      top_p: keep the best tokens up to this probability; 1 keeps all.
      min_p: keep tokens of at least this share of the best token's probability; 0 keeps all.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0

    def __post_init__(self):
        if not 0 <= self.temperature < float("inf"):
            raise ValueError(
                f"temperature={self.temperature} must be a finite number of 0 (greedy) or more"
            )
        if self.top_k < 0:
            raise ValueError(f"top_k={self.top_k} must be 0 (off) or more")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p={self.top_p} must lie in (0, 1]; 1 turns it off")
        if not 0 <= self.min_p <= 1:
            raise ValueError(f"min_p={self.min_p} must lie in [0, 1]; 0 turns it off")


@dataclasses.dataclass(frozen=True)
class Decoding:
    """How a completion is written: which entries count, how a token is drawn, and when it ends.

    Attributes:
      max_new_tokens: the length limit.
      stop_tokens: ids that end a row; they are part of it.
      pad_id: stands after the end.
      vocabulary: ids from here on are padding of the embedding and are never drawn.

    Raises:
      ValueError: no token may be written, or a stop token can never be drawn.
    """

    max_new_tokens: int
    stop_tokens: tuple[int, ...]
    pad_id: int
    vocabulary: int
    sampling: Sampling = Sampling()

    def __post_init__(self):
        if self.max_new_tokens < 1:
            raise ValueError(f"max_new_tokens={self.max_new_tokens} must be at least 1")
        if unreachable := [stop for stop in self.stop_tokens if not 0 <= stop < self.vocabulary]:
            raise ValueError(
                f"stop_tokens={unreachable} can never be drawn from vocabulary={self.vocabulary}: "
                "take them out"
            )
