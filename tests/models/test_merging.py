"""Adapters that PEFT has written, read as it reads them, and what of them is refused."""

import json
import shutil

import huggingface_hub
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict
from safetensors.numpy import load_file, save_file
from transformers import AutoTokenizer

from jopd.models import LoRA
from jopd.models.adapters import save_adapter
from jopd.models.load import load, open_model, save
from jopd.models.sharding import MESH_AXES

torch = pytest.importorskip(
    "torch", reason="parity with PEFT needs torch and peft: pip install 'jopd[parity]'"
)
peft = pytest.importorskip(
    "peft", reason="parity with PEFT needs torch and peft: pip install 'jopd[parity]'"
)
transformers = pytest.importorskip("transformers")

QV = ["q_proj", "v_proj"]


@pytest.fixture(scope="module")
def bases(tmp_path_factory, architectures, random_model, tokenizer):
    """`base(family)`: the folder of a random model."""
    home = tmp_path_factory.mktemp("bases")

    def base(family: str):
        folder = home / family.replace(" ", "-")
        if not folder.exists():
            architecture = architectures[family]
            save(folder, *random_model(architecture), architecture, tokenizer)
        return folder

    return base


def adapted(base, folder, dtype=torch.float32, **settings):
    """A PEFT model on a base, its adapters random, saved to a folder."""
    config = peft.LoraConfig(**{"r": 2, "lora_alpha": 3, "target_modules": QV, **settings})
    model = peft.get_peft_model(
        transformers.AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), config
    )
    torch.manual_seed(0)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter, std=0.3)
            parameter.data = parameter.data.to(dtype).float()
    model.save_pretrained(folder)
    return model


@pytest.fixture
def adapter(bases, tmp_path):
    """A folder that is read, for what is then broken."""
    adapted(bases("qwen3"), tmp_path / "adapter")
    return tmp_path / "adapter"


def assert_same_logits(folder, reference, batch, logits_of, torch_logits_of):
    tokens, valid = batch
    loaded = load(folder)
    assert not any(key[-1].startswith("lora") for key in flatten_dict(loaded.params))
    expected = torch_logits_of(reference, tokens, valid)
    logits = logits_of(loaded.graph, loaded.params, tokens, valid)
    np.testing.assert_allclose(logits[valid], expected[valid], atol=1e-4)
    with reference.disable_adapter():
        plain = torch_logits_of(reference, tokens, valid)
    assert np.abs(expected - plain)[valid].max() > 0.1


def test_every_family_gives_pefts_logits(
    family, bases, tmp_path, batch, logits_of, torch_logits_of
):
    reference = adapted(bases(family), tmp_path, target_modules="all-linear")
    assert_same_logits(tmp_path, reference, batch, logits_of, torch_logits_of)


@pytest.mark.parametrize(
    "settings",
    [
        {"use_rslora": True, "r": 4},
        {"rank_pattern": {"q_proj": 4, r"layers\.1\.self_attn\.v_proj": 1}},
        {"alpha_pattern": {"layers.2.self_attn.q_proj": 9}, "use_rslora": True},
        {"target_modules": r".*layers\.[02]\.(self_attn\.o|mlp\.down)_proj"},
        {"layers_to_transform": [0, 2]},
        {"layers_to_transform": 1, "layers_pattern": "layers"},
        {"target_modules": [*QV, "up_proj"], "exclude_modules": ["layers.1.mlp.up_proj"]},
        {"exclude_modules": r".*\.0\..*"},
        {"target_modules": ["model.layers.0.mlp.gate_proj", "layers.2.mlp.gate_proj"]},
        {"init_lora_weights": "gaussian", "lora_dropout": 0.5},
    ],
)
def test_settings_mean_what_peft_means_by_them(
    settings, bases, tmp_path, batch, logits_of, torch_logits_of
):
    reference = adapted(bases("qwen3"), tmp_path, **settings)
    assert_same_logits(tmp_path, reference, batch, logits_of, torch_logits_of)


def test_a_bfloat16_adapter_is_merged_in_float32(
    bases, tmp_path, batch, logits_of, torch_logits_of
):
    reference = adapted(bases("llama"), tmp_path / "a", dtype=torch.bfloat16)
    file = tmp_path / "a" / "adapter_model.safetensors"
    save_file({name: x.astype(jnp.bfloat16) for name, x in load_file(file).items()}, file)
    assert_same_logits(tmp_path / "a", reference, batch, logits_of, torch_logits_of)


