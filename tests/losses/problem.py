"""A small random batch for any method, and the methods that every property is tested on."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jopd import losses
from jopd.losses.chunked import Scored, chunked_terms

BATCH, LENGTH, WIDTH, VOCABULARY = 4, 9, 8, 160
LENGTHS = (9, 1, 5, 2)

# Every registered method as it comes (top-ks below the size of the groups that the test's
# vocabulary is searched in), and the settings that take another way through the code.
TOP_KS = {"cr_opd": {"teacher_top_k": 5, "student_top_k": 7}, "entropy_opd": {"top_k": 4}}
REGISTERED = [losses.get(name, **TOP_KS.get(name, {})) for name in losses.names()]
UPDATES = losses.get("opd_pg", updates=2, ratio_clip=0.2, log_ratio_clip=1.0)
METHODS = [
    *REGISTERED,
    UPDATES,
    losses.get("opd", divergence="forward_kl", temperature=2.0),
    losses.get("opd", divergence="jensen_shannon", beta=0.1),
    losses.get("opd", divergence="total_variation"),
    losses.get("opd", divergence="k2"),
    losses.get("opd", divergence="k3"),
    losses.get("opd", top_k=3),
    losses.get("opd", divergence="forward_kl", top_k=3, support="student", tail="renormalise"),
    losses.get("opsd", entry_clamp=0.05),
    losses.get("edge_opd", region="all", kl_coefficient=0.1),
    losses.get("rlsd", verifier=False),
    losses.get("gae_opd", critic="kl_split"),
    losses.get("cr_opd", credit="return_to_go", empty_route="abstain"),
    losses.stabilised(
        losses.get("opd"), losses.Stabilisers(teacher_entropy_above=4.0, kl_to_initial=0.1)
    ),
]


# Inputs [B, 1]; the others are per token.
PER_ROW = {
    "truncated": jnp.asarray([[1.0], [0.0], [1.0], [0.0]]),
    "reward": jnp.asarray([[1.0], [0.0], [0.0], [1.0]]),
    "group_advantage": jnp.asarray([[1.0], [-1.0], [-0.5], [0.5]]),
    "step": jnp.full((BATCH, 1), 10.0),
    "bootstrap": jnp.asarray([[-1.0], [0.0], [-2.0], [0.0]]),
}


def short(value) -> str:
    """A method's name and the settings that are not its defaults."""
    if not isinstance(value, losses.Method):
        return str(value)
    settings = {**vars(value)}
    changed = [
        f"{key}={x}"
        for key, x in settings.items()
        if key != "method" and x != getattr(type(value), key, None)
    ]
    return "-".join([value.name, *changed])


class Problem(NamedTuple):
    student: Scored
    teachers: dict[str, Scored]
    tokens: jax.Array
    mask: jax.Array
    inputs: dict[str, jax.Array]
    extras: dict[str, jax.Array]


def problem(method: losses.Method, seed: int = 0) -> Problem:
    draw = np.random.default_rng(seed).normal
    scored = lambda: Scored(
        jnp.asarray(draw(size=(BATCH, LENGTH, WIDTH)), jnp.float32),
        jnp.asarray(draw(size=(WIDTH, VOCABULARY)) / 2, jnp.float32),
    )
    tokens = np.random.default_rng(seed + 1).integers(VOCABULARY, size=(BATCH, LENGTH))
    per_token = lambda names: {
        name: jnp.asarray(-3 + draw(size=(BATCH, LENGTH)), jnp.float32) for name in names
    }
    return Problem(
        student=scored(),
        teachers={view: scored() for view in method.views},
        tokens=jnp.asarray(tokens, jnp.int32),
        mask=jnp.arange(LENGTH)[None, :] < jnp.asarray(LENGTHS)[:, None],
        inputs={
            name: PER_ROW.get(name, values)
            for name, values in per_token(method.inputs + method.module_inputs).items()
        },
        extras=per_token(method.extras),
    )


def prepared(method: losses.Method, student: Scored, rest: Problem, *, chunk: int) -> Problem:
    """With what the method's scoring pass over the whole batch adds to the inputs."""
    if (stage := method.scoring()) is None:
        return rest
    terms = chunked_terms(
        stage,
        student,
        rest.teachers,
        rest.tokens,
        rest.mask,
        rest.extras,
        chunk=chunk,
        vocabulary=VOCABULARY,
    )
    return rest._replace(inputs=rest.inputs | method.prepare(terms, rest.mask, rest.inputs))


def loss_of(method: losses.Method, student: Scored, rest: Problem, *, chunk: int, counts=None):
    """Loss of a prepared batch, or with the whole batch's `counts` the share of a micro-batch,
    through the chunked stage.
    """
    terms = chunked_terms(
        method,
        student,
        rest.teachers,
        rest.tokens,
        rest.mask,
        rest.extras,
        chunk=chunk,
        vocabulary=VOCABULARY,
    )
    return losses.batch_loss(losses.time_stage(method, terms, rest.mask, rest.inputs)[0], counts)


def plain_loss(method: losses.Method, student_logits, teacher_logits, rest: Problem, **more):
    """The same loss of the same batch from its logits [B, T, V], through the entry for plain
    arrays.
    """
    return losses.evaluate(
        method,
        student_logits,
        teacher_logits,
        rest.tokens,
        rest.mask,
        streams={},
        **rest.inputs,
        **rest.extras,
        **more,
    )[0]


def logits_of(scored: Scored) -> jax.Array:
    return scored.hidden @ scored.head


def largest_array(jaxpr) -> int:
    """Size of the largest intermediate of a program, those of its inner programs included."""
    sizes = [0]
    for equation in jaxpr.eqns:
        sizes += [variable.aval.size for variable in equation.outvars]
        for inner in jax.tree.leaves(
            equation.params, is_leaf=lambda p: hasattr(p, "eqns") or hasattr(p, "jaxpr")
        ):
            if hasattr(inner, "eqns") or hasattr(inner, "jaxpr"):
                sizes.append(largest_array(getattr(inner, "jaxpr", inner)))
    return max(sizes)
