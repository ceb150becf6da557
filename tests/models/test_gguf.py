import dataclasses
import re
import string

import chex
import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict
from tokenizers import pre_tokenizers

from jopd.models import LoRA, RopeScaling
from jopd.models.adapters import Origin, save_adapter
from jopd.models.gguf import rope_scaling_from
from jopd.models.load import load, open_model, save
from jopd.models.weights import NAMES, TRANSPOSED

gguf = pytest.importorskip(
    "gguf", reason="reading GGUF needs the gguf package: pip install 'jopd[gguf]'"
)

ALPHABET = sorted(pre_tokenizers.ByteLevel.alphabet())
STEMS = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def stored_weights(architecture, params):
    """`{gguf name: array}`, q and k of llama permuted as llama.cpp's converter does it."""
    stored = {}
    for key, leaf in flatten_dict(jax.device_get(params)).items():
        for layer, part in enumerate(leaf if key[0] == "layers" else [leaf]):
            name, part = NAMES[key].format(layer), part.T if key[-1] in TRANSPOSED else part
            stem, _, kind = name.removeprefix(f"model.layers.{layer}.").rpartition(".")
            llama = not architecture.qkv_bias and not architecture.qk_norm
            if llama and key[-2:] in [("query", "kernel"), ("key", "kernel")]:
                half = architecture.head_dim // 2
                part = part.reshape(-1, 2, half, part.shape[-1]).swapaxes(1, 2).reshape(part.shape)
            stored[(f"blk.{layer}." if key[0] == "layers" else "") + f"{STEMS[stem]}.{kind}"] = part
    return stored


@pytest.fixture
def write(tmp_path):
    """`write(architecture, params, ...) -> path` of a file as llama.cpp's converter makes it, by
    way of `gguf.GGUFWriter`.
    """

    def run(
        architecture,
        params,
        *,
        family="llama",
        extra=None,
        kind=None,
        model="gpt2",
        pre="smollm",
        rope=None,
    ):
        a, path = architecture, tmp_path / "model.gguf"
        writer = gguf.GGUFWriter(path, family)
        writer.add_block_count(a.layers)
        writer.add_context_length(a.max_positions)
        writer.add_embedding_length(a.width)
        writer.add_feed_forward_length(a.mlp_width)
        writer.add_head_count(a.heads)
        writer.add_head_count_kv(a.kv_heads)
        writer.add_key_length(a.head_dim)
        writer.add_rope_dimension_count(a.head_dim)
        writer.add_rope_freq_base(a.rope_theta)
        writer.add_layer_norm_rms_eps(a.norm_epsilon)
        unused = [f"[PAD{i}]" for i in range(a.vocabulary_size - 263)]
        tokens = ["<unk>", "<end>", "<user>", "<think>", *ALPHABET, "ab", "Ġab", "12", *unused]
        writer.add_tokenizer_model(model)
        writer.add_tokenizer_pre(pre)
        writer.add_token_list(tokens)
        writer.add_token_types([3, 3, 3, 4] + [1] * 259 + [5] * len(unused))
        writer.add_token_merges(["a b", "Ġ ab", "1 2"])
        writer.add_bos_token_id(2)
        writer.add_eos_token_id(1)
        writer.add_unk_token_id(0)
        writer.add_pad_token_id(0)
        writer.add_chat_template("{% for m in messages %}<user>{{ m.content }}<end>{% endfor %}")
        for add in extra or []:
            add(writer)
        for name, part in stored_weights(a, params).items():
            if kind is None or part.ndim == 1:
                writer.add_tensor(name, part)
            else:
                writer.add_tensor(name, gguf.quantize(part, kind), raw_dtype=kind)
        if rope is not None:
            writer.add_tensor("rope_freqs.weight", rope)
        for step in (
            writer.write_header_to_file,
            writer.write_kv_data_to_file,
            writer.write_tensors_to_file,
            writer.close,
        ):
            step()
        return path

    return run


def gguf_family(architecture):
    return "qwen2" if architecture.qkv_bias else "qwen3" if architecture.qk_norm else "llama"


@pytest.mark.parametrize("name", ["llama", "qwen2", "qwen3"])
def test_a_file_gives_back_the_model_it_was_made_of(name, architectures, random_model, write):
    architecture = architectures[name]
    _, params = random_model(architecture)
    loaded = load(write(architecture, params, family=gguf_family(architecture)))
    rounded = dataclasses.replace(
        architecture, norm_epsilon=float(np.float32(architecture.norm_epsilon))
    )
    assert loaded.architecture == rounded  # the file keeps it in float32
    chex.assert_trees_all_equal(loaded.params, params)