def test_new_adapters_stand_on_the_merged_weights(adapter):
    merged, again = load(adapter), load(adapter, lora=LoRA(rank=2))
    flat, under = flatten_dict(merged.params), flatten_dict(again.params)
    for key, leaf in flat.items():
        np.testing.assert_array_equal(under[key], leaf)
    assert all(not leaf.any() for key, leaf in under.items() if key[-1] == "lora_b")


def test_what_is_trained_on_an_adapter_is_written_as_one_on_the_base(
    bases, tmp_path, batch, logits_of, torch_logits_of
):
    base, tokens, valid = bases("qwen3"), *batch
    settings = {"layers_to_transform": [0, 2], "rank_pattern": {"v_proj": 3}, "use_rslora": True}
    adapted(base, tmp_path / "first", **settings)
    lora = LoRA(rank=4, alpha=6.0, targets=("v_proj", "up_proj"))
    student = load(tmp_path / "first", lora=lora)
    noise = np.random.default_rng(0)
    trained = {
        key: leaf if "lora" not in key[-1] else noise.normal(0, 0.3, leaf.shape).astype(np.float32)
        for key, leaf in flatten_dict(student.params).items()
    }
    params = unflatten_dict(trained)
    save_adapter(tmp_path / "second", params, lora, student.origin)
    model = transformers.AutoModelForCausalLM.from_pretrained(base)
    both = peft.PeftModel.from_pretrained(model, tmp_path / "second")
    expected = logits_of(student.graph, params, tokens, valid)[valid]
    np.testing.assert_allclose(torch_logits_of(both, tokens, valid)[valid], expected, atol=1e-4)
    assert both.peft_config["default"].base_model_name_or_path == str(base)
    assert_same_logits(tmp_path / "second", both, batch, logits_of, torch_logits_of)


def test_an_adapter_of_an_adapter_is_added_to_it(bases, tmp_path, batch, logits_of):
    adapted(bases("qwen3"), tmp_path / "one")
    adapted(bases("qwen3"), tmp_path / "two", target_modules=["down_proj"])
    both, one, two = (
        load_on(tmp_path / "two", tmp_path / "one"),
        *(flatten_dict(load(tmp_path / name).params) for name in ("one", "two")),
    )
    for key, leaf in flatten_dict(both.params).items():
        np.testing.assert_array_equal(leaf, (two if "down" in key else one)[key])
    assert both.origin.base == str(bases("qwen3")) and len(both.origin.added) == 2
    edit(tmp_path / "one" / "adapter_config.json", base_model_name_or_path=str(tmp_path / "two"))
    with pytest.raises(ValueError, match="base_model_name_or_path leads back to itself"):
        open_model(tmp_path / "one")


def load_on(folder, base):
    edit(folder / "adapter_config.json", base_model_name_or_path=str(base))
    return load(folder)


def edit(file, **changes):
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def test_weights_and_scale_are_of_the_fingerprint(bases, adapter):
    seen = {load(bases("qwen3")).fingerprint, load(adapter).fingerprint}
    assert load(adapter).fingerprint in seen
    edit(adapter / "adapter_config.json", lora_alpha=4)
    seen.add(load(adapter).fingerprint)
    file = adapter / "adapter_model.safetensors"
    save_file({name: x + 1 for name, x in load_file(file).items()}, file)
    seen.add(load(adapter).fingerprint)
    assert len(seen) == 4


def test_the_tokenizer_is_the_adapters_where_it_has_one(bases, adapter):
    base = load(bases("qwen3"))
    assert load(adapter).tokenizer.chat_template == base.tokenizer.chat_template
    own = AutoTokenizer.from_pretrained(bases("qwen3"))
    own.chat_template, own.eos_token = (
        "{% for m in messages %}{{ m.content }}{% endfor %}",
        "<user>",
    )
    own.save_pretrained(adapter)
    opened = open_model(adapter)
    assert opened.tokenizer.chat_template == own.chat_template
    assert opened.stop_tokens == (256, 257)
    own.add_tokens([f"<{number}>" for number in range(9)])
    own.save_pretrained(adapter)
    with pytest.raises(ValueError, match="token id 267, vocab_size is 264"):
        open_model(adapter)


