import json

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from jopd.models import RopeScaling
from jopd.models.families import architecture_from, config_from
from jopd.models.load import load, save

TINY = {
    "vocab_size": 8,
    "hidden_size": 8,
    "intermediate_size": 8,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
}
LLAMA3 = {
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}


@pytest.fixture
def folder(tmp_path, architectures, tokenizer, random_model):
    """A saved model whose files a test may damage."""
    save(
        tmp_path / "model",
        *random_model(architectures["llama3"]),
        architectures["llama3"],
        tokenizer,
    )
    return tmp_path / "model"


def edit_tensors(folder, edit):
    tensors = load_file(folder / "model.safetensors")
    edit(tensors)
    save_file(tensors, folder / "model.safetensors")


def edit_config(folder, **changes):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))


def test_an_architecture_survives_its_config(family, architectures):
    assert (
        architecture_from(json.loads(json.dumps(config_from(architectures[family], "float32"))))
        == architectures[family]
    )


@pytest.mark.parametrize(
    ("rope", "theta", "scaling"),
    [
        ({}, 10_000.0, None),
        ({"rope_theta": 5e5, "rope_scaling": None}, 5e5, None),
        (
            {"rope_theta": 5e5, "rope_scaling": {"rope_type": "llama3", **LLAMA3}},
            5e5,
            RopeScaling(8.0, 1.0, 4.0, 32),
        ),
        ({"rope_parameters": {"rope_theta": 5e5, "rope_type": "default"}}, 5e5, None),
        (
            {"rope_parameters": {"rope_theta": 5e5, "rope_type": "llama3", **LLAMA3}},
            5e5,
            RopeScaling(8.0, 1.0, 4.0, 32),
        ),
    ],
)
def test_both_spellings_of_rope(rope, theta, scaling):
    architecture = architecture_from({"model_type": "llama", **TINY, **rope})
    assert (architecture.rope_theta, architecture.rope_scaling) == (theta, scaling)


def test_what_a_config_may_leave_out():
    llama = architecture_from({"model_type": "llama", **TINY})
    assert (llama.kv_heads, llama.head_dim, llama.tied_head, llama.norm_epsilon) == (
        2,
        4,
        False,
        1e-6,
    )
    assert architecture_from({"model_type": "qwen3", **TINY}).head_dim == 128


def test_a_sliding_window_that_reaches_no_layer_is_no_obstacle():
    for harmless in (
        {"use_sliding_window": False},
        {"use_sliding_window": True, "max_window_layers": 2},
    ):
        architecture_from({"model_type": "qwen2", **TINY, "sliding_window": 4, **harmless})