@pytest.mark.parametrize("kind", ["F16", "BF16", "Q8_0", "Q4_1"])
def test_stored_types_are_dequantised(kind, architectures, random_model, write):
    architecture = dataclasses.replace(
        architectures["llama"], mlp_width=64
    )  # rows of whole blocks of 32
    _, params = random_model(architecture)
    kind = gguf.GGMLQuantizationType[kind]
    loaded = load(write(architecture, params, kind=kind)).params
    kernel = np.asarray(params["layers"]["mlp"]["down"]["kernel"])[1]
    expected = gguf.dequantize(gguf.quantize(np.ascontiguousarray(kernel.T), kind), kind).T
    np.testing.assert_array_equal(loaded["layers"]["mlp"]["down"]["kernel"][1], expected)
    # Permuting rows and rounding along them commute.
    query = np.asarray(params["layers"]["attention"]["query"]["kernel"])[0]
    expected = gguf.dequantize(gguf.quantize(np.ascontiguousarray(query.T), kind), kind).T
    np.testing.assert_array_equal(loaded["layers"]["attention"]["query"]["kernel"][0], expected)


def test_a_part_of_a_permuted_tensor(architectures, random_model, write):
    if jax.device_count() < 4:
        pytest.skip("needs 4 devices: XLA_FLAGS=--xla_force_host_platform_device_count=4")
    _, params = random_model(architectures["llama"])
    mesh = jax.make_mesh((1, 2, 2), ("data", "fsdp", "tensor"), devices=jax.devices()[:4])
    loaded = load(write(architectures["llama"], params), mesh=mesh)
    chex.assert_trees_all_equal(jax.device_get(loaded.params), jax.device_get(params))


def test_an_adapter_is_merged_into_a_file_too(architectures, random_model, write, tmp_path):
    lora = LoRA(rank=2, alpha=3.0, targets=("q_proj", "down_proj"))
    params = jax.device_get(flatten_dict(random_model(architectures["llama"], lora)[1]))
    plain = {key: leaf for key, leaf in params.items() if "lora" not in key[-1]}
    base = write(architectures["llama"], unflatten_dict(plain))
    save_adapter(tmp_path / "adapter", unflatten_dict(params), lora, Origin(str(base)))
    loaded = flatten_dict(load(tmp_path / "adapter").params)
    for owner in (("layers", "attention", "query"), ("layers", "mlp", "down")):
        added = 1.5 * params[*owner, "lora_a"] @ params[*owner, "lora_b"]  # alpha / rank
        np.testing.assert_allclose(
            loaded[*owner, "kernel"], plain[*owner, "kernel"] + added, atol=1e-5
        )


def test_the_tokenizer_in_the_metadata(architectures, random_model, write, tmp_path):
    _, params = random_model(architectures["llama"])
    loaded = load(
        write(architectures["llama"], params, extra=[lambda writer: writer.add_eot_token_id(2)])
    )
    tokenizer, byte = loaded.tokenizer, {token: 4 + i for i, token in enumerate(ALPHABET)}
    assert len(tokenizer) == 263  # what only pads the embedding is no token
    ab, spaced = 260, 261
    expected = [
        2,
        ab,
        spaced,
        byte["Ġ"],
        byte["1"],
        byte["2"],
        3,
        byte["c"],
        1,
    ]  # digits stand alone in this one
    assert tokenizer("<user>ab ab 12<think>c<end>")["input_ids"] == expected
    assert tokenizer.decode(expected) == "<user>ab ab 12<think>c<end>"
    assert tokenizer.decode(expected, skip_special_tokens=True) == "ab ab 12<think>c"
    assert tokenizer.apply_chat_template(
        [{"role": "user", "content": "ab"}], return_dict=False
    ) == [2, ab, 1]
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.unk_token_id) == (2, 1, 0)
    assert (loaded.stop_tokens, loaded.pad_id) == ((1, 2), 0)
    save(
        tmp_path / "out",
        loaded.graph,
        loaded.params,
        loaded.architecture,
        tokenizer,
        stop_tokens=loaded.stop_tokens,
    )
    again = load(tmp_path / "out")
    assert again.tokenizer("<user>ab ab 12<think>c<end>")["input_ids"] == expected
    assert (again.stop_tokens, again.tokenizer.get_vocab()) == ((1, 2), tokenizer.get_vocab())


@pytest.mark.parametrize(
    ("pre", "family"), [("llama-bpe", "llama"), ("qwen2", "qwen2"), ("gpt-2", "llama")]
)
def test_digits_are_cut_as_each_family_does(pre, family, architectures, random_model, write):
    architecture = architectures["qwen2" if family == "qwen2" else "llama"]
    _, params = random_model(architecture)
    tokenizer = load(write(architecture, params, family=family, pre=pre)).tokenizer
    twelve = [262] if pre != "qwen2" else [4 + ALPHABET.index(digit) for digit in "12"]
    begin = [2] if pre == "llama-bpe" else []  # Llama 3 opens every text with its first token
    assert tokenizer("12")["input_ids"] == begin + twelve
    assert (
        tokenizer.decode(tokenizer(string.printable)["input_ids"][len(begin) :]) == string.printable
    )


