"""Tiny random models and batches for the trainer, and what it should make of them: row by row, from
whole logits.

The expected numbers come from each row alone: no padding, no chunk, no micro-batch, one device.
Only the models' forward pass is shared with the trainer (its own tests compare it with torch).
"""

import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.sharding import AxisType, Mesh

from jopd import losses, models
from jopd.data.batching import left_pad, right_pad
from jopd.diagnostics.tokens import Diagnostics
from jopd.losses.types import Stage
from jopd.losses.vocabulary import log_prob_of, log_softmax
from jopd.models import Architecture, Transformer
from jopd.models.sharding import MESH_AXES, parameter_shardings
from jopd.rollout.settings import Decoding, Sampling
from jopd.training.batch import Batch, Context
from jopd.training.mesh import batch_ways, place_batch
from jopd.training.program import Program
from jopd.training.state import Fixed, TrainState, real_copy
from jopd.training.step import Jitted, jitted

VOCABULARY = 64
STUDENT = Architecture(
    vocabulary_size=64,
    width=16,
    layers=2,
    heads=2,
    kv_heads=1,
    head_dim=8,
    mlp_width=24,
    qk_norm=True,
)
# Another width, an untied head, and an embedding that is padded beyond what the two share.
TEACHER = Architecture(
    vocabulary_size=72,
    width=24,
    layers=1,
    heads=2,
    kv_heads=2,
    head_dim=8,
    mlp_width=16,
    tied_head=False,
)

# The momentum of 0 changes nothing; it is a moment for every parameter to be placed and donated.
SGD = optax.sgd(1.0, momentum=0.0)

PROMPTS, SAMPLES, LENGTH = 4, 2, 9
LENGTHS = (9, 1, 5, 2, 7, 3, 9, 4)
ROWS = PROMPTS * SAMPLES


def mesh_of(data: int = 1, fsdp: int = 1, tensor: int = 1) -> Mesh:
    devices = jax.devices()[: data * fsdp * tensor]
    return jax.make_mesh(
        (data, fsdp, tensor), MESH_AXES, devices=devices, axis_types=(AxisType.Auto,) * 3
    )


_JITTED: dict[tuple[Program, Mesh], Jitted] = {}


@functools.cache
def lenient(transform: optax.GradientTransformation) -> optax.GradientTransformation:
    """optax lets types mix, which the tests otherwise forbid."""

    def update(*arguments):
        with jax.numpy_dtype_promotion("standard"):
            return transform.update(*arguments)

    return optax.GradientTransformation(transform.init, update)


@functools.cache
def random_model(architecture: Architecture, seed: int = 0):
    """Graph and parameters, on the host, of a model whose every parameter is random; logits differ
    by a few nats.
    """
    graph, params = models.split(Transformer(architecture, rngs=nnx.Rngs(0)))
    generator = np.random.default_rng(seed)

    def draw(path, leaf):
        noise = generator.normal(size=leaf.shape).astype(np.float32)
        return 1 + noise / 4 if path[-1].key == "weight" else noise / np.float32(4)

    return graph, jax.tree_util.tree_map_with_path(draw, params)


@functools.cache
def completions() -> list[np.ndarray]:
    generator = np.random.default_rng(3)
    return [generator.integers(VOCABULARY, size=length).astype(np.int32) for length in LENGTHS]


@functools.cache
def prompts(view: str) -> list[np.ndarray]:
    """The prompts under a view, of lengths of their own; the student's are shorter than any
    other's.
    """
    generator = np.random.default_rng(sum(view.encode()))
    low, high = (2, 7) if view == "student" else (7, 13)
    return [
        generator.integers(VOCABULARY, size=size).astype(np.int32)
        for size in generator.integers(low, high, PROMPTS)
    ]


def width(view: str) -> int:
    return 8 if view == "student" else 12 + len(view) % 3


