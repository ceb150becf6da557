"""A run as shapes and placements: all that compiling it needs, and not one array."""

import copy
import dataclasses
import math
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jopd import models
from jopd.config import Config
from jopd.data.batching import WIDTH_MULTIPLE
from jopd.losses.method import INITIAL
from jopd.models import Architecture
from jopd.models.attention import check_kernel, chosen
from jopd.models.load import open_model
from jopd.models.sharding import parameter_shardings, spec
from jopd.training import optimizer
from jopd.training.batch import Batch, Context
from jopd.training.program import Program
from jopd.training.setup import Readers, make_program
from jopd.training.state import LORA, Fixed, TrainState, separate

_QWEN3 = {"vocabulary_size": 151_936, "kv_heads": 8, "head_dim": 128, "qk_norm": True}
_QWEN3 |= {"rope_theta": 1e6, "norm_epsilon": 1e-6, "max_positions": 40_960}
# Published shapes, so that a plan needs neither a network nor a file of these.
KNOWN = {
    f"Qwen/Qwen3-{name}": Architecture(
        width=width, layers=layers, heads=heads, mlp_width=mlp_width, tied_head=tied, **_QWEN3
    )
    for name, width, layers, heads, mlp_width, tied in (
        ("0.6B", 1024, 28, 16, 3072, True),
        ("1.7B", 2048, 28, 16, 6144, True),
        ("4B", 2560, 36, 32, 9728, True),
        ("8B", 4096, 36, 32, 12_288, False),
        ("14B", 5120, 40, 40, 17_408, False),
        ("32B", 5120, 64, 64, 25_600, False),
    )
}
_STOPS = (151_643, 151_645)


class Shape(NamedTuple):
    """A model without weights or tokenizer; what `jopd.models.load.Opened` and a plan share."""

    graph: nnx.GraphDef
    abstract: dict
    architecture: Architecture
    stop_tokens: tuple[int, ...]
    pad_id: int


class Shapes(NamedTuple):
    """A run without arrays.

    Attributes:
      student, teacher: their shapes; no teacher, None.
      state, fixed, contexts, rows: `jax.ShapeDtypeStruct` with their placement.
      shardings: of the state.
      noise: a key.
    """

    config: Config
    mesh: Mesh
    program: Program
    student: Architecture
    teacher: Architecture | None
    state: TrainState
    fixed: Fixed
    contexts: dict[str, Context]
    rows: Any
    noise: Any
    shardings: TrainState


def shape_of(source: str, compute: models.Compute, lora: models.LoRA = models.LoRA()) -> Shape:
    """A model's shape: a published one, or that of its files.

    Raises:
      ValueError: as `jopd.models.load.open_model`.
    """
    if source not in KNOWN:
        opened = open_model(source, compute=compute, lora=lora)
        return Shape(
            opened.graph, opened.abstract, opened.architecture, opened.stop_tokens, opened.pad_id
        )
    return Shape(*models.abstract(KNOWN[source], compute, lora), KNOWN[source], _STOPS, _STOPS[0])


