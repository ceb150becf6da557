"""What the phases of a step must at least do, counted from the models' own formula, and the time
that a device's published rates allow for that: a bound that no program beats, not a promise.

Counted are a model's operations (`jopd.models.operations`) and, of a decode loop, the weights and
the keys and values that each token reads. What the backward pass computes again under
rematerialisation is counted, as the device does it.
"""

from typing import NamedTuple

import jax.numpy as jnp

from jopd.losses.method import INITIAL
from jopd.models.operations import head, layers, reading
from jopd.planning.shapes import Shapes
from jopd.training.accelerators import Chip
from jopd.training.mesh import batch_ways


class Cost(NamedTuple):
    """Of one phase, on one device.

    Attributes:
      flops: floating-point operations.
      bytes: that it must read of the memory; of the phases other than decoding, 0: the products
        bound them.
      seconds: the larger of what the two take at the device's rates.
    """

    flops: float
    bytes: float
    seconds: float


def of(shapes: Shapes, chip: Chip) -> dict[str, Cost]:
    """By phase, of a step whose rows all have the longest prompt and the longest answer."""
    config, method = shapes.config, shapes.program.method
    student, teacher = shapes.student, shapes.teacher or shapes.student
    readers = [student if view == INITIAL else teacher for view in method.views]
    devices, tensor = shapes.mesh.size, shapes.mesh.shape["tensor"]
    rows, prompt, answer = (
        config.rows,
        config.rollout.max_prompt_tokens,
        config.rollout.max_new_tokens,
    )
    costs = {}

    def add(phase: str, flops: float, bytes_: float = 0.0) -> None:
        flops /= devices
        seconds = max(flops / chip.flops, bytes_ / chip.bandwidth)
        costs[phase] = Cost(flops, bytes_, seconds)

    if method.completions != "reference":
        size = jnp.dtype(config.student.compute.dtype).itemsize
        weights = (layers(student) + head(student)) * size / tensor
        # Of all columns that a row has read by then, averaged over its tokens.
        slots = 2 * student.layers * student.kv_heads * student.head_dim * size / tensor
        cache = rows / batch_ways(shapes.mesh) * (prompt + answer / 2) * slots
        add(
            "rollout",
            config.prompts * reading(student, prompt)
            + rows * (reading(student, answer, prompt) + 2 * head(student) * answer),
            answer * (weights + cache),
        )
    row = lambda a: reading(a, prompt + answer)
    if readers:
        add("score", rows * sum(map(row, readers)))
    stages = 2 * head(student) * answer, 2 * sum(map(head, readers)) * answer
    if method.scoring() is not None:
        add("prepare", rows * (row(student) + sum(stages)))
    # Forward and backward are three passes, of adapters' base two, which has no gradient; and what
    # is not kept is computed again; a chunk's logits always are.
    passes = 2 if config.student.lora.rank else 3
    again = {"none": 0, "dots": 0, "layer": 1}[config.student.compute.remat]
    add(
        "update",
        rows * ((passes + again) * row(student) + (passes + 1) * stages[0] + 2 * stages[1]),
    )
    return costs
