"""From a config to everything a run needs, checked before anything is compiled."""

import warnings
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import Mesh

import jopd
from jopd import models
from jopd.config import Config
from jopd.data import sources
from jopd.data.batching import Batches
from jopd.data.example import Example
from jopd.data.views import remarks as view_remarks
from jopd.diagnostics.tokens import Diagnostics
from jopd.losses.method import INITIAL
from jopd.models.attention import check_kernel
from jopd.models.load import Loaded, Opened, open_model, read, require_same_tokenizer
from jopd.models.sharding import parameter_shardings
from jopd.rollout.settings import Decoding
from jopd.training import mesh as meshes
from jopd.training import optimizer, processes
from jopd.training.checkpoint import check_facts
from jopd.training.fit import check_answers, check_divides, evaluation_batch, split_remarks
from jopd.training.folder import home_of
from jopd.training.home import Disk
from jopd.training.hub import check_login
from jopd.training.program import Program
from jopd.training.state import LORA, MODULES, Fixed, Params, TrainState, real_copy, separate
from jopd.training.trackers import check_installed


class Run(NamedTuple):
    """A run that is ready to start.

    Attributes:
      facts: what a resumed run must agree with.
    """

    name: str
    config: Config
    home: Disk
    mesh: Mesh
    program: Program
    student: Loaded
    teacher: Loaded | None
    train: Batches
    held_out: Batches
    fixed: Fixed
    state: TrainState
    shardings: TrainState
    facts: dict[str, Any]


class Readers(NamedTuple):
    """The models of a run, before their weights are read.

    Attributes:
      teacher: for a self-teacher the student.
      views: the teacher's, those of the method and, without any, the plain one that evaluations
        measure; empty without a teacher.
      vocabulary: entries that student and teacher share.
    """

    student: Opened
    teacher: Opened | None
    views: tuple[str, ...]
    vocabulary: int


class Models(NamedTuple):
    """Student and teacher of a run, loaded."""

    student: Loaded
    teacher: Loaded | None


def prepare(name: str, config: Config, home: Disk | None = None) -> Run:
    """Loads data and models and builds the state of step 0.

    Args:
      home: of the run, where it has been decided; see `jopd.training.folder.home_of`.

    Raises:
      ValueError: anything in the config, the data or the models that does not fit together.
    """
    home = home or home_of(name, config)
    processes.decided(check_installed, config.tracking)
    processes.decided(check_login, config.hub)
    mesh = meshes.make_mesh(config.mesh)
    check_divides(config, mesh)
    examples = {split: sources.load(config.data, split) for split in ("train", "held_out")}
    check_answers(config, examples["train"])
    readers, method = open_models(config), config.objective
    for role, model in (("student", readers.student), ("teacher", readers.teacher)):
        for remark in split_remarks(role, model.architecture, mesh) if model else ():
            warnings.warn(remark, stacklevel=2)
    train = make_batches(
        config,
        readers,
        examples["train"],
        config.prompts,
        mesh,
        seed=config.seed,
        references=method.completions != "student",
        max_completion_tokens=config.rollout.max_new_tokens,
    )
    at_once = evaluation_batch(config.evaluation.batch, config.micro_batches, mesh)
    held_out = make_batches(config, readers, examples["held_out"], at_once, mesh)
    facts: dict[str, Any] = {
        "jopd": jopd.__version__,
        "stop_tokens": list(readers.student.stop_tokens),
    }
    facts |= {"student": readers.student.source, "student_fingerprint": readers.student.fingerprint}
    if readers.teacher is not None:
        facts |= {
            "teacher": config.teacher.model,
            "teacher_fingerprint": readers.teacher.fingerprint,
        }
    facts |= {"train_fingerprint": train.fingerprint, "held_out_fingerprint": held_out.fingerprint}
    processes.agree("data or models", facts)
    processes.decided(check_facts, home.checkpoints, facts)
    student, teacher = read_models(config, readers, mesh)

    trained, base = (
        separate(student.params, LORA) if config.student.lora.rank else (student.params, {})
    )
    frozen = teacher.params if teacher is not None and method.teacher_update == "frozen" else {}
    transform = optimizer.make(
        config.optimizer, config.steps * method.updates, method.modules_learning_rate
    )
    state, shardings = initial_state(trained, transform, mesh, config, student.architecture.width)
    program = make_program(config, readers, teacher and teacher.graph, transform)
    return Run(
        name,
        config,
        home,
        mesh,
        program,
        student,
        teacher,
        train,
        held_out,
        Fixed(base, frozen, initial_student(config, readers.student, teacher, mesh)),
        state,
        shardings,
        facts,
    )


