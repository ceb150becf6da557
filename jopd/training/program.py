"""The static half of a run: what its jitted phases are specialised on."""

import dataclasses
from collections.abc import Iterable

import jax
import optax
from flax import nnx
from jaxtyping import Array, Float

from jopd import models
from jopd.diagnostics.tokens import Diagnostics
from jopd.losses.method import INITIAL, Method
from jopd.losses.types import Stage, TiledStage
from jopd.rollout.settings import Decoding
from jopd.training.state import Fixed, Params, TrainState, union


@dataclasses.dataclass(frozen=True)
class Program:
    """What never changes between steps, arrays apart.

    Attributes:
      initial: the student without adapters, for the view "initial".
      width: of the student's hidden states.
      views: the teacher's, those of the method and those that are only measured.
      decoding: of a training rollout; its vocabulary holds the entries that student and teacher
        share, and rows that only pad one of the heads are cut off.
      tiled: whether a vocabulary stage takes its tiled form where it has one.
      diagnostics: what a watched update measures besides, of the same logits; nothing without a
        teacher.
    """

    method: Method
    student: nnx.GraphDef
    teacher: nnx.GraphDef
    initial: nnx.GraphDef
    width: int
    views: tuple[str, ...]
    ema_rate: float
    optimizer: optax.GradientTransformation
    decoding: Decoding
    micro_batches: int
    chunk_tokens: int
    tiled: bool
    diagnostics: Diagnostics | None = None

    def in_tiles(self, stage: Stage) -> TiledStage | None:
        """The stage where it runs in tiles of the vocabulary; None where in chunks of time."""
        return stage if self.tiled and isinstance(stage, TiledStage) and stage.tiled else None

    def student_params(self, state: TrainState, fixed: Fixed) -> Params:
        return union(fixed.base, state.params)

    def teacher_params(self, state: TrainState, fixed: Fixed) -> Params:
        trained = {"frozen": {}, "ema": state.ema_teacher, "live": state.params}[
            self.method.teacher_update
        ]
        return jax.lax.stop_gradient(union(fixed.base, trained) if trained else fixed.teacher)

    def student_model(self, state: TrainState, fixed: Fixed) -> models.Transformer:
        return models.merge(self.student, self.student_params(state, fixed))

    def teacher_model(self, state: TrainState, fixed: Fixed) -> models.Transformer:
        return models.merge(self.teacher, self.teacher_params(state, fixed))

    def reader(self, view: str, state: TrainState, fixed: Fixed) -> models.Transformer:
        """Who reads a view: the student as it was, or the teacher."""
        if view == INITIAL:
            return models.merge(self.initial, jax.lax.stop_gradient(fixed.base or fixed.initial))
        return self.teacher_model(state, fixed)

    def heads(
        self, state: TrainState, fixed: Fixed, views: Iterable[str]
    ) -> dict[str, Float[Array, "_ _"]]:
        """The output head of each view's reader."""
        return {view: self.reader(view, state, fixed).head() for view in views}