def test_llama3_scaling_is_recognised_by_its_factors(architectures, random_model, write):
    frequencies = 5e5 ** (-np.arange(0, 8, 2) / 8)
    # llama.cpp's own arithmetic, in wavelengths.
    wavelengths = 2 * np.pi / frequencies
    smooth = (8192 / wavelengths - 1) / 3
    ramp = 1 / ((1 - smooth) / 32 + smooth)
    factors = np.where(wavelengths < 8192 / 4, 1, np.where(wavelengths > 8192, 32, ramp)).astype(
        np.float32
    )
    _, params = random_model(architectures["llama3"])
    loaded = load(write(architectures["llama3"], params, rope=factors))
    assert loaded.architecture.rope_scaling == RopeScaling(32.0, 1.0, 4.0, 8192)
    with pytest.raises(ValueError, match="rope_freqs"):
        rope_scaling_from(factors * 1.01, 5e5, 8)


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"family": "gemma3"}, "general.architecture='gemma3'.*llama, qwen2, qwen3"),
        ({"extra": [lambda writer: writer.add_expert_count(8)]}, "llama with 8 experts"),
        ({"extra": [lambda writer: writer.add_sliding_window(16)]}, "sliding_window=16"),
        (
            {"extra": [lambda writer: writer.add_rope_scaling_type(gguf.RopeScalingType.YARN)]},
            "yarn",
        ),
        ({"model": "llama"}, "tokenizer 'llama'.*use the Hugging Face folder"),
        ({"pre": "tekken"}, "'tekken' is not supported"),
        (
            {"extra": [lambda writer: writer.add_float32("llama.logit_scale", 2.0)]},
            "llama.logit_scale=2.0 is not supported",
        ),
        ({"extra": [lambda writer: writer.add_value_length(16)]}, "attention.value_length=16"),
        ({"extra": [lambda writer: writer.add_uint16("split.count", 3)]}, "one of 3 parts"),
        (
            {"extra": [lambda writer: writer.add_eot_token_id(2**32 - 1)]},
            "tokenizer.ggml.eot_token_id=4294967295 holds 4294967295, no id",
        ),
        (
            {"extra": [lambda writer: writer.add_string("tokenizer.ggml.eom_token_id", "<end>")]},
            "tokenizer.ggml.eom_token_id='<end>'",
        ),
    ],
)
def test_what_is_not_computed_is_refused_by_name(
    settings, named, architectures, random_model, write
):
    path = write(architectures["llama"], random_model(architectures["llama"])[1], **settings)
    with pytest.raises(ValueError, match=named) as error:
        load(path)
    assert "\n" not in str(error.value)


def test_a_bias_that_the_family_does_not_have_is_named(architectures, random_model, write):
    path = write(architectures["qwen2"], random_model(architectures["qwen2"])[1], family="llama")
    with pytest.raises(ValueError, match=r"model\.layers\.0\.self_attn\.k_proj\.bias"):
        load(path)


@pytest.mark.parametrize("content", ["", "no", "version https://git-lfs.github.com/spec/v1\n"])
def test_a_file_that_is_not_gguf_is_refused(tmp_path, content):
    (tmp_path / "model.gguf").write_text(content)
    cure = "git lfs pull" if "lfs" in content else "fetch it again"
    with pytest.raises(ValueError, match=rf"model\.gguf.*{cure}") as error:
        load(tmp_path / "model.gguf")
    assert "\n" not in str(error.value)


def test_a_file_that_is_cut_says_how_much_there_is(architectures, random_model, write):
    path = write(architectures["llama"], random_model(architectures["llama"])[1])
    whole = path.read_bytes()
    data = 4 * sum(part.size for part in jax.tree.leaves(random_model(architectures["llama"])[1]))
    # The file ends with its last tensor, padded to 32 bytes.
    for size in (len(whole) - 33, len(whole) - data // 2, len(whole) - data):
        path.write_bytes(whole[:size])
        with pytest.raises(
            ValueError, match=rf"model\.gguf .*truncated: {size} bytes of (\d+)"
        ) as error:
            load(path)
        assert "\n" not in str(error.value)
        stated = int(re.search(r"bytes of (\d+)", str(error.value))[1])
        assert len(whole) - 32 < stated <= len(whole)
    for size in (3, 10, 30, 100, 1000, 5000):  # in the header, which says no length
        path.write_bytes(whole[:size])
        with pytest.raises(ValueError, match=f"truncated: its header .* {size} bytes") as error:
            load(path)
        assert "\n" not in str(error.value)


def test_a_type_that_is_not_decoded_is_named_before_weights_are_read(
    architectures, random_model, write, monkeypatch
):
    def refuse(data, kind):
        raise NotImplementedError(f"Dequantization for {kind.name} is not yet implemented")

    path = write(architectures["llama"], random_model(architectures["llama"])[1])
    monkeypatch.setattr(gguf, "dequantize", refuse)
    with pytest.raises(ValueError, match=r"model\.gguf: \w+.* is stored as F32, which"):
        open_model(path)
