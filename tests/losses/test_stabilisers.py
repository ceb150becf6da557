import copy
import dataclasses
import math
from typing import ClassVar

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jopd import losses
from jopd.losses.chunked import chunked_terms
from jopd.losses.g_opd import GOPD
from jopd.losses.method import Loss, Method
from jopd.losses.opd import OPD
from jopd.losses.stabilisers import Stabilised, Stabilisers, stabilised
from jopd.losses.stages import whole_batch_counts
from tests.losses.one_token import at
from tests.losses.problem import (
    BATCH,
    LENGTH,
    REGISTERED,
    VOCABULARY,
    logits_of,
    loss_of,
    plain_loss,
    prepared,
    problem,
)
from tests.reference.divergences import reverse_kl_gradient

EVERYTHING = Stabilisers(
    mask_tokens=(3, 5),
    position_half_life=4.0,
    teacher_entropy_below=4.8,
    teacher_entropy_above=2.0,
    kl_to_initial=0.5,
)

# By hand: pi = (1/4, 3/4); the forward KL to q is log(4/3)/2 where q is even, whose entropy is log
# 2, and 0 where q = pi, whose entropy is .562.
PI, EVEN = [0.25, 0.75], [0.5, 0.5]
FORWARD_KL = math.log(4 / 3) / 2
KL_TO_EVEN = math.log(1 / 2) / 4 + math.log(3 / 2) * 3 / 4


def by_hand(
    stabilisers, teacher=(EVEN, PI, EVEN), initial=EVEN, tokens=(0, 1, 1), method=None, **inputs
):
    method = stabilised(method or OPD(divergence="forward_kl"), stabilisers)
    views = {"teacher": teacher, "initial": [initial] * 3}
    return at(
        method, [PI] * 3, {view: views[view] for view in method.views}, list(tokens), **inputs
    )


@pytest.mark.parametrize("method", REGISTERED, ids=repr)
def test_off_is_the_method_itself(method):
    assert stabilised(method, Stabilisers()) is method


@pytest.mark.parametrize("method", REGISTERED, ids=repr)
def test_a_token_of_weight_0_is_silent(method):
    """Whoever weights tokens, in whatever method: those of weight 0 give no gradient, and the
    others do if ever they did.
    """
    batch = problem(method)
    views = {view: logits_of(scored) for view, scored in batch.teachers.items()}
    loss = lambda z, weight: plain_loss(method, z, views, batch, weight=weight)
    gradient_of = jax.jit(jax.grad(loss))
    taught = np.asarray(gradient_of(logits_of(batch.student), jnp.ones((BATCH, LENGTH)))).any(
        axis=-1
    )
    assert taught.any()

    @given(st.lists(st.booleans(), min_size=BATCH * LENGTH, max_size=BATCH * LENGTH))
    def holds(weight):
        weight = np.array(weight, np.float32).reshape(BATCH, LENGTH)
        gradient = gradient_of(logits_of(batch.student), jnp.asarray(weight))
        np.testing.assert_array_equal(np.asarray(gradient).any(axis=-1), taught & (weight > 0))

    holds()


@pytest.mark.parametrize("name", ["sft", "opd", "opd_pg"])
def test_masked_tokens_are_tokens_of_weight_0(name):
    method, masked = losses.get(name), (7, 11, 13)
    batch = problem(method)
    batch = batch._replace(tokens=batch.tokens % 16)  # so that there are some
    views = {view: logits_of(scored) for view, scored in batch.teachers.items()}
    silent = np.isin(batch.tokens, masked)
    assert (silent & np.asarray(batch.mask)).any()
    steadied = lambda z: plain_loss(
        stabilised(method, Stabilisers(mask_tokens=masked)), z, views, batch
    )
    weighted = lambda z: plain_loss(
        method, z, views, batch, weight=jnp.asarray(~silent, jnp.float32)
    )
    found, expected = (
        jax.jit(jax.value_and_grad(loss))(logits_of(batch.student)) for loss in (steadied, weighted)
    )
    chex.assert_trees_all_equal(found, expected)
    assert not np.asarray(found[1])[silent].any()


