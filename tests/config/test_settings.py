import dataclasses

import pytest

from jopd import losses
from jopd.config import (
    Checkpointing,
    Config,
    Evaluation,
    Hub,
    MeshConfig,
    Optimizer,
    RolloutConfig,
    Student,
    Teacher,
    Tracking,
    same_numbers,
    to_dict,
)
from jopd.models import LoRA
from jopd.rollout.settings import Sampling
from tests.config.runs import config_of


@pytest.mark.parametrize(
    "cls, settings, message",
    [
        (Teacher, {"ema_rate": 0.0}, r"teacher\.ema_rate=0\.0 must lie in \(0, 1\]"),
        (RolloutConfig, {"samples": 0}, r"rollout\.samples=0 must be at least 1"),
        (
            RolloutConfig,
            {"max_prompt_tokens": 0},
            r"rollout\.max_prompt_tokens=0 must be at least 1",
        ),
        (RolloutConfig, {"max_new_tokens": 0}, r"rollout\.max_new_tokens=0 must be at least 1"),
        (
            Sampling,
            {"temperature": -1.0},
            r"temperature=-1\.0 must be a finite number of 0 \(greedy\) or more",
        ),
        (Optimizer, {"learning_rate": 0.0}, r"optimizer\.learning_rate=0\.0 must be above 0"),
        (
            Optimizer,
            {"learning_rate": float("nan")},
            r"optimizer\.learning_rate=nan must be above 0",
        ),
        (Optimizer, {"epsilon": 0.0}, r"optimizer\.epsilon=0\.0 must be above 0"),
        (Optimizer, {"warmup": 1.0}, r"optimizer\.warmup=1\.0 is a share of the run"),
        (Optimizer, {"b2": 1.0}, r"optimizer\.b2=1\.0 must lie in \[0, 1\)"),
        (Optimizer, {"clip_norm": -1.0}, r"optimizer\.clip_norm=-1\.0 must be 0 \(off\) or more"),
        (
            Optimizer,
            {"weight_decay": -0.1},
            r"optimizer\.weight_decay=-0\.1 must be 0 \(off\) or more",
        ),
        (Evaluation, {"every": -1}, r"evaluation\.every=-1 must be at least 0"),
        (Evaluation, {"batch": 0}, r"evaluation\.batch=0 must be at least 1"),
        (Evaluation, {"samples_shown": -1}, r"evaluation\.samples_shown=-1 must be at least 0"),
        (Checkpointing, {"every": 0}, r"checkpoint\.every=0 must be at least 1"),
        (Checkpointing, {"keep": 0}, r"checkpoint\.keep=0 must be at least 1"),
        (
            MeshConfig,
            {"data": -1, "fsdp": -1},
            "data=-1, fsdp=-1, tensor=1: each is 1 or more, at most one is -1",
        ),
        (MeshConfig, {"tensor": 0}, "tensor=0: each is 1 or more"),
        (Tracking, {"project": "a/b"}, r"tracking\.project='a/b' must have 1 to 128 characters"),
        (Tracking, {"project": ""}, r"tracking\.project='' must have 1 to 128 characters"),
        (Tracking, {"project": "mine"}, "tracking.project=mine has no effect without wandb or"),
        (Tracking, {"to": (), "name": "mine"}, "tracking.name=mine has no effect without wandb or"),
        (Hub, {"push_to": "student"}, "hub.push_to=student must be ORG/NAME"),
        (Hub, {"push_to": "org/a b"}, "hub.push_to=org/a b: Repo id must use alphanumeric chars"),
        (Hub, {"push_to": "org/a/b"}, "hub.push_to=org/a/b must be ORG/NAME or USER/NAME"),
        (Hub, {"private": False}, "hub.private=False has no effect .* set --hub.push-to ORG/NAME"),
    ],
)
def test_values_out_of_range_are_refused(cls, settings, message):
    with pytest.raises(ValueError, match=message) as error:
        cls(**settings)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "method, settings, message",
    [
        ("opd", {"prompts": 0}, "prompts=0 must be at least 1"),
        ("opd", {"chunk_tokens": -1}, "chunk_tokens=-1 must be at least 0"),
        ("opd", {"seed": -1}, "seed=-1 must be at least 0"),
        (
            "opd",
            {"prompts": 6, "micro_batches": 4},
            "micro_batches=4 must divide the 6 rows of a batch",
        ),
        (
            "opd",
            {"teacher": Teacher(model="none")},
            "teacher.model=none, but method opd needs a teacher",
        ),
        (
            "sft",
            {"teacher": Teacher(model="none", dtype="bfloat16")},
            "teacher.model=none, but other settings of a teacher are given",
        ),
        (
            "sft",
            {"rollout": RolloutConfig(sampling=Sampling(top_k=5))},
            "rollout.sampling=.*top_k=5.* has no effect on method sft",
        ),
        (
            "sft",
            {"rollout": RolloutConfig(samples=2)},
            "rollout.samples=2: method sft has one reference a prompt: set it to 1",
        ),
        (
            "opd",
            {"teacher": Teacher(ema_rate=0.5)},
            "teacher.ema_rate=0.5 has no effect with method.teacher_update=frozen",
        ),
        (
            "opd",
            {"student": Student(lora=LoRA(alpha=8.0))},
            r"student\.lora\.alpha=8\.0 has no effect without adapters",
        ),
        (
            "opd",
            {"student": Student(lora=LoRA(targets=("q_proj",)))},
            r"student\.lora\.targets=\('q_proj',\) has no effect without adapters",
        ),
        (
            "opsd",
            {
                "teacher": Teacher(model="self", dtype="bfloat16"),
                "student": Student(lora=LoRA(rank=2)),
            },
            "teacher.dtype=bfloat16: this teacher reads the student's own float32 parameters",
        ),
    ],
)
def test_settings_that_contradict_each_other_are_refused(method, settings, message):
    with pytest.raises(ValueError, match=message) as error:
        Config(method=losses.get(method), **settings)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "method",
    [
        losses.get("opd_pg"),
        losses.get("opd", divergence="k2"),
        losses.get("rlsd"),
    ],
)
def test_what_learns_from_samples_needs_sampling(method):
    greedy = RolloutConfig(sampling=Sampling(temperature=0.0), samples=2)
    with pytest.raises(
        ValueError,
        match=rf"temperature=0 always writes the likeliest token, but method {method.name}",
    ):
        Config(method=method, rollout=greedy)
    Config(method=losses.get("opd"), rollout=greedy)


