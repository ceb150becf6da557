"""Shapes, types and finite numbers of everything that is public in `jopd.losses`, with and without
jit; and that every function of it has an example.
"""

import importlib
import inspect
import pkgutil

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl.testing import parameterized

from jopd import losses
from jopd.losses import ar_opd, cr_opd, credit, divergences, edge_opd, opd_plus, rlsd, topd
from jopd.losses import vocabulary as along_vocabulary
from tests.losses.problem import METHODS, VOCABULARY, logits_of, problem, short

B, T, V, K, D = 3, 4, 7, 5, 2
DRAW = np.random.default_rng(0)
TOKENS = jnp.asarray(DRAW.integers(V, size=(B, T)), jnp.int32)
MASK = jnp.arange(T)[None] < jnp.asarray([[4], [1], [0]])


def numbers(*shape):
    return jnp.asarray(DRAW.normal(size=shape), jnp.float32)


def logp(*shape):
    return jax.nn.log_softmax(numbers(*shape))


PI, Q, TAKEN, TAUGHT = logp(B, T, V), logp(B, T, V), -jnp.exp(numbers(B, T)), numbers(B, T)
WINDOW = jnp.ones((B, K), bool)

# Name: function of arrays, arrays, shapes of what comes out in float32.
FUNCTIONS = {
    "forward_kl": (divergences.forward_kl, (PI, Q), (B, T)),
    "forward_kl, top 3": (lambda p, q: divergences.forward_kl(p, q, k=3), (PI, Q), (B, T)),
    "reverse_kl": (divergences.reverse_kl, (PI, Q), (B, T)),
    "jensen_shannon": (lambda p, q: divergences.jensen_shannon(p, q, beta=0.3), (PI, Q), (B, T)),
    "total_variation": (divergences.total_variation, (PI, Q), (B, T)),
    "k1": (divergences.k1, (TAKEN, TAUGHT), (B, T)),
    "k2": (divergences.k2, (TAKEN, TAUGHT), (B, T)),
    "k3": (divergences.k3, (TAKEN, TAUGHT), (B, T)),
    "kl_entries": (divergences.kl_entries, (PI, Q), (B, T, V)),
    "entropy": (divergences.entropy, (PI,), (B, T)),
    "comparison": (
        divergences.comparison,
        (PI, Q),
        dict.fromkeys(("kl", "student_entropy", "teacher_entropy", "top1_agreement"), (B, T)),
    ),
    "immediate": (lambda r: credit.immediate(r, MASK), (TAUGHT,), (B, T)),
    "return_to_go": (lambda r: credit.return_to_go(r, MASK, discount=0.9), (TAUGHT,), (B, T)),
    "td_errors": (lambda r, v: credit.td_errors(r, v, MASK, discount=0.9), (TAUGHT, TAKEN), (B, T)),
    "generalized_advantage": (
        lambda r, v: credit.generalized_advantage(r, v, MASK, discount=0.9, gae_lambda=0.5),
        (TAUGHT, TAKEN),
        (B, T),
    ),
    "group_advantage": (lambda r: credit.group_advantage(r, samples=2), (numbers(4),), (4, 1)),
    "expected_reward": (lambda p, q: credit.expected_reward(p, q, 5.0), (PI, Q), (B, T)),
    "anchored_residual_target": (
        lambda p, q: ar_opd.anchored_residual_target(p, q, scale=0.6, clip=5.0),
        (PI, Q),
        (B, T, V),
    ),
    "evidence": (edge_opd.evidence, (TAKEN, TAUGHT), (B, T)),
    "reweighted_advantage": (
        lambda a, d: rlsd.reweighted_advantage(a, d, mix=0.5, clip=0.2),
        (numbers(B, 1), TAUGHT),
        (B, T),
    ),
    "faithful_advantage": (
        lambda r: opd_plus.faithful_advantage("jensen_shannon", r),
        (TAUGHT,),
        (B, T),
    ),
    "transport": (
        lambda s, t: topd.transport(s, t, WINDOW, WINDOW, epsilon=0.1, iterations=20),
        (numbers(B, K, D), numbers(B, K, D)),
        ((B, K, K), (B,)),
    ),
    "soft_targets": (topd.soft_targets, (jnp.exp(numbers(B, K, K)),), (B, K, K)),
    "routing_distribution": (
        lambda p, q: cr_opd.routing_distribution(p, q, TOKENS)[0],
        (PI, Q),
        (B, T, V),
    ),
    "log_softmax": (lambda z: along_vocabulary.log_softmax(z, 0.7), (PI,), (B, T, V)),
    "log_prob_of": (lambda p: along_vocabulary.log_prob_of(p, TOKENS), (PI,), (B, T)),
    "top_k": (lambda p: along_vocabulary.top_k(p, 3)[0], (PI,), (B, T, 3)),
}


class Functions(chex.TestCase):
    @chex.all_variants(without_device=False, with_pmap=False)
    @parameterized.named_parameters((name, name) for name in FUNCTIONS)
    def test_shape_type_and_finite(self, name):
        function, arrays, shapes = FUNCTIONS[name]
        made = self.variant(function)(*arrays)
        leaves = lambda tree: jax.tree.leaves(
            tree, is_leaf=lambda x: isinstance(x, tuple) and isinstance(x[0], int)
        )
        chex.assert_tree_all_finite(made)
        for array, shape in zip(jax.tree.leaves(made), leaves(shapes), strict=True):
            chex.assert_shape(array, shape)
            chex.assert_type(array, jnp.float32)

    @chex.variants(with_jit=True, without_jit=True)
    def test_masks_are_of_tokens(self):
        region = lambda e: edge_opd.evidence_mask(e, region="positive", threshold=0.1)
        kept = self.variant(region)(TAUGHT)
        best = self.variant(lambda p: along_vocabulary.in_top_k(p, 3))(PI)
        chex.assert_shape([kept, best], [(B, T), (B, T, V)])
        chex.assert_type([kept, best], bool)


@pytest.mark.parametrize("method", METHODS, ids=short)
@pytest.mark.parametrize("jit", [True, False], ids=["with jit", "without jit"])
def test_every_method_gives_finite_scalars(method, jit):
    batch = problem(method)
    teachers = {view: logits_of(scored) for view, scored in batch.teachers.items()}

    def loss(logits):
        return losses.evaluate(
            method,
            logits,
            teachers,
            batch.tokens,
            batch.mask,
            streams={},
            **batch.inputs,
            **batch.extras,
        )

    logits = logits_of(batch.student)
    value_and_gradient = jax.value_and_grad(loss, has_aux=True)
    (value, metrics), gradient = (jax.jit if jit else lambda f: f)(value_and_gradient)(logits)
    chex.assert_tree_all_finite((value, metrics, gradient))
    chex.assert_rank([value, *metrics.values()], 0)
    chex.assert_type([value, *metrics.values(), gradient], jnp.float32)
    chex.assert_shape(gradient, (*batch.tokens.shape, VOCABULARY))


def public_functions():
    for module in pkgutil.iter_modules(losses.__path__, "jopd.losses."):
        for name, it in vars(importlib.import_module(module.name)).items():
            if inspect.isfunction(it) and it.__module__ == module.name and name[0] != "_":
                yield pytest.param(it, id=f"{module.name}.{name}")
    yield from (losses.names, losses.get)


@pytest.mark.parametrize("function", [*public_functions()])
def test_every_public_function_has_an_example(function):
    assert ">>> " in inspect.getdoc(function)
