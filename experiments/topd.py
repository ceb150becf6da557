"""TOPD on the built-in task: OPD, near-future guidance by transport, its control, and the down-weighting ablation.

    python experiments/grid.py experiments/topd.py

Windows of 16 tokens, as a solution has about 40. Each run's `plots/transport_against_loss.png` and the metrics `false_alarms`,
`transport_high` and `transport_low` of its `metrics.jsonl` say how many high-loss tokens lead nowhere else.
"""

from jopd import losses
from jopd.config import Checkpointing, Config, Evaluation, Optimizer, RolloutConfig
from jopd.data.sources import DataConfig
from jopd.rollout.sampler import Sampling

SEEDS = (0, 1, 2)
CELLS = {
    "opd": ["--method", "opd"],
    "topd": [],
    "topd, coefficient 0.3": ["--method.trajectory-coefficient", "0.3"],
    "the teacher's window (control)": ["--method.target", "teacher_window"],
    "low transport capped": ["--method.down-weight", "low_transport", "--method.trajectory-coefficient", "0"],
    "high transport capped": ["--method.down-weight", "high_transport", "--method.trajectory-coefficient", "0"],
}
JUDGE = [
    *("--reference", "jopd:baby-teacher", "--task", "builtin", "--data.held-out", "400"),
    *("--sampling.temperature", "0", "--max-new-tokens", "128", "--batch", "200"),
]
COLUMNS = {
    "judge/accuracy": "accuracy",
    "judge/kl": "KL to the teacher",
    "last/false_alarms": "false alarms",
    "first/transport_high": "transport where the loss is high, first steps",
    "last/transport_high": "last steps",
    "last/transport_low": "where it is low, last steps",
    "step_seconds": "seconds a step",
}


def config() -> Config:
    return Config(
        method=losses.get("topd", window_tokens=16),
        data=DataConfig(source="builtin", held_out=400),
        rollout=RolloutConfig(max_prompt_tokens=96, max_new_tokens=128),
        optimizer=Optimizer(learning_rate=1e-3, warmup=0.1),
        evaluation=Evaluation(every=50, batch=200, sampling=Sampling(temperature=0.0)),
        checkpoint=Checkpointing(every=75, keep=1),
        steps=150,
        prompts=32,
    )
