import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE
from transformers import PreTrainedTokenizerFast

from jopd import models
from jopd.models import Architecture, Compute, LoRA, RopeScaling, Transformer

TEMPLATE = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}<end>{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
SPECIAL = ["<end>", "<user>", "<assistant>"]
SIZES = {"width": 32, "layers": 3, "heads": 4, "kv_heads": 2, "head_dim": 8, "mlp_width": 48}
PLAIN = Architecture(vocabulary_size=264, **SIZES)

ARCHITECTURES = {
    "llama": dataclasses.replace(PLAIN, tied_head=False),
    # The scaling's whole ramp lies inside the four frequencies of a head.
    "llama3": dataclasses.replace(
        PLAIN, rope_theta=5e5, rope_scaling=RopeScaling(8.0, 1.0, 4.0, 32)
    ),
    "qwen2": dataclasses.replace(PLAIN, qkv_bias=True, rope_theta=1e6),
    "qwen2 untied": dataclasses.replace(PLAIN, qkv_bias=True, tied_head=False),
    "qwen3": dataclasses.replace(PLAIN, qk_norm=True, head_dim=16, tied_head=False),
}


@pytest.fixture(scope="session", params=ARCHITECTURES)
def family(request):
    """One name a kind of checkpoint; whoever asks for it runs once for each."""
    return request.param


@pytest.fixture(scope="session")
def architectures():
    return ARCHITECTURES


@pytest.fixture(scope="session")
def tokenizer():
    """Bytes, and three special tokens: 259 ids, so that the models' vocabulary of 264 is padded."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(BPE({token: i for i, token in enumerate(alphabet)}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(SPECIAL)
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token="<end>", chat_template=TEMPLATE
    )


@pytest.fixture(scope="session")
def random_model():
    """`make(architecture, lora, compute) -> (graph, params)`, every parameter random, norms and
    biases included.
    """

    def make(architecture: Architecture, lora: LoRA = LoRA(), compute: Compute = Compute()):
        graph, params = models.split(
            Transformer(architecture, compute, lora=lora, rngs=nnx.Rngs(0))
        )
        generator = np.random.default_rng(0)

        def draw(path, leaf):
            noise = generator.normal(size=leaf.shape).astype(np.float32)
            return jnp.asarray(noise / np.sqrt(32) if path[-1].key != "weight" else 1 + noise / 4)

        return graph, jax.tree_util.tree_map_with_path(draw, params)

    return make


@pytest.fixture(scope="session")
def batch():
    """Tokens and valid `[3, 12]`: a full row, one padded on the left and one on the right."""
    valid = np.ones((3, 12), bool)
    valid[1, :5] = valid[2, 8:] = False
    return np.random.default_rng(1).integers(0, 259, (3, 12)).astype(np.int32), valid


@pytest.fixture(scope="session")
def logits_of():
    """`run(graph, params, tokens, valid) -> [B, S, V]`, in full float32."""

    def run(graph, params, tokens, valid):
        @jax.jit
        def forward(params):
            model = models.merge(graph, params)
            return model.logits(model.hidden(jnp.asarray(tokens), jnp.asarray(valid)))

        with jax.default_matmul_precision("highest"):
            return np.asarray(forward(params))

    return run


@pytest.fixture(scope="session")
def torch_logits_of():
    """`run(model, tokens, valid) -> [B, S, V]` of a transformers model."""
    torch = pytest.importorskip(
        "torch", reason="parity with transformers needs torch: pip install 'jopd[parity]'"
    )

    def run(model, tokens, valid):
        positions = np.maximum(np.cumsum(valid, axis=1) - 1, 0)
        with torch.no_grad():
            inputs = (
                torch.tensor(np.asarray(x), dtype=torch.long) for x in (tokens, valid, positions)
            )
            names = ("input_ids", "attention_mask", "position_ids")
            return model.eval()(**dict(zip(names, inputs, strict=True))).logits.float().numpy()

    return run
