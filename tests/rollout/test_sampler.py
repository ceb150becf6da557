import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from jopd import models
from jopd.models import Architecture, sharding
from jopd.rollout import sampler
from jopd.rollout.sampler import Rollout, Sampling, sample
from tests.reference import truncation as reference

TINY = Architecture(vocabulary_size=40, width=16, layers=2, heads=4, kv_heads=2, head_dim=8, mlp_width=32, qk_norm=True)
VOCABULARY = 37  # the last three ids are padding
PAD = 36
KEY = jax.random.key(7)


def random_weights(architecture: Architecture):
    """Large enough for decided distributions that depend on the context."""
    graph, shapes = models.abstract(architecture)
    random = np.random.default_rng(0)
    return graph, jax.tree.map(lambda x: jnp.asarray(random.normal(size=x.shape, scale=0.4), x.dtype), shapes)


@pytest.fixture(scope="module")
def model():
    return random_weights(TINY)


@pytest.fixture(scope="module")
def prompts():
    """Four prompts of 3 to 6 tokens, left-padded."""
    lengths = np.array([6, 3, 5, 4])
    tokens = np.random.default_rng(0).integers(0, VOCABULARY, (4, 6)).astype(np.int32)
    return tokens, np.arange(6) >= 6 - lengths[:, None]


def rollout(
    model, prompts, rows=None, sampling=Sampling(), samples=1, steps=8, stops=(), vocabulary=VOCABULARY
) -> Rollout:
    graph, params = model
    tokens, valid = map(jnp.asarray, prompts)
    rows = jnp.arange(len(tokens) * samples) if rows is None else jnp.asarray(rows)

    @jax.jit
    def run(params, tokens, valid, rows):
        return sample(
            models.merge(graph, params), tokens, valid, rows, KEY, sampling=sampling, samples=samples, max_new_tokens=steps,
            stop_tokens=stops, pad_id=PAD, vocabulary=vocabulary,
        )  # fmt: skip

    return jax.tree.map(np.asarray, run(params, tokens, valid, rows))


def log_probs(model, prompts, written: Rollout, temperature=1.0, samples=1):
    """`[B, T, V]`: each completion position's distribution, from one forward pass over prompt and completion."""
    tokens, valid = (np.repeat(x, samples, axis=0) for x in prompts)
    whole = (
        jnp.asarray(np.concatenate([tokens, written.tokens], 1)),
        jnp.asarray(np.concatenate([valid, written.mask], 1)),
    )
    logits = jax.jit(lambda params: (m := models.merge(model[0], params)).logits(m(*whole)))(model[1])
    return jax.nn.log_softmax(logits[:, tokens.shape[1] - 1 : -1, :VOCABULARY] / temperature)


def chosen(logp, tokens):
    return np.take_along_axis(np.asarray(logp), tokens[..., None], axis=-1)[..., 0]


# What is drawn


def test_greedy_takes_the_best_token_of_a_whole_forward_pass(model, prompts):
    written = rollout(model, prompts, sampling=Sampling(temperature=0.0))
    logp = log_probs(model, prompts, written)
    np.testing.assert_array_equal(written.tokens, logp.argmax(-1))
    np.testing.assert_allclose(written.logp, chosen(logp, written.tokens), atol=1e-4)  # at temperature 1


def test_each_token_is_the_best_after_the_noise_of_its_row_and_position(model, prompts):
    rows = np.array([5, 900, 2, 5])
    written = rollout(model, prompts, rows)
    noise = [
        [
            jax.random.gumbel(jax.random.fold_in(jax.random.fold_in(KEY, r), t), (VOCABULARY,), mode="high")
            for t in range(8)
        ]
        for r in rows
    ]
    np.testing.assert_array_equal(written.tokens, (log_probs(model, prompts, written) + jnp.array(noise)).argmax(-1))


