import dataclasses
import functools
import itertools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict

from jopd import models
from jopd.models import Compute, LoRA, attention


def cubed_hidden(graph, tokens, valid):
    """A scalar of the parameters to differentiate."""
    x, v = jnp.asarray(tokens), jnp.asarray(valid)
    return lambda params: jnp.mean(
        jnp.where(v[..., None], models.merge(graph, params).hidden(x, v), 0.0) ** 3
    )


def test_a_row_does_not_depend_on_its_padding(architectures, random_model, logits_of):
    graph, params = random_model(architectures["llama3"])
    tokens = np.arange(6, dtype=np.int32)[None]
    alone = logits_of(graph, params, tokens, np.ones((1, 6), bool))
    for left, right in [(4, 0), (0, 4), (3, 2)]:
        valid = np.pad(np.ones((1, 6), bool), ((0, 0), (left, right)))
        padded = logits_of(
            graph, params, np.pad(tokens, ((0, 0), (left, right)), constant_values=9), valid
        )
        np.testing.assert_allclose(padded[valid], alone[0], atol=1e-5)


@pytest.mark.parametrize("name", ["llama3", "qwen3"])
def test_prefill_and_decode_equal_the_whole_forward(name, architectures, random_model, batch):
    graph, params = random_model(architectures[name])
    tokens, valid = (jnp.asarray(x) for x in batch)

    @jax.jit
    def piecewise(params):
        model = models.merge(graph, params)
        cache, hidden = model.empty_cache(len(tokens), tokens.shape[1] + 3), []
        for start, stop in [
            (0, 6),
            (6, 7),
            (7, 8),
            (8, 12),
        ]:  # a prompt, two single tokens, several at once
            piece, cache = model.extend(tokens[:, start:stop], valid[:, start:stop], cache)
            hidden.append(piece)
        return jnp.concatenate(hidden, axis=1), model.hidden(tokens, valid)

    pieces, whole = piecewise(params)
    np.testing.assert_allclose(pieces[valid], whole[valid], atol=1e-5)


def test_a_long_cache_is_read_as_far_as_it_is_filled(architectures, random_model):
    """Of 600 slots first 256, then 512, then all; pieces end before, on and after each bound."""
    graph, params = random_model(architectures["qwen3"])
    tokens = jnp.asarray(np.random.default_rng(0).integers(10, size=(2, 600)), jnp.int32)
    valid = jnp.asarray(np.arange(600)[None] >= np.array([[0], [3]]))

    @jax.jit
    def piecewise(params):
        model = models.merge(graph, params)
        cache, hidden = model.empty_cache(2, 600), []
        for start, stop in itertools.pairwise((0, 254, 255, 256, 257, 511, 512, 513, 599, 600)):
            piece, cache = model.extend(tokens[:, start:stop], valid[:, start:stop], cache)
            hidden.append(piece)
        return jnp.concatenate(hidden, axis=1), model.hidden(tokens, valid)

    pieces, whole = piecewise(params)
    np.testing.assert_allclose(pieces[valid], whole[valid], atol=2e-5)


def two_branches(valid: np.ndarray) -> models.Branches:
    """Of every row, after its first token and after its third."""
    first = np.argmax(valid, axis=1)  # where the left padding ends
    starts = np.stack([first + 1, first + 3], axis=1).astype(np.int32)
    draw = np.random.default_rng(5).integers
    branch = draw(10, size=(len(valid) * 2, 4)).astype(np.int32)
    written = np.arange(4)[None] < draw(1, 5, size=(len(valid) * 2, 1))
    return models.Branches(jnp.asarray(branch), jnp.asarray(written), jnp.asarray(starts))


def test_branches_are_what_they_would_be_alone(architectures, random_model, batch, logits_of):
    graph, params = random_model(architectures["qwen3"])
    tokens, valid = (jnp.asarray(x) for x in batch)
    b, given = len(tokens), two_branches(batch[1])
    branch, written, starts = (np.asarray(x) for x in given)
    first = np.argmax(np.asarray(valid), axis=1)
    run = jax.jit(
        lambda params: [
            models.merge(graph, params).branched(tokens, valid, given),
            models.merge(graph, params).hidden(tokens, valid),
        ]
    )
    (trunk, found), whole = run(params)
    np.testing.assert_allclose(trunk[valid], whole[valid], atol=1e-5)
    logits = np.asarray(
        jax.jit(lambda params, x: models.merge(graph, params).logits(x))(params, found)
    )
    for row in range(b):
        for w in range(2):
            n = int(written[2 * row + w].sum())
            prefix = np.asarray(tokens[row, first[row] : starts[row, w]])
            alone = np.concatenate([prefix, branch[2 * row + w, :n]])[None]
            expected = logits_of(graph, params, alone, np.ones(alone.shape, bool))[0, len(prefix) :]
            np.testing.assert_allclose(logits[2 * row + w, :n], expected, atol=1e-4)