def test_hub_names_of_adapter_and_base_fetch_what_is_read(bases, adapter, monkeypatch):
    folders, asked = {"me/adapter": adapter, "me/base": bases("qwen3")}, []
    edit(adapter / "adapter_config.json", base_model_name_or_path="me/base")

    def download(name, *, allow_patterns):
        asked.extend(
            huggingface_hub.utils.filter_repo_objects(
                ["adapter_config.json", "adapter_model.safetensors", "adapter_model.bin"],
                allow_patterns=allow_patterns,
            )
        )
        return str(folders[name])

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    assert load("me/adapter").origin.base == "me/base"
    assert set(asked) == {"adapter_config.json", "adapter_model.safetensors"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"peft_type": "LOHA"}, r"peft_type='LOHA' is not supported .*merge_and_unload"),
        ({"use_dora": True}, "use_dora=True is not supported: merge it"),
        ({"bias": "all"}, "bias='all' is not supported"),
        ({"modules_to_save": ["lm_head"]}, r"modules_to_save=\['lm_head'\] is not supported"),
        ({"lora_bias": True}, "lora_bias=True is not supported"),
        ({"fan_in_fan_out": True}, "fan_in_fan_out=True is not supported"),
        ({"of_a_later_peft": {"x": 1}}, r"of_a_later_peft=\{'x': 1\} is not supported"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights='pissa' is not supported"),
        ({"init_lora_weights": "olora"}, "init_lora_weights='olora' is not supported"),
        ({"layers_pattern": "h"}, "layers_pattern='h' is not supported"),
        ({"revision": "abc"}, "revision='abc' is not supported"),
        ({"r": "2"}, r"r='2' is not supported \(Input should be a valid integer\)"),
        ({"lora_alpha": None}, "lora_alpha=None is not supported"),
        ({"target_modules": "("}, r"target_modules='\(' is not supported"),
        ({"target_modules": None}, "target_modules=None is not supported"),
        ({"base_model_name_or_path": None}, "has no base_model_name_or_path: write there"),
        (
            {"base_model_name_or_path": "./nowhere"},
            "base_model_name_or_path='./nowhere', and model './nowhere' is neither",
        ),
        ({"target_modules": ["q_proj"]}, r"does not account for.*v_proj.*; 6 in all"),
        (
            {"target_modules": [*QV, "k_proj"]},
            r"lacks tensors that adapter_config.json asks for \(.*k_proj.*; 6 in all\)",
        ),
        ({"r": 3}, r"q_proj are \(2, 32\) and \(64, 2\), where rank 3 .*\(3, 32\) and \(64, 3\)"),
    ],
)
def test_what_is_not_computed_is_refused_by_its_key(changes, message, adapter):
    edit(adapter / "adapter_config.json", **changes)
    with pytest.raises(ValueError, match=message) as error:
        open_model(adapter)
    assert "\n" not in str(error.value) and str(adapter) in str(error.value)


def test_a_base_that_it_does_not_fit_is_refused(adapter, bases):
    edit(adapter / "adapter_config.json", base_model_name_or_path=str(bases("llama")))
    with pytest.raises(ValueError, match=r"\(2, 32\) and \(64, 2\), where .* \(32, 2\): give the"):
        open_model(adapter)


def test_tensors_of_other_layers_are_refused(bases, tmp_path):
    adapted(bases("qwen3"), tmp_path, target_modules=["q_proj", "lm_head"])
    with pytest.raises(ValueError, match=r"lm_head\.lora_A\.weight.*merge_and_unload"):
        open_model(tmp_path)
    shutil.copy(bases("qwen3") / "model.safetensors", tmp_path)
    with pytest.raises(ValueError, match=r"a whole model \(model.safetensors\) and an adapter"):
        open_model(tmp_path)


def test_a_pickle_is_not_read(adapter):
    weights = adapter / "adapter_model.safetensors"
    weights.rename(adapter / "adapter_model.bin")
    with pytest.raises(
        ValueError, match=r"adapter_model\.bin is a pickle, which is not read\): sa"
    ):
        open_model(adapter)
    (adapter / "adapter_model.bin").unlink()
    with pytest.raises(ValueError, match=r"has no adapter_model\.safetensors: save it"):
        open_model(adapter)


@pytest.mark.skipif(
    jax.device_count() < 4,
    reason="needs 4 devices: XLA_FLAGS=--xla_force_host_platform_device_count=4",
)
def test_each_device_merges_its_own_shards(adapter):
    mesh = jax.make_mesh((1, 2, 2), MESH_AXES, devices=jax.devices()[:4])
    sharded, single = load(adapter, mesh=mesh), load(adapter)
    for key, leaf in flatten_dict(sharded.params).items():
        np.testing.assert_array_equal(leaf, flatten_dict(single.params)[key])