@pytest.mark.parametrize(
    "sampling",
    [Sampling(), Sampling(0.7), Sampling(1.5), Sampling(top_k=5), Sampling(0.8, top_k=9, top_p=0.6, min_p=0.1)],
    ids=str,
)
def test_behaviour_log_probs_are_those_of_a_whole_forward_pass_before_truncation(model, prompts, sampling):
    written = rollout(model, prompts, sampling=sampling, samples=2, steps=24, stops=(3, 11))
    logp = log_probs(model, prompts, written, sampling.temperature, samples=2)
    expected = np.where(written.mask, chosen(logp, written.tokens), 0)
    assert written.mask.sum() > 60
    np.testing.assert_allclose(written.logp, expected, atol=1e-4)


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(),
        Sampling(0.6),
        Sampling(1.4),
        Sampling(top_k=6),
        Sampling(top_p=0.7),
        Sampling(min_p=0.15),
        Sampling(1.3, top_k=12, top_p=0.9, min_p=0.05),
    ],
    ids=str,
)
def test_frequencies_are_those_of_the_truncated_distribution(model, prompts, sampling):
    draws = 4000
    one = tuple(x[:1] for x in prompts)
    written = rollout(model, one, sampling=sampling, samples=draws, steps=1)
    logp = np.asarray(log_probs(model, one, Rollout(*(x[:1] for x in written)), sampling.temperature))[0, 0]
    keep, margin = reference.kept(logp, sampling.top_k, sampling.top_p, sampling.min_p)
    assert margin > 1e-4 and keep.sum() > 1
    expected = np.where(keep, np.exp(logp.astype(np.float64)), 0)
    expected *= draws / expected.sum()
    counts = np.bincount(written.tokens[:, 0], minlength=VOCABULARY)
    assert counts[~keep].sum() == 0
    assert same_frequencies(counts[keep], expected[keep])


def test_positions_and_rows_are_independent(model, prompts):
    """Where every token is as likely as any other, neighbours in time and in the batch tell nothing of each other."""
    blank = (model[0], jax.tree.map(jnp.zeros_like, model[1]))
    tokens = rollout(blank, tuple(x[:1] for x in prompts), samples=500, steps=9, vocabulary=8).tokens
    for first, second in [(tokens[:, :-1], tokens[:, 1:]), (tokens[:-1], tokens[1:])]:
        pairs = np.bincount((first * 8 + second).ravel(), minlength=64)
        assert same_frequencies(pairs, np.full(64, pairs.sum() / 64))


def same_frequencies(counts, expected):
    """Pearson's test at 1 in 1000; what is expected less than five times is one bin."""
    rare = expected < 5
    merge = lambda x: np.append(x[~rare], x[rare].sum()) if rare.any() else x
    counts, expected = merge(counts), merge(expected)
    return scipy.stats.chisquare(counts, expected * (counts.sum() / expected.sum())).pvalue > 1e-3


@pytest.mark.parametrize("tied", [True, False])
def test_padding_of_the_vocabulary_is_never_drawn(prompts, tied):
    model = random_weights(dataclasses.replace(TINY, tied_head=tied))
    written = rollout(model, prompts, sampling=Sampling(3.0), samples=8, vocabulary=3)
    assert set(written.tokens.ravel()) == {0, 1, 2}


# What it does not depend on


def test_a_row_depends_on_its_prompt_and_id_only(model, prompts):
    rows = np.array([40, 41, 42, 43])
    together = rollout(model, prompts, rows, steps=12)
    for i in (1, 3):
        (tokens, valid) = (x[i : i + 1] for x in prompts)
        unpadded = tokens[:, valid[0]], valid[:, valid[0]]
        wide = np.pad(tokens, ((0, 0), (5, 0)), constant_values=9), np.pad(valid, ((0, 0), (5, 0)))
        for prompt in (unpadded, wide):
            alone = rollout(model, prompt, rows[i : i + 1], steps=12)
            np.testing.assert_array_equal(alone.tokens[0], together.tokens[i])
            np.testing.assert_allclose(alone.logp[0], together.logp[i], atol=1e-5)


