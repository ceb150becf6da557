"""Qwen3-8B learns mathematics from Qwen3-32B on a v5p-64 slice, 32 chips: answers of up to 3,072
tokens.

`python -m jopd.plan qwen3-8b-from-32b-v5p-64 --topology v5p:2x4x4` says how it fits. Needs a
network (or the models and the data set in the local cache) and `pip install 'jopd[hf]'`.
"""

from jopd import losses
from jopd.config import (
    Checkpointing,
    Config,
    Evaluation,
    MeshConfig,
    Optimizer,
    RolloutConfig,
    Student,
    Teacher,
)
from jopd.data.sources import Columns, DataConfig
from jopd.data.views import ViewConfig
from jopd.models import Compute


def config() -> Config:
    return Config(
        method=losses.get("opd"),
        student=Student(model="Qwen/Qwen3-8B", compute=Compute(dtype="bfloat16")),
        teacher=Teacher(
            model="Qwen/Qwen3-32B",
            dtype="bfloat16",
            compute=Compute(dtype="bfloat16", remat="none"),
        ),
        data=DataConfig(
            source="hf:openai/gsm8k:main",
            columns=Columns(prompt="question", solution="answer", answer="answer"),
            answer_check="number",
            held_out=256,
        ),
        view=ViewConfig(thinking=False),
        rollout=RolloutConfig(samples=4, max_prompt_tokens=1024, max_new_tokens=3072),
        optimizer=Optimizer(learning_rate=2e-6, schedule="linear", b2=0.95),
        evaluation=Evaluation(every=50, batch=256),
        checkpoint=Checkpointing(every=25, keep=2),
        # Eight key heads divide by four, and a layer is gathered over eight chips, not all.
        mesh=MeshConfig(data=1, fsdp=8, tensor=4),
        steps=200,
        prompts=32,
        micro_batches=4,
        chunk_tokens=1024,
    )
