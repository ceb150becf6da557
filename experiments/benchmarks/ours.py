"""One measurement of jopd, in a process of its own: prints a line of JSON.

    python experiments/benchmarks/ours.py PART MODEL [name=number ...] [--jopd.setting value ...]

PART is one of the functions below, with its numbers; MODEL and the settings are what
`python -m jopd.train --student.model` and its other flags take. Student and teacher are the same
model. All lengths are forced: nothing stops a row but its limit. What compiles, compiles before the
clock runs, but in `first_step`.
"""

import contextlib
import dataclasses
import json
import os
import re
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from turns import alone

from jopd.config import parse
from jopd.models import Architecture
from jopd.models.operations import head, layers, reading
from jopd.training import setup
from jopd.training.batch import Batch, Context
from jopd.training.step import jitted
from jopd.training.worker import Worker


def timed(call: Callable, rounds: int = 3) -> float:
    """Median seconds of a call, after one that compiles."""
    jax.block_until_ready(call())
    seconds = []
    with alone():
        for _ in range(rounds):
            start = time.perf_counter()
            jax.block_until_ready(call())
            seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)


def machine(model: str, flags: list[str]) -> dict:
    """What the device does at best: products of square matrices, float32 on a CPU and bfloat16
    elsewhere; reading, to sum up; and copying, read and written bytes together. Long enough for
    what it takes to start them not to count.
    """
    del model, flags
    cpu = jax.default_backend() == "cpu"
    size, products, dtype = (3072, 1, jnp.float32) if cpu else (8192, 20, jnp.bfloat16)
    square = jax.random.normal(jax.random.key(0), (size, size), dtype)
    many = jnp.ones((1 if cpu else 20, 8192, 24_576), dtype)  # in no cache
    multiply = lambda x: jax.lax.fori_loop(0, products, lambda _, y: (y @ x) / size**0.5, x)
    add = lambda x: jnp.sum(x, dtype=jnp.float32)
    return {
        "device": jax.devices()[0].device_kind,
        "flops": products * 2 * size**3 / timed(partial(jax.jit(multiply), square), 5),
        "read": many.nbytes / timed(partial(jax.jit(add), many), 5),
        "copy": 2 * many.nbytes / timed(partial(jax.jit(lambda x: x + 1), many), 5),
    }


def run_of(model: str, rows: int, prompt: int, new: int, flags: list[str]) -> setup.Run:
    """A run that the phases can be taken from: OPD, a row a prompt."""
    same = ["--method", "opd", "--student.model", model, "--teacher.model", "self", "--watch", "0"]
    batch = ["--prompts", str(rows), "--rollout.samples", "1", "--output", tempfile.mkdtemp()]
    # The data's own prompts must fit, whatever is read in their place.
    longest = str(max(prompt, 96))
    lengths = ["--rollout.max-prompt-tokens", longest, "--rollout.max-new-tokens", str(new)]
    name, config = parse([*same, *batch, *lengths, *flags])
    run = setup.prepare(name, config)
    decoding = dataclasses.replace(run.program.decoding, stop_tokens=())
    return run._replace(program=dataclasses.replace(run.program, decoding=decoding))


def prompts(a: Architecture, rows: int, length: int) -> Context:
    ids = np.random.default_rng(0).integers(0, a.vocabulary_size, (rows, length), np.int32)
    return Context(jnp.asarray(ids), jnp.ones((rows, length), bool))


def decode(model: str, flags: list[str], rows: int = 8, prompt: int = 32, new: int = 128) -> dict:
    """`new` tokens after a prompt, in each row."""
    run = run_of(model, rows, prompt, new, flags)
    a, program = run.student.architecture, run.program
    write = partial(
        jitted(program, run.shardings).rollout,
        run.state,
        run.fixed,
        prompts(a, rows, prompt),
        jnp.arange(rows),
        jax.random.key(0),
        decoding=program.decoding,
        samples=1,
    )
    seconds = timed(write)
    # The weights once a token, and the keys and values that each row has by then.
    cache = 2 * a.layers * a.kv_heads * a.head_dim * rows * (prompt + new / 2)
    size = jnp.dtype(run.config.student.compute.dtype).itemsize
    return {
        "seconds": seconds,
        "tokens_per_second": rows * new / seconds,
        "bytes": size * new * (layers(a) + head(a) + cache),
    }


def phases(model: str, flags: list[str], rows: int = 8, prompt: int = 32, new: int = 224) -> dict:
    """Scoring, and updating on, rows of prompt and answer."""
    run = run_of(model, rows, prompt, new, flags)
    a, program = run.student.architecture, run.program
    functions = jitted(program, run.shardings)
    context = prompts(a, rows, prompt)
    contexts = {"student": context, **{view: context for view in program.views}}
    answers = prompts(a, rows, new)
    batch = Batch(contexts, answers.tokens, answers.valid)
    score = partial(functions.score, run.state, run.fixed, batch, program.method.views)
    seconds = {"score": timed(score)}
    scored, state = batch._replace(hidden=score()), run.state

    def update():
        nonlocal state
        state, metrics = functions.update(state, run.fixed, scored)
        return metrics

    seconds["update"] = timed(update)
    forward, stage = rows * reading(a, prompt + new), 2 * rows * new * head(a)
    return {
        "seconds": seconds,
        # As the algorithm has it: nothing is computed twice.
        "flops": {"score": forward, "update": 3 * forward + (3 + 1) * stage},
    }


