"""Windows: from places in a completion student and teacher write on, and a method learns from that.

A method that has windows returns them as its `near_future`, and names the stream "windows" among
its `streams`. Between `prepare` and the update the trainer asks `choose_windows` where, lets both
models write from there, and hands what they wrote to `compare_windows`.
"""

from collections.abc import Mapping
from typing import Literal, NamedTuple, Protocol, runtime_checkable

from jaxtyping import Array, Bool, Float, Int, Shaped

from jopd.losses.types import Inputs, Mask, Total

# What tokens of windows are compared by: the student's input embeddings, or the final hidden states
# of the teacher when it has read them.
Space = Literal["embeddings", "hidden_states"]


class Places(NamedTuple):
    """Where windows begin: at the token of that index, after all before it. The last column is the
    probe.

    Attributes:
      rows: which of the step's rollouts each row is: a batch may hold them in another order, on
        which nothing may depend. None is their own.
    """

    positions: Int[Array, "B W"]
    valid: Bool[Array, "B W"]
    rows: Int[Array, " B"] | None = None


class Window(NamedTuple):
    """What one model wrote at the places, row by row.

    Attributes:
      tokens, mask: [B * W, K]; the mask is off behind a stop token.
      embeddings: [B * W, K, d], of one reader, whoever wrote the tokens; see `Space`.
    """

    tokens: Int[Array, "R K"]
    mask: Bool[Array, "R K"]
    embeddings: Float[Array, "R K d"]


class Compared(NamedTuple):
    """What the windows are good for.

    Attributes:
      tokens, mask: [B * M, K], the stream of trajectories: row b's are b * M to b * M + M - 1, and
        they go on from the first M places, the probe's left out.
      extras: the stream's.
      inputs: more inputs of the method's own time stage; a `weight` multiplies one that is there
        already.
      state: the method's next.
      metrics: of the batch.
      points: [B, W] each, of every place: `transport` (D_OT), `divergence` (D) and `compared`
        (whether the two count).
    """

    tokens: Int[Array, "R K"]
    mask: Bool[Array, "R K"]
    extras: dict[str, Array]
    inputs: dict[str, Float[Array, "B T"]]
    state: dict[str, Array]
    metrics: dict[str, Total]
    points: dict[str, Shaped[Array, "B W"]]


@runtime_checkable
class Windows(Protocol):
    """Where both models write on, how much, and what that is good for."""

    @property
    def windows(self) -> int:
        """Places in a completion, besides one probe."""
        ...

    @property
    def window_tokens(self) -> int:
        """How many tokens each model writes there, at most."""
        ...

    @property
    def space(self) -> Space:
        """What the tokens of both windows are compared by."""
        ...

    def choose_windows(self, inputs: Inputs, mask: Mask, noise: Float[Array, "B T"]) -> Places:
        """The places, by what the method's `prepare` made and uniform random numbers in [0, 1)."""
        ...

    def compare_windows(
        self,
        places: Places,
        student: Window,
        teacher: Window,
        inputs: Inputs,
        mask: Mask,
        state: Mapping[str, Array],
    ) -> Compared:
        """The stream "windows", more inputs of the method's time stage, and its next state."""
        ...
