"""The built-in task, a baby student and its stronger teacher: plain on-policy distillation, a few
minutes on two CPU cores.
"""

from jopd import losses
from jopd.config import Checkpointing, Config, Evaluation, Optimizer, RolloutConfig
from jopd.data.sources import DataConfig
from jopd.rollout.settings import Sampling


def config() -> Config:
    return Config(
        method=losses.get("opd"),
        data=DataConfig(source="builtin", held_out=200),
        rollout=RolloutConfig(max_prompt_tokens=256, max_new_tokens=128),
        optimizer=Optimizer(learning_rate=1e-3, warmup=0.1),
        evaluation=Evaluation(every=100, batch=100, sampling=Sampling(temperature=0.0)),
        checkpoint=Checkpointing(every=50),
        steps=300,
        prompts=32,
    )
