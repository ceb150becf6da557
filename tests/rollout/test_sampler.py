import contextlib
import dataclasses
import functools
import itertools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from jopd import models
from jopd.models import Architecture, Compute, sharding
from jopd.rollout import sampler
from jopd.rollout.sampler import Rollout, sample
from jopd.rollout.settings import Decoding, Sampling
from tests.reference import truncation as reference
from tests.training.problem import mesh_of

TINY = Architecture(
    vocabulary_size=40,
    width=16,
    layers=2,
    heads=4,
    kv_heads=2,
    head_dim=8,
    mlp_width=32,
    qk_norm=True,
)
VOCABULARY = 37  # the last three ids are padding
PAD = 36
KEY = jax.random.key(7)


def random_weights(architecture: Architecture, compute: Compute = Compute()):
    """Large enough for decided distributions that depend on the context."""
    graph, shapes = models.abstract(architecture, compute)
    random = np.random.default_rng(0)
    return graph, jax.tree.map(
        lambda x: jnp.asarray(random.normal(size=x.shape, scale=0.4), x.dtype), shapes
    )


@pytest.fixture(scope="module")
def model():
    return random_weights(TINY)


@pytest.fixture(scope="module")
def prompts():
    """Four prompts of 3 to 6 tokens, left-padded."""
    lengths = np.array([6, 3, 5, 4])
    tokens = np.random.default_rng(0).integers(0, VOCABULARY, (4, 6)).astype(np.int32)
    return tokens, np.arange(6) >= 6 - lengths[:, None]


@functools.partial(
    jax.jit, static_argnames=("graph", "sampling", "samples", "steps", "stops", "vocabulary")
)
def run(params, tokens, valid, rows, *, graph, sampling, samples, steps, stops, vocabulary):
    return sample(
        models.merge(graph, params),
        tokens,
        valid,
        rows,
        KEY,
        decoding=Decoding(steps, stops, PAD, vocabulary, sampling),
        samples=samples,
    )


def rollout(
    model,
    prompts,
    rows=None,
    sampling=Sampling(),
    samples=1,
    steps=8,
    stops=(),
    vocabulary=VOCABULARY,
) -> Rollout:
    graph, params = model
    rows = np.arange(len(prompts[0]) * samples) if rows is None else rows
    settings = {
        "sampling": sampling,
        "samples": samples,
        "steps": steps,
        "stops": stops,
        "vocabulary": vocabulary,
    }
    return jax.tree.map(
        np.asarray, run(params, *prompts, np.asarray(rows, np.int32), graph=graph, **settings)
    )


@functools.partial(jax.jit, static_argnames="graph")
def logits(params, tokens, valid, *, graph):
    model = models.merge(graph, params)
    return model.logits(model.hidden(tokens, valid))


def log_probs(model, prompts, written: Rollout, temperature=1.0, samples=1):
    """`[B, T, V]`: each completion position's distribution, from one forward pass over prompt and
    completion.
    """
    tokens, valid = (np.repeat(x, samples, axis=0) for x in prompts)
    whole = np.concatenate([tokens, written.tokens], 1), np.concatenate([valid, written.mask], 1)
    z = logits(model[1], *whole, graph=model[0])[:, tokens.shape[1] - 1 : -1, :VOCABULARY]
    return np.asarray(jax.nn.log_softmax(z / temperature))


def chosen(logp, tokens):
    return np.take_along_axis(logp, tokens[..., None], axis=-1)[..., 0]


# What is drawn


def test_greedy_takes_the_best_token_of_a_whole_forward_pass(model, prompts):
    written = rollout(model, prompts, sampling=Sampling(temperature=0.0))
    logp = log_probs(model, prompts, written)
    np.testing.assert_array_equal(written.tokens, logp.argmax(-1))
    np.testing.assert_allclose(
        written.logp, chosen(logp, written.tokens), atol=1e-4
    )  # at temperature 1