def step(
    model: str,
    flags: list[str],
    rows: int = 8,
    prompt: int = 96,
    new: int = 128,
    steps: int = 2,
) -> dict:
    """Whole steps, the median after the first."""
    run = run_of(model, rows, prompt, new, flags)
    worker, state = Worker(run), run.state
    whole, by_phase = [], []
    with jax.set_mesh(run.mesh):
        for number in range(1, steps + 2):
            with alone() if number > 1 else contextlib.nullcontext():
                start = time.perf_counter()
                stepped = worker.step(number, state)
                state, measured = stepped.state, stepped.measured()
                whole.append(time.perf_counter() - start)
            by_phase.append(measured.seconds)
    assert measured.metrics["tokens"] == rows * new
    of = lambda phase: statistics.median(seconds[phase] for seconds in by_phase[1:])
    return {
        "seconds": statistics.median(whole[1:]),
        "phases": {phase: of(phase) for phase in by_phase[0]},
        "first": whole[0],
    }


def profile(model: str, flags: list[str], rows: int = 8, prompt: int = 96, new: int = 128) -> dict:
    """What a step spends its time on: of each kind of operation the seconds, the twenty largest; of
    the whole step those by the clock, and those in which the device computed.
    """
    run = run_of(model, rows, prompt, new, flags)
    worker, state = Worker(run), run.state
    with jax.set_mesh(run.mesh), tempfile.TemporaryDirectory() as folder:
        state = worker.step(1, state).state
        state = worker.step(1, jax.block_until_ready(state)).state
        jax.block_until_ready(state)
        with alone(), jax.profiler.trace(folder):
            start = time.perf_counter()
            jax.block_until_ready(worker.step(1, state).state)
            whole = time.perf_counter() - start
        (file,) = Path(folder).rglob("*.xplane.pb")
        seconds = by_operation(jax.profiler.ProfileData.from_file(str(file)))
    return {
        "seconds": whole,
        "on_device": sum(seconds.values()),
        "operations": dict(sorted(seconds.items(), key=lambda it: -it[1])[:20]),
    }


# What holds other operations, whose time is theirs, or is none of the program's.
AROUND = ("while", "call", "conditional", "end: ", "Thread", "Thunk", "Mutex", "$")


def by_operation(data: jax.profiler.ProfileData) -> dict[str, float]:
    """Seconds on the device's streams; on a CPU on all threads that run a program's parts."""
    streams, threads = [], []
    for plane in data.planes:
        if plane.name.startswith("/device:GPU"):
            streams += [line for line in plane.lines if "Stream" in line.name]
        if plane.name == "/host:CPU":
            threads += [line for line in plane.lines if "XLA" in line.name]
    seconds = defaultdict(float)
    for line in streams or threads:
        for event in line.events:
            if not event.name.startswith(AROUND):
                seconds[re.sub(r"[._\d]*$", "", event.name)] += event.duration_ns / 1e9
    return seconds


def default_step(model: str, flags: list[str], steps: int = 8) -> dict:
    """Steps of the default job, its first again and again: one set of lengths."""
    del model
    name, config = parse(["--watch", "0", "--output", tempfile.mkdtemp(), *flags])
    run = setup.prepare(name, config)
    worker, state, found = Worker(run), run.state, []
    with jax.set_mesh(run.mesh):
        for _ in range(steps + 4):
            stepped = worker.step(1, state)
            state = stepped.state
            found.append(stepped.measured().seconds)
    of = lambda phase: statistics.median(seconds[phase] for seconds in found[4:])
    whole = statistics.median(sum(seconds.values()) for seconds in found[4:])
    return {"seconds": whole, "phases": {phase: of(phase) for phase in found[0]}}


def first_step(model: str, flags: list[str]) -> dict:
    """Of the default job, from the command to the end of its first step: with nothing compiled yet,
    and again with what that has compiled.
    """
    del model
    with tempfile.TemporaryDirectory() as cache:
        return {name: until_first_step(cache, flags) for name in ("cold", "cached")}


def until_first_step(cache: str, flags: list[str]) -> float:
    with tempfile.TemporaryDirectory() as output:
        job = ["-m", "jopd.train", "--evaluation.every", "0", "--output", output, *flags]
        start = time.perf_counter()
        process = subprocess.Popen(
            [sys.executable, *job],
            env=os.environ | {"JAX_COMPILATION_CACHE_DIR": cache},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        metrics = Path(output, "metrics.jsonl")
        while process.poll() is None and not (metrics.exists() and metrics.stat().st_size):
            time.sleep(0.05)
        seconds = time.perf_counter() - start
        process.kill()
        process.wait()
    return seconds


def peak_bytes() -> int:
    """Of the device, or on a CPU of the process."""
    stats = jax.local_devices()[0].memory_stats()
    return (
        stats["peak_bytes_in_use"]
        if stats
        else 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    )


PARTS = {
    part.__name__: part
    for part in (machine, decode, phases, step, profile, default_step, first_step)
}

if __name__ == "__main__":
    part, model, *rest = sys.argv[1:]
    numbers = [argument for argument in rest if "=" in argument]
    flags = [argument for argument in rest if "=" not in argument]
    values = {name: int(number) for name, number in (text.split("=") for text in numbers)}
    found = PARTS[part](model, flags, **values)
    print(json.dumps(found | {"peak_bytes": peak_bytes()}))
