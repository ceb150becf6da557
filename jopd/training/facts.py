"""What a run's report tells beside its settings and results: the survey's checklist
(arXiv:2606.22793), filled in.
"""

import dataclasses
import inspect
import statistics
from typing import Any

import jax

from jopd.diagnostics import speed
from jopd.losses.credit import PolicyGradient
from jopd.losses.method import INITIAL, Method
from jopd.models.attention import chosen
from jopd.training import logs
from jopd.training.folder import lengthened
from jopd.training.setup import Run
from jopd.training.speed import peak


def of(run: Run, records: logs.Records) -> dict[str, dict[str, Any]]:
    """By group of `jopd.diagnostics.checklist.CHECKLIST`, its items."""
    config, method = run.config, run.program.method
    sampling, loss, teacher = config.rollout.sampling, vars(config.method), run.teacher
    device = f"{jax.device_count()} × {jax.devices()[0].device_kind}"
    total = lambda name: int(sum(line.get(name, 0) for line in records.training))
    tokens, seconds = (
        total("tokens"),
        sum(sum(line["seconds"].values()) for line in records.training),
    )
    masked = run.student.tokenizer.convert_ids_to_tokens(list(config.stabilise.mask_tokens))
    return {
        "run": {
            "preset": run.name,
            "method": method.name,
            "seed": config.seed,
            "device": device,
            "mesh": dict(run.mesh.shape),
            "seconds": seconds,
            **({"lengthened": longer} if (longer := lengthened(run.home.folder)) else {}),
        },
        "state": {
            "prompts": f"{config.data.source}, {run.train.report}",
            "rollouts_per_prompt": config.rollout.samples,
            "sampling": dataclasses.asdict(sampling),
            "sampling_biases_sampled_token_estimators": sampling.top_k > 0
            or sampling.top_p < 1
            or sampling.min_p > 0
            or sampling.temperature != loss.get("temperature", 1.0),
            "truncation_rate": statistics.fmean(
                line["truncation_rate"] for line in records.training
            ),
            "off_policy_share": 1 - method.on_policy_share,
            "guided_share": method.guided_share,
            "policy_age": f"at most {method.updates - 1} optimiser steps",
            "student_init": f"{run.student.source} ({run.student.fingerprint})",
            "cold_start": "none in this run; the student is trained from student_init on",
        },
        "feedback": {
            "teacher": "none" if teacher is None else f"{teacher.source} ({teacher.fingerprint})",
            "self_or_external": {"self": "self", "none": "none"}.get(
                config.teacher.model, "external"
            ),
            "teacher_update": method.teacher_update
            + (f", rate {config.teacher.ema_rate:g}" if method.teacher_update == "ema" else ""),
            "views": list(method.views),
            "signal": method.variables().support,
            "k": loss.get("top_k")
            or ("1, sampled" if "sampled" in method.variables().support else "full vocabulary"),
            "temperature": loss.get("temperature", 1.0),
            "precision": {
                "student": config.student.compute.dtype,
                "teacher": config.teacher.compute.dtype,
                "attention": chosen(config.student.compute, jax.default_backend()).attention,
                "vocabulary_stage": "tiled" if run.program.in_tiles(method) else "chunked",
                "softmax_and_divergences": "float32",
                "matrix_products": jax.config.values["jax_default_matmul_precision"]
                or "the device's default",
            },
            "tokenizer_match": "the same tokens and ids, checked",
            "masked_specials": [str(token) for token in masked],
        },
        "update": {
            "route": method.route,
            "divergence": loss.get("divergence")
            or (
                "reverse_kl, sampled" if method.route == PolicyGradient.route else "see the source"
            ),
            "stop_gradients": "teacher views, sampling, advantages and weights",
            "clips": {
                "gradient_norm": config.optimizer.clip_norm,
                **{
                    name: value for name, value in loss.items() if "clip" in name or "clamp" in name
                },
            },
            "aggregation": method.aggregation,
            "optimizer": dataclasses.asdict(config.optimizer),
        },
        "resource": {
            # Of what was kept: a mixed or teacher-guided batch also draws completions that it
            # drops.
            "tokens_generated": round(tokens * (method.on_policy_share - method.teacher_share))
            + total("student_window_tokens"),
            "teacher_tokens_generated": round(tokens * method.teacher_share)
            + total("teacher_window_tokens"),
            "teacher_tokens": tokens
            * sum(view != INITIAL for view in method.views)
            * method.scorings,
            "device_hours": seconds * jax.device_count() / 3600,
            "seeds": [config.seed],
            "grade": grade(config.method),
        },
        "speed": {"device": device, "peak": peak()}
        | speed.facts(records.training, records.evaluations),
    }


def grade(method: Method) -> str:
    """How sure each formula is: what the method's file says of its source, or else the source."""
    text = inspect.getdoc(inspect.getmodule(type(method))) or ""
    _, found, source = text.partition("Source: ")
    return " ".join(source.split("\n\n")[0].split()) if found else method.source