@pytest.mark.parametrize(
    ("config", "named"),
    [
        ({"model_type": "qwen3_moe"}, "model_type='qwen3_moe'.*llama, qwen2, qwen3"),
        ({"model_type": "gemma3"}, "gemma3"),
        ({"model_type": "mamba2"}, "mamba2"),
        ({}, "model_type=None"),
        ({"model_type": "llama", "mlp_bias": True}, "mlp_bias=True"),
        ({"model_type": "llama", "attention_bias": True}, "attention_bias=True"),
        ({"model_type": "qwen3", "attention_bias": True}, "attention_bias=True"),
        ({"model_type": "llama", "hidden_act": "gelu"}, "hidden_act='gelu'"),
        ({"model_type": "qwen2", "quantization_config": {"quant_method": "gptq"}}, "gptq"),
        ({"model_type": "llama", "rope_scaling": {"type": "linear", "factor": 2.0}}, "linear"),
        ({"model_type": "qwen3", "rope_parameters": {"rope_type": "yarn", "factor": 4.0}}, "yarn"),
        ({"model_type": "llama", "partial_rotary_factor": 0.5}, "partial_rotary_factor"),
        (
            {"model_type": "llama", "rope_parameters": {"full_attention": {"rope_theta": 1e6}}},
            "full_attention",
        ),
        (
            {
                "model_type": "qwen2",
                "use_sliding_window": True,
                "sliding_window": 4,
                "max_window_layers": 1,
            },
            "sliding_window=4",
        ),
        (
            {"model_type": "qwen3", "layer_types": ["full_attention", "sliding_attention"]},
            "sliding_window",
        ),
        ({"model_type": "llama", "hidden_size": None}, "lacks hidden_size"),
        *[
            ({"model_type": "llama", **rope}, named)
            for rope, named in [
                # Wherever a scaling is written, and whatever stands beside it.
                (
                    {
                        "rope_scaling": {"type": "dynamic", "factor": 2.0},
                        "rope_parameters": {"rope_type": "default", "rope_theta": 1e4},
                    },
                    "rope_scaling=.*dynamic",
                ),
                ({"rope_scaling": {"rope_type": "default", "type": "yarn"}}, "rope_scaling=.*yarn"),
                ({"rope_scaling": {"factor": 2.0}}, "rope_scaling=.*factor"),
                ({"rope_parameters": {"rope_theta": 1e4, "factor": 2.0}}, "rope_parameters=.*fact"),
                ({"rope_scaling": "linear"}, "rope_scaling='linear'"),
                (
                    {"rope_scaling": {"rope_type": "llama3", **LLAMA3, "attention_factor": 2.0}},
                    "attention_factor",
                ),
                (
                    {
                        "rope_scaling": {"rope_type": "llama3", **LLAMA3},
                        "rope_parameters": {"rope_theta": 1e4, "rope_type": "default"},
                    },
                    "config.json says rope_type='llama3' and, in rope_parameters, 'default'",
                ),
                (
                    {"rope_theta": 5e5, "rope_parameters": {"rope_theta": 1e4}},
                    "rope_theta=500000.0 and, in rope_parameters, 10000.0",
                ),
                (
                    {"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.5}},
                    "partial_rotary_factor=0.5",
                ),
                (
                    {"rope_scaling": {"rope_type": "llama3", "factor": 8.0}},
                    "rope_scaling: low_freq_factor=None must be a number",
                ),
                (
                    {"rope_scaling": {"rope_type": "llama3", **LLAMA3, "factor": "8"}},
                    "factor='8' must be a number",
                ),
            ]
        ],
        (
            {"model_type": "qwen2", "use_sliding_window": True, "max_window_layers": 0},
            "sliding_window=4096",
        ),
        ({"model_type": "llama", "layer_types": ["chunked_attention"]}, "'chunked_attention'"),
        ({"model_type": "llama", "qk_norm": True}, "qk_norm=True"),
        ({"model_type": "llama", "final_logit_softcapping": 30.0}, "final_logit_softcapping=30.0"),
        ({"model_type": "llama", "logits_scaling": 8.0}, "logits_scaling=8.0"),
        ({"model_type": "llama", "rope_interleaved": True}, "rope_interleaved=True"),
        ({"model_type": "llama", "num_local_experts": 8}, "num_local_experts=8"),
        (
            {"model_type": "llama", "auto_map": {"AutoModelForCausalLM": "modeling_x.X"}},
            "auto_map=.*modeling_x",
        ),
        ({"model_type": "llama", "hidden_size": "8"}, "hidden_size='8' must be a whole number"),
        ({"model_type": "llama", "vocab_size": 0}, "vocab_size=0 must be a whole number"),
        ({"model_type": "llama", "num_key_value_heads": True}, "num_key_value_heads=True"),
        ({"model_type": "llama", "head_dim": [8]}, r"head_dim=\[8\] must be"),
        ({"model_type": "llama", "rms_norm_eps": "1e-6"}, "rms_norm_eps='1e-6' must be above 0"),
        ({"model_type": "llama", "rope_theta": float("inf")}, "rope_theta=inf must be above 0"),
        ({"model_type": "llama", "tie_word_embeddings": "yes"}, "tie_word_embeddings='yes'"),
    ],
)
def test_what_is_not_computed_is_refused_by_name_in_one_line(config, named):
    with pytest.raises(ValueError, match=named) as error:
        architecture_from(TINY | config)
    assert "\n" not in str(error.value)


def test_what_says_that_nothing_is_special_is_no_obstacle():
    neutral = {"qk_norm": False, "rope_interleaved": False, "logits_scaling": 1.0}
    neutral |= {"rope_scaling": {"rope_type": "default"}, "hidden_act": "silu", "mlp_bias": None}
    neutral |= {"is_llama_config": True, "pretraining_tp": 1, "attention_dropout": 0.0}
    plain = architecture_from({"model_type": "llama", **TINY})
    assert architecture_from({"model_type": "llama", **TINY, **neutral}) == plain


def test_rope_in_both_places_that_agree():
    rope = {"rope_theta": 5e5, "rope_scaling": {"rope_type": "llama3", **LLAMA3}}
    both = rope | {"rope_parameters": {"rope_theta": 5e5, "rope_type": "llama3", **LLAMA3}}
    architectures = [
        architecture_from({"model_type": "llama", **TINY, **it}) for it in (rope, both)
    ]
    assert architectures[0] == architectures[1]


def test_missing_and_unexpected_tensors_are_named(folder):
    edit_tensors(folder, lambda tensors: tensors.pop("model.layers.1.mlp.up_proj.weight"))
    with pytest.raises(
        ValueError, match=r"missing \(model\.layers\.1\.mlp\.up_proj\.weight; 1 in all"
    ):
        load(folder)
    edit_tensors(
        folder,
        lambda tensors: tensors.update(
            {"model.layers.1.mlp.up_proj.weight": np.zeros((48, 32), "f4")}
        ),
    )
    load(folder)
    edit_tensors(
        folder,
        lambda tensors: tensors.update(
            {"model.layers.1.self_attn.q_proj.bias": np.zeros(32, "f4")}
        ),
    )
    with pytest.raises(ValueError, match=r"model\.layers\.1\.self_attn\.q_proj\.bias"):
        load(folder)


def test_a_shape_that_the_config_contradicts_is_named(folder):
    edit_config(folder, intermediate_size=40)
    with pytest.raises(
        ValueError, match=r"model\.safetensors: .*mlp\.gate_proj\.weight is \(48, 32\).*\(40, 32\)"
    ):
        load(folder)


def test_a_tied_checkpoint_may_store_its_head_but_not_another(folder):
    edit_tensors(
        folder,
        lambda tensors: tensors.update(
            {"lm_head.weight": tensors["model.embed_tokens.weight"].copy()}
        ),
    )
    assert "output_head" not in load(folder).params
    edit_tensors(
        folder,
        lambda tensors: tensors.update(
            {"lm_head.weight": tensors["model.embed_tokens.weight"] + 1}
        ),
    )
    with pytest.raises(ValueError, match="set tie_word_embeddings to false"):
        load(folder)
    edit_config(folder, tie_word_embeddings=False)
    assert load(folder).params["output_head"].shape == (32, 264)


def test_an_untied_checkpoint_without_a_head_names_the_cure(folder):
    edit_config(folder, tie_word_embeddings=False)
    with pytest.raises(ValueError, match=r"lm_head\.weight.*set tie_word_embeddings to true"):
        load(folder)


def test_a_number_format_that_is_not_a_float_is_refused(folder):
    edit_tensors(
        folder, lambda tensors: tensors.update({"model.norm.weight": np.ones(32, np.int8)})
    )
    with pytest.raises(ValueError, match=r"model\.norm\.weight is stored as I8"):
        load(folder)


def test_a_tokenizer_larger_than_the_model_is_refused(folder):
    edit_config(folder, vocab_size=200)
    with pytest.raises(ValueError, match="token id 258, vocab_size is 200"):
        load(folder)


@pytest.mark.parametrize("absent", ["config.json", "model.safetensors", "tokenizer.json"])
def test_an_incomplete_folder_says_what_it_lacks(folder, absent):
    (folder / absent).unlink()
    with pytest.raises(ValueError, match=absent):
        load(folder)


def test_a_sharded_checkpoint_with_a_file_missing_names_it(
    tmp_path, architectures, tokenizer, random_model
):
    save(
        tmp_path / "model",
        *random_model(architectures["llama"]),
        architectures["llama"],
        tokenizer,
        file_bytes=30_000,
    )
    shard = next((tmp_path / "model").glob("model-00002-of-*"))
    tensors = load_file(shard)
    lost = min(tensors)
    save_file({name: part for name, part in tensors.items() if name != lost}, shard)
    with pytest.raises(ValueError, match=rf"{shard.name} lacks {lost}, which model.*index.json"):
        load(tmp_path / "model")
    shard.unlink()
    with pytest.raises(ValueError, match="lacks model-00002-of-"):
        load(tmp_path / "model")
    (tmp_path / "model" / "model.safetensors.index.json").write_text("{}")
    with pytest.raises(ValueError, match="model.safetensors.index.json has no weight_map"):
        load(tmp_path / "model")
    # Whoever has one whole file has left the shards behind, and transformers reads it too.
    save_file(tensors, tmp_path / "model" / "model.safetensors")
    with pytest.raises(ValueError, match="missing .* from model.safetensors: "):
        load(tmp_path / "model")


def test_safetensors_without_tensors_are_named(folder):
    save_file({}, folder / "model.safetensors")
    with pytest.raises(ValueError, match=r"are missing \(model\.embed.* in all\) from"):
        load(folder)


POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 98765\n"


@pytest.mark.parametrize(
    "name", ["config.json", "generation_config.json", "tokenizer.json", "model.safetensors"]
)
def test_a_pointer_of_git_lfs_is_named_with_its_cure(folder, name):
    (folder / name).write_text(POINTER)
    with pytest.raises(ValueError, match=f"{name} is a git-lfs pointer.*`git lfs pull`") as error:
        load(folder)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "name",
    ["config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"],
)
@pytest.mark.parametrize("text", ["", "{", "[1]", "\x00\xff"])
def test_a_json_file_that_is_broken_is_named(folder, name, text):
    (folder / name).write_bytes(text.encode("latin-1"))
    with pytest.raises(ValueError, match=f"{name} .*fetch it again") as error:
        load(folder)
    assert "\n" not in str(error.value)


def test_a_safetensors_file_that_is_cut_says_how_much_there_is(folder):
    file = folder / "model.safetensors"
    whole = file.read_bytes()
    file.write_bytes(whole[:-1000])
    truncated = f"truncated: {len(whole) - 1000} bytes of {len(whole)}"
    with pytest.raises(ValueError, match=rf"model\.safetensors .*{truncated}\): fetch it again"):
        load(folder)
    for part in (b"", whole[:5], whole[:100], b"<html>not found</html>"):
        file.write_bytes(part)
        with pytest.raises(ValueError, match=r"model\.safetensors is not a whole") as error:
            load(folder)
        assert "\n" not in str(error.value)