def test_a_masked_token_leaves_sum_and_count():
    value, gradient, metrics = by_hand(Stabilisers(mask_tokens=(0,)))
    np.testing.assert_allclose(
        value, FORWARD_KL / 2, rtol=1e-5
    )  # the second is 0, the third counts
    np.testing.assert_allclose(gradient, np.array([[0, 0], [0, 0], [-1, 1]]) / 8, atol=1e-6)
    np.testing.assert_allclose(metrics["kept_share"], 2 / 3, rtol=1e-6)


def test_a_later_token_counts_less():
    value, gradient, metrics = by_hand(Stabilisers(position_half_life=1.0))  # 1, 1/2, 1/4
    np.testing.assert_allclose(value, FORWARD_KL * 1.25 / 1.75, rtol=1e-5)
    np.testing.assert_allclose(gradient[:, 1], np.array([1, 0, 1 / 4]) / 4 / 1.75, atol=1e-6)
    np.testing.assert_allclose(metrics["kept_share"], 1.75 / 3, rtol=1e-6)


def test_weights_multiply():
    steady = Stabilisers(mask_tokens=(0,), position_half_life=2.0)
    value, _, metrics = by_hand(steady, (EVEN, EVEN, PI), weight=[1.0, 3.0, 4.0])
    second, third = 3 / math.sqrt(2), 4 / 2
    np.testing.assert_allclose(value, FORWARD_KL * second / (second + third), rtol=1e-5)
    np.testing.assert_allclose(metrics["kept_share"], (1 / math.sqrt(2) + 1 / 2) / 3, rtol=1e-6)


