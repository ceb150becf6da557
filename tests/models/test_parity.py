"""The same numbers as torch's `transformers`, in both directions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jopd.models import LoRA
from jopd.models.load import load, save

transformers = pytest.importorskip("transformers")
torch = pytest.importorskip(
    "torch", reason="parity with transformers needs torch: pip install 'jopd[parity]'"
)


def reference_model(name):
    """A transformers model of random parameters, made from a config of its own, in its own
    spelling.
    """
    sizes = {"vocab_size": 264, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3}
    sizes |= {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64}
    llama3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    config = {
        "llama": lambda: transformers.LlamaConfig(**sizes),
        "llama3": lambda: transformers.LlamaConfig(
            **sizes,
            tie_word_embeddings=True,
            rope_parameters={**llama3, "rope_theta": 5e5, "original_max_position_embeddings": 32},
        ),
        "qwen2": lambda: transformers.Qwen2Config(
            **sizes,
            tie_word_embeddings=True,
            rope_parameters={"rope_type": "default", "rope_theta": 1e6},
        ),
        "qwen2 untied": lambda: transformers.Qwen2Config(**sizes),
        "qwen3": lambda: transformers.Qwen3Config(**sizes, head_dim=16),
    }[name]()
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config)
    for parameter_name, parameter in model.named_parameters():
        torch.nn.init.normal_(parameter, mean=float("norm" in parameter_name), std=0.2)
    return model


def test_a_transformers_checkpoint_gives_its_logits(
    family, tmp_path, tokenizer, batch, logits_of, torch_logits_of
):
    reference = reference_model(family)
    reference.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    tokens, valid = batch
    loaded = load(tmp_path)
    expected = torch_logits_of(reference, tokens, valid)
    assert np.abs(expected).max() > 1
    logits = logits_of(loaded.graph, loaded.params, tokens, valid)
    np.testing.assert_allclose(logits[valid], expected[valid], atol=1e-4)


def test_a_saved_model_gives_its_logits_in_transformers(
    family, architectures, tmp_path, tokenizer, random_model, batch, logits_of, torch_logits_of
):
    graph, params = random_model(architectures[family])
    save(tmp_path / "out", graph, params, architectures[family], tokenizer)
    reference, report = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "out", output_loading_info=True
    )
    assert not report["missing_keys"] and not report["unexpected_keys"]
    assert reference.generation_config.eos_token_id == [256]
    tokens, valid = batch
    expected = torch_logits_of(reference, tokens, valid)
    np.testing.assert_allclose(
        logits_of(graph, params, tokens, valid)[valid], expected[valid], atol=1e-4
    )


def test_a_bfloat16_checkpoint_in_several_files(
    tmp_path, tokenizer, batch, logits_of, torch_logits_of
):
    reference = reference_model("qwen2 untied").to(torch.bfloat16)
    reference.save_pretrained(tmp_path, max_shard_size="30KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 2
    tokenizer.save_pretrained(tmp_path)
    tokens, valid = batch
    loaded = load(tmp_path)
    exact = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path, dtype=torch.float32
    )  # the same numbers
    expected = torch_logits_of(exact, tokens, valid)
    np.testing.assert_allclose(
        logits_of(loaded.graph, loaded.params, tokens, valid)[valid], expected[valid], atol=1e-4
    )


def test_a_model_saved_in_several_files_and_bfloat16_loads_in_transformers(
    architectures, tmp_path, tokenizer, random_model, batch, logits_of, torch_logits_of
):
    graph, params = random_model(architectures["qwen3"])
    save(
        tmp_path / "out",
        graph,
        params,
        architectures["qwen3"],
        tokenizer,
        "bfloat16",
        file_bytes=30_000,
    )
    assert (tmp_path / "out" / "model.safetensors.index.json").is_file()
    assert (
        transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out").dtype == torch.bfloat16
    )
    tokens, valid = batch
    exact = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32)
    expected = torch_logits_of(exact, tokens, valid)
    rounded = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16).astype(jnp.float32), params)
    np.testing.assert_allclose(
        logits_of(graph, rounded, tokens, valid)[valid], expected[valid], atol=1e-4
    )


def test_merged_adapters_give_the_adapted_logits_in_transformers(
    architectures, tmp_path, tokenizer, random_model, batch, logits_of, torch_logits_of
):
    graph, params = random_model(architectures["qwen2"], LoRA(rank=2, alpha=3.0))
    save(tmp_path / "out", graph, params, architectures["qwen2"], tokenizer)
    tokens, valid = batch
    expected = torch_logits_of(
        transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out"), tokens, valid
    )
    np.testing.assert_allclose(
        logits_of(graph, params, tokens, valid)[valid], expected[valid], atol=1e-4
    )
