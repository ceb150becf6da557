"""TOPD on the built-in task: OPD, near-future guidance by transport, its control, and the
down-weighting ablation.

    python experiments/grid.py experiments/topd.py --workers 2
    python experiments/topd_transport.py

One window a row, of 16 tokens, as a solution has about 40. The coefficient 0 is OPD, with windows
that are measured and not learnt from.
"""

from jopd import losses
from jopd.config import Checkpointing, Config, Evaluation, Optimizer, RolloutConfig
from jopd.data.sources import DataConfig
from jopd.rollout.settings import Sampling

SEEDS = (0, 1, 2)
CELLS = {
    "opd": ["--method.trajectory-coefficient", "0"],
    "topd": [],
    "the teacher's window (control)": ["--method.target", "teacher_window"],
    "low transport capped": [
        "--method.down-weight",
        "low_transport",
        "--method.trajectory-coefficient",
        "0",
    ],
    "high transport capped": [
        "--method.down-weight",
        "high_transport",
        "--method.trajectory-coefficient",
        "0",
    ],
}
BASELINE = "opd"
JUDGE = [
    *("--reference", "jopd:baby-teacher", "--task", "builtin", "--data.held-out", "400"),
    *("--sampling.temperature", "0", "--max-new-tokens", "128", "--batch", "200"),
]
COLUMNS = {
    "judge/accuracy": "accuracy",
    "judge/kl": "KL to the teacher",
    "judge/repetition_rate": "repeated 4-grams",
    "last/false_alarms": "false alarms",
    "first/transport_high": "transport at high loss, first steps",
    "last/transport_high": "last steps",
    "last/transport_low": "at low loss, last steps",
}


def config() -> Config:
    return Config(
        method=losses.get("topd", windows=1, window_tokens=16),
        data=DataConfig(source="builtin", held_out=64),
        rollout=RolloutConfig(max_prompt_tokens=96, max_new_tokens=128),
        optimizer=Optimizer(learning_rate=5e-4, warmup=0.1),
        evaluation=Evaluation(every=0, batch=64, sampling=Sampling(temperature=0.0)),
        checkpoint=Checkpointing(every=30, keep=1),
        steps=60,
        prompts=16,
        watch=0,
    )