@pytest.mark.parametrize("name", losses.names())
def test_what_is_estimated_from_samples_needs_the_samplers_temperature(name):
    """Those are the methods whose gradient is right in expectation over the tokens drawn."""
    cool = Sampling(temperature=0.7)
    groups = {"samples": 4} if name == "rlsd" else {}
    method = losses.get(name)
    run = lambda method: config_of(method, rollout=RolloutConfig(sampling=cool, **groups))
    if name in ("sft",):
        return
    if name in ("opd", "opsd", "ar_opd", "topd"):
        run(method)
        return
    with pytest.raises(ValueError, match=r"temperature=0.7: method .* one temperature for both"):
        run(method)
    run(dataclasses.replace(method, temperature=0.7))


@pytest.mark.parametrize("divergence", ["k2", "k3"])
def test_so_do_estimates_of_a_divergence(divergence):
    rollout = RolloutConfig(sampling=Sampling(temperature=0.7))
    with pytest.raises(ValueError, match="one temperature for both"):
        Config(method=losses.get("opd", divergence=divergence), rollout=rollout)


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        (("q_proj", "v_pro"), r"lora\.targets has 'v_pro' \(did you mean 'v_proj'\?\): name some"),
        (("lm_head",), r"lora\.targets has 'lm_head': name some of q_proj, .*, down_proj"),
        ((), r"lora\.targets is empty: name some of q_proj, .*, or leave it unset"),
    ],
)
def test_a_target_that_is_none_is_named(targets, message):
    with pytest.raises(ValueError, match=message):
        LoRA(rank=2, targets=targets)


def test_the_same_targets_in_another_order_are_the_same_settings():
    assert LoRA(2, targets=("v_proj", "q_proj", "v_proj")) == LoRA(2, targets=("q_proj", "v_proj"))


INFINITE = [
    (Optimizer, "learning_rate", "optimizer"),
    (Optimizer, "weight_decay", "optimizer"),
    (Optimizer, "clip_norm", "optimizer"),
    (LoRA, "alpha", "student.lora"),
]


@pytest.mark.parametrize("value", [float("inf"), float("nan")])
@pytest.mark.parametrize(("group", "field", "where"), INFINITE)
def test_numbers_are_finite(group, field, where, value):
    with pytest.raises(ValueError, match=f"{field}={value} must"):
        settings = group(**{field: value}, **({"rank": 2} if group is LoRA else {}))
        whole = {"student": Student(lora=settings)} if group is LoRA else {"optimizer": settings}
        Config(method=losses.get("opd"), **whole)


def test_so_are_those_of_methods_and_stabilisers():
    with pytest.raises(ValueError, match=r"method\.log_ratio_clip=inf must be a finite number"):
        Config(method=losses.get("opd_pg", log_ratio_clip=float("inf")))
    endless = losses.Stabilisers(position_half_life=float("inf"))
    with pytest.raises(ValueError, match=r"stabilise\.position_half_life=inf must be a finite"):
        Config(method=losses.get("opd"), stabilise=endless)


@pytest.mark.parametrize("update", ["ema", "live"])
def test_a_teacher_that_follows_is_the_student_itself(update):
    method = losses.get("opsd", teacher_update=update)
    with pytest.raises(
        ValueError,
        match=f"method.teacher_update={update} .* teacher.model=jopd:baby-teacher: set "
        "--teacher.model self",
    ):
        Config(method=method)
    with pytest.raises(ValueError, match="teacher.dtype=bfloat16"):
        Config(method=method, teacher=Teacher(model="self", dtype="bfloat16"))
    assert Config(method=method, teacher=Teacher(model="self")).rows == 64


def test_who_hears_of_a_run_is_no_part_of_it():
    plain = config_of(losses.get("opd"))
    told = dataclasses.replace(plain, tracking=Tracking(("wandb",)), hub=Hub("org/student"))
    assert same_numbers(to_dict(told), told) == same_numbers(to_dict(plain), plain)


def test_a_seed_that_two_runs_would_share_is_refused():
    assert Config(losses.get("opd"), seed=2**32 - 1).seed == 2**32 - 1
    with pytest.raises(ValueError, match=r"seed=4294967296 must be below 2\*\*32"):
        Config(losses.get("opd"), seed=2**32)