def test_each_token_is_the_best_after_the_noise_of_its_row_and_position(model, prompts):
    rows = np.array([5, 900, 2, 5])
    written = rollout(model, prompts, rows)
    noise = [
        [
            jax.random.gumbel(
                jax.random.fold_in(jax.random.fold_in(KEY, r), t), (VOCABULARY,), mode="high"
            )
            for t in range(8)
        ]
        for r in rows
    ]
    np.testing.assert_array_equal(
        written.tokens, (log_probs(model, prompts, written) + np.array(noise)).argmax(-1)
    )


@pytest.mark.parametrize(
    "sampling",
    [Sampling(), Sampling(1.5), Sampling(0.7, top_k=9, top_p=0.6, min_p=0.1)],
    ids=str,
)
def test_behaviour_log_probs_are_those_of_a_whole_forward_pass_before_truncation(
    model, prompts, sampling
):
    written = rollout(model, prompts, sampling=sampling, samples=2, steps=24, stops=(3, 11))
    logp = log_probs(model, prompts, written, sampling.temperature, samples=2)
    expected = np.where(written.mask, chosen(logp, written.tokens), 0)
    assert written.mask.sum() > 60
    np.testing.assert_allclose(written.logp, expected, atol=1e-4)


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(),
        Sampling(1.4),
        Sampling(top_k=6),
        Sampling(top_p=0.7),
        Sampling(1.3, top_k=12, top_p=0.9, min_p=0.05),
    ],
    ids=str,
)
def test_frequencies_are_those_of_the_truncated_distribution(sampling):
    draws = 4000
    logits = np.random.default_rng(2).normal(size=VOCABULARY, scale=1.5).astype(np.float32)
    logp = np.asarray(jax.nn.log_softmax(logits / sampling.temperature))
    tokens, behaviour = jax.jit(functools.partial(sampler.draw, sampling=sampling))(
        np.tile(logits, (draws, 1)), jax.random.split(KEY, draws)
    )
    np.testing.assert_allclose(
        behaviour, logp[tokens], atol=1e-5
    )  # of the distribution before truncation
    keep, margin = reference.kept(logp, sampling.top_k, sampling.top_p, sampling.min_p)
    assert margin > 1e-4 and keep.sum() > 1
    counts = np.bincount(tokens, minlength=VOCABULARY)
    assert counts[~keep].sum() == 0
    assert same_frequencies(counts[keep], np.exp(logp[keep].astype(np.float64)))


def test_positions_and_rows_are_independent(model, prompts):
    """Where every token is as likely as any other, neighbours in time and in the batch tell nothing
    of each other.
    """
    blank = (model[0], jax.tree.map(jnp.zeros_like, model[1]))
    tokens = rollout(
        blank, tuple(x[:1] for x in prompts), samples=500, steps=9, vocabulary=8
    ).tokens
    for first, second in [(tokens[:, :-1], tokens[:, 1:]), (tokens[:-1], tokens[1:])]:
        pairs = np.bincount((first * 8 + second).ravel(), minlength=64)
        assert same_frequencies(pairs, np.ones(64))


def same_frequencies(counts, expected):
    """Pearson's test at 1 in 1000; what is expected less than five times is one bin."""
    expected = expected * (counts.sum() / expected.sum())
    rare = expected < 5
    merge = lambda x: np.append(x[~rare], x[rare].sum()) if rare.any() else x
    counts, expected = merge(counts), merge(expected)
    return scipy.stats.chisquare(counts, expected).pvalue > 1e-3


def test_padding_of_the_vocabulary_is_never_drawn(prompts):
    model = random_weights(dataclasses.replace(TINY, tied_head=False))
    written = rollout(model, prompts, sampling=Sampling(3.0), samples=8, vocabulary=3)
    assert set(written.tokens.ravel()) == {0, 1, 2}


# What it does not depend on


