"""A run, as one frozen dataclass that checks itself."""

import dataclasses
from typing import Literal

from jopd import losses
from jopd.config.checks import check
from jopd.config.groups import (
    SAME_NUMBERS,
    Checkpointing,
    Evaluation,
    Hub,
    MeshConfig,
    Optimizer,
    RolloutConfig,
    Student,
    Teacher,
    Tracking,
    at_least,
)
from jopd.data.sources import DataConfig
from jopd.data.views import ViewConfig
from jopd.losses.method import Method
from jopd.losses.stabilisers import Stabilisers


@dataclasses.dataclass(frozen=True)
class Config:
    """One run.

    Attributes:
      method: what the teacher's judgement is turned into; see `python -m jopd.train --method NAME
        --help`.
      watch: steps between two at which the per-token diagnostics are logged, into `metrics.jsonl`
        under "diagnostics"; 0 is never.
      stabilise: gates, weights and a pull to the initial model, for any method; all off unless set.
      steps: rollout batches.
      prompts: prompts a step; times `rollout.samples`, the rows of a batch.
      micro_batches: parts that a batch is scored and back-propagated in, rows of like lengths
        together, to save memory and padding. The result is the same.
      chunk_tokens: tokens a device whose logits exist at once, all of them or a tile of the
        vocabulary; 0 is all tokens. The result is the same.
      vocabulary_stage: "auto" sums over tiles of the vocabulary where a method has that form and
        its settings allow it, and is "chunked" elsewhere: whole logits of a few positions at a
        time. The result is the same to rounding.
      seed: of the data order, the rollouts and new parameters.
      output: folder, or gs://BUCKET/RUN; empty, it is `runs/PRESET-METHOD-seedN` with what differs
        from the preset (`jopd.training.folder`).
    """

    method: Method
    student: Student = Student()
    teacher: Teacher = Teacher()
    data: DataConfig = DataConfig()
    stabilise: Stabilisers = Stabilisers()
    view: ViewConfig = ViewConfig()
    rollout: RolloutConfig = RolloutConfig()
    optimizer: Optimizer = Optimizer()
    evaluation: Evaluation = Evaluation()
    checkpoint: Checkpointing = dataclasses.field(default=Checkpointing(), metadata=SAME_NUMBERS)
    tracking: Tracking = dataclasses.field(default=Tracking(), metadata=SAME_NUMBERS)
    hub: Hub = dataclasses.field(default=Hub(), metadata=SAME_NUMBERS)
    mesh: MeshConfig = dataclasses.field(default=MeshConfig(), metadata=SAME_NUMBERS)
    steps: int = 200
    prompts: int = 64
    micro_batches: int = dataclasses.field(default=1, metadata=SAME_NUMBERS)
    chunk_tokens: int = dataclasses.field(default=4096, metadata=SAME_NUMBERS)
    vocabulary_stage: Literal["auto", "chunked"] = dataclasses.field(
        default="auto", metadata=SAME_NUMBERS
    )
    watch: int = dataclasses.field(default=10, metadata=SAME_NUMBERS)
    seed: int = 0
    output: str = dataclasses.field(default="", metadata=SAME_NUMBERS)

    def __post_init__(self):
        for name in ("steps", "prompts", "micro_batches"):
            at_least(1, name, getattr(self, name))
        for name in ("chunk_tokens", "watch", "seed"):
            at_least(0, name, getattr(self, name))
        if self.seed >= 2**32:
            raise ValueError(f"seed={self.seed} must be below 2**32, which JAX's keys are made of")
        check(self)

    @property
    def objective(self) -> Method:
        """What is trained on: the method under its stabilisers."""
        return losses.stabilised(self.method, self.stabilise)

    @property
    def rows(self) -> int:
        return self.prompts * self.rollout.samples