def of(config: Config, mesh: Mesh) -> Shapes:
    """The run that a config asks for on a mesh of any devices.

    Raises:
      ValueError: as `shape_of` and `with_kernels`.
    """
    config = with_kernels(config, mesh.devices.flat[0].platform)
    method, lora = config.objective, config.student.lora
    student = shape_of(config.student.model, config.student.compute, lora)
    teacher = None
    if config.teacher.model == "self":
        kept = models.LoRA() if method.teacher_update == "frozen" else lora
        teacher = shape_of(config.student.model, config.teacher.compute, kept)
    elif config.teacher.model != "none":
        teacher = shape_of(config.teacher.model, config.teacher.compute)
    views = method.views
    if teacher is not None and not {*views} - {INITIAL}:
        views = ("teacher", *views)
    vocabulary = min(it.architecture.vocabulary_size for it in (student, teacher) if it)
    # What a program is made of is what both kinds of model have.
    readers = Readers(cast(Any, student), cast(Any, teacher), views, vocabulary)
    transform = optimizer.make(
        config.optimizer, config.steps * method.updates, method.modules_learning_rate
    )
    program = make_program(config, readers, teacher and teacher.graph, transform)

    def placed(tree, dtype=None):
        shardings = parameter_shardings(mesh, tree)
        return jax.tree.map(
            lambda x, s: jax.ShapeDtypeStruct(x.shape, dtype or x.dtype, sharding=s),
            tree,
            shardings,
        )

    whole = NamedSharding(mesh, PartitionSpec())
    everywhere = lambda tree: jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=whole), tree
    )
    again = lambda tree: jax.tree.map(copy.copy, tree)  # arrays of its own
    params = placed(student.abstract, jnp.float32)
    trained, base = separate(params, LORA) if lora.rank else (params, {})
    frozen: dict = {}
    if teacher is not None and method.teacher_update == "frozen":
        frozen = base or placed(teacher.abstract, jnp.dtype(config.teacher.dtype))
    modules = jax.eval_shape(
        lambda: method.init_modules(student.architecture.width, jax.random.key(0))
    )
    modules = everywhere(modules)
    moments = jax.eval_shape(transform.init, {"student": trained, "modules": modules})

    def scalar(shape: tuple[int, ...], dtype) -> Any:
        return jax.ShapeDtypeStruct(shape, dtype, sharding=whole)

    state = TrainState(
        params=trained,
        modules=modules,
        optimizer=placed(moments),
        ema_teacher=again(trained) if method.teacher_update == "ema" else {},
        method=everywhere(jax.eval_shape(method.init_state)),
        step=scalar((), jnp.int32),
        key=scalar((2,), jnp.uint32),
    )
    initial = params if INITIAL in method.views and not lora.rank else {}
    if initial and frozen and config.teacher.model == "self" and config.teacher.dtype == "float32":
        initial = frozen  # the same arrays
    width = -(-config.rollout.max_prompt_tokens // WIDTH_MULTIPLE) * WIDTH_MULTIPLE
    of_rows = lambda shape, dtype: by_row(mesh, jax.ShapeDtypeStruct(shape, dtype))
    prompts = (config.prompts, width)
    contexts = {
        view: Context(of_rows(prompts, jnp.int32), of_rows(prompts, jnp.bool_))
        for view in dict.fromkeys(("student", *views))
    }
    return Shapes(
        config,
        mesh,
        program,
        student.architecture,
        teacher and teacher.architecture,
        state,
        Fixed(base, frozen, initial),
        contexts,
        of_rows((config.rows,), jnp.int32),
        jax.ShapeDtypeStruct((), jax.random.key(0).dtype, sharding=whole),
        jax.tree.map(lambda x: x.sharding, state),
    )


def with_kernels(config: Config, platform: str) -> Config:
    """The run with the attention that it would have on a platform.

    Raises:
      ValueError: a kernel by name that can't run there.
    """
    for role in (config.student, config.teacher):
        check_kernel(role.compute, platform)
    on_it = lambda role: dataclasses.replace(role, compute=chosen(role.compute, platform))
    teacher = config.teacher if config.teacher.model == "none" else on_it(config.teacher)
    return dataclasses.replace(config, student=on_it(config.student), teacher=teacher)


def by_row(mesh: Mesh, tree):
    """A tree of shapes `[rows, ...]`, split as a batch is."""

    def place(x):
        axes = ("batch",) + (None,) * (x.ndim - 1)
        sharding = NamedSharding(mesh, spec(mesh, x.shape, axes))
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)

    return jax.tree.map(place, tree)


def bytes_a_device(*trees) -> int:
    """What the arrays of some trees take on one device, each array once."""
    leaves = {id(x): x for tree in trees for x in jax.tree.leaves(tree)}
    return sum(
        math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in leaves.values()
    )


def prompts_of(shapes: Shapes, count: int) -> tuple[Context, Any]:
    """So many prompts under one view, and the ids of their completions."""
    of_rows = lambda shape, dtype: by_row(shapes.mesh, jax.ShapeDtypeStruct(shape, dtype))
    shape = (count, shapes.contexts["student"].tokens.shape[1])
    context = Context(of_rows(shape, jnp.int32), of_rows(shape, jnp.bool_))
    return context, of_rows((count,), jnp.int32)


def batch_of(shapes: Shapes) -> Batch:
    """A written batch, as the later phases get it."""
    config, method = shapes.config, shapes.program.method
    of_rows = lambda width, dtype: by_row(
        shapes.mesh, jax.ShapeDtypeStruct((config.rows, width), dtype)
    )
    length = config.rollout.max_new_tokens
    inputs = {
        name: of_rows(length if name == "behaviour_logp" else 1, jnp.float32)
        for name in method.inputs
    }
    tokens, mask = of_rows(length, jnp.int32), of_rows(length, jnp.bool_)
    return Batch(shapes.contexts, tokens, mask, inputs)
