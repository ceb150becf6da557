import dataclasses
import functools
import math

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from jopd import losses, models
from jopd.data.batching import left_pad
from jopd.diagnostics.tokens import Comparison, Diagnostics
from jopd.losses.totals import masked_total
from jopd.losses.types import LossTerm, Stage
from jopd.models import Architecture, LoRA, Transformer
from jopd.rollout.settings import Sampling
from jopd.training import batch as batch_module
from jopd.training import score, update, windows
from jopd.training.batch import (
    Batch,
    Context,
    by_length,
    in_rollout,
    parts,
    rearranged,
    whole,
    widths,
)
from jopd.training.state import LORA, Fixed, separate
from tests.losses.test_chunked import largest_array
from tests.reference import transport
from tests.training import problem as problem_module
from tests.training.problem import (
    FORMULAS,
    LENGTH,
    ROWS,
    SAMPLES,
    STUDENT,
    TEACHER,
    VOCABULARY,
    Logp,
    completions,
    expected,
    expected_logits,
    host_batch,
    mesh_of,
    problem,
    prompts,
    random_model,
)

# One of each kind that the trainer treats differently; that the losses themselves are indifferent
# to chunks, micro-batches and devices is tested for all of them in tests/losses.
METHODS = [
    losses.get(name) for name in ("sft", "opd", "opd_pg", "opsd", "edge_opd", "g_opd", "gae_opd")
]
TOPD = losses.get("topd", window_tokens=3, windows=1)
DIVERGENCES = ("reverse_kl", "forward_kl", "jensen_shannon", "total_variation", "k2", "k3")
pytestmark = pytest.mark.usefixtures("quick_compilation")
by_method = pytest.mark.parametrize("method", [*METHODS, TOPD], ids=lambda method: method.name)


def same(found, wanted, atol=2e-6):
    chex.assert_trees_all_close(found, wanted, rtol=5e-5, atol=atol)


def loss_and_gradient(given):
    before, scored = random_model(STUDENT)[1], given.scored()
    placed = jax.tree.map(lambda leaf: leaf.sharding, given.state)
    state, metrics = given.updated(scored)
    assert (
        jax.tree.map(lambda leaf: leaf.sharding, state) == placed
    )  # every leaf stays where the mesh puts it
    assert metrics["finite_rows"].all() and state.step == 1
    # The state is donated and nothing else.
    assert all(
        leaf.is_deleted()
        for leaf in jax.tree.leaves(
            (given.state.params, given.state.optimizer, given.state.ema_teacher)
        )
    )
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves((given.fixed, scored)))
    gradient = jax.tree.map(lambda a, b: a - np.asarray(b), before, state.params)
    norm = math.sqrt(
        sum(float(np.square(leaf, dtype=np.float64).sum()) for leaf in jax.tree.leaves(gradient))
    )
    np.testing.assert_allclose(metrics["gradient_norm"], norm, rtol=1e-4, atol=1e-5)
    return metrics["loss"], gradient


# The same numbers everywhere.


@pytest.mark.parametrize("name", FORMULAS)
def test_expected_numbers_are_those_of_the_formulas(name):
    same(expected(losses.get(name)), expected(losses.get(name), formula=True))


# Chunk, micro-batches and mesh: one way with everything for every method, more for one.
WAY = (7, 4, (1, 2, 2))
MORE_WAYS = [(0, 1, (1, 1, 1)), (1, 4, (1, 1, 1)), (7, 1, (4, 1, 1)), (0, 2, (2, 2, 1))]