def test_a_row_depends_on_its_prompt_and_id_only(model, prompts):
    rows = np.array([40, 41, 42, 43])
    together = rollout(model, prompts, rows)
    for i, padding in [(1, 0), (3, 8)]:
        tokens, valid = (x[i : i + 1, prompts[1][i]] for x in prompts)
        wider = [np.pad(x, ((0, 0), (padding, 0))) for x in (tokens, valid)]
        alone = rollout(model, wider, rows[i : i + 1])
        np.testing.assert_array_equal(alone.tokens[0], together.tokens[i])
        np.testing.assert_allclose(alone.logp[0], together.logp[i], atol=1e-5)


def test_samples_that_share_a_prefill_are_those_of_repeated_prompts(model, prompts):
    one = [x[:1] for x in prompts]
    rows = np.array([4, 9, 2, 9])
    shared = rollout(model, one, rows, samples=4)
    repeated = rollout(model, [np.repeat(x, 4, axis=0) for x in one], rows)
    np.testing.assert_array_equal(shared.tokens, repeated.tokens)
    assert (
        len(np.unique(shared.tokens, axis=0)) == 3
    )  # each has noise of its own; one id, one completion


@pytest.mark.parametrize("shape", [(2, 1, 2), (1, 2, 2)], ids=str)
def test_a_mesh_draws_the_same_tokens(model, prompts, shape):
    graph, params = model
    settings = {
        "sampling": Sampling(0.9, top_p=0.9),
        "samples": 2,
        "steps": 8,
        "stops": (5,),
        "vocabulary": VOCABULARY,
    }
    rows = np.arange(8, dtype=np.int32)
    expected = run(params, *prompts, rows, graph=graph, **settings)
    mesh = jax.make_mesh(
        shape, sharding.MESH_AXES, axis_types=(AxisType.Auto,) * 3, devices=jax.devices()[:4]
    )
    with jax.set_mesh(mesh):
        placed = jax.device_put(params, sharding.parameter_shardings(mesh, params))
        batch = jax.device_put(
            (*prompts, rows), NamedSharding(mesh, PartitionSpec(("data", "fsdp")))
        )
        program = run.lower(placed, *batch, graph=graph, **settings).compile()
        written = program(placed, *batch)
    np.testing.assert_array_equal(written.tokens, expected.tokens)
    np.testing.assert_array_equal(written.stopped, expected.stopped)
    np.testing.assert_allclose(written.logp, expected.logp, atol=1e-5)
    if shape == (
        2,
        1,
        2,
    ):  # no parameter is gathered either, so whatever is would be the vocabulary
        assert not re.findall(r" (all-gather|all-to-all|sort)\(", program.as_text())


# Where it ends


def test_a_row_ends_with_its_stop_token_and_says_which(model, prompts):
    free = rollout(model, prompts).tokens
    stops = tuple(map(int, free[[0, 1, 2], [6, 1, 4]]))
    written = rollout(model, prompts, stops=stops)
    for row, without in enumerate(free):
        at = next((t for t, token in enumerate(without) if token in stops), None)
        length = 8 if at is None else at + 1
        assert written.stopped[row] == (0 if at is None else 1 + stops.index(without[at]))
        np.testing.assert_array_equal(written.mask[row], np.arange(8) < length)
        np.testing.assert_array_equal(
            written.tokens[row, :length], without[:length]
        )  # whatever the others do
        assert (written.tokens[row, length:] == PAD).all()
        assert (written.logp[row, length:] == 0).all() and (written.logp[row, :length] < 0).all()
    assert set(written.stopped) == {0, 1, 2, 3}  # every way to end was seen


def test_one_token(model, prompts):
    one = rollout(model, prompts, steps=1)
    np.testing.assert_array_equal(one.tokens, rollout(model, prompts).tokens[:, :1])
    assert one.mask.all() and (one.stopped == 0).all()


