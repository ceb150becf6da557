"""Adapters in PEFT's format, compared with PEFT itself."""

import json

import chex
import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict
from safetensors.numpy import load_file

from jopd import models
from jopd.models import LoRA
from jopd.models.adapters import LAYERS, Origin, save_adapter
from jopd.models.load import load, save
from jopd.models.settings import TARGETS
from jopd.models.sharding import MESH_AXES


@pytest.fixture(scope="session")
def peft():
    reason = "parity with PEFT needs torch and peft: pip install 'jopd[parity]'"
    pytest.importorskip("torch", reason=reason)
    return pytest.importorskip("peft", reason=reason)


def torch_model(folder):
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder)


def without_adapters(architecture, params):
    """The graph and parameters of the base."""
    plain = {key: leaf for key, leaf in flatten_dict(params).items() if "lora" not in key[-1]}
    return models.abstract(architecture)[0], unflatten_dict(plain)


@pytest.fixture
def saved(architectures, random_model, tokenizer, tmp_path):
    """`save_all(family, lora)`: base/, student/ and adapter/ of a random model; gives graph and
    parameters.
    """

    def save_all(family: str, lora: LoRA):
        architecture = architectures[family]
        graph, params = random_model(architecture, lora)
        base = without_adapters(architecture, params)
        save(tmp_path / "base", *base, architecture, tokenizer)
        save(tmp_path / "student", graph, params, architecture, tokenizer)
        save_adapter(tmp_path / "adapter", params, lora, Origin(str(tmp_path / "base")))
        return graph, params

    return save_all


def test_the_targets_are_the_names_of_the_linear_layers():
    assert [layer.rpartition(".")[2] for layer in LAYERS.values()] == list(TARGETS)


@pytest.mark.parametrize("targets", [TARGETS, ("q_proj", "v_proj", "down_proj")])
def test_peft_reads_the_adapters_and_gives_the_logits_of_the_merged_student(
    family, targets, saved, peft, tmp_path, batch, logits_of, torch_logits_of
):
    graph, params = saved(family, LoRA(rank=2, alpha=3.0, targets=targets))
    tokens, valid = batch
    plain = torch_logits_of(torch_model(tmp_path / "base"), tokens, valid)
    adapted = peft.PeftModel.from_pretrained(torch_model(tmp_path / "base"), tmp_path / "adapter")
    logits = torch_logits_of(adapted, tokens, valid)
    merged = torch_logits_of(torch_model(tmp_path / "student"), tokens, valid)
    assert np.abs(logits - plain)[valid].max() > 0.1
    np.testing.assert_allclose(logits[valid], merged[valid], atol=1e-4)
    np.testing.assert_allclose(
        logits_of(graph, params, tokens, valid)[valid], logits[valid], atol=1e-4
    )


def test_peft_finds_the_base_by_itself(saved, peft, tmp_path, batch, torch_logits_of):
    saved("qwen3", LoRA(rank=2))
    found = peft.AutoPeftModelForCausalLM.from_pretrained(tmp_path / "adapter")
    merged = torch_logits_of(torch_model(tmp_path / "student"), *batch)
    valid = batch[1]
    np.testing.assert_allclose(torch_logits_of(found, *batch)[valid], merged[valid], atol=1e-4)


def test_peft_reads_every_tensor_and_setting(saved, peft, tmp_path):
    saved("llama", LoRA(rank=3, alpha=4.5, targets=("up_proj", "k_proj")))
    config = peft.PeftConfig.from_pretrained(tmp_path / "adapter")
    assert (config.peft_type, config.r, config.lora_alpha) == ("LORA", 3, 4.5)
    assert config.target_modules == {"k_proj", "up_proj"}
    model = peft.get_peft_model(torch_model(tmp_path / "base"), config)
    ours = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    theirs = peft.get_peft_model_state_dict(model)
    assert {name: tuple(x.shape) for name, x in theirs.items()} == {
        name: x.shape for name, x in ours.items()
    }


@pytest.mark.skipif(
    jax.device_count() < 4,
    reason="needs 4 devices: XLA_FLAGS=--xla_force_host_platform_device_count=4",
)
def test_sharded_adapters_are_saved_whole(saved, tmp_path):
    lora = LoRA(rank=2)
    saved("qwen3", lora)
    mesh = jax.make_mesh((1, 2, 2), MESH_AXES, devices=jax.devices()[:4])
    for name, place in (("spread", mesh), ("single", None)):
        model = load(tmp_path / "base", mesh=place, lora=lora, seed=3)
        save_adapter(tmp_path / name, model.params, lora, Origin("a/b"))
    spread, single = (
        load_file(tmp_path / name / "adapter_model.safetensors") for name in ("spread", "single")
    )
    assert np.abs(spread["base_model.model.model.layers.2.mlp.up_proj.lora_A.weight"]).max() > 0.1
    chex.assert_trees_all_equal(spread, single)


def test_saving_replaces_an_adapter_and_nothing_else(saved, tmp_path):
    _, params = saved("llama", LoRA(rank=2))
    save_adapter(tmp_path / "adapter", params, LoRA(rank=2), Origin("owner/name"))
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "owner/name"
    assert {path.name for path in tmp_path.iterdir()} == {"base", "student", "adapter"}
    with pytest.raises(ValueError, match="not an adapter: give another folder"):
        save_adapter(tmp_path / "base", params, LoRA(rank=2), Origin("owner/name"))