def open_models(config: Config) -> Readers:
    """Finds student and teacher and checks that they fit each other, the machine, and what is asked
    of them.
    """
    for role in (config.student, config.teacher):
        check_kernel(role.compute, jax.default_backend())
    student = open_model(
        config.student.model, compute=config.student.compute, lora=config.student.lora
    )
    if config.teacher.model == "none":
        teacher = None
    elif config.teacher.model == "self":
        teacher = student
    else:
        teacher = open_model(config.teacher.model, compute=config.teacher.compute)
    vocabulary = (
        student.architecture.vocabulary_size
        if teacher is None
        else require_same_tokenizer(student, teacher)
    )
    if (
        config.objective.one_model
        and teacher is not None
        and teacher.fingerprint != student.fingerprint
    ):
        raise ValueError(
            f"method {config.method.name} needs one model as student and teacher, under two "
            f"contexts, but student.model={config.student.model} and "
            f"teacher.model={config.teacher.model} are different weights: set --teacher.model self"
        )
    if not student.stop_tokens:
        raise ValueError(
            f"student.model={student.source} names no stop token: set eos_token_id in its "
            "generation_config.json"
        )
    room = config.rollout.max_prompt_tokens + config.rollout.max_new_tokens
    windows = ""
    if (near_future := config.method.near_future) is not None:
        room += near_future.window_tokens
        windows = " + method.window_tokens"
    for role, model in (("student", student), ("teacher", teacher)):
        if model is not None and room > model.architecture.max_positions:
            raise ValueError(
                f"rollout.max_prompt_tokens + max_new_tokens{windows} = {room} is more than the "
                f"{model.architecture.max_positions} positions of the "
                f"{role} {model.source}: lower one of them"
            )
    if unknown := [token for token in config.stabilise.mask_tokens if token >= vocabulary]:
        raise ValueError(
            f"stabilise.mask_tokens={unknown} are no tokens of a vocabulary of {vocabulary}: take "
            "them out"
        )
    views = config.objective.views
    if teacher is not None and not {*views} - {INITIAL}:
        views = ("teacher", *views)
    for remark in view_remarks(student.tokenizer, views, config.view):
        warnings.warn(remark, stacklevel=2)
    return Readers(student, teacher, views, vocabulary)


def read_models(config: Config, readers: Readers, mesh: Mesh) -> Models:
    """Reads the weights. A self-teacher that is not a frozen whole model shares the student's
    parameters.
    """
    student = read(readers.student, dtype="float32", mesh=mesh, seed=config.seed)
    if readers.teacher is None:
        return Models(student, None)
    if config.teacher.model != "self":
        return Models(student, read(readers.teacher, dtype=config.teacher.dtype, mesh=mesh))
    frozen, lora = config.objective.teacher_update == "frozen", config.student.lora
    if frozen and not lora.rank:
        whole = open_model(student.source, compute=config.teacher.compute)
        return Models(student, read(whole, dtype=config.teacher.dtype, mesh=mesh))
    # The same arrays, read twice; a frozen teacher is the base without the adapters.
    graph, _ = models.abstract(
        student.architecture, config.teacher.compute, models.LoRA() if frozen else lora
    )
    params = separate(student.params, LORA)[1] if frozen else student.params
    return Models(student, student._replace(graph=graph, params=params))


def make_batches(
    config: Config,
    readers: Readers,
    examples: Sequence[Example],
    prompts_per_step: int,
    mesh: Mesh,
    **settings,
) -> Batches:
    """Batches of every view that is read; see `jopd.data.batching`."""
    return Batches(
        examples,
        readers.student.tokenizer,
        readers.views,
        prompts_per_step=prompts_per_step,
        pad_id=readers.student.pad_id,
        max_prompt_tokens=config.rollout.max_prompt_tokens,
        config=config.view,
        fed=meshes.rows_fed(mesh, prompts_per_step),
        pooled=processes.pooled,
        **settings,
    )


def make_program(
    config: Config,
    readers: Readers,
    teacher: nnx.GraphDef | None,
    transform: optax.GradientTransformation,
) -> Program:
    student = readers.student
    watched = [view for view in config.objective.views if view != INITIAL]
    return Program(
        method=config.objective,
        student=student.graph,
        teacher=student.graph if teacher is None else teacher,
        initial=models.abstract(student.architecture, config.student.compute, models.LoRA())[0],
        width=student.architecture.width,
        views=readers.views,
        ema_rate=config.teacher.ema_rate,
        optimizer=transform,
        decoding=Decoding(
            config.rollout.max_new_tokens,
            student.stop_tokens,
            student.pad_id,
            readers.vocabulary,
            config.rollout.sampling,
        ),
        micro_batches=config.micro_batches,
        chunk_tokens=config.chunk_tokens,
        tiled=config.vocabulary_stage == "auto",
        diagnostics=Diagnostics(watched[0], student.stop_tokens) if watched else None,
    )


def initial_student(config: Config, student: Opened, teacher: Loaded | None, mesh: Mesh) -> Params:
    """The parameters that the view "initial" is read with, where a method has it and the base under
    adapters is not it.
    """
    if INITIAL not in config.objective.views or config.student.lora.rank:
        return {}
    frozen_self = config.teacher.model == "self" and config.objective.teacher_update == "frozen"
    if frozen_self and teacher is not None and config.teacher.dtype == "float32":
        return teacher.params
    # Read again, not copied: a resumed run begins from here too.
    return read(student, dtype="float32", mesh=mesh).params


def initial_state(
    trained, transform, mesh: Mesh, config: Config, width: int
) -> tuple[TrainState, TrainState]:
    """The state of step 0 and where each of its leaves lives; `width` is that of the student's
    hidden states.
    """
    method, key = config.objective, jax.random.key(config.seed)
    put = lambda tree: jax.tree.map(lambda x: jax.device_put(x, meshes.replicated(mesh)), tree)
    modules = put(method.init_modules(width, jax.random.fold_in(key, MODULES)))
    both = {"student": trained, "modules": modules}
    shapes = jax.eval_shape(transform.init, both)
    moments = jax.jit(transform.init, out_shardings=parameter_shardings(mesh, shapes))(both)
    ema = real_copy(trained) if method.teacher_update == "ema" else {}
    state = TrainState(
        params=trained,
        modules=modules,
        optimizer=moments,
        ema_teacher=ema,
        method=put(method.init_state()),
        step=put(jnp.zeros((), jnp.int32)),
        key=put(jax.random.key_data(key)),
    )
    return state, jax.tree.map(lambda x: x.sharding, state)