@pytest.mark.parametrize(
    "method, chunk, micro_batches, shape",
    [(method, *WAY) for method in METHODS] + [(losses.get("opd"), *way) for way in MORE_WAYS],
    ids=lambda value: getattr(value, "name", None),
)
def test_chunks_micro_batches_and_devices_give_what_whole_logits_give(
    method, chunk, micro_batches, shape
):
    given = problem(method, chunk=chunk, micro_batches=micro_batches, mesh=mesh_of(*shape))
    kernel = given.state.params["layers"]["mlp"]["gate"]["kernel"]
    assert kernel.addressable_shards[0].data.shape == (2, 16 // shape[1], 24 // shape[2])
    # A sum over rows, of sums over tokens, is larger than a mean and so is its rounding.
    same(
        loss_and_gradient(given), expected(method), atol=2e-5 if method.name == "gae_opd" else 2e-6
    )


def test_tiles_and_chunks_of_the_vocabulary_are_one_step():
    """`--vocabulary-stage chunked` in the place of the tiles that opd has by itself."""
    ways = [problem(losses.get("opd"), chunk=7, tiled=tiled) for tiled in (True, False)]
    opd, chunked = losses.get("opd"), losses.get("cr_opd")
    assert ways[0].program.in_tiles(opd) == opd and ways[0].program.in_tiles(chunked) is None
    assert ways[1].program.in_tiles(opd) is None
    for way in ways:
        same(loss_and_gradient(way), expected(opd), atol=2e-6)


def test_parts_and_whole_are_inverse_and_each_part_takes_every_nth_row():
    rows = jnp.arange(24).reshape(12, 2)
    np.testing.assert_array_equal(parts(rows, 3)[1, :, 0] // 2, [1, 4, 7, 10])
    np.testing.assert_array_equal(whole(parts(rows, 3)), rows)
    # Twelve windows of six completions: with its completion goes each.
    np.testing.assert_array_equal(parts(rows, 3, rows=6)[1, :, 0] // 2, [2, 3, 8, 9])


@pytest.mark.parametrize(
    "method",
    [losses.get("gae_opd"), pytest.param(TOPD, marks=pytest.mark.slow)],
    ids=lambda method: method.name,
)
def test_narrow_parts_give_what_wide_ones_give(method, monkeypatch):
    """Four parts, whose longest rows have 9, 3, 9 and 4 tokens, each in the narrowest of three
    widths that holds it.
    """
    scored = problem(method, micro_batches=4).scored()
    wanted, metrics = problem(method, micro_batches=4).updated(scored, watch=True)
    monkeypatch.setattr(problem_module, "_JITTED", {})
    monkeypatch.setattr(batch_module, "widths", lambda length: (length, 5, 3))
    seen = []
    cut = batch_module.cut
    monkeypatch.setattr(batch_module, "cut", lambda it, width: seen.append(width) or cut(it, width))
    given = problem(method, micro_batches=4)
    narrow = given.scored()
    state, found = given.updated(narrow, watch=True)
    assert {*seen} == {9, 5, 3}
    counts = lambda batch: jax.tree.map(
        lambda x: jnp.where(batch.mask[..., None] if x.ndim == 3 else batch.mask, x, 0),
        batch.hidden,
    )
    same(counts(narrow), counts(scored))
    same(state.params, wanted.params, atol=2e-5 if method.name == "gae_opd" else 2e-6)
    same(found, metrics, atol=2e-5)


def test_rows_of_like_lengths_come_together_on_their_own_device():
    lengths = np.array([5, 1, 9, 2, 8, 3, 7, 6, 4, 4, 1, 9])
    with jax.set_mesh(mesh_of(2)):
        mask = jnp.asarray(np.arange(9) < lengths[:, None])
        places = by_length(mask, 3)
        found = rearranged({"lengths": jnp.asarray(lengths)}, places)["lengths"]
    np.testing.assert_array_equal(lengths[in_rollout(np.asarray(places))], found)
    for device, rows in enumerate(np.split(np.asarray(found), 2)):
        np.testing.assert_array_equal(np.sort(rows), np.sort(lengths[6 * device :][:6]))
    np.testing.assert_array_equal(parts(found, 3), [[1, 2, 1, 4], [3, 5, 4, 6], [8, 9, 7, 9]])


def test_only_long_batches_have_narrow_parts():
    assert widths(127) == () and widths(255) == (255,) and widths(256) == (256, 128)
    assert widths(768) == (768, 384, 192) and widths(3072) == (3072, 1536, 768)


def test_windows_grow_out_of_the_completions_and_add_their_loss_on_any_mesh():
    ways = [problem(TOPD), problem(TOPD, chunk=2, micro_batches=2, mesh=mesh_of(1, 2, 2))]
    batches = [given.scored() for given in ways]
    stream, batch = batches[0].streams["windows"], batches[0]
    assert stream.tokens.shape == (ROWS, 3) and stream.extras["target_weights"].shape == (
        ROWS,
        3,
        3,
    )
    # As if every window were really divergent.
    everywhere = np.ones(stream.mask.shape, bool)
    every = lambda b: b._replace(
        streams={"windows": b.streams["windows"]._replace(mask=everywhere)}
    )
    # By hand: each window behind the prompt and what was written before it, alone.
    graph, params = random_model(STUDENT)
    model = models.merge(graph, jax.tree.map(jnp.asarray, params))
    expected = []
    for row in range(ROWS):
        prefix = [
            *prompts("student")[row // SAMPLES],
            *completions()[row][: int(stream.starts[row, 0])],
        ]
        tokens = jnp.asarray([[*prefix, *stream.tokens[row].tolist()]], jnp.int32)
        logp = np.asarray(
            jax.nn.log_softmax(model.logits(model.hidden(tokens, jnp.ones(tokens.shape, bool))))
        )[0]
        ids, weights = (
            np.asarray(stream.extras[name][row]) for name in ("target_ids", "target_weights")
        )
        expected += [-(weights[i] * logp[len(prefix) - 1 + i, ids[i]]).sum() for i in range(3)]
    found = [given.updated(every(b))[1] for given, b in zip(ways, batches, strict=True)]
    np.testing.assert_allclose(found[0]["windows_cross_entropy"], np.mean(expected), rtol=1e-4)
    for name in (
        "loss",
        "loss_divergence",
        "loss_trajectory",
        "gradient_norm",
        "windows_cross_entropy",
    ):
        np.testing.assert_allclose(found[0][name], found[1][name], rtol=1e-4)
    np.testing.assert_allclose(
        found[0]["loss_trajectory"], 0.1 * found[0]["windows_cross_entropy"], rtol=1e-5
    )
    assert found[0]["loss_trajectory"] > 0 and set(batch.inputs) == {"scored_divergence"}


@pytest.mark.slow
def test_windows_are_compared_by_what_the_teacher_has_read():
    """By hand: the teacher's final hidden states of each model's window, behind the prompt and what
    was written before it, alone.
    """
    method = losses.get("topd", window_tokens=3, windows=1, space="hidden_states", epsilon=0.2)
    ways = [problem(method), problem(method, chunk=2, micro_batches=2, mesh=mesh_of(1, 2, 2))]
    streams = [given.scored().streams["windows"] for given in ways]
    same(streams[0].extras, streams[1].extras, atol=1e-4)
    graph, params = random_model(TEACHER, seed=1)
    model = models.merge(graph, jax.tree.map(jnp.asarray, params))

    def read(row: int, window: np.ndarray) -> np.ndarray:
        prompt, start = prompts("teacher")[row // SAMPLES], int(streams[0].starts[row, 0])
        tokens = jnp.asarray([[*prompt, *completions()[row][:start], *window]], jnp.int32)
        hidden = np.asarray(model.hidden(tokens, jnp.ones(tokens.shape, bool)), np.float64)
        return hidden[0, -len(window) :]

    ids, weights = (np.asarray(streams[0].extras[f"target_{it}"]) for it in ("ids", "weights"))
    compared = 0
    for row in range(ROWS):
        # What a stop token cut off has no weight.
        student, teacher = weights[row].any(axis=1), weights[row].any(axis=0)
        if not student.any():
            continue
        states = [
            read(row, np.asarray(window)[on])
            for window, on in ((streams[0].tokens[row], student), (ids[row, 0], teacher))
        ]
        costs = transport.cosine_costs(*states)
        plan = transport.sinkhorn(costs, 0.2, method.iterations)
        expected = plan / plan.sum(axis=1, keepdims=True)
        np.testing.assert_allclose(weights[row][np.ix_(student, teacher)], expected, atol=1e-3)
        compared += len(expected)
    assert compared > ROWS  # more than a token a row


def test_a_watched_update_has_profiles_of_all_its_tokens():
    method = losses.get("cr_opd", teacher_top_k=3, student_top_k=3, reachable=0.5)
    watching = Diagnostics("teacher", (1,), k=4)
    given = problem(method, chunk=2, micro_batches=2, diagnostics=watching)
    _, metrics = given.updated(watch=True)
    found = metrics["diagnostics"]
    # By hand, from the logits of each row run alone.
    student, teacher = (
        jax.nn.log_softmax(expected_logits(role, view).astype(np.float64), axis=-1)
        for role, view in (("student", "student"), ("teacher", "teacher"))
    )
    ratios, candidates, kls = ([[] for _ in range(10)] for _ in range(3))
    for row, written in enumerate(completions()):
        for t, token in enumerate(written):
            place = int(10 * (t + 0.5) / len(written))
            pi, q = np.asarray(student[row, t]), np.asarray(teacher[row, t])
            ratios[place].append(q[token] - pi[token])
            kls[place].append((np.exp(pi) * (pi - q)).sum())
            wanted, likely = (set(np.argsort(-x)[:3]) for x in (q, pi))
            others = [v for v in range(VOCABULARY) if v != token and v in wanted and q[v] > pi[v]]
            if ratios[place][-1] < 0:
                candidates[place].append(sum(v in likely or pi[v] >= np.log(0.5) for v in others))
    means = lambda bins: [np.mean(values) if len(values) else np.nan for values in bins]
    sizes = [np.abs(values) for values in ratios]
    effective = [values.sum() ** 2 / (values**2).sum() if len(values) else 0 for values in sizes]
    close = functools.partial(np.testing.assert_allclose, rtol=1e-3, atol=1e-4)
    close(found["kl_by_position"], means(kls))
    close(found["update_size_by_position"], means(sizes))
    close(found["suppressed_by_position"], means([np.less(values, 0) for values in ratios]))
    close(found["route_candidates_by_position"], means(candidates))
    close(
        found["route_nonempty_by_position"], means([np.greater(values, 0) for values in candidates])
    )
    close(found["effective_sample_size_by_position"], effective)
    close(
        found["log_ratio_quantiles_by_position"][:, 2],
        [np.median(values) if values else np.nan for values in ratios],
    )
    close(found["route_candidates"], np.mean(np.concatenate(candidates)))
    close(found["route_candidates"], metrics["route_candidates"])
    assert np.isfinite(found["route_candidates"]) and 0 < found["suppressed"] < 1


def test_the_methods_own_modules_learn_beside_the_student():
    method = losses.get("gae_opd")
    given = problem(method, chunk=4, micro_batches=2)
    scored = given.scored()
    state, _ = given.updated(scored)
    # By hand: V = 0 at the start, so the error is -R at every token, and R the discounted sum of
    # the rewards.
    again = problem(method, chunk=4, micro_batches=2)
    reward = np.where(
        scored.mask, again.measured(Comparison("teacher"), scored)["log_ratio"], 0
    ).astype(np.float64)
    returns = np.zeros_like(reward)
    for t in reversed(range(LENGTH)):
        returns[:, t] = reward[:, t] + 0.95 * (
            returns[:, t + 1] if t + 1 < LENGTH else 0
        )  # gae_lambda
    # Gradient of c_v / 2 mean (V - R)^2 on the bias, at learning rate 1: the sum of -R over the
    # tokens, halved.
    wanted = 0.5 * np.where(scored.mask, returns, 0).sum() / np.asarray(scored.mask).sum()
    np.testing.assert_allclose(state.modules["value_bias"], wanted, rtol=1e-4)


def test_the_initial_view_is_the_initial_students():
    given = problem(losses.get("g_opd"))
    state = given.state._replace(params=jax.tree.map(lambda leaf: leaf + 1, given.state.params))
    moved = given._replace(state=state)
    np.testing.assert_array_equal(
        moved.scored().hidden["initial"], given.scored().hidden["initial"]
    )


# Memory: whole logits never exist.

LARGE = 2048  # a vocabulary beside which everything else is small


def large_problem(method, chunk):
    architecture = dataclasses.replace(STUDENT, vocabulary_size=LARGE)
    model = random_model(architecture)
    return problem(method, chunk=chunk, student=model, teacher=model, vocabulary=LARGE)


def largest(function, *arguments) -> int:
    return largest_array(jax.make_jaxpr(function)(*arguments).jaxpr)


def scored_shapes(given) -> Batch:
    program, method = given.program, given.program.method
    read = lambda *arguments: score.score(program, *arguments, method.views)
    batch = given.batch._replace(hidden=jax.eval_shape(read, given.state, given.fixed, given.batch))
    if method.scoring() is not None:
        batch = batch._replace(
            inputs=batch.inputs
            | jax.eval_shape(
                functools.partial(score.prepare, program), given.state, given.fixed, batch
            )
        )
    if method.near_future:
        rows, key = jnp.arange(ROWS, dtype=jnp.int32), jax.random.key(0)
        write = lambda *arguments: windows.windows(program, *arguments, decoding=program.decoding)
        batch = jax.eval_shape(write, given.state, given.fixed, batch, rows, key)[0]
    return batch


@by_method
def test_no_array_of_a_step_has_the_size_of_all_logits(method):
    given = large_problem(method, chunk=2)
    program, all_logits = given.program, ROWS * LENGTH * LARGE
    batch = scored_shapes(given)
    stage: Stage = Comparison(method.views[0]) if method.views else Logp()
    assert (
        largest(
            lambda *a: score.score(program, *a, method.views), given.state, given.fixed, given.batch
        )
        < all_logits / 4
    )
    assert (
        largest(functools.partial(update.update, program), given.state, given.fixed, batch)
        < all_logits / 4
    )
    assert (
        largest(lambda *a: score.measure(program, *a, stage), given.state, given.fixed, batch)
        < all_logits / 4
    )


def test_unchunked_there_is_such_an_array():
    given = large_problem(losses.get("opd"), chunk=0)
    batch = scored_shapes(given)
    assert (
        largest(functools.partial(update.update, given.program), given.state, given.fixed, batch)
        >= ROWS * LENGTH * LARGE
    )
    assert (
        largest(
            lambda *a: score.measure(given.program, *a, Logp()), given.state, given.fixed, batch
        )
        >= ROWS * LENGTH * LARGE
    )


def test_compiled_memory_shrinks_with_the_chunk():
    memory = {}
    for chunk in (1, 0):
        given = large_problem(losses.get("opd"), chunk)
        step = jax.jit(functools.partial(update.update, given.program), donate_argnums=0)
        memory[chunk] = (
            step.lower(given.state, given.fixed, scored_shapes(given)).compile().memory_analysis()
        )
    saved = memory[0].temp_size_in_bytes - memory[1].temp_size_in_bytes
    assert (
        saved > 2 * 4 * ROWS * LENGTH * LARGE
    )  # float32 logits of student and teacher; what heads and parameters take stays


# Identity and alignment.


def equal_views(method) -> Batch:
    """Every view shows what the student sees."""
    batch = host_batch(method)
    return batch._replace(contexts=dict.fromkeys(batch.contexts, batch.contexts["student"]))


@dataclasses.dataclass(frozen=True)
class EveryDivergence(losses.Method):
    """`opd` with each divergence, a summand each, in one program; other weights, so that gradients
    do not cancel.
    """

    name = "every_divergence"
    source = "a test"

    def token_terms(self, student_logits, teacher_logits, tokens, extras):
        of = lambda name: losses.get("opd", divergence=name).token_terms(
            student_logits, teacher_logits, tokens, extras
        )
        return {name: of(name)["divergence"] for name in DIVERGENCES}

    def reduce(self, terms, mask, inputs):
        return {
            name: LossTerm(1.0 + k, *masked_total(terms[name], mask))
            for k, name in enumerate(DIVERGENCES)
        }, {}

    def variables(self):
        raise NotImplementedError


@pytest.mark.parametrize(
    "method",
    [EveryDivergence(), losses.get("opsd"), losses.get("opsd", teacher_update="live")],
    ids=lambda method: f"{method.name}-{method.teacher_update}",
)
def test_a_teacher_that_is_the_student_teaches_nothing(method):
    given = problem(
        method, chunk=4, micro_batches=2, teacher=random_model(STUDENT), batch=equal_views(method)
    )
    before = jax.device_get(given.state.params)
    state, metrics = given.updated()
    shares = {name: value for name, value in metrics.items() if name.startswith("loss")}
    assert set(shares) == {"loss"} | (
        {f"loss_{name}" for name in DIVERGENCES} if method.name == "every_divergence" else set()
    )
    assert all(abs(value) < 1e-6 for value in shares.values())
    chex.assert_trees_all_close(before, jax.device_get(state.params), rtol=0, atol=1e-6)


def bigram_model(table: np.ndarray):
    """A model whose next token depends on the last one only: `table[i]` are the logits of what
    follows token i.
    """
    size = len(table)
    architecture = Architecture(
        vocabulary_size=size,
        width=size,
        layers=1,
        heads=1,
        kv_heads=1,
        head_dim=8,
        mlp_width=8,
        tied_head=False,
        norm_epsilon=1e-12,
    )
    graph, params = models.split(Transformer(architecture, rngs=nnx.Rngs(0)))
    params["layers"] = jax.tree.map(jnp.zeros_like, params["layers"])  # the layers add nothing
    params["embedding"] = jnp.eye(size)
    params["output_head"] = jnp.asarray(table, jnp.float32) / math.sqrt(
        size
    )  # the norm makes a unit vector sqrt(size) long
    return graph, params


def test_the_first_and_the_last_token_are_predicted_by_the_token_before_them():
    generator = np.random.default_rng(0)
    tables = {role: generator.normal(size=(8, 8)) for role in ("student", "teacher")}
    logp = {
        role: table - np.log(np.exp(table).sum(axis=1, keepdims=True))
        for role, table in tables.items()
    }
    # The student's prompt ends with 2, the teacher's, which is longer, with 5; then both read 6, 0,
    # 7.
    contexts = {"student": left_pad([[1, 2]], 4, 0), "teacher": left_pad([[4, 3, 5]], 3, 0)}
    contexts = {
        view: Context(padded["tokens"], padded["valid"]) for view, padded in contexts.items()
    }
    batch = Batch(
        contexts, np.array([[6, 0, 7, 3]], np.int32), np.array([[True, True, True, False]])
    )
    pi, q = logp["student"][[2, 6, 0]], logp["teacher"][[5, 6, 0]]
    kl = (np.exp(pi) * (pi - q)).sum(axis=1)
    ratio = (q - pi)[np.arange(3), [6, 0, 7]]

    method = losses.get("opd")
    models_ = {role: bigram_model(table) for role, table in tables.items()}
    given = problem(method, chunk=2, batch=batch, vocabulary=8, **models_)
    head = np.asarray(given.state.params["output_head"])
    scored = given.scored()
    terms = given.measured(Comparison("teacher"), scored)
    np.testing.assert_allclose(terms["kl"][0, :3], kl, rtol=1e-4)
    np.testing.assert_allclose(terms["log_ratio"][0, :3], ratio, rtol=1e-4)
    state, metrics = given.updated(scored)
    np.testing.assert_allclose(metrics["loss"], kl.mean(), rtol=1e-4)
    # Only the tokens that predict one move their row of the head: the prompt's last does, the
    # completion's last does not.
    moved = np.abs(np.asarray(state.params["output_head"]) - head).max(axis=1)
    assert set(np.flatnonzero(moved > 1e-4)) == {2, 6, 0} == set(np.flatnonzero(moved))


def test_the_width_of_the_padding_does_not_matter():
    """Also: every view is aligned at the completion's first token, though their prompts differ in
    length.
    """
    method = losses.get("opd")
    logp = {
        role: jax.nn.log_softmax(expected_logits(role, role), axis=-1)  # of each row alone
        for role in ("student", "teacher")
    }
    kl = np.asarray((jnp.exp(logp["student"]) * (logp["student"] - logp["teacher"])).sum(axis=-1))
    given = problem(method, chunk=4, micro_batches=2, batch=host_batch(method, more=11))
    scored = given.scored()
    mask = np.asarray(scored.mask)
    np.testing.assert_allclose(
        given.measured(Comparison("teacher"), scored)["kl"][mask], kl[mask], rtol=1e-4, atol=1e-5
    )


# Rollouts.


def rolled_out(given, sampling=Sampling(), samples=2):
    context = given.batch.contexts["student"]
    rows = jnp.arange(len(context.tokens) * samples, dtype=jnp.int32)
    with jax.set_mesh(given.mesh):
        key = jax.random.key(0)
        return given.jitted.rollout(
            given.state,
            given.fixed,
            context,
            rows,
            key,
            decoding=dataclasses.replace(given.program.decoding, sampling=sampling),
            samples=samples,
        )


@pytest.mark.parametrize("shape, temperature", [((1, 1, 1), 0.7), ((1, 2, 2), 1.0)])
def test_the_samplers_log_probabilities_are_the_trainers(shape, temperature):
    given = problem(
        losses.get("opd"), chunk=7, micro_batches=2, mesh=mesh_of(*shape), max_new_tokens=40
    )
    rollout = rolled_out(given, Sampling(temperature=temperature))
    batch = Batch(given.batch.contexts, rollout.tokens, rollout.mask)
    mask = np.asarray(rollout.mask)
    assert mask.sum(axis=1).max() == 40 and mask.sum(axis=1).min() < 40  # some rows stop
    found = given.measured(Logp(temperature), batch)["logp"]
    np.testing.assert_allclose(found[mask], np.asarray(rollout.logp)[mask], atol=1e-4, rtol=0)


@pytest.mark.parametrize("writer", ["student", "teacher"])
def test_guided_rows_are_written_with_the_context_and_the_others_without(writer):
    method = losses.get("edge_opd", guided_writer=writer)
    given = problem(method)
    rows, guided = jnp.arange(ROWS, dtype=jnp.int32), jnp.arange(ROWS) % 3 == 0
    key, how = jax.random.key(0), {"decoding": given.program.decoding, "samples": SAMPLES}
    with jax.set_mesh(given.mesh):
        contexts, jitted = given.batch.contexts, given.jitted
        both = jitted.guided_rollout(given.state, given.fixed, contexts, guided, rows, key, **how)
        plain = jitted.rollout(given.state, given.fixed, contexts["student"], rows, key, **how)
        if writer == "student":
            wanted = jitted.rollout(
                given.state, given.fixed, contexts["privileged"], rows, key, **how
            )
        else:
            one_each = jax.tree.map(
                lambda x: jnp.repeat(x, SAMPLES, axis=0), contexts["privileged"]
            )
            wanted = jitted.teacher_rollout(
                given.state, given.fixed, one_each, rows, key, decoding=given.program.decoding
            )
    np.testing.assert_array_equal(
        both.tokens, np.where(guided[:, None], wanted.tokens, plain.tokens)
    )
    assert (np.asarray(wanted.tokens) != np.asarray(plain.tokens))[np.asarray(guided)].any()
    # The log-probabilities are those of the prompt that was sampled from.
    np.testing.assert_allclose(
        both.logp, np.where(guided[:, None], wanted.logp, plain.logp), atol=1e-4
    )


def test_a_second_update_on_one_batch_has_left_the_policy_that_wrote_it():
    method = losses.get("opd_pg", updates=2, ratio_clip=0.2)
    given = problem(method, optimizer=optax.sgd(0.3), chunk=4, max_new_tokens=12)
    rollout = rolled_out(given)
    batch = given.batch._replace(
        tokens=rollout.tokens, mask=rollout.mask, inputs={"behaviour_logp": rollout.logp}
    )
    batch = given._replace(batch=batch).scored()
    before = given.measured(Logp(), batch)["logp"]
    state, first = given.updated(batch)
    np.testing.assert_allclose(first["ratio"], 1, atol=1e-4)
    assert first["ratio_clipped"] == 0
    given = given._replace(state=state)
    mask = np.asarray(batch.mask)
    ratio = np.exp(given.measured(Logp(), batch)["logp"] - before)[mask]
    _, second = given.updated(batch)
    assert abs(ratio - 1).max() > 0.2  # so that the clip acts
    np.testing.assert_allclose(second["ratio"], ratio.mean(), rtol=1e-4)
    assert 0 < second["ratio_clipped"] < 1 and np.isfinite(second["loss"])


# The teacher: frozen, following, or the student itself.


def test_an_ema_teacher_follows_as_the_recursion_says():
    rate = 0.25
    given = problem(
        losses.get("opsd", teacher_update="ema"), ema_rate=rate, optimizer=optax.adam(0.1)
    )
    # It is a buffer of its own, and all of the new state is written over the old one.
    with jax.set_mesh(given.mesh):
        memory = (
            given.jitted.update.lower(given.state, given.fixed, given.scored())
            .compile()
            .memory_analysis()
        )
    assert memory.alias_size_in_bytes >= sum(leaf.nbytes for leaf in jax.tree.leaves(given.state))
    wanted = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), given.state.params)
    slack = jax.tree.map(np.zeros_like, wanted)
    for _ in range(10):
        state, _ = given.updated()
        given = given._replace(state=state)
        wanted = jax.tree.map(
            lambda e, p: e + rate * (np.asarray(p, np.float64) - e), wanted, state.params
        )
        ulps = lambda s, e, p: (
            s + 2 * np.spacing(np.maximum(np.abs(e), np.abs(p)).astype(np.float32))
        )
        slack = jax.tree.map(ulps, slack, wanted, state.params)
    for found, exact, bound in zip(
        *map(jax.tree.leaves, (state.ema_teacher, wanted, slack)), strict=True
    ):
        assert (np.abs(np.asarray(found, np.float64) - exact) <= bound).all()
    assert any(
        (np.asarray(a) != np.asarray(b)).any()
        for a, b in zip(*map(jax.tree.leaves, (state.ema_teacher, state.params)), strict=True)
    )


@pytest.mark.parametrize("teacher_update", ["frozen", "ema", "live"])
def test_who_the_teacher_is(teacher_update):
    given = problem(
        losses.get("opsd", teacher_update=teacher_update), teacher=random_model(STUDENT)
    )
    state = given.state._replace(params=jax.tree.map(lambda leaf: leaf + 1, given.state.params))
    wanted = {"frozen": given.fixed.teacher, "ema": state.ema_teacher, "live": state.params}[
        teacher_update
    ]
    assert wanted
    chex.assert_trees_all_equal(given.program.teacher_params(state, given.fixed), wanted)


def test_adapters_leave_the_base_alone_and_the_base_is_the_teacher():
    lora = LoRA(rank=2)
    graph, params = models.split(Transformer(STUDENT, lora=lora, rngs=nnx.Rngs(0)))
    trained, base = separate(params, LORA)
    plain_graph, plain = random_model(STUDENT)
    assert jax.tree.structure(base) == jax.tree.structure(
        plain
    )  # without its adapters it is the plain model
    method = losses.get("opsd")
    given = problem(
        method, student=(graph, trained), teacher=(plain_graph, {}), batch=equal_views(method)
    )
    base = jax.tree.map(jnp.asarray, plain)
    given = given._replace(fixed=Fixed(base, base, {}))  # the same arrays twice
    scored = given.scored()
    state, metrics = given.updated(scored)
    assert abs(metrics["loss"]) < 1e-6  # the second factors start at zero
    assert jax.tree.structure(state.params) == jax.tree.structure(trained)
    # Other adapters are another student; the teacher stays what it was.
    moved = given._replace(
        state=state._replace(params=jax.tree.map(lambda leaf: leaf + 0.3, state.params))
    )
    again = moved.scored()
    np.testing.assert_array_equal(again.hidden["privileged"], scored.hidden["privileged"])
    assert moved.updated(again)[1]["loss"] > 0.01
    chex.assert_trees_all_equal(base, plain)


# What goes wrong is said.


def test_rows_that_are_not_finite_are_named_and_a_batch_without_tokens_gives_no_gradient():
    given = problem(losses.get("opd"), chunk=1, micro_batches=4)
    scored, before = given.scored(), jax.device_get(given.state.params)
    state, metrics = given.updated(scored._replace(mask=jnp.zeros_like(scored.mask)))
    assert metrics["loss"] == 0 == metrics["gradient_norm"] and metrics["finite_rows"].all()
    chex.assert_trees_all_equal(before, jax.device_get(state.params))
    given = given._replace(state=state)
    poison = np.zeros((ROWS, LENGTH), bool)
    poison[2, 1] = poison[5, 0] = True
    poison[1, 4] = True  # outside the mask: row 1 has one token
    hidden = {
        view: jnp.where(poison[:, :, None], jnp.nan, value) for view, value in scored.hidden.items()
    }
    _, metrics = given.updated(scored._replace(hidden=hidden))
    assert np.flatnonzero(~metrics["finite_rows"]).tolist() == [2, 5]
    assert not np.isfinite(metrics["loss"])


def test_teacher_and_student_may_be_padded_differently():
    assert (
        TEACHER.vocabulary_size > STUDENT.vocabulary_size == VOCABULARY
    )  # what all of the above ran with