class Problem(NamedTuple):
    mesh: Mesh
    program: Program
    jitted: Jitted
    state: TrainState
    fixed: Fixed
    batch: Batch

    def scored(self) -> Batch:
        """The batch as the update wants it: graded, prepared, with its windows."""
        method = self.program.method
        with jax.set_mesh(self.mesh):
            batch = self.batch._replace(
                hidden=self.jitted.score(self.state, self.fixed, self.batch, method.views)
            )
            if method.scoring() is not None:
                batch = batch._replace(
                    inputs=batch.inputs | self.jitted.prepare(self.state, self.fixed, batch)
                )
            if method.near_future:
                rows = jnp.arange(ROWS, dtype=jnp.int32)
                decoding = dataclasses.replace(
                    self.program.decoding, sampling=Sampling(temperature=0.5)
                )
                key = jax.random.key(1)
                batch = self.jitted.windows(
                    self.state, self.fixed, batch, rows, key, decoding=decoding
                ).batch
        return batch

    def updated(
        self, batch: Batch | None = None, *, watch: bool = False
    ) -> tuple[TrainState, dict[str, np.ndarray]]:
        """One update; the state's buffers are gone afterwards."""
        batch = self.scored() if batch is None else batch
        with jax.set_mesh(self.mesh):
            state, metrics = self.jitted.update(self.state, self.fixed, batch, watch=watch)
        return state, jax.device_get(metrics)

    def measured(self, stage: Stage, batch: Batch) -> dict[str, np.ndarray]:
        with jax.set_mesh(self.mesh):
            return jax.device_get(self.jitted.measure(self.state, self.fixed, batch, stage))