def test_the_loop_ends_when_every_row_has_ended(model, prompts, monkeypatch):
    draws = []

    def counted(*args):
        jax.debug.callback(lambda: draws.append(1))
        return draw(*args)

    draw = sampler.draw
    monkeypatch.setattr(sampler, "draw", counted)
    longest = (
        rollout(model, prompts, steps=100, stops=tuple(range(0, VOCABULARY, 3))).mask.sum(1).max()
    )
    jax.effects_barrier()
    assert len(draws) == longest < 100


# How it is computed


@pytest.mark.parametrize("shards, waste", [(1, 0.25), (8, 0.35)])
def test_rows_that_have_ended_cost_little(shards, waste):
    """256 rows, twenty times, of lognormal length: the share of row-steps after a row's end."""
    executed = written = 0
    for seed in range(20):
        drawn = np.random.default_rng(seed).lognormal(np.log(200), 0.7, 256)
        lengths = np.minimum(np.ceil(drawn), 1024).reshape(shards, -1)
        room = [256 // shards, *sampler.widths(256 // shards, 1024)]
        for step in range(int(lengths.max())):
            left = (lengths > step).sum(axis=1).max()
            executed += shards * min(width for width in room if width >= left)
        written += lengths.sum()
    assert 1 - written / executed <= waste


@pytest.mark.parametrize("rows", range(1, 40))
def test_widths_become_narrower_until_few_are_left(rows):
    widths = sampler.widths(rows, 1024)
    assert all(a > b for a, b in itertools.pairwise((rows, *widths)))
    assert (rows, *widths)[-1] <= max(rows // 16, 2)
    assert sampler.widths(rows, 100) == ()


@pytest.mark.parametrize("samples", [1, 2])
def test_layers_one_by_one_draw_the_same_tokens(prompts, monkeypatch, samples):
    """As on a GPU; of other settings than the fixture's, as those are compiled already."""
    monkeypatch.setattr(sampler, "widths", lambda *_: (2,))
    of = lambda settings: rollout(
        random_weights(TINY, settings), prompts, samples=samples, steps=40, stops=(3, 20, 28)
    )
    wanted = of(Compute(remat="none"))
    monkeypatch.setattr(sampler, "layers_apart", lambda: True)
    found = of(Compute(remat="dots"))
    assert len(set(wanted.mask.sum(axis=1))) > 2  # some end early, at different times
    np.testing.assert_array_equal(found.tokens, wanted.tokens)
    np.testing.assert_allclose(found.logp, wanted.logp, atol=1e-5)


def test_short_answers_have_few_widths():
    assert sampler.widths(32, 128) == (16, 8)
    assert sampler.widths(256, 511) == (128, 64, 32, 16)
    assert sampler.widths(8, 128) == () and sampler.widths(9, 128) == (5,)


@pytest.mark.parametrize(
    "shape", [None, pytest.param((2, 2, 1), marks=pytest.mark.slow), (1, 2, 2)]
)
def test_nobody_waits_and_no_sample_changes(model, prompts, shape, monkeypatch):
    """Rows that end one after another, in as many widths as there are."""
    repeated = tuple(np.repeat(x, 4, axis=0) for x in prompts)
    rows = np.arange(16, dtype=np.int32)
    settings = {"rows": rows, "steps": 200, "stops": (5, 11), "sampling": Sampling(temperature=3.0)}
    narrow = []
    monkeypatch.setattr(sampler, "widths", lambda *_: ())
    alone = rollout(model, repeated, **settings)
    run.clear_cache()
    monkeypatch.undo()
    of_long_answers = functools.partial(sampler.widths, length=1024)
    monkeypatch.setattr(sampler, "widths", lambda rows, _: of_long_answers(rows))
    running = sampler.running
    monkeypatch.setattr(sampler, "running", lambda *x: narrow.append(x[2]) or running(*x))
    with jax.set_mesh(mesh_of(*shape)) if shape else contextlib.nullcontext():
        found = rollout(model, repeated, **settings)
    run.clear_cache()
    ends = np.sort(np.asarray(alone.mask).sum(axis=1))
    assert ends[0] < 20 < ends[-1] and len(set(ends)) > 8
    assert narrow == {None: [10, 7, 5, 4, 3, 2], (2, 2, 1): [3, 2], (1, 2, 2): [5, 4, 3, 2]}[shape]
    for name in ("tokens", "mask", "stopped"):
        np.testing.assert_array_equal(getattr(found, name), getattr(alone, name))
    np.testing.assert_allclose(found.logp, alone.logp, atol=1e-5)


def test_layers_that_are_gathered_for_every_token_write_the_same(model, prompts):
    graph, params = model
    rows, decoding = np.arange(len(prompts[0]), dtype=np.int32), Decoding(12, (5,), 0, VOCABULARY)
    write = lambda params, gathered: sample(
        models.merge(graph, params),
        *map(jnp.asarray, prompts),
        jnp.asarray(rows),
        KEY,
        decoding=decoding,
        samples=1,
        gathered=gathered,
    )
    with jax.set_mesh(mesh_of(1, 2, 2)):
        found, wanted = (
            jax.jit(functools.partial(write, gathered=gathered))(params)
            for gathered in (False, True)
        )
    np.testing.assert_array_equal(found.tokens, wanted.tokens)
    np.testing.assert_allclose(found.logp, wanted.logp, atol=1e-5)


def test_the_cache_is_written_in_place():
    graph, params = models.abstract(dataclasses.replace(TINY, layers=8))
    prompt = jax.ShapeDtypeStruct((32, 8), jnp.int32), jax.ShapeDtypeStruct((32, 8), bool)
    rows = jax.ShapeDtypeStruct((64,), jnp.int32)
    settings = {
        "sampling": Sampling(),
        "samples": 2,
        "steps": 200,
        "stops": (),
        "vocabulary": VOCABULARY,
    }
    program = run.lower(params, *prompt, rows, graph=graph, **settings).compile()
    cache = (
        2 * 4 * 8 * 64 * 2 * 207 * 8
    )  # keys and values: float32, layers, rows, heads, slots, channels
    assert program.memory_analysis().temp_size_in_bytes < 1.5 * cache


@pytest.mark.parametrize(
    ("stored", "computed", "held"),
    [("float32", "bfloat16", "bfloat16"), ("bfloat16", "float32", "bfloat16")],
)
def test_parameters_wider_than_the_computation_are_cast_once(stored, computed, held):
    graph, params = random_weights(TINY, Compute(computed))
    model = models.merge(graph, jax.tree.map(lambda x: x.astype(stored), params))
    assert {x.dtype for x in jax.tree.leaves(sampler.in_compute_dtype(model))} == {jnp.dtype(held)}


# What is refused


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"temperature": -0.1}, "temperature=-0.1"),
        ({"temperature": float("nan")}, "temperature=nan"),
        ({"temperature": float("inf")}, "temperature=inf"),
        ({"top_k": -1}, "top_k=-1"),
        ({"top_p": 0.0}, "top_p=0.0"),
        ({"top_p": 1.5}, "top_p=1.5"),
        ({"min_p": -0.5}, "min_p=-0.5"),
        ({"min_p": float("nan")}, "min_p=nan"),
    ],
)
def test_sampling_settings_that_cannot_hold_are_refused(settings, match):
    with pytest.raises(ValueError, match=match):
        Sampling(**settings)


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"rows": np.arange(3)}, "samples=1"),
        ({"steps": 0}, "max_new_tokens=0"),
        ({"vocabulary": 41}, "vocabulary=41"),
        ({"stops": (2, 38)}, "38"),
    ],
)
def test_arguments_that_cannot_hold_are_refused(model, prompts, settings, match):
    with pytest.raises(ValueError, match=match):
        rollout(model, prompts, **settings)