def test_samples_that_share_a_prefill_are_those_of_repeated_prompts(model, prompts):
    rows = np.array([4, 9, 2, 8, 1, 3, 7, 7])
    shared = rollout(model, tuple(x[:2] for x in prompts), rows, samples=4)
    repeated = rollout(model, tuple(np.repeat(x[:2], 4, axis=0) for x in prompts), rows)
    np.testing.assert_array_equal(shared.tokens, repeated.tokens)
    assert len(np.unique(shared.tokens[:4], axis=0)) == 4  # each with noise of its own
    np.testing.assert_array_equal(shared.tokens[6], shared.tokens[7])  # one id, one prompt: one completion


@pytest.mark.parametrize("shape", [(2, 1, 2), (1, 2, 2), (1, 1, 4)], ids=str)
def test_a_mesh_draws_the_same_tokens(model, prompts, shape):
    graph, params = model
    sampling = Sampling(0.9, top_k=20, top_p=0.95, min_p=0.01)
    expected = rollout(model, prompts, sampling=sampling, samples=2, stops=(5,))
    mesh = jax.make_mesh(shape, sharding.MESH_AXES, axis_types=(AxisType.Auto,) * 3, devices=jax.devices()[:4])
    with jax.set_mesh(mesh):
        placed = jax.device_put(params, sharding.parameter_shardings(mesh, params))
        batch = [jax.device_put(x, NamedSharding(mesh, PartitionSpec(("data", "fsdp")))) for x in prompts]
        written = rollout((graph, placed), batch, sampling=sampling, samples=2, stops=(5,))
    np.testing.assert_array_equal(written.tokens, expected.tokens)
    np.testing.assert_array_equal(written.stopped, expected.stopped)
    np.testing.assert_allclose(written.logp, expected.logp, atol=1e-5)


# Where it ends


def test_a_row_ends_with_its_stop_token_and_says_which(model, prompts):
    free = rollout(model, prompts, samples=4, steps=16)
    stops = (11, 3, 20)
    written = rollout(model, prompts, samples=4, steps=16, stops=stops)
    ends = set()
    for row, without in enumerate(free.tokens):
        at = next((t for t, token in enumerate(without) if token in stops), None)
        length = 16 if at is None else at + 1
        ends.add(code := 0 if at is None else 1 + stops.index(without[at]))
        assert written.stopped[row] == code
        np.testing.assert_array_equal(written.mask[row], np.arange(16) < length)
        np.testing.assert_array_equal(
            written.tokens[row, :length], without[:length]
        )  # noise does not hang on the others
        assert (written.tokens[row, length:] == PAD).all()
        assert (written.logp[row, length:] == 0).all() and (written.logp[row, :length] < 0).all()
    assert ends == {0, 1, 2, 3}  # every way to end was seen


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
    longest = rollout(model, prompts, steps=200, stops=tuple(range(0, VOCABULARY, 2))).mask.sum(1).max()
    jax.effects_barrier()
    assert len(draws) == longest < 40


# How it is computed


def test_samples_reuse_the_prefill_and_nothing_is_sorted_or_gathered_over_the_vocabulary(model, prompts):
    """Prefill is per prompt, whatever the samples; the loop holds no sort."""
    graph, params = model
    run = lambda params: sample(
        models.merge(graph, params), *map(jnp.asarray, prompts), jnp.arange(12), KEY, sampling=Sampling(top_k=3, top_p=0.9),
        samples=3, max_new_tokens=4, stop_tokens=(1,), pad_id=PAD, vocabulary=VOCABULARY,
    )  # fmt: skip
    text = str(jax.make_jaxpr(run)(params))
    assert "sort" not in text and "top_k" not in text and "cumsum" not in text.split("while")[-1]
    assert "f32[4,6,16]" in text and "f32[12,6,16]" not in text
