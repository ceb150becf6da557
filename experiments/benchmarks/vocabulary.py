"""The vocabulary stage alone, forward and backward: seconds, and the memory that it needs beside
its arguments; prints a line of JSON.

    python experiments/benchmarks/vocabulary.py FORM [name=number ...]

FORM is `naive`, whole logits and autodiff; `chunked`, a few positions at a time; or `tiled`, a few
entries of the vocabulary at a time. The loss is the reverse KL to each of the views. Without
numbers, the sizes are those of Qwen3-8B. `vocabulary_memory.py` compiles the same for many sizes.
"""

import json
import statistics
import sys
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
from turns import alone

from jopd.losses.chunked import Scored, chunked_terms
from jopd.losses.divergences import reverse_kl
from jopd.losses.tiled import tiled_terms
from jopd.losses.vocabulary import log_softmax

FORMS = ("naive", "chunked", "tiled")
ROUNDS = 5


class ReverseKL:
    """The vocabulary stage of a method that compares the student with every view."""

    tiled, second_pass = True, None

    def token_terms(self, student_logits, teacher_logits, tokens, extras):
        student = log_softmax(student_logits)
        return {
            view: reverse_kl(student, log_softmax(logits))
            for view, logits in teacher_logits.items()
        }

    def tiled_terms(self, moments):
        return {view: of.reverse_kl for view, of in moments.teachers.items()}


def gradient_of(form: str, chunk: int, vocabulary: int) -> Callable:
    """The gradient in the student's hidden states and head, as a function of all readers'."""

    def loss(hidden, head, teachers, tokens):
        mask = jnp.ones(tokens.shape, bool)
        student = Scored(hidden, head)
        teachers = {view: Scored(*teacher) for view, teacher in teachers.items()}
        size = {"chunk": 0 if form == "naive" else chunk, "vocabulary": vocabulary}
        if form == "tiled":
            terms = tiled_terms(ReverseKL(), student, teachers, tokens, mask, **size)
        else:
            terms = chunked_terms(ReverseKL(), student, teachers, tokens, mask, {}, **size)
        return sum(divergence.mean() for divergence in terms.values())

    return jax.jit(jax.grad(loss, argnums=(0, 1)))


def measured(
    form: str,
    vocabulary: int = 151_936,
    width: int = 4096,
    rows: int = 8,
    columns: int = 1024,
    chunk: int = 128,
) -> dict:
    """Of so many rows and columns of tokens, `chunk` columns of whose logits exist at once."""
    dtype = jnp.float32 if jax.default_backend() == "cpu" else jnp.bfloat16
    normal = lambda seed, *shape: 0.02 * jax.random.normal(jax.random.key(seed), shape, dtype)
    hidden = normal(0, rows, columns, width), normal(1, width, vocabulary)
    teacher = 50 * normal(2, rows, columns, width), normal(3, width, vocabulary)
    tokens = jax.random.randint(jax.random.key(4), (rows, columns), 0, vocabulary)
    teachers = {"teacher": teacher}
    program = gradient_of(form, chunk, vocabulary).lower(*hidden, teachers, tokens).compile()
    jax.block_until_ready(program(*hidden, teachers, tokens))
    seconds = []
    with alone():
        for _ in range(ROUNDS):
            start = time.perf_counter()
            jax.block_until_ready(program(*hidden, teachers, tokens))
            seconds.append(time.perf_counter() - start)
    # Logits of both readers forward, the student's again, and its two gradients.
    flops = 2 * rows * columns * width * vocabulary * (2 + 1 + 2)
    memory = program.memory_analysis()
    return {
        "form": form,
        "seconds": statistics.median(seconds),
        "bytes": memory.temp_size_in_bytes,
        "gradients": memory.output_size_in_bytes,
        "flops": flops,
    }


if __name__ == "__main__":
    form, *rest = sys.argv[1:]
    if form not in FORMS:
        raise SystemExit(f"{form} is none of {', '.join(FORMS)}")
    numbers = {name: int(number) for name, number in (text.split("=") for text in rest)}
    print(json.dumps(measured(form, **numbers)))
