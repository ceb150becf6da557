"""Settings that contradict each other, would be dropped in silence, or are no numbers."""

import dataclasses
import math
from collections.abc import Collection, Iterator
from typing import TYPE_CHECKING, Any

from jopd.config.groups import Teacher
from jopd.data.views import PRIVILEGED, ViewConfig
from jopd.losses.method import INITIAL
from jopd.models import LoRA
from jopd.rollout.settings import Sampling

if TYPE_CHECKING:
    from jopd.config.settings import Config


def check(config: "Config") -> None:
    """Raises ValueError, with the way out, for a run that can't be or isn't what is asked for."""
    check_finite(config)
    check_rows(config)
    check_teacher(config)
    check_samples(config)
    refuse_what_would_be_dropped(config)


def check_finite(settings: Any, prefix: str = "") -> None:
    """Every number is one: an infinite rate dies at the second step, a NaN passes comparisons."""
    for field in dataclasses.fields(settings):
        value, name = getattr(settings, field.name), f"{prefix}{field.name}"
        if dataclasses.is_dataclass(value):
            check_finite(value, f"{name}.")
        elif isinstance(value, float) and not math.isfinite(value):
            raise ValueError(f"{name}={value} must be a finite number")


def check_rows(config: "Config") -> None:
    method = config.method
    if config.rows % config.micro_batches:
        raise ValueError(
            f"micro_batches={config.micro_batches} must divide the {config.rows} rows of a batch "
            "(prompts × rollout.samples)"
        )
    if method.completions == "reference" and config.rollout.samples > 1:
        raise ValueError(
            f"rollout.samples={config.rollout.samples}: method {method.name} has one reference a "
            "prompt: set it to 1"
        )
    if "group_advantage" in config.objective.inputs and config.rollout.samples == 1:
        raise ValueError(
            f"rollout.samples=1: method {method.name} compares the samples of a prompt with each "
            "other: set it to 2 or more, such as 8"
        )


def check_teacher(config: "Config") -> None:
    method, teacher = config.method, config.teacher
    if method.teacher_update != "frozen" and teacher.model != "self":
        raise ValueError(
            f"method.teacher_update={method.teacher_update} makes the teacher of the student's own "
            f"weights, but teacher.model={teacher.model}: set --teacher.model self, or "
            "--method.teacher-update frozen"
        )
    if {*config.objective.views} - {INITIAL} and teacher.model == "none":
        raise ValueError(
            f"teacher.model=none, but method {method.name} needs a teacher: name a model, or `self`"
        )


def check_samples(config: "Config") -> None:
    """A gradient that is estimated from sampled tokens is right for tokens of the policy itself."""
    method, sampled_at = config.method, config.rollout.sampling.temperature
    if method.completions == "reference":
        return
    learnt = "sampled" in method.variables().support
    if sampled_at == 0 and (learnt or "group_advantage" in config.objective.inputs):
        raise ValueError(
            "rollout.sampling.temperature=0 always writes the likeliest token, but method "
            f"{method.name} learns from what sampling brings up: sample at 1, or choose a method "
            "on the whole vocabulary, such as --method opd"
        )
    temperature = vars(method).get("temperature", 1.0)
    if method.sampled_gradient and temperature != sampled_at:
        raise ValueError(
            f"method.temperature={temperature}, but rollout.sampling.temperature={sampled_at}: "
            f"method {method.name} estimates its gradient from the sampled tokens, which needs one "
            "temperature for both"
        )


def unread_of_view(view: ViewConfig, views: Collection[str]) -> Iterator[tuple[str, str]]:
    """The settings that are not as they come, and that none of these views reads, each with the
    kind of view that would: partial, or any with a context.
    """
    of_kind = {
        "partial": (("partial_share", "partial_keeps_answer"), {"partial"}),
        "context": (("context_placement", "context_template"), {*PRIVILEGED}),
    }
    for kind, (names, readers) in of_kind.items():
        for name in names:
            if not readers & {*views} and getattr(view, name) != getattr(ViewConfig, name):
                yield name, kind


def refuse_what_would_be_dropped(config: "Config") -> None:
    """Settings that this run would never read."""
    method, teacher, lora = config.method, config.teacher, config.student.lora
    update = method.teacher_update
    for name, kind in unread_of_view(config.view, method.views):
        raise ValueError(
            f"view.{name}={getattr(config.view, name)} has no effect on method {method.name}, "
            f"whose teacher has no {kind} view: leave it unset"
        )
    if teacher.ema_rate != Teacher.ema_rate and update != "ema":
        raise ValueError(
            f"teacher.ema_rate={teacher.ema_rate} has no effect with "
            f"method.teacher_update={update}: leave it unset"
        )
    reads_student = teacher.model == "self" and (update != "frozen" or lora.rank)
    if reads_student and teacher.dtype != "float32":
        raise ValueError(
            f"teacher.dtype={teacher.dtype}: this teacher reads the student's own float32 "
            "parameters: leave it unset"
        )
    if teacher.model == "none" and teacher != Teacher(model="none"):
        raise ValueError(
            "teacher.model=none, but other settings of a teacher are given: leave them unset, or "
            "name one"
        )
    if method.completions == "reference" and config.rollout.sampling != Sampling():
        raise ValueError(
            f"rollout.sampling={config.rollout.sampling} has no effect on method {method.name}, "
            "which samples nothing: leave it unset (what evaluations sample is evaluation.sampling)"
        )
    for name in ("alpha", "targets"):
        if not lora.rank and (value := getattr(lora, name)) != getattr(LoRA, name):
            raise ValueError(
                f"student.lora.{name}={value} has no effect without adapters: set "
                "--student.lora.rank, or leave it unset"
            )
