"""The run's own phases, compiled ahead of time for devices that need not be here."""

import dataclasses
import re
import time
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jopd.planning import hlo
from jopd.planning.shapes import Shapes, batch_of, by_row, bytes_a_device, prompts_of
from jopd.training.fit import evaluation_batch
from jopd.training.step import jitted


class Memory(NamedTuple):
    """Bytes on one device.

    Attributes:
      resident: the run's state and fixed parameters, whichever of them the phase reads.
      batch: what else it reads.
      temporary: while it runs.
      output: what it leaves behind that was not there before.
    """

    resident: int
    batch: int
    temporary: int
    output: int

    @property
    def peak(self) -> int:
        return sum(self)


class Compiled(NamedTuple):
    """A phase as it would run.

    Attributes:
      donated: bytes of results that take the place of arguments.
      in_loop: of a rollout, the collectives that every token waits for; None where the compiler's
        text can't be read.
      flops, traffic: floating-point operations, and bytes read and written, as the compiler counts
        them: the body of a loop once. None where it does not.
      seconds: that compiling took.
    """

    phase: str
    memory: Memory
    donated: int
    in_loop: list[hlo.Collective] | None
    flops: float | None
    traffic: float | None
    seconds: float


# What is measured before the first step; the phases of a step follow.
EVALUATIONS = ("evaluation", "teacher's evaluation")
STEP = ("rollout", "score", "prepare", "windows", "update", "watched update")


def compiled(shapes: Shapes, phases: tuple[str, ...] = ()) -> list[Compiled]:
    """The phases of a run in their order, or those that are named."""
    program, config = shapes.program, shapes.config
    method, of_step = program.method, jitted(program, shapes.shardings)
    rows_first = lambda function, *arguments, **how: by_row(
        shapes.mesh, jax.eval_shape(lambda *a: function(*a, **how), *arguments)
    )
    run: list[tuple[str, Any, tuple, dict[str, Any]]] = []
    state, fixed, batch = shapes.state, shapes.fixed, batch_of(shapes)
    how: dict[str, Any] = {"decoding": program.decoding}
    with jax.set_mesh(shapes.mesh):
        measured = dataclasses.replace(program.decoding, sampling=config.evaluation.sampling)
        problems = evaluation_batch(config.evaluation.batch, config.micro_batches, shapes.mesh)
        asked = (state, fixed, *prompts_of(shapes, problems), shapes.noise)
        answering = {"decoding": measured}
        run.append((EVALUATIONS[0], of_step.rollout, asked, {**answering, "samples": 1}))
        if shapes.teacher is not None:
            run.append((EVALUATIONS[1], of_step.teacher_rollout, asked, answering))
        if method.completions != "reference":
            samples = {**how, "samples": config.rollout.samples}
            rest = (shapes.rows, shapes.noise)
            if method.guided_share:
                guided = by_row(
                    shapes.mesh, jax.ShapeDtypeStruct(shapes.rows.shape, jnp.dtype(bool))
                )
                arguments = (state, fixed, shapes.contexts, guided, *rest)
                run.append(("rollout", of_step.guided_rollout, arguments, samples))
            else:
                arguments = (state, fixed, shapes.contexts["student"], *rest)
                run.append(("rollout", of_step.rollout, arguments, samples))
        if method.views:
            arguments = (state, fixed, batch, method.views)
            run.append(("score", of_step.score, arguments, {}))
            hidden = rows_first(of_step.score, state, fixed, batch, views=method.views)
            batch = batch._replace(hidden=hidden)
        if method.scoring() is not None:
            run.append(("prepare", of_step.prepare, (state, fixed, batch), {}))
            more = rows_first(of_step.prepare, state, fixed, batch)
            batch = batch._replace(inputs=batch.inputs | more)
        if method.near_future:
            arguments = (state, fixed, batch, shapes.rows, shapes.noise)
            run.append(("windows", of_step.windows, arguments, how))
            batch = by_row(
                shapes.mesh,
                jax.eval_shape(lambda *a: of_step.windows(*a, **how).batch, *arguments),
            )
        run.append(("update", of_step.update, (state, fixed, batch), {"watch": False}))
        if config.watch and program.diagnostics is not None:
            run.append(("watched update", of_step.update, (state, fixed, batch), {"watch": True}))
        return [_compile(shapes, *each) for each in run if not phases or each[0] in phases]


def asked_of_memory(message: str) -> int | None:
    """Bytes of temporary arrays, of a compiler that refuses a program because of them; of all
    arrays, where it says no more.
    """
    of_these = r"(?:temporaries \(|in memory space hbm\. Used )([\d.]+)([KMGT])"
    found = re.search(f"RESOURCE_EXHAUSTED.*{of_these}", message, re.DOTALL)
    return found and int(float(found[1]) * 1024 ** (1 + "KMGT".index(found[2])))


def _compile(shapes: Shapes, phase: str, function, arguments: tuple, how: dict) -> Compiled:
    begin = time.monotonic()
    # Beside the state and the fixed parameters; names of views are no arrays.
    others = [it for it in arguments[2:] if not isinstance(it, tuple) or hasattr(it, "_fields")]
    read = bytes_a_device(shapes.state, shapes.fixed), bytes_a_device(*others)
    try:
        result = function.lower(*arguments, **how).compile()
    except jax.errors.JaxRuntimeError as error:
        if (temporary := asked_of_memory(str(error))) is None:
            raise
        memory, seconds = Memory(*read, temporary, output=0), time.monotonic() - begin
        return Compiled(phase, memory, 0, None, None, None, seconds)
    seconds = time.monotonic() - begin
    found = result.memory_analysis()
    memory = Memory(
        *read,
        temporary=found.temp_size_in_bytes,
        output=max(found.output_size_in_bytes - found.alias_size_in_bytes, 0),
    )
    in_loop = None
    if phase in ("rollout", "windows"):
        try:
            in_loop = hlo.decode_loop(result.as_text())
        except Exception:  # a text of a newer compiler than the reader of it
            in_loop = None
    counted = result.cost_analysis() or {}
    return Compiled(
        phase,
        memory,
        found.alias_size_in_bytes,
        in_loop,
        counted.get("flops"),
        counted.get("bytes accessed"),
        seconds,
    )