@pytest.mark.parametrize(
    "bounds, kept",
    [
        ({"below": 0.6}, 1),
        ({"above": 0.6}, 2),
        ({"above": 0.6, "below": 0.7}, 2),
        ({"above": 0.57, "below": 0.6}, 0),
    ],
)
def test_the_teachers_entropy_decides_what_counts(bounds, kept):
    steady = Stabilisers(**{f"teacher_entropy_{side}": bound for side, bound in bounds.items()})
    value, gradient, metrics = by_hand(steady)
    np.testing.assert_allclose(value, FORWARD_KL if kept == 2 else 0, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(metrics["kept_share"], kept / 3, rtol=1e-6)
    np.testing.assert_allclose(gradient[:, 1], np.array([1, 0, 1]) * (kept == 2) / 8, atol=1e-6)


def test_what_counts_is_known_before_there_are_logits():
    method = stabilised(losses.get("opd"), Stabilisers(teacher_entropy_below=0.6))
    logits = jnp.log(jnp.asarray([[EVEN, PI, PI]]))
    mask = jnp.asarray([[True, True, False]])
    scored = method.scoring().token_terms(logits, {"teacher": logits}, jnp.zeros((1, 3), int), {})
    counts = whole_batch_counts(method, mask, method.prepare(scored, mask, {}))
    assert counts == {"divergence": 1}


def test_the_pull_to_the_initial_model():
    plain, pulled = by_hand(Stabilisers()), by_hand(Stabilisers(kl_to_initial=0.5))
    np.testing.assert_allclose(pulled[0], plain[0] + KL_TO_EVEN / 2, rtol=1e-5)
    pull = reverse_kl_gradient(np.array(PI), np.array(EVEN)) / 2 / 3
    np.testing.assert_allclose(pulled[1], plain[1] + np.array([pull] * 3), atol=1e-6)
    np.testing.assert_allclose(pulled[2]["kl_to_initial"], KL_TO_EVEN, rtol=1e-5)


def test_the_pull_holds_where_the_gates_are_shut_but_not_where_the_caller_silences():
    shut = by_hand(Stabilisers(mask_tokens=(0, 1), kl_to_initial=1.0), weight=[1.0, 0.0, 1.0])
    np.testing.assert_allclose(shut[0], KL_TO_EVEN, rtol=1e-5)
    pull = reverse_kl_gradient(np.array(PI), np.array(EVEN)) / 2
    np.testing.assert_allclose(shut[1], [pull, [0, 0], pull], atol=1e-6)


def test_the_initial_model_is_read_once():
    method = stabilised(GOPD(scale=2.0), Stabilisers(kl_to_initial=1.0))
    assert method.views == ("teacher", "initial")
    found = by_hand(Stabilisers(kl_to_initial=1.0), (PI, PI, PI), PI, method=GOPD())
    np.testing.assert_allclose(found[0], 0, atol=1e-6)
    np.testing.assert_allclose(found[1], 0, atol=1e-7)


def test_chunks_and_micro_batches_give_the_same():
    method = stabilised(GOPD(), EVERYTHING)
    whole = problem(method)
    given = jax.jit(lambda batch: prepared(method, batch.student, batch, chunk=2))(whole)
    counts = whole_batch_counts(method, given.mask, given.inputs, given.extras)
    views = {view: logits_of(scored) for view, scored in whole.teachers.items()}
    expected = jax.jit(lambda z: plain_loss(method, z, views, whole))(logits_of(whole.student))
    gate = np.asarray(given.inputs["stabiliser_gate"])[np.asarray(whole.mask)]
    assert 0 < gate.sum() < gate.size
    take = lambda tree, part: jax.tree.map(lambda x: x[part], tree)
    rows = lambda scored, part: scored._replace(hidden=take(scored.hidden, part))
    share = jax.jit(lambda micro: loss_of(method, micro.student, micro, chunk=4, counts=counts))
    total = 0.0
    for part in (slice(0, 2), slice(2, 4)):
        micro = given._replace(
            student=rows(given.student, part),
            teachers={view: rows(scored, part) for view, scored in given.teachers.items()},
            **take({"tokens": given.tokens, "mask": given.mask, "inputs": given.inputs}, part),
        )
        total += share(micro)
    np.testing.assert_allclose(total, expected, atol=1e-5)


def test_masking_tokens_costs_no_forward_pass():
    """The scoring pass needs no logits then, and nobody makes them."""

    def operations(stabilisers):
        method = stabilised(losses.get("opd"), stabilisers)
        stage, given = method.scoring(), problem(method)

        def score(weights):
            student = given.student._replace(hidden=jnp.tanh(given.student.hidden @ weights))
            rest = (given.teachers, given.tokens, given.mask, given.extras)
            return chunked_terms(stage, student, *rest, chunk=3, vocabulary=VOCABULARY)

        return jax.jit(score).lower(jnp.ones((8, 8))).compile().cost_analysis()["flops"]

    assert operations(Stabilisers(mask_tokens=(1, 2))) < 0.01 * operations(
        Stabilisers(teacher_entropy_below=1.0)
    )


@dataclasses.dataclass(frozen=True)
class Elaborate(Method):
    """A method that has everything a method may have, and more."""

    name = "elaborate"
    source = "nowhere"
    views = ("privileged", "plain")
    extras = ("ids",)
    inputs = ("reward",)
    module_inputs = ("values",)
    why_not_zero = "because"
    on_policy_share = 0.5
    updates = 3
    teacher_update = "ema"
    guided_share = 0.25
    guided_writer = "teacher"
    modules_learning_rate = 0.5
    near_future = losses.get("topd")
    seen: ClassVar[list] = []

    @property
    def streams(self):
        return {"windows": losses.get("sft")}

    def init_modules(self, width, key):
        return {"head": jnp.zeros(width)}

    def apply_modules(self, modules, hidden, mask):
        return {"values": hidden[:, :-1].sum(axis=-1)}

    def init_state(self):
        return {"threshold": jnp.zeros(())}

    def token_terms(self, student_logits, teacher_logits, tokens, extras):
        self.seen.append(tuple(teacher_logits))
        return {"loss": student_logits.sum(axis=-1)}

    def scoring(self):
        return self

    def prepare(self, terms, mask, inputs):
        self.seen.append(tuple(terms))
        return {"weight": 2 * jnp.ones(mask.shape)}

    def reduce(self, terms, mask, inputs):
        self.seen.append(tuple(terms))
        return {
            "loss": losses.LossTerm(1.0, *losses.base.token_mean(terms["loss"], mask, inputs))
        }, {}

    def variables(self):
        return losses.Variables("a", "b", "c", "d", "none", "f")


def test_everything_else_is_the_methods_own():
    method, steady = Elaborate(), stabilised(Elaborate(), EVERYTHING)
    for name in {**Loss.__annotations__, **Method.__annotations__}.keys() - {"views", "ordered"} | {
        "streams",
        "completions",
        "near_future",
    }:
        assert getattr(steady, name) == getattr(method, name), name
    # Whatever a method may have is passed on or dealt with, also what is added to the contract
    # later.
    missing = {name for name in dir(Method) if not name.startswith("_")} - vars(Stabilised).keys()
    # What is computed of the others, and what is read off the class before there is a run.
    computed = {"completions", "vanishes_at_teacher", "scorings", "teacher_share"}
    assert missing == computed | {"run_defaults", "identity_settings"}
    assert steady.views == ("privileged", "plain", "initial")
    mask = jnp.ones((1, 3), bool)
    made = steady.apply_modules({}, jnp.ones((1, 4, 2)), mask)
    np.testing.assert_array_equal(made["values"], np.full((1, 3), 2))
    np.testing.assert_array_equal(steady.init_modules(4, jax.random.key(0))["head"], np.zeros(4))
    assert steady.init_state().keys() == {"threshold"}
    assert steady == copy.deepcopy(steady) and hash(steady) == hash(
        stabilised(Elaborate(), EVERYTHING)
    )


def test_the_methods_own_scoring_and_weight_are_kept():
    method = Elaborate()
    method.seen.clear()
    steady = stabilised(method, dataclasses.replace(EVERYTHING, position_half_life=None))
    logits = jnp.zeros((1, 2, 4))
    views, mask = dict.fromkeys(steady.views, logits), jnp.ones((1, 2), bool)
    scored = steady.scoring().token_terms(logits, views, jnp.asarray([[3, 1]]), {})
    inputs = steady.prepare(scored, mask, {})
    assert inputs["weight"].tolist() == [[2, 2]] and inputs["stabiliser_gate"].tolist() == [[0, 0]]
    assert stabilised(method, Stabilisers(position_half_life=1.0)).scoring() == method
    inputs["stabiliser_gate"] = jnp.asarray([[1.0, 0.0]])
    terms = steady.token_terms(logits, views, jnp.asarray([[3, 1]]), {})
    summands, metrics = losses.time_stage(steady, terms, mask, inputs)
    assert summands["loss"].count == 2 and summands["stabiliser_kl"].coefficient == 0.5
    assert metrics.keys() == {"kept_share", "kl_to_initial"}
    # The method sees its own views and its own terms alone.
    assert method.seen == [("privileged", "plain"), ("loss",), ("privileged", "plain"), ("loss",)]


def test_describes_itself():
    own = losses.get("opd_pg", log_ratio_clip=5.0)
    words = stabilised(own, EVERYTHING).variables()
    assert words.gates == (
        "log-ratio clip 5, 2 special tokens masked, teacher entropy below 4.8, teacher entropy "
        "above 2, weight halved every 4 tokens"
    )
    assert words.regularisation == "0.5 × KL to the initial model"
    assert words[:4] == own.variables()[:4]
    assert stabilised(losses.get("opd"), Stabilisers(kl_to_initial=1.0)).variables().gates == "none"


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"mask_tokens": (2, -1)}, r"mask_tokens=\(2, -1\) must be token ids"),
        ({"position_half_life": 0.0}, "position_half_life=0.0 must be positive, in tokens"),
        ({"teacher_entropy_above": -1.0}, "teacher_entropy_above=-1.0 must not be negative"),
        (
            {"teacher_entropy_below": 0.0},
            "teacher_entropy_below=0.0 .* keeps no token: set .* above 0",
        ),
        (
            {"teacher_entropy_below": 1.0, "teacher_entropy_above": 2.0},
            "keeps no token: set teacher_entropy_below above 2.0",
        ),
        ({"kl_to_initial": -0.1}, "kl_to_initial=-0.1 must not be negative"),
    ],
)
def test_bad_settings_are_refused_with_the_cure(settings, message):
    with pytest.raises(ValueError, match=message):
        Stabilisers(**settings)


def test_an_entropy_gate_needs_a_teacher():
    with pytest.raises(ValueError, match="method sft has no teacher whose entropy"):
        stabilised(losses.get("sft"), Stabilisers(teacher_entropy_below=1.0))
