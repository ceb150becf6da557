"""The ordinary case of on-policy distillation, for an accelerator: Qwen3-0.6B learns grade-school
mathematics from Qwen3-8B.

Needs a network (or the models and the data set in the local cache) and `pip install 'jopd[hf]'`.
Both models are told not to think aloud.
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
        student=Student(model="Qwen/Qwen3-0.6B", compute=Compute(dtype="bfloat16")),
        teacher=Teacher(
            model="Qwen/Qwen3-8B",
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
        rollout=RolloutConfig(samples=4, max_prompt_tokens=512, max_new_tokens=1024),
        optimizer=Optimizer(learning_rate=1e-5, schedule="linear", b2=0.95),
        evaluation=Evaluation(every=50, batch=128),
        checkpoint=Checkpointing(every=50),
        mesh=MeshConfig(data=1, fsdp=-1),
        steps=200,
        prompts=64,
        micro_batches=4,
        chunk_tokens=1024,
    )