@pytest.mark.parametrize("kernel", ["splash", "cudnn"])
def test_a_kernel_reads_and_writes_as_the_reference_does(
    kernel, architectures, random_model, batch, logits_of, monkeypatch
):
    """In the forward pass, its gradient, the prefill of a cache, and with what branches off."""
    portable = {
        "splash": functools.partial(attention.by_splash, interpret=True),
        "cudnn": functools.partial(attention.by_cudnn, implementation="xla"),
    }
    monkeypatch.setattr(attention, f"by_{kernel}", portable[kernel])
    (tokens, valid), each = batch, []
    branches = two_branches(valid)
    for name in ("matmul", kernel):
        graph, params = random_model(architectures["qwen3"], compute=Compute(attention=name))
        gradient = jax.jit(jax.grad(cubed_hidden(graph, tokens, valid)))(params)

        @jax.jit
        def prefill(params, graph=graph):
            model = models.merge(graph, params)
            read = jnp.asarray(tokens), jnp.asarray(valid)
            return model.extend(*read, model.empty_cache(*tokens.shape))[0]

        @jax.jit
        def branched(params, graph=graph):
            read = jnp.asarray(tokens), jnp.asarray(valid)
            return models.merge(graph, params).branched(*read, branches)

        logits = logits_of(graph, params, tokens, valid)[valid]
        trunk, found = branched(params)
        of_branches = (trunk[valid], found[np.asarray(branches.valid)])
        each.append((logits, gradient, prefill(params)[valid], of_branches))
    chex.assert_trees_all_close(*each, rtol=1e-4, atol=1e-5)


def test_rematerialisation_changes_no_gradient(architectures, random_model, batch):
    gradients = []
    for remat in ("none", "layer", "dots"):
        graph, params = random_model(architectures["qwen2"], compute=Compute(remat=remat))
        gradients.append(jax.jit(jax.grad(cubed_hidden(graph, *batch)))(params))
    for other in gradients[1:]:
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), gradients[0], other
        )


def test_bfloat16_compute_is_close(architectures, random_model, batch, logits_of):
    (tokens, valid), exact, rounded = (
        batch,
        *(
            random_model(architectures["llama"], compute=Compute(dtype=dtype))
            for dtype in ("float32", "bfloat16")
        ),
    )
    difference = logits_of(*rounded, tokens, valid) - logits_of(*exact, tokens, valid)
    assert 0 < np.abs(difference[valid]).mean() < 0.05


def test_a_tied_head_is_one_parameter(architectures, random_model):
    assert "output_head" not in random_model(architectures["llama3"])[1]
    assert random_model(architectures["llama"])[1]["output_head"].shape == (32, 264)


def test_a_fresh_adapter_changes_nothing_and_a_trained_one_does(
    architectures, random_model, batch, logits_of
):
    graph, params = random_model(architectures["qwen3"], LoRA(rank=2))
    adapters = {
        key: leaf for key, leaf in flatten_dict(params).items() if key[-1].startswith("lora")
    }
    assert len(adapters) == 2 * 7  # every linear layer has its pair
    base = unflatten_dict(
        {key: leaf for key, leaf in flatten_dict(params).items() if key not in adapters}
    )
    base_graph, _ = random_model(architectures["qwen3"])
    fresh = unflatten_dict(
        {
            key: leaf if key[-1] != "lora_b" else 0 * leaf
            for key, leaf in flatten_dict(params).items()
        }
    )
    expected = logits_of(base_graph, base, *batch)
    np.testing.assert_array_equal(logits_of(graph, fresh, *batch), expected)
    assert np.abs(logits_of(graph, params, *batch) - expected).max() > 0.1


def test_targets_alone_have_adapters(architectures, random_model):
    targets = ("q_proj", "o_proj", "gate_proj")
    _, params = random_model(architectures["qwen3"], LoRA(rank=2, targets=targets))
    adapted = {key[:-1] for key in flatten_dict(params) if key[-1].startswith("lora")}
    assert adapted == {
        ("layers", "attention", "query"),
        ("layers", "attention", "output"),
        ("layers", "mlp", "gate"),
    }


def test_shapes_without_values_are_those_of_a_model(architectures, random_model):
    for name, architecture in architectures.items():
        graph, params = random_model(architecture)
        abstract_graph, shapes = models.abstract(architecture)
        assert graph == abstract_graph and hash(graph) == hash(abstract_graph), name
        assert jax.tree.map(lambda leaf: leaf.shape, params) == jax.tree.map(
            lambda leaf: leaf.shape, shapes
        )


def test_head_counts_that_do_not_divide_are_refused(architectures):
    with pytest.raises(ValueError, match="kv_heads=3"):
        dataclasses.replace(architectures["llama"], kv_heads=3)