def problem(
    method: losses.Method,
    *,
    chunk: int = 0,
    tiled: bool = True,
    micro_batches: int = 1,
    mesh: Mesh | None = None,
    optimizer: optax.GradientTransformation = SGD,
    student=None,
    teacher=None,
    batch: Batch | None = None,
    ema_rate: float = 0.25,
    max_new_tokens: int = LENGTH,
    vocabulary: int = VOCABULARY,
    diagnostics: Diagnostics | None = None,
) -> Problem:
    """A method's program on the random models and batch; `student` and `teacher` are other (graph,
    params), `batch` another host batch.

    With the default optimiser the change of the parameters is minus the gradient.
    """
    mesh = mesh or mesh_of()
    graph, params = student or random_model(STUDENT)
    follows = method.teacher_update != "frozen"
    teacher_graph, teacher_params = (
        (graph, {}) if follows else teacher or random_model(TEACHER, seed=1)
    )
    program = Program(
        method=method,
        student=graph,
        teacher=teacher_graph,
        initial=graph,
        width=16,
        views=method.views,
        ema_rate=ema_rate,
        optimizer=lenient(optimizer),
        decoding=Decoding(max_new_tokens, (1,), 0, vocabulary),
        micro_batches=micro_batches,
        chunk_tokens=chunk * (ROWS // micro_batches) // batch_ways(mesh),
        tiled=tiled,
        diagnostics=diagnostics,
    )
    place = lambda tree: jax.tree.map(jax.device_put, tree, parameter_shardings(mesh, tree))
    params = place(params)
    ema = real_copy(params) if method.teacher_update == "ema" else {}
    modules = method.init_modules(16, jax.random.key(2))
    state = TrainState(
        params=params,
        modules=place({"modules": modules})["modules"],
        optimizer=place(optimizer.init({"student": params, "modules": modules})),
        ema_teacher=ema,
        method=place({"modules": method.init_state()})["modules"],
        step=place(jnp.zeros((), jnp.int32)),
        key=place(jnp.zeros(2, jnp.uint32)),
    )
    shardings = jax.tree.map(lambda leaf: leaf.sharding, state)
    functions = _JITTED.setdefault(
        (program, mesh), jitted(program, shardings)
    )  # compiled once for all that ask for the same
    batch = place_batch(mesh, batch or host_batch(method))
    return Problem(
        mesh,
        program,
        functions,
        state,
        Fixed(
            {},
            place(teacher_params),
            place(random_model(STUDENT, seed=5)[1] if student is None else student[1]),
        ),
        batch,
    )


def host_batch(method: losses.Method, more: int = 0) -> Batch:
    """The batch that the expected numbers are for; `more` adds columns of padding on the left of
    every context.
    """
    contexts = {}
    for view in ("student", *method.views):
        padded = left_pad(prompts(view), width(view) + more, pad_id=5)
        contexts[view] = Context(padded["tokens"], padded["valid"])
    written = right_pad(completions(), LENGTH, pad_id=7)
    # What a method reads per token are log-probabilities; what it reads per row is of the size of
    # 1.
    draw = np.random.default_rng(4).normal
    per_token = lambda: -3 + draw(size=(ROWS, LENGTH))
    per_row = lambda: np.abs(draw(size=(ROWS, 1)))
    inputs = {
        name: (per_token() if name == "behaviour_logp" else per_row()).astype(np.float32)
        for name in method.inputs
    }
    return Batch(contexts, written["tokens"], written["mask"], inputs)


def rows_forward(graph, view: str):
    """params -> logits `[B, T, V]` of every completion under a view, each row run alone and from
    column 0; zeros after its end.
    """
    rows = [
        np.concatenate([prompts(view)[row // SAMPLES], written])
        for row, written in enumerate(completions())
    ]
    # One length for all, so that one program does for all: what stands on the right of a causal
    # model's row is not seen.
    ids = right_pad(rows, max(map(len, rows)), pad_id=9)
    first = jnp.asarray(
        [len(row) - len(written) - 1 for row, written in zip(rows, completions(), strict=True)]
    )

    def forward(params):
        model = models.merge(graph, params)

        def alone(row):
            tokens, valid, first, length = row
            logits = model.logits(model.hidden(tokens[None], valid[None]))[0, :, :VOCABULARY]
            predicting = jnp.arange(LENGTH)
            return jnp.where(
                predicting[:, None] < length,
                logits[jnp.minimum(first + predicting, len(logits) - 1)],
                0,
            )

        return jax.lax.map(
            alone,
            (jnp.asarray(ids["tokens"]), jnp.asarray(ids["mask"]), first, jnp.asarray(LENGTHS)),
        )

    return forward


@functools.cache
def expected_logits(role: str, view: str) -> np.ndarray:
    graph, params = {
        "student": random_model(STUDENT),
        "teacher": random_model(TEACHER, seed=1),
        "initial": random_model(STUDENT, seed=5),
    }[role]
    return jax.device_get(jax.jit(rows_forward(graph, view))(params))


@functools.cache
def student_pullback():
    """Gradient on the student's logits `[B, T, V]` to gradient on its parameters."""
    graph, params = random_model(STUDENT)
    return jax.jit(
        lambda cotangent: jax.vjp(rows_forward(graph, "student"), params)[1](cotangent)[0]
    )


def _opd(student, teachers, tokens):
    return (jnp.exp(student) * (student - teachers["teacher"])).sum(axis=-1)


def _opd_pg(student, teachers, tokens):
    chosen = lambda logp: jnp.take_along_axis(logp, tokens[..., None], axis=-1)[..., 0]
    advantage = jax.lax.stop_gradient(chosen(teachers["teacher"]) - chosen(student))
    return -advantage * chosen(student)


def _opsd(student, teachers, tokens):
    q = teachers["privileged"]
    return (jnp.exp(q) * (q - student)).sum(axis=-1)


def _sft(student, teachers, tokens):
    return -jnp.take_along_axis(student, tokens[..., None], axis=-1)[..., 0]


# Per-token losses as the formulas read, of log-probabilities `[B, T, V]`; the loss is their mean
# over tokens.
FORMULAS = {"sft": _sft, "opd": _opd, "opd_pg": _opd_pg, "opsd": _opsd}


@functools.cache
def expected(method: losses.Method, formula: bool = False):
    """Loss and gradient on the student's parameters; by a formula above, or by `losses.evaluate` on
    the rows' logits.
    """
    batch = host_batch(method)
    role = "teacher" if method.teacher_update == "frozen" else "student"
    teachers = {
        view: jnp.asarray(expected_logits("initial" if view == "initial" else role, view))
        for view in method.views
    }
    mask, tokens = jnp.asarray(batch.mask), jnp.asarray(batch.tokens)

    # Modules start at zero.
    zeros = {
        name: jnp.zeros((ROWS, LENGTH if name == "values" else 1)) for name in method.module_inputs
    }

    def loss(logits):
        if not formula:
            inputs = jax.tree.map(jnp.asarray, batch.inputs) | zeros
            return losses.evaluate(method, logits, teachers, tokens, mask, streams={}, **inputs)[0]
        logp = lambda z: z - jax.scipy.special.logsumexp(z, axis=-1, keepdims=True)
        values = FORMULAS[method.name](
            logp(logits), {view: logp(z) for view, z in teachers.items()}, tokens
        )
        return jnp.where(mask, values, 0).sum() / sum(LENGTHS)

    value, cotangent = jax.jit(jax.value_and_grad(loss))(
        jnp.asarray(expected_logits("student", "student"))
    )
    return jax.device_get((value, student_pullback()(cotangent)))


@dataclasses.dataclass(frozen=True)
class Logp:
    """A stage that measures the trainer's own log-probability of each token."""

    temperature: float = 1.0

    def token_terms(self, student_logits, teacher_logits, tokens, extras):
        return {"logp": log_prob_of(log_softmax(student_logits, self.temperature), tokens)}
