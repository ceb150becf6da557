"""What a run will do, as it is said before it begins."""

import math

import jax

from jopd.data.views import PRIVILEGED
from jopd.models.attention import chosen
from jopd.training import speed
from jopd.training.setup import Run


def describe(run: Run) -> dict[str, str]:
    """What the run will do, a line each, for the console."""
    config, method = run.config, run.config.method
    size = lambda loaded, role: (
        f"{loaded.source}, {parameters(loaded.params):,} parameters, {role.compute.dtype}, "
        f"attention {chosen(role.compute, jax.default_backend()).attention}"
    )
    lora = f", LoRA rank {config.student.lora.rank}" if config.student.lora.rank else ""
    teacher = "none"
    if run.teacher is not None:
        teacher = (
            f"self ({config.method.teacher_update})"
            if config.teacher.model == "self"
            else f"{size(run.teacher, config.teacher)}, frozen"
        )
        teacher += f", views: {', '.join(run.program.views)}"
    shape = ", ".join(f"{name} {ways}" for name, ways in run.mesh.shape.items())
    devices = f"{jax.device_count()} × {jax.devices()[0].device_kind}"
    return {
        "preset": run.name,
        "method": f"{method.name}: {method.source}",
        "student": size(run.student, config.student) + lora,
        "teacher": teacher,
        "data": f"{config.data.source}: {run.train.report}",
        "held out": run.held_out.report,
        **what_a_context_shows(run),
        "rollouts": f"{config.prompts} prompts × {config.rollout.samples}, up "
        f"to {config.rollout.max_new_tokens} tokens, temperature "
        f"{config.rollout.sampling.temperature:g}",
        "run": f"{config.steps} steps, learning rate {config.optimizer.learning_rate:g} "
        f"({config.optimizer.schedule}), seed {config.seed}",
        "mesh": f"{shape} on {devices}",
        "logits": f"{'tiles' if run.program.in_tiles(run.program.method) else 'chunks'}, "
        f"as many at once as {f'{config.chunk_tokens:,}' if config.chunk_tokens else 'all'} tokens "
        "a device have",
        "peak": speed.peak(),
        "output": str(run.home),
        **who_hears(run),
    }


def who_hears(run: Run) -> dict[str, str]:
    """Whom the run tells of itself, beside its folder."""
    lines, hub = {}, run.config.hub
    if trackers := run.config.tracking.to:
        lines["trackers"] = ", ".join(trackers)
    if hub.push_to:
        made = "private" if hub.private else "public"
        lines["hub"] = f"the student goes to {hub.push_to}, {made} unless it is there already"
    return lines


def parameters(params) -> int:
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params))


def what_a_context_shows(run: Run) -> dict[str, str]:
    """What a privileged teacher reads, where examples leave that open."""
    both = sum(1 for e in run.train.examples if None not in (e.context, e.solution))
    if not both or not {*run.program.views} & {*PRIVILEGED}:
        return {}
    return {"privileged": f"the context of {both:,} examples that have a solution too"}
